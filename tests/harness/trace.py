"""Every byte that a process tree writes to a regular file, unlinked ones included.

strace records the system calls; this module puts the written bytes back together and searches
them. What it cannot see into (a shared writable mapping, sendfile, io_uring, ...) is reported as
opaque, so that a new way of writing fails the test instead of passing unseen.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.canary import Searcher
from harness.dcmtk import require

_WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2")
_COPIES = ("sendfile", "copy_file_range", "splice", "vmsplice")
_RINGS = ("io_uring_setup", "io_submit")
_NAMES = (
    *("execve", "execveat", "open", "openat", "openat2", "creat", "rename", "renameat"),
    *("renameat2", "link", "linkat", "symlink", "symlinkat", "mkdir", "mkdirat"),
    *("mknod", "mknodat", "setxattr", "lsetxattr", "fsetxattr", "memfd_create"),
)
_CALL = re.compile(rb"^(\w+)\((.*)\)\s+= (-?\w+)", re.DOTALL)
_STRING = re.compile(rb'"((?:\\x[0-9a-f]{2})*)"')
_CUT = re.compile(rb'"\.\.\.')
_DESCRIPTOR = re.compile(rb"^(?:AT_FDCWD|\d+)<((?:\\x[0-9a-f]{2})*)>")
_TYPED = re.compile(rb"^\d+<(?:[A-Z][A-Z0-9-]*:|(?:\\x[0-9a-f]{2})*<(?:char|block) )")
_NOT_FILES = ("pipe:[", "socket:[", "anon_inode:")


def command(prefix: Path) -> list[str]:
    """What to put before a command line so that its whole tree is traced to `prefix`.PID."""
    calls = ",".join((*_WRITES, *_COPIES, *_RINGS, *_NAMES, "mmap"))
    options = ["-ff", "--seccomp-bpf", "-yy", "-xx", "-v", "-s", str(1 << 27), "-qq"]
    options += ["-e", f"trace=?{calls.replace(',', ',?')}", "-e", "signal=none"]
    return [require("strace"), *options, "-o", str(prefix), "--"]


def _unescape(text: bytes) -> bytes:
    return bytes.fromhex(text.replace(b"\\x", b"").decode("ascii"))


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a process did: bytes written to `path`, a name used, or something opaque."""

    kind: str  # "written", "named" or "opaque"
    call: str
    path: str
    data: bytes = field(repr=False)


def _target(arguments: bytes) -> str | None:
    """The regular file that the first argument stands for; None for sockets, pipes, devices."""
    if _TYPED.match(arguments):
        return None
    found = _DESCRIPTOR.match(arguments)
    if not found:
        return "(unresolved descriptor)"
    path = os.fsdecode(_unescape(found.group(1)))
    return None if path.startswith(_NOT_FILES) else path


def _event(call: str, arguments: bytes) -> Event | None:
    if call in _NAMES:
        strings = b"\0".join(_unescape(one) for one in _STRING.findall(arguments))
        return Event("named", call, "", strings)
    if call in _WRITES:
        path = _target(arguments)
        if path is None:
            return None
        if _CUT.search(arguments):
            return Event("opaque", call, path, b"")
        data = b"".join(_unescape(one) for one in _STRING.findall(arguments))
        return Event("written", call, path, data)
    if call in _COPIES:
        path = _copy_target(call, arguments)
        return Event("opaque", call, path, b"") if path else None
    if call in _RINGS:
        return Event("opaque", call, "", b"")
    return _mapping(arguments)


def _copy_target(call: str, arguments: bytes) -> str | None:
    if call in ("sendfile", "vmsplice"):
        return _target(arguments)
    parts = arguments.split(b", ")  # fd_in, off_in, fd_out, ...: paths are escaped, so no commas
    return _target(parts[2])


def _mapping(arguments: bytes) -> Event | None:
    parts = arguments.split(b", ")
    if len(parts) < 6 or b"PROT_WRITE" not in parts[2] or b"MAP_SHARED" not in parts[3]:
        return None
    if b"MAP_ANONYMOUS" in parts[3] or b"MAP_ANON" in parts[3]:
        return None
    path = _target(parts[4])
    return Event("opaque", "mmap", path, b"") if path else None


def events(prefix: Path) -> Iterator[Event]:
    """Everything recorded under `prefix` by `command`, process by process."""
    for log in sorted(prefix.parent.glob(prefix.name + ".*")):
        with log.open("rb") as lines:
            for line in lines:
                call = _CALL.match(line)
                if call and call.group(3) != b"-1":
                    found = _event(call.group(1).decode(), call.group(2))
                    if found:
                        yield found


@dataclass(slots=True)
class Finding:
    """What a trace came to."""

    hits: list[str]
    opaque: list[str]
    bytes_written: int
    paths: set[str] = field(repr=False)


def search(prefix: Path, searcher: Searcher) -> Finding:
    """Look for every mark in all that was written, also across the seams of two writes.

    `opaque` lists, without those that `_harmless` explains, the writes nobody could look into.
    """
    finding = Finding([], [], 0, set())
    tails: dict[str, bytes] = {}
    for event in events(prefix):
        if event.kind == "opaque":
            if not _harmless(event):
                finding.opaque.append(f"{event.call} {event.path}")
            continue
        where = event.path or event.call
        stream = tails.get(event.path, b"") + event.data if event.path else event.data
        finding.hits += [f"{event.call} {where}: {what}" for what in searcher.hits(stream)]
        if event.kind == "written":
            tails[event.path] = stream[-(searcher.longest - 1) :]
            finding.bytes_written += len(event.data)
            finding.paths.add(event.path)
    return finding


def _harmless(event: Event) -> bool:
    """Mappings that hold no data set: SQLite's WAL index and the semaphores of multiprocessing.

    The WAL index (`-shm`) is a file that remains, so the scan of the data directory reads it.
    """
    return event.call == "mmap" and (
        event.path.endswith("-shm") or event.path.startswith("/dev/shm/sem.")
    )
