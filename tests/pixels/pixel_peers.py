"""Decoders that share nothing with ours: DCMTK, GDCM, OpenJPH, libjxl's djxl, pydicom's."""

import json
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import openjpeg
from harness.dcmtk import require
from harness.javascript import script
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, generate_uid

from edgepacs.pixels.deflated import deflate
from edgepacs.pixels.description import PixelDescription, Pixels
from edgepacs.pixels.encode import encoded_as
from edgepacs.pixels.framing import DELIMITER, encapsulated, offset_tables
from edgepacs.pixels.native import native_cells
from edgepacs.pixels.syntaxes import DEFLATED_DATA_SET, syntax

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_OPENJPH = Path(__file__).parent / "openjph"
_MODULE = _OPENJPH / "node_modules/@cornerstonejs/codec-openjph/dist/openjphjs.js"


def written(path: Path, description: PixelDescription, frames: Sequence[bytes], uid: str) -> Path:
    """A DICOM file of `frames`, encoded in `uid`; their `description` is that of native data."""
    row = syntax(uid)
    assert row is not None
    said = encoded_as(description, uid) if row.encapsulated else description
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = SECONDARY_CAPTURE, generate_uid()
    dataset.Modality, dataset.PatientID, dataset.PatientName = "OT", "1", "Nobody"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.Rows, dataset.Columns = said.rows, said.columns
    dataset.NumberOfFrames = said.number_of_frames
    dataset.SamplesPerPixel = said.samples_per_pixel
    if said.samples_per_pixel > 1:
        dataset.PlanarConfiguration = said.planar_configuration
    if said.photometric_interpretation == "PALETTE COLOR":
        _add_palette(dataset)
    dataset.PhotometricInterpretation = said.photometric_interpretation
    dataset.BitsAllocated, dataset.BitsStored = said.bits_allocated, said.bits_stored
    dataset.HighBit, dataset.PixelRepresentation = said.high_bit, said.pixel_representation
    if row.encapsulated:
        basic = offset_tables([len(frame) for frame in frames]).basic
        value = b"".join(encapsulated(frames, basic))
        dataset.PixelData = value.removesuffix(DELIMITER)  # pydicom writes its own
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    else:
        value = b"".join(frames)
        dataset.PixelData = value + b"\0" * (len(value) % 2)
        dataset["PixelData"].VR = "OW" if said.bits_allocated > 8 else "OB"
    return _saved(path, dataset, uid)


def _add_palette(dataset: Dataset) -> None:
    for name in ("Red", "Green", "Blue"):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(dataset, f"{name}PaletteColorLookupTableData", bytes(512))


def _saved(path: Path, dataset: Dataset, uid: str) -> Path:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(uid)
    dataset.file_meta.MediaStorageSOPClassUID = UID(SECONDARY_CAPTURE)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if uid != DEFLATED_DATA_SET:
        dataset.save_as(path, enforce_file_format=True)
        return path
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1")
    dataset.save_as(path, enforce_file_format=True)
    plain = path.read_bytes()
    start = 144 + int.from_bytes(plain[140:144], "little")  # behind the group length of 0002
    meta = plain[:start].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    meta = _relengthened(meta)
    path.write_bytes(meta + deflate(plain[start:]))
    return path


def _relengthened(meta: bytes) -> bytes:
    at = meta.index(b"\x02\x00\x10\x00UI") + 6
    meta = meta[:at] + pack("<H", 22) + meta[at + 2 :]
    return meta[:140] + pack("<I", len(meta) - 144) + meta[144:]


def run(*command: str | Path) -> None:
    """Run a peer program; AssertionError with its words where it fails."""
    program, *rest = command
    done = subprocess.run(
        [require(str(program)), *map(str, rest)], capture_output=True, timeout=60, check=False
    )
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, f"{program} ended with {done.returncode}: {said[-500:]}"


def cells_of_file(path: Path, description: PixelDescription) -> list[Pixels]:
    """The cells of each frame of an uncompressed file a peer has written, colour by pixel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dcmread(path)
        value = dataset.PixelData
    assert not dataset.file_meta.TransferSyntaxUID.is_encapsulated
    assert (dataset.BitsAllocated, dataset.PixelRepresentation) == (
        description.bits_allocated,
        description.pixel_representation,
    )
    planes = dataset.get("PlanarConfiguration", 0)
    length = description.samples * description.bits_allocated // 8
    said = replace(description, planar_configuration=planes)
    return [
        native_cells(value[n * length : (n + 1) * length], said)
        for n in range(description.number_of_frames)
    ]


def by_program(*command: str) -> Any:
    """A decoder of whole files: a program that takes the file and the name of a native one."""

    def decode(path: Path, description: PixelDescription, _frames: Sequence[bytes]) -> list[Pixels]:
        native = path.with_suffix(".native")
        run(*command, path, native)
        return cells_of_file(native, description)

    return decode


def by_pydicom(path: Path, description: PixelDescription, _frames: Sequence[bytes]) -> list[Pixels]:
    """pydicom's own reader, with its numpy decoders where it needs any."""
    dataset = dcmread(path)
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return cells_of_file(path, description)
    dataset.decompress(as_rgb=False, decoding_plugin="pydicom", generate_instance_uid=False)
    dataset.save_as(path.with_suffix(".native"), enforce_file_format=True)
    return cells_of_file(path.with_suffix(".native"), description)


def by_openjpeg(
    _path: Path, description: PixelDescription, frames: Sequence[bytes]
) -> list[Pixels]:
    """OpenJPEG in another build and binding than ours."""
    return [_cells(openjpeg.decode_pixel_data(frame, version=2), description) for frame in frames]


def by_openjph(path: Path, description: PixelDescription, frames: Sequence[bytes]) -> list[Pixels]:
    """OpenJPH as WebAssembly, as browsers run it."""
    files = [path.with_suffix(f".{number}.j2c") for number in range(len(frames))]
    for file, frame in zip(files, frames, strict=True):
        file.write_bytes(frame)
    done = subprocess.run(
        [*script(_OPENJPH / "decode.cjs"), _MODULE, *files],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(one["bitsPerSample"] == description.bits_allocated for one in said)
    return [_cells(file.with_suffix(".j2c.raw").read_bytes(), description) for file in files]


def by_djxl(path: Path, description: PixelDescription, frames: Sequence[bytes]) -> list[Pixels]:
    """libjxl's own program, by way of portable any-maps (big endian where of 16 bits)."""
    found = []
    for number, frame in enumerate(frames):
        coded = path.with_suffix(f".{number}.jxl")
        coded.write_bytes(frame)
        plain = coded.with_suffix(".pgm" if description.samples_per_pixel == 1 else ".ppm")
        run("djxl", coded, plain)
        kind, width, height, top, rest = plain.read_bytes().split(maxsplit=4)
        assert (int(width), int(height)) == (description.columns, description.rows), kind
        wire = np.dtype(">u2" if int(top) > 255 else "u1")
        values = np.frombuffer(rest[-description.samples * wire.itemsize :], wire)
        found.append(_cells(values.astype(f"<u{description.cell_bytes}").tobytes(), description))
    return found


def _cells(data: bytes, description: PixelDescription) -> Pixels:
    return native_cells(bytes(data), replace(description, planar_configuration=0))
