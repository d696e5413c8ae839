"""Fingerprints: what tells the same bytes again, and bytes that were restored from others.

A byte for the algorithm, then the digest. BLAKE3 takes a quarter of the time of SHA-256 on a CPU
with instructions for the latter, and a tenth without; SHA-256 stands in what version 1 sealed.
"""

import hashlib
from typing import Final, Self

import blake3

_ALGORITHMS: Final = {1: "sha256", 2: "blake3"}
_SHA256: Final = 1
_BLAKE3: Final = 2
LENGTH: Final = 33


class Fingerprint:
    """The fingerprint of bytes that come piece by piece."""

    def __init__(self, algorithm: int = _BLAKE3) -> None:
        self._algorithm = algorithm
        self._digest = hashlib.sha256() if algorithm == _SHA256 else blake3.blake3()

    @classmethod
    def like(cls, other: bytes) -> Self:
        """One by the algorithm of `other`, to be compared with it."""
        return cls(other[0])

    def update(self, data: bytes | bytearray | memoryview) -> Self:
        """Take the next bytes."""
        self._digest.update(data)
        return self

    def value(self) -> bytes:
        """The fingerprint of all bytes so far: 33 bytes."""
        return bytes([self._algorithm]) + self._digest.digest()


def from_sha256(digest: bytes) -> bytes:
    """The fingerprint that a SHA-256 digest is."""
    return bytes([_SHA256]) + digest


def words(fingerprint: bytes) -> str:
    """A fingerprint as people and `b3sum` write it: `blake3:` and hexadecimal digits."""
    return f"{_ALGORITHMS[fingerprint[0]]}:{fingerprint[1:].hex()}"
