"""Processes killed at chosen moments, and sealed objects damaged on purpose."""

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import psutil
from harness.waiting import until


def members(group: int) -> list[int]:
    """The live processes of a process group."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def kill_group(group: int) -> None:
    """SIGKILL to every process of `group`; returns once none is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    until(lambda: not members(group), f"process group {group} is gone", seconds=10, every=0.01)


@dataclass(frozen=True, slots=True)
class Failpoint:
    """One named place in the node where a process stops until `release`."""

    name: str
    file: Path

    def env(self) -> dict[str, str]:
        """What the node's environment needs for it."""
        return {
            "EDGEPACS_FAILPOINT": f"{self.name}:pause",
            "EDGEPACS_FAILPOINT_FILE": str(self.file),
        }

    def reached(self, *, seconds: float = 20.0) -> None:
        """Wait until a process stands there."""
        until(self.file.exists, f"a process at failpoint {self.name}", seconds=seconds)

    def release(self) -> None:
        """Let the process go on."""
        self.file.unlink()


def flip_bit(path: Path, offset: int) -> None:
    """Invert the lowest bit of the byte at `offset`; negative counts from the end."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def truncate(path: Path, size: int) -> None:
    """Cut `path` to `size` bytes; negative takes bytes off the end."""
    data = path.read_bytes()
    path.write_bytes(data[:size])


def swap(one: Path, other: Path) -> None:
    """Exchange the contents of two files."""
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
