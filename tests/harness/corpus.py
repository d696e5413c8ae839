"""Real instances at hand in a bare clone, and a directory of more where EDGEPACS_DATA names one.

Sources: the files inside the pydicom wheel, and the packages pydicom-data and deid-data.
Nothing is downloaded.
"""

import importlib.util
import os
import random
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from harness.part10 import Part10, read

_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"  # a DICOMDIR is no instance a modality would store
SEED = int(os.environ.get("EDGEPACS_SEED", "20261123"))


def soak() -> bool:
    """Whether the full counts are asked for (`make soak`)."""
    return os.environ.get("EDGEPACS_SOAK", "") not in ("", "0")


def count(sample: int, full: int) -> int:
    """`sample`, or `full` under `make soak`."""
    return full if soak() else sample


def pydicom_file(name: str) -> Path:
    """One file of the pydicom wheel by its base name."""
    (found,) = [path for path in _package_files("pydicom", "data") if path.name == name]
    return found


def _package_files(package: str, folder: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.origin is not None
    root = Path(spec.origin).parent / folder
    return sorted(path for path in root.rglob("*") if path.is_file())


def files() -> list[Path]:
    """Every candidate file, in a stable order."""
    found = [
        *_package_files("pydicom", "data/test_files"),
        *_package_files("pydicom", "data/charset_files"),
        *_package_files("data_store", "data"),
        *_package_files("deid_data", "."),
    ]
    if more := os.environ.get("EDGEPACS_DATA"):
        root = Path(more)
        assert root.is_dir(), f"EDGEPACS_DATA={more} is not a directory"
        found += sorted(
            path
            for path in root.rglob("*")
            if path.is_file() and "malformed" not in path.relative_to(root).parts
        )
    return found


def _readable(paths: Iterable[Path]) -> Iterator[Part10]:
    for path in paths:
        with path.open("rb") as start:
            head = start.read(132)
        if head[128:] != b"DICM" and path.suffix not in (".dcm", ""):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                instance = read(path)
        except Exception:  # noqa: BLE001 - not an instance: the corpus holds other files too
            continue
        if instance.sop_class != _DIRECTORY_CLASS and instance.data:
            yield instance


def _distinct(instances: Iterable[Part10]) -> Iterator[Part10]:
    """Each content once; a SOP Instance UID met before is replaced, since here it means a copy.

    The packages hold the same instance in several transfer syntaxes under one UID. A node
    rightly forwards only one of them, but every encoding has to be tried.
    """
    uids: set[str] = set()
    contents: set[bytes] = set()
    chance = random.Random(SEED)
    for instance in instances:
        if instance.data in contents:
            continue
        contents.add(instance.data)
        fresh = instance
        while fresh.sop_instance in uids:
            fresh = _renamed(instance, chance)
        uids.add(fresh.sop_instance)
        yield fresh


def _renamed(instance: Part10, chance: random.Random) -> Part10:
    digits = max(6, len(instance.sop_instance) - 24)
    tail = str(chance.randrange(10 ** (digits - 1), 10**digits))
    return instance.with_instance_uid(instance.sop_instance[:-digits] + tail)


@lru_cache(maxsize=1)
def everything() -> tuple[Part10, ...]:
    """Every readable instance of the corpus, each SOP Instance UID once."""
    return tuple(_distinct(_readable(files())))


def sample(limit_bytes: int = 1_500_000) -> tuple[Part10, ...]:
    """A seeded sample: one instance, not too large, of each transfer syntax and modality.

    Where every one is large the smallest stands in.
    """
    kinds: dict[tuple[str, str], list[Part10]] = {}
    for instance in everything():
        kinds.setdefault((instance.transfer_syntax, instance.modality), []).append(instance)
    chance = random.Random(SEED)
    chosen = []
    for kind in sorted(kinds):
        small = [one for one in kinds[kind] if len(one.data) <= limit_bytes]
        fitting = [one for one in small if one.path] or small
        smallest = min(kinds[kind], key=lambda one: len(one.data))
        chosen.append(chance.choice(fitting) if fitting else smallest)
    return tuple(chosen)


def chosen() -> tuple[Part10, ...]:
    """The sample; everything under `make soak` or where EDGEPACS_DATA is set."""
    return everything() if soak() or os.environ.get("EDGEPACS_DATA") else sample()
