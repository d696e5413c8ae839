import contextlib
import gc
import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store.making import objects

from edgepacs.errors import Busy, EdgePacsError, NoRoom, NotFound, Tampered, WrongKey
from edgepacs.model import UID, ObjectId
from edgepacs.store import Store, seal
from edgepacs.store.keystore import Keystore, new_key
from edgepacs.store.seal import Algorithm
from edgepacs.store.vault import ObjectReader, Vault

CHUNK = 1 << 17
SOP, STUDY = UID("1.2.3.4"), UID("1.2.3.1")
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 17)
BOTH = pytest.mark.parametrize("algorithm", list(Algorithm), ids=lambda one: one.name)


@pytest.fixture(params=list(Algorithm), ids=lambda one: one.name)
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Algorithm:
    """What new objects are sealed with, whatever this CPU is faster at."""
    monkeypatch.setattr(seal, "fastest_algorithm", lambda: request.param)
    return request.param


def pattern(size: int) -> bytes:
    """Bytes that differ from chunk to chunk."""
    return b"".join(struct.pack(">I", i) for i in range(-(-size // 4)))[:size]


def put(store: Store, data: bytes, sop: UID = SOP, steps: tuple[int, ...] = ()) -> ObjectId:
    writer = store.vault.new(sop)
    for step in steps:
        writer.write(data[:step])
        data = data[step:]
    writer.write(data)
    key_id, key = store.keystore.ensure_study_key(STUDY)
    size = writer.finish(key_id, key, {"sop_instance_uid": sop, "note": "trailer"})
    assert size == store.vault.size(writer.object_id)
    return writer.object_id


def read_all(store: Store, object_id: ObjectId, sop: UID | None = SOP) -> bytes:
    """Every byte, chunks and trailer, as fsck reads them."""
    with store.vault.open(object_id, sop) as reader:
        data = b"".join(reader.chunks())
        assert reader.trailer()["sop_instance_uid"] == (sop or SOP)
    return data


def path_of(store: Store, object_id: ObjectId) -> Path:
    name = object_id.hex()
    return store.paths.objects / name[:2] / name


def refused(store: Store, object_id: ObjectId, sop: UID | None = SOP) -> None:
    with pytest.raises((Tampered, WrongKey)):
        read_all(store, object_id, sop)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_sealed_comes_back(store: Store, algorithm: Algorithm, size: int) -> None:
    data = pattern(size)
    object_id = put(store, data)
    raw = path_of(store, object_id).read_bytes()
    assert raw[5] == algorithm
    assert read_all(store, object_id) == data
    assert read_all(store, object_id, None) == data  # named by its own trailer
    with store.vault.open(object_id, SOP) as reader:
        assert reader.length == size
    if size > 1000:
        assert data[:64] not in raw
        assert data[500:564] not in raw


def test_nothing_of_it_is_readable_on_the_disk(store: Store) -> None:
    put(store, b"MARKER-OF-THIS-TEST" * 1000, UID("1.2.3.999999"))
    raw = objects(store)[0].read_bytes()
    for plain in (b"MARKER", b"1.2.3.999999", b"trailer"):
        assert plain not in raw


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.one_of(st.sampled_from(SIZES), st.integers(0, 4 * CHUNK)),
    steps=st.lists(st.integers(0, 2 * CHUNK), max_size=8),
    spots=st.lists(st.tuples(st.integers(0, 4 * CHUNK), st.integers(0, 70_000)), max_size=8),
)
def test_any_way_of_writing_and_reading(
    store: Store, size: int, steps: list[int], spots: list[tuple[int, int]]
) -> None:
    data = pattern(size)
    object_id = put(store, data, steps=tuple(steps))
    assert read_all(store, object_id) == data
    with store.vault.open(object_id, SOP) as reader:
        for start, length in spots:
            reader.seek(start)
            assert _exactly(reader, length) == data[start : start + length]
        assert reader.seek(0, os.SEEK_END) == size
        assert reader.read(1) == b""
        assert reader.seek(-min(size, 5), os.SEEK_END) == size - min(size, 5)
        assert _exactly(reader, 5) == data[size - min(size, 5) :]


def _exactly(reader: ObjectReader, length: int) -> bytes:
    """`length` bytes or up to the end; one read ends at the edge of a chunk."""
    got = b""
    while len(got) < length and (more := reader.read(length - len(got))):
        got += more
    return got


def test_every_flipped_bit_of_a_small_object_is_detected(
    store: Store, algorithm: Algorithm
) -> None:
    object_id = put(store, b"forty-two bytes that must not ever change.")
    path = path_of(store, object_id)
    whole = path.read_bytes()
    assert read_all(store, object_id)
    for place in range(len(whole)):
        for bit in range(8) if place < 8 else (place % 8,):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            refused(store, object_id)
            refused(store, object_id, None)
    path.write_bytes(whole)
    assert read_all(store, object_id)


def test_reordered_chunks_are_detected(store: Store, algorithm: Algorithm) -> None:
    object_id = put(store, pattern(4 * CHUNK + 99))
    path = path_of(store, object_id)
    whole = path.read_bytes()
    body = whole[seal.HEADER_LENGTH :]
    step = CHUNK + seal.TAG_LENGTH
    chunks = [body[i * step : (i + 1) * step] for i in range(4)]
    rest = body[4 * step :]
    for order in ((1, 0, 2, 3), (0, 1, 3, 2), (0, 0, 2, 3), (3, 1, 2, 0)):
        path.write_bytes(whole[: seal.HEADER_LENGTH] + b"".join(chunks[i] for i in order) + rest)
        refused(store, object_id)


def test_truncation_anywhere_is_detected(store: Store, algorithm: Algorithm) -> None:
    object_id = put(store, pattern(3 * CHUNK + 5))
    path = path_of(store, object_id)
    whole = path.read_bytes()
    step = CHUNK + seal.TAG_LENGTH
    edges = [seal.HEADER_LENGTH + i * step for i in range(4)]
    places = {*edges, *(e + 1 for e in edges), *(e - 1 for e in edges)}
    places |= {0, 1, 24, 100, 127, len(whole) - 1, len(whole) - 8, len(whole) - 9}
    footer = whole[-seal.FOOTER_LENGTH :]
    (trailer_length,) = struct.unpack(">I", footer[:4])
    ending = whole[-seal.FOOTER_LENGTH - trailer_length :]
    for place in sorted(places):
        for tail in (b"", footer, ending):
            path.write_bytes(whole[:place] + tail)
            if whole[:place] + tail == whole:
                continue
            refused(store, object_id)
            refused(store, object_id, None)


def test_an_extended_object_is_detected(store: Store, algorithm: Algorithm) -> None:
    object_id = put(store, pattern(CHUNK + 5))
    path = path_of(store, object_id)
    whole = path.read_bytes()
    footer = whole[-seal.FOOTER_LENGTH :]
    (length,) = struct.unpack(">I", footer[:4])
    longer = struct.pack(">I4s", length + 4, seal.FOOTER_MAGIC)
    for tail in (b"\0", b"\0" * 16, footer, b"\0" * CHUNK + footer, b"abcd" + longer):
        path.write_bytes(whole + tail)
        refused(store, object_id)
    path.write_bytes(whole[: -seal.FOOTER_LENGTH] + b"abcd" + longer)
    refused(store, object_id)


def test_an_altered_footer_is_detected(store: Store, algorithm: Algorithm) -> None:
    object_id = put(store, pattern(700))
    path = path_of(store, object_id)
    whole = path.read_bytes()
    (length,) = struct.unpack(">I", whole[-8:-4])
    for other in (
        0,
        1,
        15,
        16,
        length - 1,
        length + 1,
        length + 16,
        1 << 20,
        (1 << 20) + 1,
        2**32 - 1,
    ):
        path.write_bytes(whole[:-8] + struct.pack(">I", other) + whole[-4:])
        refused(store, object_id)
    path.write_bytes(whole[:-4] + b"EPEM")
    refused(store, object_id)


def test_two_objects_exchanged_are_detected(store: Store, algorithm: Algorithm) -> None:
    one, two = put(store, b"one", UID("1.2.1")), put(store, b"two", UID("1.2.2"))
    a, b = path_of(store, one), path_of(store, two)
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    refused(store, one, UID("1.2.1"))
    refused(store, two, UID("1.2.2"))
    refused(store, one, None)
    # ... also where somebody writes the expected object id into the header
    a.write_bytes(second[:8] + one + second[24:])
    refused(store, one, UID("1.2.2"))
    refused(store, one, None)


def test_an_old_version_put_back_is_detected(store: Store, algorithm: Algorithm) -> None:
    old, new = put(store, b"old content"), put(store, b"new content")
    stale = path_of(store, old).read_bytes()
    path_of(store, new).write_bytes(stale)
    refused(store, new)
    path_of(store, new).write_bytes(stale[:8] + new + stale[24:])
    refused(store, new)


def test_an_object_opened_as_another_instance_is_refused(
    store: Store, algorithm: Algorithm
) -> None:
    object_id = put(store, b"somebody")
    with store.vault.open(object_id, UID("1.2.3.5")) as reader, pytest.raises(Tampered):
        reader.read(1)


def test_algorithm_and_chunk_size_cannot_be_changed(store: Store, algorithm: Algorithm) -> None:
    object_id = put(store, pattern(CHUNK + 40))
    path = path_of(store, object_id)
    whole = path.read_bytes()
    other = next(one for one in Algorithm if one is not algorithm)
    changes = [(5, other), (5, 0), (5, 3), (4, 0), (4, 2), (7, 1), (0, 0)]
    changes += [(6, log2) for log2 in (0, 11, 12, 16, 18, 24, 25, 63, 255)]
    for place, value in changes:
        path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
        refused(store, object_id)


def test_a_key_of_another_study_does_not_open_it(store: Store, algorithm: Algorithm) -> None:
    object_id = put(store, b"content")
    path = path_of(store, object_id)
    whole = path.read_bytes()
    other, _ = store.keystore.ensure_study_key(UID("1.2.3.77"))
    path.write_bytes(whole[:24] + other + whole[40:])
    with pytest.raises(Tampered):
        read_all(store, object_id)
    path.write_bytes(whole[:24] + os.urandom(16) + whole[40:])
    with pytest.raises(WrongKey):
        read_all(store, object_id)


def test_objects_of_another_node_do_not_open(store: Store, tmp_path: Path) -> None:
    object_id = put(store, b"content")
    Keystore.create(tmp_path / "keystore", new_key(), new_key())
    device = new_key()
    Keystore.create(tmp_path / "other", device, new_key())
    stranger = Vault(store.paths.objects, Keystore.open(tmp_path / "other", device), 0)
    with pytest.raises(WrongKey):
        stranger.open(object_id, SOP)


def test_a_missing_object_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        store.vault.open(ObjectId(bytes(16)), SOP)
    assert not store.vault.exists(ObjectId(bytes(16)))


def test_a_refused_object_closes_its_descriptor_once(store: Store) -> None:
    """A number closed twice may by then be another thread's file."""
    object_id = put(store, b"content")
    path = path_of(store, object_id)
    path.write_bytes(path.read_bytes()[:-1])
    before = len(list(Path("/proc/self/fd").iterdir()))
    try:
        store.vault.open(object_id, SOP)
    except Tampered as error:
        kept = error  # keeps the half-made reader alive
        innocent = os.open(path, os.O_RDONLY)
        del error, kept
        gc.collect()
        os.fstat(innocent)
        os.close(innocent)
    else:
        pytest.fail("opened")
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_finished_or_discarded_writer_closes_its_descriptor_once(store: Store) -> None:
    writer = store.vault.new(SOP)
    writer.write(b"x")
    writer.discard()
    innocent = os.open("/dev/null", os.O_RDONLY)
    writer.discard()
    os.fstat(innocent)
    os.close(innocent)
    assert objects(store) == []


def test_a_discarded_object_leaves_nothing(store: Store) -> None:
    writer = store.vault.new(SOP)
    writer.write(pattern(3 * CHUNK))
    assert len(objects(store)) == 1
    writer.discard()
    assert objects(store) == []


def test_below_the_reserve_nothing_begins(store: Store) -> None:
    free = store.vault.free_bytes()
    tight = Vault(store.paths.objects, store.keystore, free + (1 << 30))
    with pytest.raises(NoRoom, match="reserve"):
        tight.new(SOP)
    assert objects(store) == []


def test_blanks_are_used_up_and_the_rest_removed(store: Store) -> None:
    stop = threading.Event()
    keeper = threading.Thread(target=store.vault.keep_blanks, args=(stop,))
    keeper.start()
    try:
        made = {put(store, pattern(n), UID(f"1.2.{n}")): n for n in range(60)}
    finally:
        stop.set()
        keeper.join(10)
    assert not keeper.is_alive()
    assert {path.name for path in objects(store)} == {one.hex() for one in made}
    for object_id, n in made.items():
        assert read_all(store, object_id, UID(f"1.2.{n}")) == pattern(n)


def test_writers_share_and_a_sweep_keeps_out(store: Store) -> None:
    with store.vault.writing(), store.vault.writing(), pytest.raises(Busy), store.vault.alone():
        pass
    with store.vault.alone():
        pass
    with store.vault.writing():
        pass


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    done = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=4096", "tmpfs", folder], check=False
    )
    if done.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["/bin/umount", "-l", folder], check=True)


def test_a_full_disk_is_no_room_and_leaves_nothing(store: Store, tiny_disk: Path) -> None:
    Vault.create(tiny_disk / "objects")
    vault = Vault(tiny_disk / "objects", store.keystore, 0)

    def left() -> list[Path]:
        return [p for p in (tiny_disk / "objects").glob("??/*") if p.is_file()]

    writer = vault.new(SOP)
    with pytest.raises(NoRoom):
        writer.write(pattern(64 * CHUNK))
    writer.discard()
    assert left() == []
    # ... and where only the last bytes do not fit
    filler = tiny_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    writer = vault.new(SOP)
    writer.write(b"some")
    key_id, key = store.keystore.ensure_study_key(STUDY)
    with pytest.raises(NoRoom):
        writer.finish(key_id, key, {"sop_instance_uid": SOP})
    writer.discard()
    assert left() == []
    filler.unlink()
    writer = vault.new(SOP)
    writer.write(b"some")
    writer.finish(key_id, key, {"sop_instance_uid": SOP})
    assert len(left()) == 1


def test_errors_say_nothing_of_the_patient(store: Store) -> None:
    sop = UID("1.2.3.123456789")
    object_id = put(store, b"content", sop)
    path = path_of(store, object_id)
    whole = path.read_bytes()
    for place in (0, 30, 130, len(whole) - 2):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(EdgePacsError) as caught:
            read_all(store, object_id, sop)
        assert "123456789" not in str(caught.value)
