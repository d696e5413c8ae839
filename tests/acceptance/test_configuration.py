"""Must show 8: a wrong configuration ends with one clear line and an exit code by class."""

import re
import secrets
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.box import Box

from edgepacs import config
from edgepacs.store import Store

MakeBox = Callable[[], Box]
_CONFIGURATION, _WRONG_KEY = 78, 77


def _complaint(box: Box, *command: str) -> tuple[int, str]:
    """Exit code and the one line on stderr."""
    run = box.run(*command, check=False)
    assert "Traceback" not in run.stderr + run.stdout
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 1, run.stderr
    assert run.stdout == ""
    return run.returncode, lines[0]


def _add(box: Box, section: str, line: str) -> None:
    box.configure(rf"\[{section}\]\n", f"[{section}]\n{line}\n")


def _change(box: Box, section: str, key: str, value: str) -> None:
    box.configure(rf"(\[{section}\][^\[]*?\n{key} = )[^\s#]+", rf"\g<1>{value}")


_MISTAKES: dict[str, tuple[Callable[[Box], object], list[str]]] = {
    "unknown key": (lambda box: _add(box, "node", 'colour = "red"'), ["[node]", "colour"]),
    "unknown section": (lambda box: box.configure(r"\Z", "\n[colours]\n"), ["colours"]),
    "port too high": (lambda box: _change(box, "dicom", "port", "99999"), ["[dicom]", "port"]),
    "negative port": (lambda box: _change(box, "web", "port", "-1"), ["[web]", "port"]),
    "port in quotes": (lambda box: _change(box, "dicom", "port", '"104"'), ["[dicom]", "port"]),
    "AE title too long": (
        lambda box: _change(box, "node", "ae_title", '"ABCDEFGHIJKLMNOPQ"'),
        ["[node]", "ae_title"],
    ),
    "web on every address": (
        lambda box: _change(box, "web", "host", '"0.0.0.0"'),
        ["[web]", "host"],
    ),
    "unknown key source": (lambda box: _change(box, "keys", "source", '"moon"'), ["source"]),
    "not TOML": (lambda box: box.configure(r"\[node\]", "[node"), ["line"]),
    "missing directory": (lambda box: shutil.rmtree(box.data), ["data_dir", "data"]),
    "no configuration": (lambda box: box.config.unlink(), ["edgepacs.toml"]),
    "no key file": (lambda box: _device_key(box).unlink(), [".key"]),
}


def _device_key(box: Box) -> Path:
    return box.directory / "keys" / "device.key"


@pytest.mark.parametrize("mistake", _MISTAKES)
def test_a_mistake_ends_in_one_line_that_names_the_place(new_box: MakeBox, mistake: str):
    box = new_box()
    make, words = _MISTAKES[mistake]
    make(box)
    for command in (("serve",), ("ae", "list")):
        code, line = _complaint(box, *command)
        assert code == _CONFIGURATION, (command, line)
        for word in (*words, str(box.directory)):
            assert word in line, (command, line)


def test_check_says_what_serve_would_say(new_box: MakeBox):
    box = new_box()
    assert box.run("check").returncode == 0
    _add(box, "node", 'colour = "red"')
    assert _complaint(box, "check") == _complaint(box, "serve")


@pytest.mark.parametrize("command", [("serve",), ("scp",), ("ae", "list"), ("fsck",)])
def test_another_nodes_key_opens_nothing(new_box: MakeBox, command: tuple[str, ...]):
    box = new_box()
    _device_key(box).write_bytes(secrets.token_bytes(32))
    code, line = _complaint(box, *command)
    assert code == _WRONG_KEY, line
    assert "key" in line


def test_a_key_file_that_is_no_key(new_box: MakeBox):
    box = new_box()
    _device_key(box).write_bytes(b"hello\n")
    code, line = _complaint(box, "serve")
    assert code in (_CONFIGURATION, _WRONG_KEY)
    assert "device.key" in line


@pytest.mark.parametrize("command", [("serve",), ("ae", "list"), ("migrate",), ("fsck",)])
def test_an_index_from_a_newer_release_is_left_alone(new_box: MakeBox, command: tuple[str, ...]):
    box = new_box()
    _make_newer(box)
    before = (box.data / "index.db").read_bytes()
    code, line = _complaint(box, *command)
    assert code == _CONFIGURATION, line
    assert "newer" in line
    assert (box.data / "index.db").read_bytes() == before


def _make_newer(box: Box) -> None:
    """Give the index a schema number of the future; only the store itself can open it."""
    store = Store.unlock(config.load(box.config))
    with store.db.write() as tx:
        tx.run("PRAGMA user_version = 9999")
    store.close()


def test_a_port_in_use_is_named(new_box: MakeBox):
    box = new_box()
    with socket.create_server(("127.0.0.1", box.dicom_port)):
        run = box.run("scp", check=False)
    assert run.returncode != 0
    assert str(box.dicom_port) in run.stderr
    assert "Traceback" not in run.stderr


def test_init_refuses_a_directory_that_holds_a_node(new_box: MakeBox):
    box = new_box()
    kept = _device_key(box).read_bytes()
    run = box.run("init", str(box.directory), configured=False, check=False)
    assert run.returncode != 0
    assert len(run.stderr.strip().splitlines()) == 1
    assert _device_key(box).read_bytes() == kept


def test_init_prints_a_one_time_password_and_a_recovery_key(tmp_path: Path):
    box = Box(tmp_path / "node")
    ports = ("--dicom-port", str(box.dicom_port), "--http-port", str(box.http_port))
    out = box.run("init", str(box.directory), *ports, configured=False).stdout.lower()
    assert re.search(r"admin / \S+ \(once", out)
    assert "recovery key" in out
    assert box.run("check").returncode == 0
