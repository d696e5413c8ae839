"""What errors of the operating system on the store's files mean."""

import errno
import os
import resource
from pathlib import Path

import pytest

from edgepacs.errors import Busy, NoRoom, StorageFault
from edgepacs.store.files import read_anew, storage_error, sync_directory


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoRoom),
        (errno.EDQUOT, NoRoom),
        (errno.EFBIG, NoRoom),
        (errno.EMFILE, Busy),
        (errno.ENFILE, Busy),
        (errno.ENOMEM, Busy),
        (errno.EIO, StorageFault),
        (errno.EROFS, StorageFault),
    ],
)
def test_only_the_device_itself_is_a_fault_of_the_device(number: int, kind: type) -> None:
    error = storage_error(OSError(number, os.strerror(number)))
    assert type(error) is kind
    assert error.dimse_status == 0xA700
    assert str(error)


def test_a_name_that_cannot_be_made_durable_is_a_fault_whatever_the_reason() -> None:
    with pytest.raises(StorageFault):
        sync_directory(Path("/proc/self"))  # whose files nobody can sync


def test_without_descriptors_nothing_is_the_matter_with_the_device(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fd = os.open(tmp_path, os.O_RDONLY)
    os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd, hard))  # one more than the highest in use
    try:
        with pytest.raises(Busy):
            sync_directory(tmp_path)
        with pytest.raises(Busy):
            read_anew(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_read_anew_keeps_what_was_just_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"not synced yet")
    read_anew(path)
    assert path.read_bytes() == b"not synced yet"
    read_anew(tmp_path / "none")
