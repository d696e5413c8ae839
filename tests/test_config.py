import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepacs import config
from edgepacs.config import KeySource
from edgepacs.errors import ConfigurationError, InvalidValue


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "edgepacs.toml"


def test_an_empty_file_has_the_documented_defaults(path: Path) -> None:
    path.write_text("")
    loaded = config.load(path)
    assert (loaded.node.ae_title, loaded.dicom.port, loaded.dicom.tls_port) == (
        "EDGEPACS",
        11112,
        0,
    )
    assert (loaded.dicom.host, loaded.web.host, loaded.web.port) == ("0.0.0.0", "127.0.0.1", 8080)
    assert (loaded.hl7.port, loaded.keys.source) == (0, KeySource.FILE)
    assert loaded.data_dir == path.parent / "data"
    assert loaded.device_key_file == path.parent / "keys" / "device.key"


def test_what_init_writes_is_what_load_reads(path: Path) -> None:
    path.write_text(config.render(title=' A"B ', dicom_port=104, http_port=0))
    loaded = config.load(path)
    assert (loaded.node.ae_title, loaded.dicom.port, loaded.web.port) == ('A"B', 104, 0)


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 1), (4, 1), (5, 2), (64, 2)])
@pytest.mark.parametrize("text", ["", '[compression]\nworkers = "auto"\n'])
def test_workers_follow_the_machine(
    path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, text: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)))
    path.write_text(text)
    assert config.load(path).compression.workers == workers


@pytest.mark.parametrize("workers", [0, 1, 7])
def test_workers_can_be_said(path: Path, workers: int) -> None:
    path.write_text(f"[compression]\nworkers = {workers}\n")
    assert config.load(path).compression.workers == workers


def test_relative_paths_are_relative_to_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text('[node]\ndata_dir = "data"\n[keys]\nfile = "/run/key"\n')
    monkeypatch.chdir(path.parent)
    loaded = config.load(Path("edgepacs.toml"))
    assert loaded.data_dir == path.parent / "data"
    assert loaded.device_key_file == Path("/run/key")


def test_aliases_are_ae_titles(path: Path) -> None:
    path.write_text('[node]\naliases = ["OLD", " OLDER "]\n')
    assert config.load(path).node.aliases == ["OLD", "OLDER"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[nod]\n", r"\[nod\]: unknown section"),
        ("node = 1\n", "node: must be a section"),
        ("top = 'x'\n", r"\[top\]: unknown section"),
        ("[node]\nae_titel = 'X'\n", r"\[node\] ae_titel: unknown key; known are ae_title"),
        ("[compression]\nworkers = 'all'\n", r"\[compression\] workers: must be a whole number"),
        ("[compression]\nworkers = 65\n", r"\[compression\] workers: 65 is not between 0 and 64"),
        ("[node]\nae_title = 5\n", r"\[node\] ae_title: must be text"),
        ("[node]\nae_title = 'SEVENTEEN_LETTERS'\n", r"\[node\] ae_title: .*16"),
        ("[node]\nae_title = ''\n", r"\[node\] ae_title: "),
        ("[node]\naliases = 'OTHER'\n", r"\[node\] aliases: must be a list"),
        ("[node]\naliases = [5]\n", r"\[node\] aliases: must be text"),
        ("[node]\naliases = ['']\n", r"\[node\] aliases: "),
        ("[node]\ndata_dir = 'nowhere'\n", r"\[node\] data_dir: .*nowhere is not a directory"),
        ("[node]\ndata_dir = 5\n", r"\[node\] data_dir: must be a path"),
        ("[node]\nreserve_mib = -1\n", r"\[node\] reserve_mib: -1"),
        ("[dicom]\nport = 70000\n", r"\[dicom\] port: 70000 is not a port"),
        ("[dicom]\nport = -1\n", r"\[dicom\] port: -1"),
        ("[dicom]\nport = '11112'\n", r"\[dicom\] port: must be a whole number"),
        ("[dicom]\nport = 104.0\n", r"\[dicom\] port: must be a whole number"),
        ("[dicom]\nport = true\n", r"\[dicom\] port: must be a whole number"),
        ("[dicom]\ntls_port = 65536\n", r"\[dicom\] tls_port: 65536"),
        ("[dicom]\nmax_associations = 0\n", r"\[dicom\] max_associations: 0"),
        ("[dicom]\nmax_object_mib = 0\n", r"\[dicom\] max_object_mib: 0"),
        ("[web]\nhost = '0.0.0.0'\n", r"\[web\] host: must be a loopback"),
        ("[web]\nhost = '192.0.2.1'\n", r"\[web\] host: must be a loopback"),
        ("[web]\nhost = 'example.org'\n", r"\[web\] host: must be a loopback"),
        ("[web]\nport = 65536\n", r"\[web\] port: 65536"),
        ("[web]\nmax_upload_mib = 0\n", r"\[web\] max_upload_mib"),
        ("[hl7]\nport = -5\n", r"\[hl7\] port: -5"),
        ("[keys]\nsource = 'usb'\n", r"\[keys\] source: must be one of file, credential"),
        ("[keys]\nsource = 5\n", r"\[keys\] source: must be one of"),
        ("[node\n", "not TOML"),
        ("[node]\nae_title = 'A'\nae_title = 'B'\n", "not TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(path: Path, text: str, words: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=words) as caught:
        config.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_addresses_are_let_pass(path: Path, host: str) -> None:
    path.write_text(f'[web]\nhost = "{host}"\n')
    assert config.load(path).web.host == host


def test_a_file_that_is_none_is_named(path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"edgepacs\.toml: no such configuration"):
        config.load(path)
    path.mkdir()
    with pytest.raises(ConfigurationError, match=r"edgepacs\.toml: cannot be read"):
        config.load(path)
    path.rmdir()
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match=r"edgepacs\.toml: cannot be read"):
        config.load(path)


_values = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**40), 2**40), st.text("abcXY. -", max_size=20)),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    section=st.sampled_from(["node", "dicom", "web", "hl7", "keys"]),
    key=st.sampled_from(
        ["ae_title", "aliases", "data_dir", "host", "port", "tls_port", "source", "file", "other"]
    ),
    value=_values,
)
def test_any_value_is_taken_or_named(path: Path, section: str, key: str, value: object) -> None:
    path.write_text(f"[{section}]\n{key} = {_toml(value)}\n")
    problem = f"[{section}] {key}"
    try:
        config.load(path)
    except ConfigurationError as error:
        problem = str(error)
    assert f"[{section}] {key}" in problem


@pytest.mark.parametrize(
    "wrong",
    [
        {"title": ""},
        {"title": "A\\B"},
        {"title": "x" * 17},
        {"dicom_port": -1},
        {"dicom_port": 65536},
        {"http_port": 99999},
    ],
)
def test_what_load_would_refuse_is_never_written(wrong: dict[str, object]) -> None:
    values = {"title": "EDGEPACS", "dicom_port": 0, "http_port": 0, **wrong}
    with pytest.raises(InvalidValue):
        config.render(**values)  # type: ignore[arg-type]
