"""The machine: what it is, and how busy its storage device is."""

import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_VOLATILE = ("tmpfs", "ramfs")
_STILL_SECONDS = 0.3
_STILL_AT_MOST = float(os.environ.get("QUIET") or 20)  # seconds
_WRITES = 4  # fields of /sys/dev/block/*/stat: writes completed, and in flight
_IN_FLIGHT = 8


def description(directory: Path) -> dict[str, str]:
    """What a reader needs to know of the machine and of the code, in words."""
    return {
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Commit": _commit(),
        "Processor": f"{os.cpu_count()} x {_field('/proc/cpuinfo', 'model name')}",
        "AES instructions": "yes" if _has_aes() else "no",
        "Memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.1f} GiB",
        "Kernel": f"{platform.system()} {platform.release()}",
        "Operating system": _operating_system(),
        "File system": f"{_mount(directory)[0]} on {_mount(directory)[1]}",
        "Python": platform.python_version(),
    }


def require_disk(directory: Path, size: int) -> None:
    """AssertionError unless `directory` is on a disk that has room for `size` bytes."""
    kind, _ = _mount(directory)
    assert kind not in _VOLATILE, f"{directory} is in memory; set TMPDIR to a place on a disk"
    free = os.statvfs(directory)
    room = free.f_bavail * free.f_frsize
    assert room > size, f"{directory} has {room >> 20} MiB free, {size >> 20} MiB are needed"


def settle(directory: Path) -> bool:
    """Write out everything and wait until the device is quiet; whether it became so in time."""
    os.sync()
    device = directory.stat().st_dev
    deadline = time.monotonic() + _STILL_AT_MOST
    while time.monotonic() < deadline:
        before = _writes(device)
        time.sleep(_STILL_SECONDS)
        if _writes(device) == before:
            return True
    return False


def drop_caches() -> bool:
    """Let the kernel forget what it has read; whether it may be told to."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def _writes(device: int) -> tuple[str, str]:
    """Writes completed and in flight; always the same where the device does not tell."""
    path = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    if not path.exists():
        return "", ""
    fields = path.read_text().split()
    return fields[_WRITES], fields[_IN_FLIGHT]


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "?"


def _has_aes() -> bool:
    known = _field("/proc/cpuinfo", "flags") + " " + _field("/proc/cpuinfo", "Features")
    return "aes" in known.split()


def _operating_system() -> str:
    return platform.freedesktop_os_release().get("PRETTY_NAME", "?")


def _mount(directory: Path) -> tuple[str, str]:
    """Type and device of the file system, by the longest mount point above `directory`."""
    found: tuple[int, str, str] = (0, "?", "?")
    for line in Path("/proc/mounts").read_text().splitlines():
        device, point, kind, *_ = line.split()
        if directory.resolve().is_relative_to(point):
            found = max(found, (len(point), kind, device))
    return found[1], found[2]


def _commit() -> str:
    def git(*args: str) -> str:
        run = subprocess.run(
            ["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=False
        )
        return run.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "edgepacs")
    return f"{git('rev-parse', '--short', 'HEAD') or '?'}{' with changes' if changed else ''}"
