"""The vault: one sealed file per object, at a path made from its random id, never from a UID.

Writers hold the shared lock for as long as they run; the sweep of orphans runs only under the
exclusive one, so it can never take an object somebody is about to commit.
"""

import contextlib
import fcntl
import io
import json
import os
import re
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepacs.errors import Busy, NoRoom, NotFound, StorageFault, Tampered
from edgepacs.model import UID, ObjectId
from edgepacs.store import seal
from edgepacs.store.files import read_anew, storage_error, sync_directory
from edgepacs.store.fingerprint import Fingerprint
from edgepacs.store.keystore import Keystore
from edgepacs.telemetry import failpoint

_SHARDS = 256
_OBJECT_NAME = re.compile("[0-9a-f]{32}")
_LOOK_BYTES = 4 << 20  # written between two looks at the free space
_BLANKS_AT_ONCE = 32
_BLANKS_LOW = 32
_BLANK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Blank:
    """An empty object file, open at its first chunk; `named` says its name is durable already."""

    object_id: ObjectId
    path: Path
    fd: int
    named: bool


class Bench:
    """The two buffers one object is sealed with, used again for the next object."""

    def __init__(self) -> None:
        self.pending = bytearray()
        self.sealed = memoryview(bytearray(seal.CHUNK_SIZE + seal.TAG_LENGTH))


class ObjectWriter:
    """One object on its way in. Nothing of it counts until `finish` has returned."""

    def __init__(
        self,
        blank: Blank,
        sop_instance_uid: UID,
        benches: deque[Bench],
        require_room: Callable[[], None],
    ) -> None:
        self._require_room = require_room
        self._next_look = _LOOK_BYTES
        self.object_id = blank.object_id
        self._path = blank.path
        self._fd = blank.fd
        self._named = blank.named
        self._sealer = seal.Sealer(blank.object_id, sop_instance_uid)
        self._benches = benches
        self._bench = benches.pop() if benches else Bench()
        self._pending = self._bench.pending
        self._fingerprint = Fingerprint()
        self._size = seal.HEADER_LENGTH
        self.length = 0

    def write(self, data: bytes | memoryview) -> None:
        """Seal and write what of `data` fills whole chunks; raises NoRoom, StorageFault."""
        self._fingerprint.update(data)
        self.length += len(data)
        view = memoryview(data)
        while len(self._pending) + len(view) > seal.CHUNK_SIZE:
            taken = seal.CHUNK_SIZE - len(self._pending)
            if self._pending:
                self._pending += view[:taken]
                self._put_chunk(self._pending)
                self._pending.clear()
            else:
                self._put_chunk(view[:taken])
            view = view[taken:]
        self._pending += view

    @property
    def fingerprint(self) -> bytes:
        """The fingerprint of everything written so far."""
        return self._fingerprint.value()

    def finish(self, key_id: bytes, study_key: bytes, trailer: dict[str, Any]) -> int:
        """Write the rest and make file and name durable; the sealed size in bytes."""
        last = self._sealer.chunk(self._pending, self._bench.sealed, last=True)
        ending = self._sealer.ending(json.dumps(trailer, separators=(",", ":")).encode())
        self._put(b"".join((last, ending)))
        try:
            os.pwrite(self._fd, self._sealer.header(key_id, study_key), 0)
            failpoint("object.written")
            os.fdatasync(self._fd)
            failpoint("object.synced")
            self._close()
            if not self._named:
                sync_directory(self._path.parent)
        except OSError as error:
            raise storage_error(error) from error
        return self._size

    def discard(self) -> None:
        """Give the object up; its bytes are gone from the directory."""
        with contextlib.suppress(OSError):  # what it could not write is not wanted any more
            self._close()
        with contextlib.suppress(OSError):  # the sweep will
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        """Close once: by now another thread may have been given the same number."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._pending.clear()
            self._benches.append(self._bench)
            del self._pending, self._bench  # they are another object's from here on
            os.close(fd)

    def _put_chunk(self, data: bytearray | memoryview) -> None:
        """Seal and write one chunk."""
        if self._size >= self._next_look:  # the reserve is not one large object's
            self._require_room()
            self._next_look += _LOOK_BYTES
        self._put(self._sealer.chunk(data, self._bench.sealed, last=False))

    def _put(self, sealed: bytes | memoryview) -> None:
        view = memoryview(sealed)
        self._size += len(view)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise storage_error(error) from error


class ObjectReader(io.RawIOBase):
    """A sealed object as a seekable binary reader; releases only authenticated bytes."""

    def __init__(
        self, fd: int, object_id: ObjectId, keystore: Keystore, expected: UID | None
    ) -> None:
        super().__init__()
        self._fd = fd
        header = self._read(seal.HEADER_LENGTH, 0)
        if len(header) != seal.HEADER_LENGTH:
            raise Tampered("object: truncated")
        study_key = keystore.key(seal.key_id_of(header))
        self._unsealer = seal.Unsealer(header, object_id, study_key)
        size = os.fstat(fd).st_size
        footer = self._read(seal.FOOTER_LENGTH, max(0, size - seal.FOOTER_LENGTH))
        self._layout = self._unsealer.layout(size, footer)
        self._uid = expected or UID(str(self.trailer()["sop_instance_uid"]))
        self._position = 0
        self._cached: tuple[int, bytes] = (-1, b"")

    def _read(self, length: int, offset: int) -> bytes:
        try:
            return os.pread(self._fd, length, offset)
        except OSError as error:
            raise storage_error(error) from error

    @property
    def length(self) -> int:
        """Bytes of plaintext."""
        return self._layout.data_length

    def trailer(self) -> dict[str, Any]:
        """What the index row of this object needs, as it was at commit."""
        start = seal.HEADER_LENGTH + self._layout.sealed_length
        sealed = self._read(self._layout.trailer_length, start)
        return dict(json.loads(self._unsealer.trailer(sealed)))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._some(self._position, len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def chunks(self) -> Iterator[bytes]:
        """The whole plaintext, one authenticated chunk after the other."""
        for number in range(self._layout.chunk_count):
            yield self._chunk(number)

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()

    def _some(self, offset: int, most: int) -> bytes:
        """Up to `most` bytes at `offset`, from one chunk."""
        if offset >= self.length or most <= 0:
            return b""
        number, within = divmod(offset, self._layout.chunk_size)
        return self._chunk(number)[within : within + most]

    def _chunk(self, number: int) -> bytes:
        if self._cached[0] != number:
            sealed_size = self._layout.chunk_size + seal.TAG_LENGTH
            start = number * sealed_size
            length = min(sealed_size, self._layout.sealed_length - start)
            sealed = self._read(length, seal.HEADER_LENGTH + start)
            last = number == self._layout.chunk_count - 1
            plain = self._unsealer.chunk(sealed, number, last=last, sop_instance_uid=self._uid)
            self._cached = (number, plain)
        return self._cached[1]


class Vault:
    """All sealed objects of a node, below `root`."""

    def __init__(self, root: Path, keystore: Keystore, reserve: int) -> None:
        self._root = root
        self._keystore = keystore
        self._reserve = reserve
        self._blanks: deque[Blank] = deque()
        self._blank_used = threading.Event()
        self._benches: deque[Bench] = deque()
        self._fault: StorageFault | None = None

    @classmethod
    def create(cls, root: Path) -> None:
        """Make the folders of an empty vault; durable on return."""
        for shard in range(_SHARDS):
            (root / f"{shard:02x}").mkdir(parents=True)
        (root / "lock").touch(mode=0o600)
        sync_directory(root)
        sync_directory(root.parent)

    def new(self, sop_instance_uid: UID, object_id: ObjectId | None = None) -> ObjectWriter:
        """Begin a new object; raises NoRoom below the reserve.

        `object_id` is given (`new_object_id`) where another process must be able to remove what
        this one leaves when it dies.
        """
        self.require_sound()
        self.require_room()
        if object_id is not None:
            return self._writer(self._blank(object_id, named=False), sop_instance_uid)
        try:
            blank = self._blanks.popleft()
            if len(self._blanks) <= _BLANKS_LOW:
                self._blank_used.set()
        except IndexError:
            blank = self._blank(new_object_id(), named=False)
        return self._writer(blank, sop_instance_uid)

    def _writer(self, blank: Blank, sop_instance_uid: UID) -> ObjectWriter:
        return ObjectWriter(blank, sop_instance_uid, self._benches, self.require_room)

    def _blank(self, object_id: bytes, *, named: bool) -> Blank:
        path = self._path(ObjectId(object_id))
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.lseek(fd, seal.HEADER_LENGTH, os.SEEK_SET)
        except OSError as error:
            raise storage_error(error) from error
        return Blank(ObjectId(object_id), path, fd, named)

    def keep_blanks(self, stop: threading.Event) -> None:
        """Keep blank objects at hand until `stop`, so that no store pays for making its file.

        Their names are synced before they are given out. Those left over are removed; after a
        crash they are empty objects without a row, which the sweep removes.
        """
        while not stop.is_set():
            if len(self._blanks) <= _BLANKS_LOW:
                try:
                    self._blanks.extend(self._some_blanks())
                except (NoRoom, Busy):
                    pass  # `new` says so to whoever asks
                except StorageFault as fault:
                    self.condemn(fault)
                    break
            self._blank_used.wait(_BLANK_SECONDS)
            self._blank_used.clear()
        while self._blanks:
            _drop(self._blanks.popleft())

    def _some_blanks(self) -> list[Blank]:
        """A batch in one folder, so that one directory sync names them all."""
        self.require_room()
        shard = secrets.token_bytes(1)
        names = [shard + secrets.token_bytes(15) for _ in range(_BLANKS_AT_ONCE)]
        blanks: list[Blank] = []
        try:
            blanks.extend(self._blank(name, named=True) for name in names)
            failpoint("blanks.made")
            sync_directory(blanks[0].path.parent)
        except BaseException:
            for blank in blanks:
                _drop(blank)
            raise
        failpoint("blanks.named")
        return blanks

    def condemn(self, fault: StorageFault) -> None:
        """Trust nothing this process writes from now on: the page cache may lie."""
        self._fault = fault

    @property
    def fault(self) -> StorageFault | None:
        """The fault this process has met, if it has."""
        return self._fault

    def require_sound(self) -> None:
        """Raise the StorageFault this process has met, if it has."""
        if self._fault is not None:
            raise StorageFault(str(self._fault))

    def require_room(self) -> None:
        """Raise NoRoom when free space is below the reserve (PS3.4 B.2.3, A700)."""
        free = self.free_bytes()
        if free < self._reserve:
            mib = 1 << 20
            raise NoRoom(f"{free // mib} MiB free, the reserve is {self._reserve // mib} MiB")

    def free_bytes(self) -> int:
        """Bytes this process may still write to the vault's file system."""
        stat = os.statvfs(self._root)
        return stat.f_bavail * stat.f_frsize

    def open(self, object_id: ObjectId, sop_instance_uid: UID | None = None) -> ObjectReader:
        """Open an object; without a UID the object's own trailer names it (rebuild, fsck).

        Raises NotFound when there is no such object, Tampered when it does not authenticate.
        """
        try:
            fd = os.open(self._path(object_id), os.O_RDONLY)
        except FileNotFoundError:
            raise NotFound("the sealed object is missing") from None
        except OSError as error:
            raise storage_error(error) from error
        # The reader owns the descriptor from its first line on: it is closed with it, once.
        return ObjectReader(fd, object_id, self._keystore, sop_instance_uid)

    def exists(self, object_id: ObjectId) -> bool:
        """Whether there is such an object."""
        return self._path(object_id).exists()

    def size(self, object_id: ObjectId) -> int:
        """Bytes an object takes on disk, sealed; 0 when there is none."""
        try:
            return self._path(object_id).stat().st_size
        except FileNotFoundError:
            return 0

    def sync(self, object_id: ObjectId) -> None:
        """Make an object durable that somebody else has written; raises StorageFault."""
        path = self._path(object_id)
        read_anew(path)
        sync_directory(path.parent)

    def remove(self, object_id: ObjectId) -> None:
        """Delete an object's bytes; only right after the transaction that let them go."""
        self._path(object_id).unlink(missing_ok=True)

    def is_finished(self, object_id: ObjectId) -> bool:
        """Whether an object was ever finished: its header is written last."""
        try:
            with self._path(object_id).open("rb") as file:
                return any(file.read(seal.HEADER_LENGTH))
        except FileNotFoundError:
            return False

    def set_aside(self, object_id: ObjectId) -> None:
        """Take a damaged object without a row out of the vault, for a person to look at."""
        folder = self._root.parent / "aside"
        folder.mkdir(mode=0o700, exist_ok=True)
        path = self._path(object_id)
        path.rename(folder / path.name)
        sync_directory(folder)
        sync_directory(path.parent)

    def object_ids(self) -> Iterator[ObjectId]:
        """Every object on disk, in no order."""
        for entry in self._entries():
            if _is_object(entry):
                yield ObjectId(bytes.fromhex(entry.name))

    def foreign_files(self) -> Iterator[str]:
        """Names of files in the vault that are no objects."""
        return (entry.name for entry in self._entries() if not _is_object(entry))

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        for shard in range(_SHARDS):
            yield from os.scandir(self._root / f"{shard:02x}")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock every process that writes objects holds; waits for a sweep to end."""
        with self._lock_file() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock that keeps every writer out; raises Busy when there is one."""
        with self._lock_file() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy("objects are being written by another process") from None
            yield

    def _lock_file(self) -> io.BufferedReader:
        return (self._root / "lock").open("rb")

    def _path(self, object_id: ObjectId) -> Path:
        name = object_id.hex()
        return self._root / name[:2] / name


def new_object_id() -> ObjectId:
    """An object id nobody else has."""
    return ObjectId(secrets.token_bytes(16))


def _drop(blank: Blank) -> None:
    with contextlib.suppress(OSError):  # the sweep finds it
        os.close(blank.fd)
        blank.path.unlink(missing_ok=True)


def _is_object(entry: os.DirEntry[str]) -> bool:
    return _OBJECT_NAME.fullmatch(entry.name) is not None and entry.is_file()
