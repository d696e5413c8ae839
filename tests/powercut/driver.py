"""One role of a node, spoilt on purpose: `driver.py [--SPOIL VALUE]... CONFIG ROLE`.

The controls of the power cut: a node that does not sync what it must has to lose instances, or
the test is blind. Nothing of this can be switched on in the product.
"""

import argparse
import fcntl
import itertools
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

from edgepacs import telemetry

# Nothing else of the product may be imported before it is spoilt: modules bind what they import.
_passages = itertools.count(1)
_fsync = os.fsync


def _name(fd: int) -> str:
    return str(Path(f"/proc/self/fd/{fd}").readlink())


def _is_file(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def leave_unsynced(part: str) -> None:
    """Let fsync and fdatasync do nothing for files whose path holds `part`."""

    def spoilt(sync: Callable[[int], None]) -> Callable[[int], None]:
        def maybe(fd: int) -> None:
            if part not in _name(fd):
                sync(fd)

        return maybe

    os.fsync, os.fdatasync = spoilt(os.fsync), spoilt(os.fdatasync)  # type: ignore[assignment]


def synchronous(level: str) -> None:
    """Let SQLite sync as `level` says."""
    from edgepacs.store.db import Database  # noqa: PLC0415

    configure = Database._configure

    def spoilt(connection: object) -> None:
        configure(connection)  # type: ignore[arg-type]
        connection.pragma("synchronous", level)  # type: ignore[attr-defined]

    Database._configure = staticmethod(spoilt)  # type: ignore[method-assign]


def kill_at(point: str) -> None:
    """Die by SIGKILL at the n-th passage of a failpoint, as NAME:N."""
    wanted, _, number = point.partition(":")

    def failpoint(name: str) -> None:
        if name == wanted and next(_passages) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    telemetry.failpoint = failpoint


def _is_written(fd: int) -> bool:
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def kill_before_sync(point: str) -> None:
    """Die by SIGKILL before the n-th sync of a file whose path holds PART, as PART:N.

    Of a file open for writing: a start syncs what it only reads, lest it believe the page cache.
    """
    part, _, number = point.partition(":")

    def deadly(sync: Callable[[int], None]) -> Callable[[int], None]:
        def maybe(fd: int) -> None:
            meant = _is_written(fd) and _is_file(fd) and part in _name(fd)
            if meant and next(_passages) == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
            sync(fd)

        return maybe

    os.fsync, os.fdatasync = deadly(os.fsync), deadly(os.fdatasync)  # type: ignore[assignment]


def spoil_workers(point: str, unsynced: str) -> None:
    """Let the workers of a crew be as `work` says."""
    from edgepacs.upkeep import crew  # noqa: PLC0415

    folder = str(Path(__file__).resolve().parent.parent)
    crew._PROGRAM = (
        f"import sys; sys.path.insert(0, {folder!r}); "
        f"from powercut import driver; driver.work({point!r}, {unsynced!r})"
    )


def work(point: str, unsynced: str) -> None:
    """Be a worker that takes its crew with it when it passes a failpoint for the n-th time.

    `point` is NAME:N or "", and `unsynced` as for `leave_unsynced`, or "".
    """
    if unsynced:
        leave_unsynced(unsynced)
    wanted, _, number = point.partition(":")

    def failpoint(name: str) -> None:
        if name == wanted and next(_passages) == int(number):
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()  # a worker does not outlive its crew

    telemetry.failpoint = failpoint
    from edgepacs.upkeep import worker  # noqa: PLC0415

    worker.main()


def neighbour(name: str) -> None:
    """Let another file of the disk be synced after each step on the file `name`.

    That is what other threads and other programs do at any time: it commits the file system's
    journal, and with it the file's new length, while its new bytes are not on the disk yet.
    """
    ordinary = Path.open

    def watched(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        file = ordinary(path, mode, *rest, **more)
        return _Watched(file, path) if path.name == name and "+" in mode else file

    Path.open = watched  # type: ignore[method-assign,assignment]


class _Watched:
    """A file after each of whose steps its neighbour is synced."""

    def __init__(self, file: IO[Any], path: Path) -> None:
        self._file = file
        self._neighbour = os.open(path.with_name("neighbour"), os.O_WRONLY | os.O_CREAT, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._neighbour)
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        step = getattr(self._file, name)

        def stepped(*values: Any) -> Any:
            answer = step(*values)
            if name != "fileno":
                os.write(self._neighbour, b"x")
                _fsync(self._neighbour)
            return answer

        return stepped


def main() -> None:
    """Spoil, then run the role as the product does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--unsynced", action="append", default=[])
    parser.add_argument("--synchronous")
    parser.add_argument("--neighbour")
    parser.add_argument("--kill-at")
    parser.add_argument("--kill-before-sync")
    parser.add_argument("--kill-at-in-workers", default="")
    parser.add_argument("--unsynced-in-workers", default="")
    parser.add_argument("config", type=Path)
    parser.add_argument("role")
    given = parser.parse_args()
    for part in given.unsynced:
        leave_unsynced(part)
    if given.neighbour:
        neighbour(given.neighbour)
    if given.kill_at:
        kill_at(given.kill_at)
    if given.kill_before_sync:
        kill_before_sync(given.kill_before_sync)
    if given.kill_at_in_workers or given.unsynced_in_workers:
        spoil_workers(given.kill_at_in_workers, given.unsynced_in_workers)
    if given.synchronous:
        synchronous(given.synchronous)
    from edgepacs import config, roles  # noqa: PLC0415

    roles.run_role(config.load(given.config), given.role)


if __name__ == "__main__":
    main()
