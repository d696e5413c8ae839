"""The keystore: study keys under a master key, the master key under device and recovery key.

docs/format.md is the contract. The file is append-only: a study's key is appended and synced
before the study's first Success, so objects + keystore + one of the two outer keys are enough
to rebuild everything. A study is named by a keyed hash of its UID, never by the UID.
"""

import base64
import contextlib
import errno
import fcntl
import hashlib
import hmac
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from edgepacs.config import Config, KeySource
from edgepacs.errors import (
    ConfigurationError,
    EdgePacsError,
    InvalidValue,
    StorageFault,
    Tampered,
    WrongKey,
)
from edgepacs.model import UID
from edgepacs.store.files import read_anew, storage_error, write_private
from edgepacs.telemetry import failpoint

MAGIC = b"EPKS\x01\0\0\0"
KEY_LENGTH = 32
ID_LENGTH = 16
_NONCE = 12
_WRAPPED = KEY_LENGTH + 16
_SLOT = 1 + _NONCE + _WRAPPED
_HEADER = len(MAGIC) + ID_LENGTH + 2 * _SLOT
_RECORD = ID_LENGTH + _NONCE + _WRAPPED
_DEVICE_SLOT, _RECOVERY_SLOT = 1, 2


def new_key() -> bytes:
    """32 random bytes."""
    return secrets.token_bytes(KEY_LENGTH)


def _is_torn(record: bytes) -> bool:
    """Whether a power cut left zeros: the file's length reached the disk before its bytes."""
    return record[0] == 0 or record[-1] == 0


def _wrap(outer: bytes, key: bytes, bound: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE)
    return nonce + ChaCha20Poly1305(outer).encrypt(nonce, key, bound)


def _unwrap(outer: bytes, wrapped: bytes, bound: bytes) -> bytes:
    return ChaCha20Poly1305(outer).decrypt(wrapped[:_NONCE], wrapped[_NONCE:], bound)


def recovery_text(key: bytes) -> str:
    """`key` as it is printed: base32 in groups of four, two bytes of checksum at the end."""
    text = base64.b32encode(key + hashlib.sha256(key).digest()[:2]).decode().rstrip("=")
    return "-".join(text[i : i + 4] for i in range(0, len(text), 4))


def recovery_key(text: str) -> bytes:
    """The key that `recovery_text` printed; raises InvalidValue when it was mistyped."""
    plain = "".join(text.upper().replace("-", "").split())
    try:
        raw = base64.b32decode(plain + "=" * (-len(plain) % 8))
    except ValueError as error:
        raise InvalidValue("recovery key", "not letters A-Z and digits 2-7 in groups") from error
    key = raw[:KEY_LENGTH]
    if len(raw) != KEY_LENGTH + 2 or hashlib.sha256(key).digest()[:2] != raw[KEY_LENGTH:]:
        raise InvalidValue("recovery key", "incomplete or mistyped: its checksum does not match")
    return key


def device_key(config: Config) -> bytes:
    """The key that unlocks this node at start, from where the configuration says.

    Raises ConfigurationError naming the place when it is missing or not 32 bytes.
    """
    path = config.device_key_file
    if config.keys.source is KeySource.CREDENTIAL:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise ConfigurationError(
                "[keys] source: credential needs LoadCredential=edgepacs-device-key in the unit"
            )
        path = Path(folder) / "edgepacs-device-key"
    try:
        key = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"[keys] {path}: device key cannot be read: {error.strerror}"
        ) from error
    if len(key) != KEY_LENGTH:
        raise ConfigurationError(f"[keys] {path}: not a device key of {KEY_LENGTH} bytes")
    return key


class Keystore:
    """Study keys by study, shared by all processes of a node through one append-only file."""

    def __init__(self, path: Path, store_id: bytes, master: bytes) -> None:
        self._path = path
        self._store_id = store_id
        self._master = master
        self._names = self._derive(b"study key names")
        self._keys: dict[bytes, bytes] = {}
        self._read_up_to = self._synced_up_to = _HEADER
        self._lock = threading.Lock()
        self._fault: StorageFault | None = None
        read_anew(path)  # what a failed sync left is not on the disk
        self._catch_up()

    @classmethod
    def create(cls, path: Path, device: bytes, recovery: bytes) -> Self:
        """Make a new keystore at `path`, which must not exist; durable on return."""
        store_id, master = secrets.token_bytes(ID_LENGTH), new_key()
        slots = b"".join(
            bytes([kind]) + _wrap(outer, master, store_id + bytes([kind]))
            for kind, outer in ((_DEVICE_SLOT, device), (_RECOVERY_SLOT, recovery))
        )
        write_private(path, MAGIC + store_id + slots)
        return cls(path, store_id, master)

    @classmethod
    def open(cls, path: Path, outer: bytes) -> Self:
        """Open with the device key or the recovery key; raises WrongKey when neither fits."""
        try:
            with path.open("rb") as file:
                header = file.read(_HEADER)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM):
                raise storage_error(error) from error  # it may be read another time
            raise ConfigurationError(
                f"{path}: keystore cannot be read: {error.strerror}; restore it from a backup"
            ) from error
        if len(header) != _HEADER or not header.startswith(MAGIC):
            raise Tampered(f"{path}: not an EdgePACS keystore of format 1")
        store_id = header[len(MAGIC) : len(MAGIC) + ID_LENGTH]
        slots = header[len(MAGIC) + ID_LENGTH :]
        for slot in (slots[:_SLOT], slots[_SLOT:]):
            with contextlib.suppress(InvalidTag):
                return cls(path, store_id, _unwrap(outer, slot[1:], store_id + slot[:1]))
        raise WrongKey(f"{path}: the key given opens neither the device nor the recovery slot")

    def index_key(self) -> bytes:
        """The key of the index, derived from the master key."""
        return self._derive(b"index")

    def study_key_id(self, study_uid: UID) -> bytes:
        """The 16-byte name under which this store keeps the study's key."""
        return hmac.digest(self._names, study_uid.encode("ascii"), "sha256")[:ID_LENGTH]

    def key(self, key_id: bytes) -> bytes:
        """The study key of that name; raises WrongKey when it is not (or no longer) held."""
        with self._lock:
            if key_id not in self._keys:
                self._catch_up()
            try:
                return self._keys[key_id]
            except KeyError:
                raise WrongKey("the study key of this object is not in the keystore") from None

    def ensure_study_key(self, study_uid: UID) -> tuple[bytes, bytes]:
        """(name, key) for a study, made and synced to disk if it is the first of that study."""
        key_id = self.study_key_id(study_uid)
        with self._lock:
            if self._fault is not None:  # another sync would answer yes for what is lost
                raise StorageFault(str(self._fault))
            if key_id not in self._keys:
                with self._exclusively():
                    self._catch_up()
                    if key_id not in self._keys:
                        self._append(key_id, new_key())
            self._sync()
            return key_id, self._keys[key_id]

    def _sync(self) -> None:
        """Make what was read durable: whoever wrote it may have been killed before it could."""
        if self._synced_up_to < self._read_up_to:
            try:
                with self._path.open("rb") as file:
                    os.fsync(file.fileno())
            except OSError as error:
                raise self._failed(error) from error
            self._synced_up_to = self._read_up_to

    def _failed(self, error: OSError) -> EdgePacsError:
        """The error in our words; one of the device is kept."""
        found = storage_error(error)
        if isinstance(found, StorageFault):
            self._fault = found
        return found

    def _derive(self, purpose: bytes) -> bytes:
        return hmac.digest(self._master, b"EdgePACS " + purpose, "sha256")

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        try:
            file = self._path.open("rb")
        except OSError as error:
            raise self._failed(error) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _catch_up(self) -> None:
        """Read the records other processes have appended since."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read_up_to)
                tail = file.read()
        except OSError as error:
            raise storage_error(error) from error
        for start in range(0, len(tail) - _RECORD + 1, _RECORD):
            record = tail[start : start + _RECORD]
            try:
                self._accept(record)
            except Tampered:
                if start + _RECORD < len(tail) or not _is_torn(record):
                    raise
                return
            self._read_up_to += _RECORD

    def _accept(self, record: bytes) -> None:
        key_id, wrapped = record[:ID_LENGTH], record[ID_LENGTH:]
        try:
            self._keys[key_id] = _unwrap(self._master, wrapped, self._store_id + key_id)
        except InvalidTag:
            raise Tampered(
                f"{self._path}: the record at byte {self._read_up_to} does not authenticate"
            ) from None

    def _append(self, key_id: bytes, key: bytes) -> None:
        self._sync()  # at most the last record may be torn
        record = key_id + _wrap(self._master, key, self._store_id + key_id)
        try:
            with self._path.open("r+b") as file:
                # A torn record at the end was never synced, so nothing depends on it.
                file.truncate(self._read_up_to)
                file.seek(self._read_up_to)
                file.write(record)
                file.flush()
                failpoint("keystore.appended")
                os.fsync(file.fileno())
        except OSError as error:
            # Nobody may read what the device may not hold, nor take a second sync for an answer.
            with contextlib.suppress(OSError):
                os.truncate(self._path, self._read_up_to)
            raise self._failed(error) from error
        failpoint("keystore.synced")
        self._accept(record)
        self._read_up_to += _RECORD
        self._synced_up_to = self._read_up_to
