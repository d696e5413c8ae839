"""Sealing: the chunked AEAD format of one object (docs/format.md, "Objects").

    header prefix (24) | key block (76) | zeros to 128 | chunk ... chunk | trailer | footer (8)

A random data key per object, wrapped by its study's key. Every chunk is one AEAD call bound to
the header prefix and the SOP Instance UID; its nonce counts chunks and flags the last, so that
flipping, reordering, swapping and truncating are all detected. Only whole authenticated chunks
are ever released.
"""

import functools
import secrets
import struct
import time
from dataclasses import dataclass
from enum import IntEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from edgepacs.errors import Tampered
from edgepacs.model import UID, ObjectId

MAGIC = b"EPOB"
FOOTER_MAGIC = b"EPEN"
VERSION = 1
CHUNK_LOG2 = 17
CHUNK_SIZE = 1 << CHUNK_LOG2
PREFIX_LENGTH = 24
HEADER_LENGTH = 128
FOOTER_LENGTH = 8
TAG_LENGTH = 16
TRAILER_LIMIT = 1 << 20
_NONCE = 12
_TRIALS = 16
_KEY_BLOCK = struct.Struct(f"16s{_NONCE}s{32 + TAG_LENGTH}s")
_FOOTER = struct.Struct(">I4s")
_TRAILER_NONCE = b"\x01" + b"\0" * 10 + b"\x01"


class Algorithm(IntEnum):
    """AEADs an object may be sealed with."""

    AES_256_GCM = 1
    CHACHA20_POLY1305 = 2

    def cipher(self, key: bytes) -> AESGCM | ChaCha20Poly1305:
        """The AEAD under `key` (32 bytes)."""
        return AESGCM(key) if self is Algorithm.AES_256_GCM else ChaCha20Poly1305(key)


@functools.cache
def fastest_algorithm() -> Algorithm:
    """The faster AEAD on this CPU, measured once: AES-GCM wins only with AES instructions."""
    block, sealed = bytes(CHUNK_SIZE), bytearray(CHUNK_SIZE + TAG_LENGTH)

    def seconds(algorithm: Algorithm) -> float:
        cipher, times = algorithm.cipher(bytes(32)), []
        for _ in range(_TRIALS):
            start = time.perf_counter()
            cipher.encrypt_into(bytes(_NONCE), block, None, sealed)
            times.append(time.perf_counter() - start)
        return min(times)  # whatever else the machine does, once it was not disturbed

    return min(Algorithm, key=seconds)


def _chunk_nonce(number: int, *, last: bool) -> bytes:
    return b"\0" * 7 + struct.pack(">IB", number, last)


def _bound(prefix: bytes, sop_instance_uid: UID) -> bytes:
    return prefix + sop_instance_uid.encode("ascii")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a sealed object of `size` bytes lie."""

    size: int
    trailer_length: int
    chunk_size: int

    @property
    def sealed_length(self) -> int:
        """Bytes of all sealed chunks together."""
        return self.size - HEADER_LENGTH - self.trailer_length - FOOTER_LENGTH

    @property
    def chunk_count(self) -> int:
        """How many chunks there are; at least one."""
        return -(-self.sealed_length // (self.chunk_size + TAG_LENGTH))

    @property
    def data_length(self) -> int:
        """Bytes of plaintext in all chunks together."""
        return self.sealed_length - self.chunk_count * TAG_LENGTH


class Sealer:
    """Seals one object: chunks as they come, then the trailer, then the header."""

    def __init__(self, object_id: ObjectId, sop_instance_uid: UID) -> None:
        algorithm = fastest_algorithm()
        self._prefix = MAGIC + bytes([VERSION, algorithm, CHUNK_LOG2, 0]) + object_id
        self._data_key = secrets.token_bytes(32)
        self._cipher = algorithm.cipher(self._data_key)
        self._bound = _bound(self._prefix, sop_instance_uid)
        self._chunks = 0

    def chunk(
        self, data: bytes | bytearray | memoryview, into: memoryview, *, last: bool
    ) -> memoryview:
        """Seal the next chunk: `chunk_size` bytes, or up to that for the last; a part of `into`.

        A buffer that is used again costs a third of one that is made for every chunk.
        """
        nonce = _chunk_nonce(self._chunks, last=last)
        self._chunks += 1
        sealed = into[: len(data) + TAG_LENGTH]
        self._cipher.encrypt_into(nonce, data, self._bound, sealed)
        return sealed

    def ending(self, trailer: bytes) -> bytes:
        """The sealed trailer and the footer that follows it."""
        sealed = self._cipher.encrypt(_TRAILER_NONCE, trailer, self._prefix)
        return sealed + _FOOTER.pack(len(sealed), FOOTER_MAGIC)

    def header(self, key_id: bytes, study_key: bytes) -> bytes:
        """The header, with the data key wrapped under the study key called `key_id`."""
        nonce = secrets.token_bytes(_NONCE)
        wrapped = ChaCha20Poly1305(study_key).encrypt(nonce, self._data_key, self._prefix + key_id)
        head = self._prefix + _KEY_BLOCK.pack(key_id, nonce, wrapped)
        return head.ljust(HEADER_LENGTH, b"\0")


def key_id_of(header: bytes) -> bytes:
    """The name of the study key a header asks for."""
    return _KEY_BLOCK.unpack_from(header, PREFIX_LENGTH)[0]  # type: ignore[no-any-return]


class Unsealer:
    """Opens the parts of one sealed object; every failure is Tampered."""

    def __init__(self, header: bytes, object_id: ObjectId, study_key: bytes) -> None:
        if len(header) != HEADER_LENGTH or header[:5] != MAGIC + bytes([VERSION]):
            raise Tampered("object header: not a sealed object of format 1")
        if any(header[PREFIX_LENGTH + _KEY_BLOCK.size :]):
            raise Tampered("object header: bytes that are reserved are not zero")
        if header[8:PREFIX_LENGTH] != object_id:
            raise Tampered("object header: holds another object's id")
        if header[5] not in list(Algorithm) or not 12 <= header[6] <= 24:
            raise Tampered("object header: unknown algorithm or chunk size")
        self._prefix = header[:PREFIX_LENGTH]
        key_id, nonce, wrapped = _KEY_BLOCK.unpack_from(header, PREFIX_LENGTH)
        try:
            key = ChaCha20Poly1305(study_key).decrypt(nonce, wrapped, self._prefix + key_id)
        except InvalidTag:
            raise Tampered("object header: does not authenticate") from None
        self._cipher = Algorithm(header[5]).cipher(key)
        self.chunk_size = 1 << header[6]

    def layout(self, size: int, footer: bytes) -> Layout:
        """The layout of an object of `size` bytes that ends in `footer`."""
        if len(footer) != FOOTER_LENGTH:
            raise Tampered("object: truncated")
        trailer_length, magic = _FOOTER.unpack(footer)
        layout = Layout(size, trailer_length, self.chunk_size)
        if layout.sealed_length < TAG_LENGTH:
            raise Tampered("object: truncated or its footer altered")
        room = layout.sealed_length - (layout.chunk_count - 1) * (self.chunk_size + TAG_LENGTH)
        if magic != FOOTER_MAGIC or trailer_length > TRAILER_LIMIT or room < TAG_LENGTH:
            raise Tampered("object: truncated or its footer altered")
        return layout

    def chunk(self, sealed: bytes, number: int, *, last: bool, sop_instance_uid: UID) -> bytes:
        """The plaintext of chunk `number`."""
        nonce = _chunk_nonce(number, last=last)
        try:
            return self._cipher.decrypt(nonce, sealed, _bound(self._prefix, sop_instance_uid))
        except InvalidTag:
            raise Tampered(f"object: chunk {number} does not authenticate") from None

    def trailer(self, sealed: bytes) -> bytes:
        """The plaintext of the trailer."""
        try:
            return self._cipher.decrypt(_TRAILER_NONCE, sealed, self._prefix)
        except InvalidTag:
            raise Tampered("object: its trailer does not authenticate") from None
