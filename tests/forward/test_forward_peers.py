"""Real peers that accept only some transfer syntaxes; what they hold is decoded by others."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from custody.outcome import (
    DEFLATED,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    NATIVE,
    RLE,
    compress_all,
    frames_of,
)
from forward.sending import forwarding, hasten
from harness import corpus
from harness.dcmtk import require
from harness.orthanc import Orthanc
from harness.part10 import EXPLICIT_LE, IMPLICIT_LE, read
from harness.waiting import free_port, until
from pydicom import dcmread
from store.making import add_destination, states_of, take_in_part

from edgepacs.store import Store, terms

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
_NAMES = ("CT_small.dcm", "MR_small_RLE.dcm", "examples_jpeg2k.dcm", "examples_rgb_color.dcm")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of a minute as fractions of a second."""
    hasten(monkeypatch)


def done(store: Store, number: int) -> None:
    until(lambda: states_of(store) == ["sent"] * number, "all are sent", seconds=60)


@contextmanager
def storescp(folder: Path, option: str) -> Iterator[int]:
    """DCMTK's storescp, writing what it is sent as it comes."""
    port = free_port()
    folder.mkdir()
    command = [
        require("storescp"),
        "-v",
        option,
        "+B",
        "-od",
        str(folder),
        "-aet",
        "PACS",
        str(port),
    ]
    with (folder.parent / "storescp.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield port
        finally:
            process.kill()
            process.wait()


def _by(*command: str) -> Callable[[Path], Path]:
    def decode_file(path: Path) -> Path:
        plain = path.with_suffix(".native")
        subprocess.run([require(command[0]), *command[1:], path, plain], check=True, timeout=60)
        return plain

    return decode_file


@pytest.mark.parametrize(
    ("option", "expected", "decoder"),
    [
        ("+xi", {IMPLICIT_LE}, _by("dcmconv", "+te")),
        ("+xe", {EXPLICIT_LE}, _by("dcmconv", "+te")),
        ("+xs", {JPEG_LOSSLESS, EXPLICIT_LE}, _by("dcmdjpeg", "+cn")),
        ("+xt", {JPEG_LS, EXPLICIT_LE}, _by("dcmdjpls")),
        ("+xv", {JPEG_2000, EXPLICIT_LE}, _by("gdcmconv", "--raw")),
        ("+xr", {RLE, EXPLICIT_LE}, _by("dcmdrle")),
        ("+xd", {DEFLATED, EXPLICIT_LE}, _by("dcmconv", "+te")),
    ],
)
def test_dcmtk_receives_what_it_accepts_and_others_decode_the_same(
    store: Store, tmp_path: Path, option: str, expected: set[str], decoder: Callable[[Path], Path]
) -> None:
    folder = tmp_path / "received"
    parts = [read(corpus.pydicom_file(name)) for name in _NAMES]
    with storescp(folder, option) as port:
        add_destination(store, port=port)
        for part in parts:
            take_in_part(store, part)
        compress_all(store)
        with forwarding(store):
            done(store, len(parts))
    found = {dcmread(path).SOPInstanceUID: path for path in folder.iterdir()}
    for part in parts:
        path = found[part.sop_instance]
        uid = dcmread(path).file_meta.TransferSyntaxUID
        assert uid in expected
        assert part.path is not None
        want = dcmread(part.path).pixel_array
        plain = path if uid in NATIVE else decoder(path)
        got = dcmread(plain)
        assert np.array_equal(got.pixel_array, want), (part.path, uid)


def test_orthanc_takes_what_is_compressed_at_rest_and_gives_the_same_back(
    store: Store, tmp_path: Path
) -> None:
    parts = [read(corpus.pydicom_file(name)) for name in _NAMES]
    with Orthanc(tmp_path / "orthanc") as orthanc:
        add_destination(store, port=orthanc.port)
        for part in parts:
            take_in_part(store, part)
        compress_all(store)
        with forwarding(store):
            done(store, len(parts))
        held = orthanc.held()
        files = {uid: orthanc.file(one["id"]) for uid, one in held.items()}
    for part in parts:
        got = files[part.sop_instance]
        uid = held[part.sop_instance]["transfer_syntax"]
        data = got[144 + int.from_bytes(got[140:144], "little") :]
        assert frames_of(data, uid) == frames_of(part.data, part.transfer_syntax)
    assert set(held) == {part.sop_instance for part in parts}
    known = {one.transfer_syntax_uid for one in terms.acceptances(store.db, 1) if one.accepted}
    assert {one["transfer_syntax"] for one in held.values()} <= known
