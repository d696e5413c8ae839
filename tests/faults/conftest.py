from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from faults import disks, syscalls
from faults.disks import Ext4, FlakyDisk, Tmpfs
from faults.node import MakeNode, Node


@pytest.fixture(scope="session")
def mountable(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where no small disk can be mounted."""
    if reason := disks.unavailable(tmp_path_factory.mktemp("probe")):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def askable() -> None:
    """Skip where system calls cannot be answered by the test."""
    if reason := syscalls.unavailable():
        pytest.skip(reason)


@pytest.fixture
def running(askable: None) -> Iterator[MakeNode]:
    """Takes nodes under its care: whatever still runs afterwards is killed."""
    with ExitStack() as stack:
        yield lambda box: stack.enter_context(Node(box))


@pytest.fixture
def tmpfs(mountable: None, tmp_path: Path) -> Iterator[Tmpfs]:
    with Tmpfs(tmp_path / "small", mib=24) as disk:
        yield disk


@pytest.fixture
def ext4(mountable: None, tmp_path: Path) -> Iterator[Ext4]:
    with Ext4(tmp_path / "small", mib=48) as disk:
        yield disk


@pytest.fixture
def flaky(mountable: None, tmp_path: Path) -> Iterator[FlakyDisk]:
    with FlakyDisk(tmp_path / "flaky", mib=48) as disk:
        yield disk
