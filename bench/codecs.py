"""Measure what compression gains and costs, on real images, beside others: `make bench-codecs`.

Three tables, each the median of ROUNDS rounds in which all that is compared takes turns:

1. By kind of image: the syntax chosen at rest, its ratio, and how many native MB/s one core
   encodes, encodes and verifies, and decodes, beside zlib 6, which is Orthanc's
   StorageCompression.
2. File to file: our encoders beside DCMTK's and GDCM's programs, in CPU seconds end to end; what
   of theirs went into starting the program, which ours need not, is shown beside it.
3. An instance posted to Orthanc as it is, with StorageCompression, and with IngestTranscoding.

The images are those of pydicom, pydicom-data and deid-data, and of EDGEPACS_DATA where it is set.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import psutil  # noqa: E402
from harness import corpus  # noqa: E402
from harness.dcmtk import require  # noqa: E402
from harness.orthanc import Orthanc  # noqa: E402
from harness.part10 import Part10  # noqa: E402
from pydicom import dcmread  # noqa: E402
from pydicom.uid import UID  # noqa: E402

from edgepacs.errors import EdgePacsError  # noqa: E402
from edgepacs.pixels.choice import choose  # noqa: E402
from edgepacs.pixels.deflated import deflate, inflate  # noqa: E402
from edgepacs.pixels.description import (  # noqa: E402
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    PixelDescription,
    SampleKind,
    describe,
)
from edgepacs.pixels.encode import (  # noqa: E402
    encode_frame,
    encode_verified,
    encoded_as,
    restore_frame,
)
from edgepacs.pixels.frames import FrameIndex, reader  # noqa: E402
from edgepacs.pixels.framing import DELIMITER, encapsulated, offset_tables  # noqa: E402
from edgepacs.pixels.syntaxes import (  # noqa: E402
    DEFLATED_DATA_SET,
    HTJ2K,
    JPEG_2000,
    JPEG_LS,
    RLE,
)

ROUNDS = int(os.environ.get("ROUNDS", "5"))
MAX_FRAMES = 30  # of one instance
MIN_SIDE = 32  # smaller ones are thumbnails made for tests
SMALLEST = 200_000  # native bytes of a kind, or of an instance in the other tables
SHORT = {JPEG_LS: "JPEG-LS", HTJ2K: "HTJ2K", DEFLATED_DATA_SET: "Deflated", None: "native"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One native instance: its frames, and what they would stand in at rest."""

    part10: Part10
    description: PixelDescription
    frames: list[bytes]
    chosen: str | None

    @property
    def size(self) -> int:
        return sum(map(len, self.frames))

    @property
    def kind(self) -> str:
        meaning = self.description.photometric_interpretation
        colour = {"PALETTE COLOR": "palette"}.get(meaning, meaning[:3])
        colour = "" if meaning.startswith("MONO") else colour
        cine = "cine" if self.description.number_of_frames > 9 else ""
        bits = "" if self.description.bits_allocated in (8, 16) else "odd"
        return " ".join(filter(None, (self.part10.modality or "?", colour, cine, bits)))


def pictures() -> Iterator[Picture]:
    """Every native little endian instance of the corpus worth the name, each content once."""
    seen = set()
    for part10 in corpus.everything():
        if part10.transfer_syntax not in (EXPLICIT_LITTLE, IMPLICIT_LITTLE):
            continue
        try:
            description, frames = _native(part10)
        except (EdgePacsError, StopIteration):
            continue
        if min(description.rows, description.columns) < MIN_SIDE or frames[0] in seen:
            continue
        seen.add(frames[0])
        chosen = choose(description, frames[0])
        yield Picture(part10=part10, description=description, frames=frames, chosen=chosen)


def _native(part10: Part10) -> tuple[PixelDescription, list[bytes]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = part10.dataset()
        kind = next(kind for kind in SampleKind if dataset.get(kind.value))
        value = dataset[kind.value].value
    description = describe(dataset, part10.transfer_syntax, sample_kind=kind)
    index = FrameIndex(reader(BytesIO(value), 0), len(value), description)
    return description, [index.read(n).data for n in range(min(len(index), MAX_FRAMES))]


class Clock:
    """CPU seconds of this process by what was done, a figure for each round."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        begin = time.process_time()
        yield
        self.spent.setdefault(what, []).append(time.process_time() - begin)

    def median(self, what: str) -> float:
        return max(statistics.median(self.spent[what]), 1e-9)


def compressed(picture: Picture, act: Callable[..., bytes]) -> list[bytes]:
    """The frames as they would stand at rest; a deflated data set by its pixel data alone."""
    if picture.chosen is None:
        return picture.frames
    if picture.chosen == DEFLATED_DATA_SET:
        return [deflate(b"".join(picture.frames))]
    return [act(frame, picture.description, picture.chosen) for frame in picture.frames]


def verified(picture: Picture) -> list[bytes]:
    data = compressed(picture, encode_verified)
    if picture.chosen == DEFLATED_DATA_SET:
        assert restored(picture, data) == [b"".join(picture.frames)]
    return data


def restored(picture: Picture, data: list[bytes]) -> list[bytes]:
    if picture.chosen is None:
        return data
    if picture.chosen == DEFLATED_DATA_SET:
        return [b"".join(inflate(data, 1 << 30))]
    return [restore_frame(one, picture.description, picture.chosen) for one in data]


def by_kind(found: list[Picture]) -> None:
    """Table 1."""
    kinds: dict[str, list[Picture]] = {}
    for picture in found:
        kinds.setdefault(picture.kind, []).append(picture)
        if picture.description.photometric_interpretation.startswith("MONO"):
            kinds.setdefault("all grey", []).append(picture)
    print(f"At rest, one core, median of {ROUNDS}; MB are native, x is against zlib 6\n")
    print(f"{'kind':16} {'inst':>4} {'MB':>6}  {'stands in':24} {'ratio':>6} {'x':>5} "
          f"{'encode':>7} {'x':>5} {'verified':>8} {'x':>5} {'decode':>7} "
          f"{'zlib 6':>6} {'encode':>7} {'decode':>7}")  # fmt: skip
    for kind in sorted(kinds):
        if sum(one.size for one in kinds[kind]) >= SMALLEST:
            print(_row(kind, kinds[kind]), flush=True)


def _row(kind: str, found: list[Picture]) -> str:
    clock = Clock()
    for _ in range(ROUNDS):
        with clock.timing("zlib"):
            deflated = [zlib.compress(b"".join(one.frames), 6) for one in found]
        with clock.timing("unzlib"):
            for data in deflated:
                zlib.decompress(data)
        with clock.timing("encode"):
            encoded = [compressed(one, encode_frame) for one in found]
        with clock.timing("verify"):
            for one in found:
                verified(one)
        with clock.timing("decode"):
            back = [b"".join(restored(*pair)) for pair in zip(found, encoded, strict=True)]
        assert back == [b"".join(one.frames) for one in found]
    size = sum(one.size for one in found)
    ratio = size / sum(len(data) for parts in encoded for data in parts)
    plain = size / sum(map(len, deflated))
    speed = {what: size / 1e6 / clock.median(what) for what in clock.spent}
    names = [SHORT[one.chosen] for one in found]
    stands = ", ".join(f"{name} {names.count(name)}" for name in sorted(set(names)))
    return (
        f"{kind:16} {len(found):4} {size / 1e6:6.1f}  {stands:24} {ratio:6.2f} "
        f"{ratio / plain:5.2f} {speed['encode']:7.0f} {speed['encode'] / speed['zlib']:5.2f} "
        f"{speed['verify']:8.0f} {speed['verify'] / speed['zlib']:5.2f} {speed['decode']:7.0f} "
        f"{plain:6.2f} {speed['zlib']:7.0f} {speed['unzlib']:7.0f}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A peer's encoder of files, and the transfer syntax it writes."""

    uid: str
    command: tuple[str, ...]


PROGRAMS = (
    Program(uid=JPEG_LS, command=("dcmcjpls",)),
    Program(uid=JPEG_LS, command=("gdcmconv", "--jpegls")),
    Program(uid=JPEG_2000, command=("gdcmconv", "--j2k")),
    Program(uid=RLE, command=("dcmcrle",)),
    Program(uid=RLE, command=("gdcmconv", "--rle")),
)


def children_seconds(*command: str | Path) -> float:
    """CPU seconds a program takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([require(str(command[0])), *command[1:]], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ours_to_file(source: Path, target: Path, uid: str, act: Callable[..., bytes]) -> None:
    """What the programs do: read a file, encode every frame, write a file."""
    dataset = dcmread(source)
    description = describe(dataset, dataset.file_meta.TransferSyntaxUID)
    index = FrameIndex(reader(BytesIO(dataset.PixelData), 0), len(dataset.PixelData), description)
    frames = [act(index.read(n).data, description, uid) for n in range(len(index))]
    said = encoded_as(description, uid)
    dataset.PhotometricInterpretation = said.photometric_interpretation
    if said.samples_per_pixel > 1:
        dataset.PlanarConfiguration = said.planar_configuration
    value = b"".join(encapsulated(frames, offset_tables([len(one) for one in frames]).basic))
    dataset.PixelData = value.removesuffix(DELIMITER)  # pydicom writes its own
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = UID(uid)
    dataset.save_as(target, enforce_file_format=True)


def file_to_file(found: list[Picture], work: Path) -> None:
    """Table 2, over monochrome instances, which all of the programs take."""
    sources = []
    for number, picture in enumerate(found):
        row = picture.description
        if picture.size >= SMALLEST and row.samples_per_pixel == 1 and row.bits_allocated == 16:
            sources.append(picture.part10.write(work / f"{number}.dcm"))
    tiny = next(one for one in found if one.size < 50_000).part10.write(work / "tiny.dcm")
    size, target = sum(path.stat().st_size for path in sources), work / "encoded.dcm"
    print(f"\nFile to file, {len(sources)} grey instances of {size / 1e6:.1f} MB\n")
    print(f"{'program':20} {'MB/s':>6} {'start':>7} {'bytes':>9}   "
          f"{'ours MB/s':>9} {'x':>5} {'verified':>8} {'x':>5} {'bytes':>9} {'x':>6}")  # fmt: skip
    for program in PROGRAMS:
        _programs_row(program, sources, tiny, target)


def _programs_row(program: Program, sources: list[Path], tiny: Path, target: Path) -> None:
    clock, theirs, starts = Clock(), [], []
    for _ in range(ROUNDS):
        starts += [children_seconds(*program.command, tiny, target) for _ in range(3)]
        spent, their_bytes, our_bytes = 0.0, 0, 0
        for path in sources:
            spent += children_seconds(*program.command, path, target)
            their_bytes += target.stat().st_size
        theirs.append(spent)
        for what, act in (("encode", encode_frame), ("verify", encode_verified)):
            with clock.timing(what):
                for path in sources:
                    ours_to_file(path, target, program.uid, act)
    for path in sources:
        ours_to_file(path, target, program.uid, encode_frame)
        our_bytes += target.stat().st_size
    size, them = sum(path.stat().st_size for path in sources) / 1e6, statistics.median(theirs)
    start = statistics.median(starts) * len(sources) / them
    speed, proved = size / clock.median("encode"), size / clock.median("verify")
    print(f"{' '.join(program.command):20} {size / them:6.0f} {start:7.0%} {their_bytes:9}   "
          f"{speed:9.0f} {speed * them / size:5.2f} {proved:8.0f} {proved * them / size:5.2f} "
          f"{our_bytes:9} {their_bytes / our_bytes:6.3f}", flush=True)  # fmt: skip


class ConfiguredOrthanc(Orthanc):
    """An Orthanc with settings of its own, posted to over HTTP."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        self._settings = settings
        super().__init__(directory)

    def _configuration(self) -> dict[str, Any]:
        return {**super()._configuration(), "OverwriteInstances": True, **self._settings}

    def post(self, data: bytes) -> str:
        """Store an instance; its identifier here."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}/instances", data=data, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(json.load(answer)["ID"])

    def stored(self, identifier: str) -> int:
        """Bytes an instance takes on its disk."""
        path = f"/instances/{identifier}/attachments/dicom/compressed-size"
        return int(self.get(path))

    def cpu_seconds(self) -> float:
        assert self._process is not None
        return float(sum(psutil.Process(self._process.pid).cpu_times()[:2]))


ORTHANCS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "StorageCompression": {"StorageCompression": True},
    "IngestTranscoding": {"IngestTranscoding": JPEG_LS},
}


def _grey_of_16_bits(row: PixelDescription) -> bool:
    unsigned = not row.pixel_representation
    return unsigned and row.samples_per_pixel == 1 and row.bits_allocated == 16


def beside_orthanc(found: list[Picture], work: Path) -> None:
    """Table 3, over unsigned instances: signed ones end Orthanc 1.10.1 in a failed assertion."""
    chosen = [one for one in found if one.size >= SMALLEST and one.chosen == JPEG_LS]
    chosen = [one for one in chosen if _grey_of_16_bits(one.description)]
    files = [one.part10.file() for one in chosen]
    size = sum(map(len, files))
    print(f"\nStored by Orthanc, {len(files)} grey instances of {size / 1e6:.1f} MB\n")
    print(f"{'Orthanc':20} {'CPU s':>7} {'more':>7} {'MB/s':>6} {'bytes':>9}")
    spent: dict[str, list[float]] = {name: [] for name in ORTHANCS}
    stored: dict[str, int] = {}
    clock = Clock()
    with ExitStack() as stack:
        orthancs = {
            name: stack.enter_context(ConfiguredOrthanc(work / str(number), settings))
            for number, (name, settings) in enumerate(ORTHANCS.items())
        }
        for _ in range(ROUNDS):
            for name, orthanc in orthancs.items():
                before = orthanc.cpu_seconds()
                identifiers = [orthanc.post(data) for data in files]
                spent[name].append(orthanc.cpu_seconds() - before)
                stored[name] = sum(orthanc.stored(one) for one in identifiers)
            with clock.timing("verify"):
                encoded = [verified(one) for one in chosen]
    plain = statistics.median(spent["as it is"])
    for name in ORTHANCS:
        took = statistics.median(spent[name])
        more = took - plain
        rate = f"{size / 1e6 / more:6.0f}" if more > 0.01 else f"{'':6}"
        print(f"{name:20} {took:7.2f} {more:7.2f} {rate} {stored[name]:9}")
    took = clock.median("verify")
    bytes_kept = sum(len(one) for data in encoded for one in data)
    print(f"{'ours, verified':20} {'':7} {took:7.2f} {size / 1e6 / took:6.0f} {bytes_kept:9}")


def main() -> None:
    found = list(pictures())
    by_kind(found)
    with tempfile.TemporaryDirectory(prefix="edgepacs-bench-") as directory:
        file_to_file(found, Path(directory))
        beside_orthanc(found, Path(directory))


if __name__ == "__main__":
    main()
