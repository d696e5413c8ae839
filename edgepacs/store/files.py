"""Files that must be private and durable, and what it means when they cannot be written."""

import errno
import os
from pathlib import Path

from edgepacs.errors import EdgePacsError, NoRoom, StorageFault


def storage_error(error: OSError) -> EdgePacsError:
    """What an operating system error on the storage device means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom("the disk is full")
    return StorageFault(f"the storage device failed: {error.strerror}")


def write_private(path: Path, content: bytes) -> None:
    """Write a new file only its owner may read; its bytes are synced, its name is not yet."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
