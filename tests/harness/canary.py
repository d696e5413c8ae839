"""Random marks planted in what a patient's data set says, and the search for them.

A mark counts as found in any of these shapes: as it is, in lower case, as UTF-16 (either byte
order), as hexadecimal digits, and inside base64 at each of its three alignments.
"""

import base64
import contextlib
import os
import secrets
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

_LETTERS = string.ascii_uppercase


def _word(length: int = 14) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def _uid() -> str:
    return f"2.25.{secrets.randbelow(9 * 10**37) + 10**37}"


@dataclass(frozen=True, slots=True)
class Canaries:
    """One set of marks, each of 12 bytes or more; `pixels` are raw bytes."""

    family_name: str
    given_name: str
    patient_id: str
    accession_number: str
    study_description: str
    series_description: str
    referring_physician: str
    comments: str
    private: str
    study_uid: str
    series_uid: str
    sop_uid: str
    pixels: bytes

    @classmethod
    def fresh(cls) -> "Canaries":
        """Marks that were never used before."""
        return cls(
            family_name=_word(),
            given_name=_word(),
            patient_id=_word(),
            accession_number=_word(),
            study_description=_word(20),
            series_description=_word(20),
            referring_physician=_word(),
            comments=_word(20),
            private=_word(20),
            study_uid=_uid(),
            series_uid=_uid(),
            sop_uid=_uid(),
            pixels=secrets.token_bytes(24),
        )

    def marks(self) -> dict[str, bytes]:
        """Every mark by its field name, as bytes."""
        found = {}
        for one in fields(self):
            value = getattr(self, one.name)
            found[one.name] = value if isinstance(value, bytes) else value.encode("ascii")
        return found


def shapes(mark: bytes) -> dict[str, bytes]:
    """Every byte string by which `mark` would be recognised."""
    found = {"plain": mark, "hex": mark.hex().encode(), "HEX": mark.hex().upper().encode()}
    with contextlib.suppress(UnicodeDecodeError):
        text = mark.decode("ascii")
        found["lower"] = text.lower().encode()
        found["utf-16-le"] = text.encode("utf-16-le")
        found["utf-16-be"] = text.encode("utf-16-be")
    for shift in range(3):
        padded = b"\0" * shift + mark
        usable = len(padded) // 3 * 3  # characters that no following byte can change
        first = -(-shift * 4 // 3)  # characters that a preceding byte can change
        found[f"base64+{shift}"] = base64.b64encode(padded[:usable])[first:]
        found[f"base64url+{shift}"] = base64.urlsafe_b64encode(padded[:usable])[first:]
    return found


class Searcher:
    """Looks for many marks at once; a hit is text that names the mark's field and shape."""

    def __init__(self, marks: Iterable[Canaries]) -> None:
        self._shapes: dict[bytes, str] = {}
        for number, one in enumerate(marks):
            for name, mark in one.marks().items():
                for shape, value in shapes(mark).items():
                    self._shapes.setdefault(value, f"{name}#{number} ({shape})")
        self.longest = max(map(len, self._shapes))

    def hits(self, data: bytes) -> list[str]:
        """What is found in `data`."""
        return [what for value, what in self._shapes.items() if value in data]

    def in_files(self, roots: Iterable[Path]) -> list[str]:
        """What is found in every file's content and name below `roots`."""
        found = []
        for path in _files(roots):
            found += [f"{path}: name: {what}" for what in self.hits(os.fsencode(path))]
            with contextlib.suppress(FileNotFoundError):  # files come and go while a node runs
                found += [f"{path}: {what}" for what in self.hits(path.read_bytes())]
        return found

    def in_processes(self, pids: Iterable[int]) -> list[str]:
        """What is found in the arguments and environments of `pids`, and their threads' names."""
        found = []
        for pid in pids:
            for name in ("cmdline", "environ", "comm"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    data = Path(f"/proc/{pid}/{name}").read_bytes()
                    found += [f"{name} of {pid}: {what}" for what in self.hits(data)]
        return found


def _files(roots: Iterable[Path]) -> Iterator[Path]:
    for root in roots:
        if root.is_file():
            yield root
        for folder, _, names in os.walk(root):
            for name in names:
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink():
                    yield path
