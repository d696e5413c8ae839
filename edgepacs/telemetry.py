"""How EdgePACS speaks about itself: log lines, readiness for systemd, doorbells, failpoints.

Nothing here may carry PHI: log calls take event words and counts, never values of a data set.
"""

import contextlib
import functools
import logging
import os
import select
import signal
import socket
import sys
from pathlib import Path

from edgepacs.errors import StorageFault

log = logging.getLogger("edgepacs")


class _OneLine(logging.Formatter):
    """CR, LF and other control characters are escaped, so that a line stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in text)


def start_logging(role: str) -> None:
    """Log to standard error, one line an event; the journal adds the time under systemd."""
    handler = logging.StreamHandler(sys.stderr)
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    handler.setFormatter(_OneLine(f"{stamp}{role} %(levelname)s %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def place_of(error: BaseException) -> str:
    """Type and place of an unexpected error; its text might hold PHI."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
    return f"{type(error).__name__} at {where}"


def notify_systemd(message: str) -> None:
    """Send `message` (READY=1, STOPPING=1, WATCHDOG=1) where systemd asked for it; else nothing."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        notifier.connect(address)
        notifier.send(message.encode())


class Doorbell:
    """A FIFO one process rings and another waits on. Losing a ring is harmless: tables are truth.

    Any number may ring; one waits. `path` is made when missing.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it could not be opened
            os.close(self._fd)

    def ring(self) -> None:
        """Wake the waiter, now or when it next waits."""
        with contextlib.suppress(BlockingIOError):  # full: it has been rung often enough
            os.write(self._fd, b"!")

    def wait(self, timeout: float) -> bool:
        """Block up to `timeout` seconds; whether it was rung. Earlier rings are used up."""
        ready, _, _ = select.select([self._fd], [], [], timeout)
        if ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._fd, 4096)
        return bool(ready)


@functools.cache
def doorbell(path: Path) -> Doorbell:
    """The doorbell at `path`, opened once a process."""
    return Doorbell(path)


_FAILPOINT = os.environ.get("EDGEPACS_FAILPOINT", "")


def failpoint(name: str) -> None:
    """Die, fail or pause here when the environment names this point; the tests' way to cut power.

    EDGEPACS_FAILPOINT is NAME[:ACTION]; actions are kill (the default), error, and pause, which
    makes the file EDGEPACS_FAILPOINT_FILE and goes on when it has been removed.
    """
    if not _FAILPOINT:
        return
    wanted, _, action = _FAILPOINT.partition(":")
    if wanted != name:
        return
    if action == "error":
        raise StorageFault(f"failpoint {name}")
    if action == "pause":
        _pause(Path(os.environ["EDGEPACS_FAILPOINT_FILE"]))
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def _pause(marker: Path) -> None:
    marker.touch()
    with contextlib.suppress(InterruptedError):
        while marker.exists():
            select.select([], [], [], 0.01)
