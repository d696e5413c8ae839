"""Storage that fails at a chosen system call, under a program that knows nothing of it.

A seccomp filter lies over the node's processes, and the kernel asks this process about each of
their calls that touch storage: let it happen, or answer this error (seccomp_unotify(2)). The
program under test, its interpreter and its libraries stay as they are; SQLite's calls and
Python's are told apart by the file they are for.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import re
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

_WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "fallocate")
_READS = ("read", "pread64", "readv", "preadv", "preadv2")
_SYNCS = ("fsync", "fdatasync", "sync_file_range")
_NUMBERS = {
    "x86_64": {
        "read": 0, "write": 1, "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20,
        "fsync": 74, "fdatasync": 75, "ftruncate": 77, "unlink": 87, "openat": 257,
        "unlinkat": 263, "sync_file_range": 277, "fallocate": 285, "preadv": 295, "pwritev": 296,
        "seccomp": 317, "preadv2": 327, "pwritev2": 328,
    },
    "aarch64": {
        "unlinkat": 35, "ftruncate": 46, "fallocate": 47, "openat": 56, "read": 63, "write": 64,
        "readv": 65, "writev": 66, "pread64": 67, "pwrite64": 68, "preadv": 69, "pwritev": 70,
        "fsync": 82, "fdatasync": 83, "sync_file_range": 84, "seccomp": 277, "preadv2": 286,
        "pwritev2": 287,
    },
}  # fmt: skip

# linux/seccomp.h, linux/bpf_common.h
_SET_MODE_FILTER, _NEW_LISTENER = 1, 1 << 3
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_AT, _FLAGS_AT = 0, 32  # of openat: the low half of its third argument
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTICE, _ANSWER = struct.Struct("QIIiIQ6Q"), struct.Struct("QqiI")
_CONTINUE = 1
_PR_SET_NO_NEW_PRIVS = 38


class Deed(StrEnum):
    """What a call does to its file."""

    READ = "read"
    WRITE = "write"
    SYNC = "sync"
    CREATE = "create"
    REMOVE = "remove"


_DEEDS = {
    **dict.fromkeys(_WRITES, Deed.WRITE),
    **dict.fromkeys(_READS, Deed.READ),
    **dict.fromkeys(_SYNCS, Deed.SYNC),
    "openat": Deed.CREATE,  # asked about only with O_CREAT
    "unlink": Deed.REMOVE,
    "unlinkat": Deed.REMOVE,
}


class Part(StrEnum):
    """Which part of a store a file is (docs/format.md)."""

    OBJECT = "object"
    FOLDER = "folder of objects"
    KEYSTORE = "keystore"
    INDEX = "index"
    LOG = "write-ahead log"
    SHARED = "shared memory of the index"
    OTHER = "other"


_PARTS = (
    (re.compile(r"/objects/[0-9a-f]{2}/[0-9a-f]{32}( \(deleted\))?$"), Part.OBJECT),
    (re.compile(r"/objects/[0-9a-f]{2}$"), Part.FOLDER),
    (re.compile(r"/keystore$"), Part.KEYSTORE),
    (re.compile(r"/index\.db$"), Part.INDEX),
    (re.compile(r"/index\.db-wal$"), Part.LOG),
    (re.compile(r"/index\.db-shm$"), Part.SHARED),
)


def _part(path: str) -> Part:
    return next((part for pattern, part in _PARTS if pattern.search(path)), Part.OTHER)


@dataclass(frozen=True, slots=True)
class Call:
    """One system call that waits for its answer."""

    name: str
    path: str
    thread: int

    @property
    def deed(self) -> Deed:
        """What it does."""
        return _DEEDS[self.name]

    @property
    def part(self) -> Part:
        """To which part of the store."""
        return _part(self.path)

    @property
    def process(self) -> int:
        """The process whose thread it is."""
        status = Path(f"/proc/{self.thread}/status").read_text()
        return int(status.partition("Tgid:")[2].split()[0])

    def __str__(self) -> str:
        return f"{self.deed} of {self.part}"


Rule = Callable[[Call], int]  # the error number to answer with; 0 lets the call happen
_Rule = TypeVar("_Rule", bound=Rule)


@dataclass(slots=True)
class Trap:
    """A rule that answers `error` from the `first` to the `last` matching call, and counts them.

    `then`, where given, is called at each of them instead, and its answer is the answer.
    """

    deed: Deed
    part: Part
    error: int = errno.EIO
    first: int = 1
    last: int = 1 << 30
    then: Callable[[Call], int] | None = None
    seen: int = 0
    sprung: int = 0

    def __call__(self, call: Call) -> int:
        if call.deed is not self.deed or call.part is not self.part:
            return 0
        self.seen += 1
        if not self.first <= self.seen <= self.last:
            return 0
        self.sprung += 1
        return self.then(call) if self.then else self.error


@dataclass(slots=True)
class Record:
    """A rule that lets everything happen and remembers what touched the store."""

    calls: list[Call] = field(default_factory=list)

    def __call__(self, call: Call) -> int:
        if call.part is not Part.OTHER:
            self.calls.append(call)
        return 0


class Storage:
    """Answers for the storage calls of the processes below one `launcher`."""

    def __init__(self) -> None:
        self.rule: Rule | None = None
        self._ours, self.theirs = socket.socketpair()
        self._listener = -1
        self._end = threading.Event()
        self._trouble: list[BaseException] = []
        self._thread = threading.Thread(target=self._answer_all, daemon=True)

    def attach(self) -> None:
        """Take the listener the launcher sends; raises what it could not do as OSError."""
        self.theirs.close()
        self._ours.settimeout(10)
        word, (self._listener,), _, _ = socket.recv_fds(self._ours, 1, 1)
        assert word == b"+", "the launcher did not lay its filter"
        self._thread.start()

    @contextlib.contextmanager
    def ruled(self, rule: _Rule) -> Iterator[_Rule]:
        """Ask `rule` about every call while the block runs."""
        self.rule = rule
        try:
            yield rule
        finally:
            self.rule = None
        if self._trouble:
            raise self._trouble.pop()

    def close(self) -> None:
        """Stop answering; the processes must be gone by now."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(10)
        for end in (self._ours, self.theirs):
            end.close()
        if self._listener >= 0:
            os.close(self._listener)
            self._listener = -1

    def _answer_all(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while not self._end.is_set():
            ready = poll.poll(100)
            if ready and ready[0][1] & select.POLLIN:
                self._answer_one()
            elif ready:  # no process is left under the filter
                return

    def _answer_one(self) -> None:
        notice = bytearray(_NOTICE.size)
        # Who asked may be killed before it hears the answer.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fcntl.ioctl(self._listener, _RECEIVE, notice)
            number, thread, _, call, _, _, *arguments = _NOTICE.unpack(notice)
            error = self._judge(thread, call, arguments)
            answer = _ANSWER.pack(number, 0, -error, 0 if error else _CONTINUE)
            fcntl.ioctl(self._listener, _SEND, bytearray(answer))

    def _judge(self, thread: int, number: int, arguments: list[int]) -> int:
        rule = self.rule
        if rule is None:
            return 0
        try:
            name = _NAMES[number]
            return rule(Call(name, _path(name, thread, arguments), thread))
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            return 0
        except BaseException as error:  # noqa: BLE001  raised again in the test's own thread
            self._trouble.append(error)
            return 0


_NAMES = {number: name for name, number in _NUMBERS.get(platform.machine(), {}).items()}


_NAMED_BY = {"openat": 1, "unlinkat": 1, "unlink": 0}  # the argument that points to a path


def _path(name: str, thread: int, arguments: list[int]) -> str:
    if name not in _NAMED_BY:
        return str(Path(f"/proc/{thread}/fd/{arguments[0] & 0xFFFFFFFF}").readlink())
    address = arguments[_NAMED_BY[name]]
    with Path(f"/proc/{thread}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        raw = memory.read(4096 - address % 4096)  # to the end of its page
        if b"\0" not in raw:
            raw += memory.read(4096)
    return os.fsdecode(raw.partition(b"\0")[0])


def _program(numbers: dict[str, int]) -> bytes:
    """The filter: ask about storage calls, and about openat only where it may create a file."""
    asked = [number for name, number in numbers.items() if name not in ("seccomp", "openat")]
    lines = [(_LOAD, 0, 0, _NUMBER_AT)]
    lines += [
        (_EQUAL, len(asked) - place + 3, 0, number) for place, number in enumerate(asked)
    ]  # to the end: ask
    lines += [
        (_EQUAL, 0, 2, numbers["openat"]),
        (_LOAD, 0, 0, _FLAGS_AT),
        (_ANY_BIT, 1, 0, os.O_CREAT),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ASK),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_void_p))


def lay_filter() -> int:
    """Lay the filter over this process and all it will start; the descriptor that is asked."""
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise OSError(errno.ENOSYS, f"the system calls of {platform.machine()} are not known here")
    library = ctypes.CDLL(None, use_errno=True)
    raw = _program(numbers)
    lines = ctypes.create_string_buffer(raw, len(raw))
    program = _Program(len(raw) // 8, ctypes.addressof(lines))
    if library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    seccomp = numbers["seccomp"]
    made = library.syscall(seccomp, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(program))
    if made < 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
    return int(made)


def unavailable() -> str:
    """Why no filter can be laid here; "" when one can."""
    child = os.fork()
    if not child:
        try:
            lay_filter()
        except OSError as error:
            os._exit(error.errno or errno.EIO)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"seccomp cannot ask this process about system calls: {os.strerror(code)}" * bool(code)
