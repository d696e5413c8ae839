"""Small disks that another program can fill, and one that fails for a while."""

import errno
import fcntl
import os
import shutil
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

from harness.box import Box
from harness.waiting import until
from powercut import disk

_NEEDED = ("mount", "umount", "mkfs.ext4", "losetup")
_SET_FLAGS, _IMMUTABLE, _EXTENTS = 0x40086602, 0x10, 0x80000  # linux/fs.h
_STEPS = (1 << 20, 1 << 16, 1 << 12)  # bytes; the last is a page, and a block


class SmallDisk:
    """A mounted file system at `at` that can be filled to its last block, and freed again."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self._ballast = at / "ballast"

    def fill(self, *, but: int = 0) -> None:
        """Leave no room but `but` bytes: what another program may do at any time."""
        with self._ballast.open("ab", buffering=0) as file:
            if but:
                stat = os.statvfs(self.at)
                os.posix_fallocate(file.fileno(), 0, stat.f_bfree * stat.f_frsize - but)
                return
            for step in _STEPS:
                with suppress(_Full):
                    while True:
                        _append(file.fileno(), bytes(step))
            with suppress(OSError):
                os.fsync(file.fileno())

    def free(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)

    def node(self, template: Box, reserve_mib: int) -> Box:
        """A node that lies on this disk, with its log and temporary files elsewhere."""
        box = Box.copied(template, self.at / "node")
        box.temporary.rmdir()
        box.log = self.at.with_name("node.log")
        box.temporary = self.at.with_name("node-tmp")
        box.temporary.mkdir()
        box.configure(r"\[node\]", f"[node]\nreserve_mib = {reserve_mib}")
        _run("sync", "-f", str(self.at))
        return box


class _Full(Exception):
    """Not another byte."""


def _append(fd: int, data: bytes) -> None:
    try:
        if os.write(fd, data) < len(data):
            raise _Full
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _Full from None


class Tmpfs(SmallDisk):
    """A file system in memory: full means full at the write, and a sync never fails."""

    def __init__(self, folder: Path, *, mib: int, inodes: int = 0) -> None:
        at = folder / "disk"
        at.mkdir(parents=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={mib}m,nr_inodes={inodes}", "none", str(at))
        super().__init__(at)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _let_go(self.at)


class Ext4(SmallDisk):
    """An ext4 file system, whose blocks are given out long after the write."""

    def __init__(self, folder: Path, *, mib: int) -> None:
        self._disk = disk.Disk(folder, mib=mib)
        super().__init__(self._disk.at)

    def cut(self) -> None:
        """Cut the power: what was not synced is gone, and every call fails from now on."""
        self._disk.cut()

    def replay(self) -> None:
        """The power is back."""
        self.free()
        self._disk.replay()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _let_go(self.at)


class FlakyDisk(SmallDisk):
    """An ext4 file system on a device whose writes can be made to fail, and to work again.

    The device is a loop over a file that becomes immutable meanwhile, which ext4 holds against
    those who have it open, too. A sync then fails as it does on a bad disk: the kernel gives
    the pages up as written, the page cache goes on to show what the disk does not hold, and to
    sync again is answered with success.
    """

    def __init__(self, folder: Path, *, mib: int) -> None:
        self._below = disk.Disk(folder / "below", mib=mib + 16)
        self._image = self._below.at / "image"
        at = folder / "disk"
        at.mkdir(parents=True)
        with self._image.open("xb") as image:
            os.posix_fallocate(image.fileno(), 0, mib << 20)
        _run("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard", str(self._image))
        self._device = os.open(self._image, os.O_RDONLY)
        super().__init__(at)
        self._mount()

    def _mount(self) -> None:
        # Its own journal must not be written while the disk is broken: that would end it.
        _run("mount", "-t", "ext4", "-o", "loop,commit=600", str(self._image), str(self.at))

    def breaks(self) -> None:
        """From now on every write fails."""
        fcntl.ioctl(self._device, _SET_FLAGS, struct.pack("l", _IMMUTABLE | _EXTENTS))

    def works(self) -> None:
        """Writes work again."""
        fcntl.ioctl(self._device, _SET_FLAGS, struct.pack("l", _EXTENTS))

    def cut(self) -> None:
        """Cut the power."""
        disk.cut(self.at)

    def replay(self) -> None:
        """The power is back."""
        self._unmount()
        self._mount()

    def _unmount(self) -> None:
        until(lambda: _umounted(self.at), f"{self.at} is unmounted")
        until(self._detached, f"nobody else holds {self._image} mounted", seconds=60)

    def _detached(self) -> bool:
        command = ["losetup", "--associated", str(self._image)]
        return not subprocess.run(command, capture_output=True, check=True).stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.works()
        os.close(self._device)
        _let_go(self.at)
        _let_go(self._below.at)


def _umounted(at: Path) -> bool:
    return subprocess.run(["umount", str(at)], capture_output=True, check=False).returncode == 0


def _let_go(at: Path) -> None:
    """Unmount as soon as nobody uses it any more, without waiting for that."""
    if at.is_mount():
        _run("umount", "--lazy", str(at))


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)


def unavailable(folder: Path) -> str:
    """Why no small disk can be mounted below `folder`; "" when one can."""
    if os.geteuid() != 0:
        return "mounting a small disk needs root"
    missing = [name for name in _NEEDED if not shutil.which(name)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    try:
        with Tmpfs(folder / "small", mib=1), FlakyDisk(folder / "flaky", mib=8):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        words = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        return f"no small disk can be mounted: {words}"
