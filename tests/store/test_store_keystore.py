import hashlib
import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store.making import node_in

from edgepacs import config as configuration
from edgepacs.errors import ConfigurationError, InvalidValue, Tampered, WrongKey
from edgepacs.model import UID
from edgepacs.store import keystore as module
from edgepacs.store.keystore import Keystore, new_key, recovery_key, recovery_text

STUDY = UID("1.2.840.99999.4711")
RECORD = 16 + 12 + 48


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, bytes, bytes]:
    device, recovery = new_key(), new_key()
    Keystore.create(tmp_path / "keystore", device, recovery)
    return tmp_path / "keystore", device, recovery


def test_both_outer_keys_open_the_same_store(keys: tuple[Path, bytes, bytes]) -> None:
    path, device, recovery = keys
    name, key = Keystore.open(path, device).ensure_study_key(STUDY)
    again = Keystore.open(path, recovery)
    assert again.key(name) == key
    assert again.index_key() == Keystore.open(path, device).index_key()
    assert len(key) == 32


def test_another_key_is_refused(keys: tuple[Path, bytes, bytes]) -> None:
    path, device, _ = keys
    for wrong in (new_key(), bytes(32), device[:-1] + bytes([device[-1] ^ 1])):
        with pytest.raises(WrongKey, match="keystore"):
            Keystore.open(path, wrong)


def test_every_study_has_its_own_key_once(keys: tuple[Path, bytes, bytes]) -> None:
    path, device, _ = keys
    store = Keystore.open(path, device)
    first = store.ensure_study_key(STUDY)
    size = path.stat().st_size
    assert store.ensure_study_key(STUDY) == first
    assert path.stat().st_size == size
    other = store.ensure_study_key(UID("1.2.3"))
    assert other[0] != first[0]
    assert other[1] != first[1]
    assert path.stat().st_size == size + RECORD


def test_a_torn_record_at_the_end_is_ignored_and_written_over(
    keys: tuple[Path, bytes, bytes],
) -> None:
    path, device, _ = keys
    store = Keystore.open(path, device)
    first = store.ensure_study_key(STUDY)
    whole = path.read_bytes()
    torn_name, _ = store.ensure_study_key(UID("1.2.3"))
    for left in (1, RECORD // 2, RECORD - 1):
        path.write_bytes(path.read_bytes()[: len(whole) + left])
        opened = Keystore.open(path, device)
        assert opened.key(first[0]) == first[1]
        with pytest.raises(WrongKey):
            opened.key(torn_name)
    made = Keystore.open(path, device).ensure_study_key(UID("1.2.4"))
    assert path.stat().st_size == len(whole) + RECORD
    again = Keystore.open(path, device)
    assert again.key(first[0]) == first[1]
    assert again.key(made[0]) == made[1]


def test_every_flipped_byte_of_a_record_or_slot_is_detected(
    keys: tuple[Path, bytes, bytes],
) -> None:
    path, device, recovery = keys
    store = Keystore.open(path, device)
    store.ensure_study_key(STUDY)
    store.ensure_study_key(UID("1.2.3"))
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        failures = 0
        for outer in (device, recovery):
            try:
                Keystore.open(path, outer)
            except (Tampered, WrongKey):
                failures += 1
        if place in (len(whole) - RECORD, len(whole) - 1) and not damaged[place]:
            continue  # the last record ends in a zero: it looks as a power cut leaves it
        # A damaged slot costs its own outer key, anything else both.
        assert failures, f"byte {place} changed and nobody noticed"


def test_records_exchanged_between_names_are_detected(keys: tuple[Path, bytes, bytes]) -> None:
    path, device, _ = keys
    store = Keystore.open(path, device)
    store.ensure_study_key(STUDY)
    store.ensure_study_key(UID("1.2.3"))
    raw = path.read_bytes()
    one, two = raw[-2 * RECORD : -RECORD], raw[-RECORD:]
    path.write_bytes(raw[: -2 * RECORD] + one[:16] + two[16:] + two[:16] + one[16:])
    with pytest.raises(Tampered):
        Keystore.open(path, device)


def _append(path: Path, device: bytes, mine: int, queue: "multiprocessing.Queue[str]") -> None:
    store = Keystore.open(path, device)
    found = {}
    for number in range(30):
        for study in (f"1.2.{number}", f"1.9.{mine}.{number}"):
            name, key = store.ensure_study_key(UID(study))
            found[study] = [name.hex(), key.hex()]
    queue.put(json.dumps(found))


def test_processes_that_append_at_the_same_time_agree(keys: tuple[Path, bytes, bytes]) -> None:
    path, device, _ = keys
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[str] = context.Queue()
    workers = [context.Process(target=_append, args=(path, device, i, queue)) for i in range(3)]
    for worker in workers:
        worker.start()
    answers = [json.loads(queue.get(timeout=30)) for _ in workers]
    for worker in workers:
        worker.join(10)
    store = Keystore.open(path, device)
    assert path.stat().st_size == module._HEADER + RECORD * (30 + 3 * 30)
    for answer in answers:
        for study, (name, key) in answer.items():
            assert store.study_key_id(UID(study)).hex() == name
            assert store.key(bytes.fromhex(name)).hex() == key


def test_an_open_store_sees_what_another_has_appended(keys: tuple[Path, bytes, bytes]) -> None:
    path, device, _ = keys
    early = Keystore.open(path, device)
    name, key = Keystore.open(path, device).ensure_study_key(STUDY)
    assert early.key(name) == key
    assert early.ensure_study_key(STUDY) == (name, key)


def test_study_names_tell_nothing_without_the_key(keys: tuple[Path, bytes, bytes]) -> None:
    path, device, _ = keys
    name, _ = Keystore.open(path, device).ensure_study_key(STUDY)
    raw = path.read_bytes()
    assert STUDY.encode() not in raw
    plain = STUDY.encode()
    guesses = {hashlib.new(kind, plain).digest()[:16] for kind in ("md5", "sha1", "sha256")}
    assert name not in guesses
    other = path.with_name("other")
    Keystore.create(other, device, new_key())
    assert Keystore.open(other, device).study_key_id(STUDY) != name


@given(st.binary(min_size=32, max_size=32))
def test_a_recovery_key_survives_being_printed(key: bytes) -> None:
    text = recovery_text(key)
    assert recovery_key(text) == key
    assert recovery_key("  " + text.lower().replace("-", " ") + "\n") == key
    assert all(len(group) <= 4 for group in text.split("-"))


@settings(max_examples=60)
@given(st.binary(min_size=32, max_size=32), st.data())
def test_a_mistyped_recovery_key_is_noticed(key: bytes, data: st.DataObject) -> None:
    plain = recovery_text(key).replace("-", "")
    place = data.draw(st.integers(0, len(plain) - 1))
    letter = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
    typed = plain[:place] + letter + plain[place + 1 :]
    try:
        assert recovery_key(typed) == key  # two bytes of checksum let 1 of 65,536 pass
    except InvalidValue:
        assert typed != plain


@pytest.mark.parametrize("text", ["", "AAAA", "0189", "é" * 55, "A" * 500, "=" * 8])
def test_what_is_no_recovery_key_is_said_to_be_none(text: str) -> None:
    with pytest.raises(InvalidValue, match="recovery key"):
        recovery_key(text)


@pytest.mark.parametrize("content", [b"", b"EPKS", b"\0" * 4096])
def test_a_file_that_is_no_keystore_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keystore").write_bytes(content)
    with pytest.raises(Tampered, match="keystore"):
        Keystore.open(tmp_path / "keystore", new_key())


def test_a_missing_keystore_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"keystore.*backup"):
        Keystore.open(tmp_path / "keystore", new_key())


def test_a_device_key_that_is_missing_or_no_key_is_named(tmp_path: Path) -> None:
    config = node_in(tmp_path / "node")
    assert len(module.device_key(config)) == 32
    config.device_key_file.write_bytes(b"short")
    with pytest.raises(ConfigurationError, match=r"\[keys\].*device.key.*32 bytes"):
        module.device_key(config)
    config.device_key_file.unlink()
    with pytest.raises(ConfigurationError, match=r"\[keys\].*device.key"):
        module.device_key(config)


def test_a_credential_is_read_from_where_systemd_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node_in(tmp_path / "node")
    path = tmp_path / "node" / "edgepacs.toml"
    path.write_text(path.read_text().replace('source = "file" ', 'source = "credential" '))
    config = configuration.load(path)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigurationError, match="LoadCredential=edgepacs-device-key"):
        module.device_key(config)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(ConfigurationError, match="edgepacs-device-key"):
        module.device_key(config)
    (tmp_path / "edgepacs-device-key").write_bytes(b"k" * 32)
    assert module.device_key(config) == b"k" * 32
