"""The real CT images that are forwarded: some few, as many copies as needed, native or packed."""

import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from harness import corpus, part10
from harness.dcmtk import require
from harness.part10 import EXPLICIT_LE, Part10

_DISTINCT = 8
_LEAST = 400_000  # bytes of a data set
_MOST = 600_000
_PLAUSIBLE = 15  # no lossless codec makes a real CT so many times smaller


class Packing(StrEnum):
    """How the images stand in their files."""

    NATIVE = "native"
    JPEG_LS = "JPEG-LS"
    JPEG_2000 = "JPEG 2000"


_PACKERS = {
    Packing.JPEG_LS: ("dcmcjpls", "--encode-lossless"),
    Packing.JPEG_2000: ("gdcmconv", "--j2k"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One instance in a file; `native` is the size of its data set uncompressed."""

    file: Path
    sop_instance: str
    native: int
    size: int


class Images:
    """Makes as many as are asked for, each under a SOP Instance UID of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        found = [
            one
            for one in corpus.everything()
            if one.modality == "CT"
            and one.transfer_syntax == EXPLICIT_LE
            and _LEAST < len(one.data) < _MOST
        ]
        self._packed: dict[Packing, Sequence[Part10]] = {}
        some = sorted(found, key=lambda one: one.sop_instance)
        self._natives = [one for number, one in enumerate(some) if self._plausible(one, number)]
        del self._natives[_DISTINCT:]
        assert self._natives, "no native CT image is at hand"
        self._packed[Packing.NATIVE] = self._natives
        self._chance = random.Random(corpus.SEED)
        self.distinct = len(self._natives)

    def _plausible(self, one: Part10, number: int) -> bool:
        """Whether it is as a scanner made it, and not unpacked from lossy wavelets once."""
        packed = self._pack(one, Packing.JPEG_2000, number)
        return len(one.data) < _PLAUSIBLE * len(packed.data)

    def _of(self, packing: Packing) -> Sequence[Part10]:
        if packing not in self._packed:
            self._packed[packing] = [
                self._pack(one, packing, number) for number, one in enumerate(self._natives)
            ]
        return self._packed[packing]

    def _pack(self, one: Part10, packing: Packing, number: int) -> Part10:
        program, option = _PACKERS[packing]
        plain = one.write(self._directory / f"plain{number}.dcm")
        packed = self._directory / f"{program}{number}.dcm"
        run = [require(program), option, str(plain), str(packed)]
        subprocess.run(run, check=True, capture_output=True)
        return part10.read(packed)

    def size(self, packing: Packing) -> float:
        """Bytes of a data set, on average."""
        sizes = [len(one.data) for one in self._of(packing)]
        return sum(sizes) / len(sizes)

    def make(self, packing: Packing, count: int, folder: Path) -> list[Image]:
        """So many of them in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        return [self._one(packing, number, folder) for number in range(count)]

    def _one(self, packing: Packing, number: int, folder: Path) -> Image:
        which = number % self.distinct
        native, packed = self._natives[which], self._of(packing)[which]
        old = packed.sop_instance
        digits = min(18, len(old) - 20)
        tail = str(self._chance.randrange(10 ** (digits - 1), 10**digits))
        fresh = packed.with_instance_uid(old[:-digits] + tail)
        return Image(
            file=fresh.write(folder / f"{number:05d}.dcm"),
            sop_instance=fresh.sop_instance,
            native=len(native.data),
            size=len(fresh.data),
        )
