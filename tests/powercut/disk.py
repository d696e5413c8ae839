"""An ext4 file system whose power can be cut: everything not yet synced is gone, nothing else.

The file system lies in a file behind a loop device. EXT4_IOC_SHUTDOWN without flushing the
journal forgets every dirty page and every transaction that is not on the disk yet, and fails
all that is written afterwards; mounting it again replays the journal, as after a power cut.

What it cannot show is a disk that answers a flush and then loses what it held in its own cache.
And it lies in one way: an fsync that is under way when it comes may return 0 for bytes that are
gone afterwards (measured on Linux 6.18: 9 of 310 cuts beside a growing file). When the power goes
nobody is left to read that answer, so whoever cuts stops the node's processes first.
"""

import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Self

from harness.waiting import until

_EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), fs/ext4/ext4.h
_NOLOGFLUSH = struct.pack("I", 2)  # 0 would flush everything first, and prove nothing


def cut(mounted: Path) -> None:
    """Cut the power of the file system at `mounted`; returns when nothing more reaches it."""
    fd = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, _NOLOGFLUSH)
    finally:
        os.close(fd)


def unavailable(folder: Path) -> str:
    """Why the power of a disk below `folder` cannot be cut here; "" when it can."""
    if os.geteuid() != 0:
        return "cutting the power of a loop device needs root"
    missing = [
        name for name in ("mkfs.ext4", "losetup", "mount", "umount") if not shutil.which(name)
    ]
    if missing:
        return f"not installed: {', '.join(missing)}"
    try:
        with Disk(folder / "probe", mib=16) as disk:
            disk.cut()
            disk.replay()
    except (OSError, subprocess.CalledProcessError) as error:
        words = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        return f"no loop device with ext4 and its shutdown can be had: {words}"
    return ""


class Disk:
    """A mounted file system of `mib` MiB at `folder`/disk; sparse, and removed at the end."""

    def __init__(self, folder: Path, *, mib: int) -> None:
        self.at = folder / "disk"
        self._image = folder / "disk.img"
        self.at.mkdir(parents=True)
        with self._image.open("xb") as image:
            image.truncate(mib << 20)
        _run("mkfs.ext4", "-q", "-F", str(self._image))
        self._mount()

    def _mount(self) -> None:
        _run("mount", "-t", "ext4", "-o", "loop", str(self._image), str(self.at))

    def sync(self) -> None:
        """Make everything written so far durable."""
        _run("sync", "-f", str(self.at))

    def picture(self, to: Path, *, most_mib: int) -> None:
        """Copy what lies on the disk to the file `to`, unless it takes more than `most_mib`."""
        if self._image.stat().st_blocks >> 11 <= most_mib:  # blocks of 512 bytes
            self.sync()
            _run("cp", "--sparse=always", str(self._image), str(to))

    def cut(self) -> None:
        """Cut the power."""
        cut(self.at)

    def replay(self) -> None:
        """Unmount and mount again, which replays the journal; nobody may hold a file open."""
        self._unmount()
        self._mount()

    def _unmount(self) -> None:
        until(self._unmounted, f"{self.at} is unmounted", seconds=10)
        # A mount namespace made meanwhile keeps a copy of the mount, and with it the dead one.
        until(self._detached, f"nobody else holds {self._image} mounted", seconds=60)

    def _unmounted(self) -> bool:
        run = subprocess.run(["umount", str(self.at)], capture_output=True, check=False)
        return run.returncode == 0

    def _detached(self) -> bool:
        command = ["losetup", "--associated", str(self._image)]
        return not subprocess.run(command, capture_output=True, check=True).stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.at.is_mount():
            self._unmount()
        self._image.unlink()


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)
