"""The composition root: configuration → store → role, with signals, readiness and restarts.

`run_role` is one service under systemd. `serve` runs all of them as children in its own process
group, for laptops and tests; a hang in one of them can never stop a modality.
"""

import contextlib
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping

from edgepacs import telemetry
from edgepacs.config import Config
from edgepacs.errors import Busy
from edgepacs.store import Store, fsck
from edgepacs.telemetry import log

ROLES = ("scp", "forward", "web", "upkeep")
_GIVE_UP = (77, 78)  # wrong key, wrong configuration: trying again changes nothing
_LIFELINE = "EDGEPACS_LIFELINE"  # descriptor whose closing means that `serve` is gone
_RESTART_SECONDS = 1.0
_STOP_SECONDS = 15.0


# Each process imports its own role alone: a receiver that loads no codecs and no web server is
# up sooner and half as large.


def _scp(store: Store, stop: threading.Event) -> None:
    from edgepacs.scp.listener import Listener  # noqa: PLC0415

    sweep_if_alone(store)
    ready = threading.Event()
    threading.Thread(target=_announce, args=(ready,), daemon=True).start()
    with store.vault.writing():
        keeper = threading.Thread(target=store.vault.keep_blanks, args=(stop,))
        keeper.start()
        try:
            Listener(store).run(stop, ready)
        finally:
            stop.set()
            keeper.join()


def _announce(ready: threading.Event) -> None:
    ready.wait()
    telemetry.notify_systemd("READY=1")


def _forward(store: Store, stop: threading.Event) -> None:
    from edgepacs.forward.sender import Sender  # noqa: PLC0415

    telemetry.notify_systemd("READY=1")
    Sender(store).run(stop)


def _web(store: Store, stop: threading.Event) -> None:
    from edgepacs import web  # noqa: PLC0415

    telemetry.notify_systemd("READY=1")
    web.serve(store, stop)


def _upkeep(store: Store, stop: threading.Event) -> None:
    from edgepacs import upkeep  # noqa: PLC0415

    telemetry.notify_systemd("READY=1")
    upkeep.run(store, stop)


_RUN: Mapping[str, Callable[[Store, threading.Event], None]] = {
    "scp": _scp,
    "forward": _forward,
    "web": _web,
    "upkeep": _upkeep,
}


def run_role(config: Config, role: str) -> None:
    """Run one role until SIGTERM, SIGINT or the end of `serve`; raises EdgePacsError."""
    _prepare_process(role)
    stop = _stop_on_signals()
    _stop_with_parent(stop)
    store = Store.open(config)
    try:
        _RUN[role](store, stop)
    finally:
        telemetry.notify_systemd("STOPPING=1")
        store.close()


def _prepare_process(role: str) -> None:
    """Nothing this process does may leave PHI behind: no core dumps, no warnings with values."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    logging.getLogger("pydicom").addHandler(logging.NullHandler())
    logging.getLogger("pydicom").propagate = False
    telemetry.start_logging(role)


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _stop_with_parent(stop: threading.Event) -> None:
    lifeline = os.environ.pop(_LIFELINE, "")
    if not lifeline:
        return

    def watch() -> None:
        os.read(int(lifeline), 1)  # returns only when the other end is closed
        stop.set()

    threading.Thread(target=watch, daemon=True).start()


def sweep_if_alone(store: Store) -> None:
    """Settle the orphans of an earlier crash, unless somebody is writing already."""
    try:
        settled = fsck.sweep(store)
    except Busy:
        return
    if settled != fsck.Settled():
        log.info(
            "objects without a row: %d removed, %d made known, %d set aside",
            settled.removed,
            settled.adopted,
            settled.set_aside,
        )


class _Child:
    """One role as a child process, started again when it dies."""

    def __init__(self, config: Config, role: str, lifeline: int) -> None:
        self.role = role
        self._command = [sys.executable, "-m", "edgepacs", "--config", str(config.path), role]
        self._lifeline = lifeline
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, _LIFELINE: str(self._lifeline)}
        return subprocess.Popen(  # noqa: S603  our own interpreter and module
            self._command, env=environment, pass_fds=(self._lifeline,)
        )

    def exit_code(self) -> int | None:
        return self.process.poll()

    def restart(self) -> None:
        self.process = self._start()


def serve(config: Config) -> int:
    """Run every role in the foreground until SIGTERM or SIGINT; the exit code.

    Raises EdgePacsError when the node cannot be opened at all.
    """
    _prepare_process("serve")
    store = Store.open(config)
    sweep_if_alone(store)
    store.close()
    stop = _stop_on_signals()
    reading, writing = os.pipe()
    children = [_Child(config, role, reading) for role in ROLES]
    log.info(
        "%s listens on %s port %d; web on http://%s:%d",
        config.node.ae_title,
        config.dicom.host,
        config.dicom.port,
        config.web.host,
        config.web.port,
    )
    code = _watch(children, stop)
    os.close(writing)
    _end(children)
    return code


def _watch(children: list[_Child], stop: threading.Event) -> int:
    """Keep all children running; returns when stopped, or when one can never run."""
    while not stop.wait(0.2):
        for child in children:
            code = child.exit_code()
            if code is None:
                continue
            if code in _GIVE_UP:
                return code
            log.warning("%s ended with %d; starting it again", child.role, code)
            if stop.wait(_RESTART_SECONDS):
                return 0
            child.restart()
    return 0


def _end(children: list[_Child]) -> None:
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            child.process.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
