"""Files that must be private and durable, and what it means when they cannot be written."""

import errno
import os
from pathlib import Path

from edgepacs.errors import Busy, EdgePacsError, NoRoom, StorageFault


def storage_error(error: OSError) -> EdgePacsError:
    """What an operating system error on a file of the store means.

    NoRoom where the disk is full, Busy where this process lacks descriptors or memory, else
    StorageFault: the device itself failed.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom("the disk is full")
    if error.errno == errno.EFBIG:
        return NoRoom("larger than a file may be here")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return Busy("no file can be opened: too many are open")
    if error.errno == errno.ENOMEM:
        return Busy("the system has no memory left")
    return StorageFault(f"the storage device failed: {error.strerror}")


def write_private(path: Path, content: bytes) -> None:
    """Write a new file only its owner may read; its bytes are synced, its name is not yet."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable.

    Raises StorageFault whatever the reason it failed for: what was given up as written is never
    written again, so to ask a second time would be answered with a yes.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise storage_error(error) from error
    try:
        os.fsync(fd)
    except OSError as error:
        raise StorageFault(f"the storage device failed: {error.strerror}") from error
    finally:
        os.close(fd)


def read_anew(path: Path) -> None:
    """Let the next read of `path`, if there is such a file, ask the device itself.

    After a sync has failed the page cache shows what the device does not hold, clean, for as long
    as the system runs: neither a new process nor another sync sees the difference.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error(error) from error
    try:
        os.fsync(fd)  # what is dirty stays in the cache otherwise
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise StorageFault(f"the storage device failed: {error.strerror}") from error
    finally:
        os.close(fd)
