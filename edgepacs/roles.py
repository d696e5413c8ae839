"""The composition root: configuration → store → role, with signals, readiness and restarts.

`run_role` is one service under systemd. `serve` runs all of them as children in its own process
group, for laptops and tests; a hang in one of them can never stop a modality.
"""

import contextlib
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping

from edgepacs import telemetry
from edgepacs.config import Config
from edgepacs.errors import Busy, EdgePacsError, StorageFault
from edgepacs.store import Store, fsck
from edgepacs.store.fsck import Strays
from edgepacs.telemetry import log, place_of

ROLES = ("scp", "forward", "web", "upkeep")
_GIVE_UP = (77, 78)  # wrong key, wrong configuration: trying again changes nothing
_LIFELINE = "EDGEPACS_LIFELINE"  # descriptor whose closing means that `serve` is gone
_READY = "EDGEPACS_READY"  # descriptor whose closing tells `serve` that the role is up, or gone
_RESTART_SECONDS = 1.0
_STOP_SECONDS = 15.0
_FIRST_SECONDS = 10.0  # how long the other roles wait for the receiver
_LOOK_SECONDS = 0.2
_ORDERS_SECONDS = 10.0  # until orders that have ended begin anew
_GRACE_SECONDS = 3.0  # for a thread that may be waiting for a peer


# Each process imports its own role alone: a receiver that loads no codecs and no web server is
# up sooner and half as large.


def _scp(store: Store, stop: threading.Event) -> None:
    from edgepacs.scp import conversions, reporter  # noqa: PLC0415
    from edgepacs.scp.listener import Listener  # noqa: PLC0415

    strays = _strays_if_alone(store)  # before anything is written: afterwards nobody could tell
    ready = threading.Event()
    threading.Thread(target=_announce, args=(ready,), daemon=True).start()
    with store.vault.writing():
        behind = [
            threading.Thread(target=store.vault.keep_blanks, args=(stop,)),
            threading.Thread(target=store.db.keep_log_short, args=(stop,)),
            threading.Thread(target=_settle, args=(store, strays, stop)),
            threading.Thread(target=_orders, args=(store, stop)),
        ]
        conversions.clear(store)
        telling = threading.Thread(target=reporter.run, args=(store, stop), daemon=True)
        for thread in (*behind, telling):
            thread.start()
        try:
            Listener(store).run(stop, ready)
        finally:
            stop.set()
            for thread in behind:
                thread.join()
            reporter.wake(store)
            telling.join(_GRACE_SECONDS)  # what it has not told is told after the next start


def _orders(store: Store, stop: threading.Event) -> None:
    """Take orders beside the listener; what ends them is said, and they begin anew.

    No modality waits for an order: a port in use, or a mapping nobody can read, is not for it to
    suffer from. After a storage fault the role ends, as for every other writer.
    """
    from edgepacs import orders  # noqa: PLC0415

    while not stop.is_set():
        try:
            orders.run(store, stop)
        except StorageFault as fault:
            store.vault.condemn(fault)
            return
        except EdgePacsError as error:
            log.error("orders have ended: %s", error)
        except Exception as error:  # noqa: BLE001  it begins anew
            log.error("orders have failed: %s", place_of(error))
        stop.wait(_ORDERS_SECONDS)


def _announce(ready: threading.Event) -> None:
    ready.wait()
    telemetry.notify_systemd("READY=1")
    if told := os.environ.pop(_READY, ""):
        os.close(int(told))


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


# The modality never waits: measured with one busy core, this takes a quarter off the median answer.
_NICE = {"forward": 5, "web": 5, "upkeep": 10}


def run_role(config: Config, role: str) -> None:
    """Run one role until SIGTERM, SIGINT or the end of `serve`; raises EdgePacsError."""
    _prepare_process(role)
    os.nice(_NICE.get(role, 0))
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
    """Set at SIGTERM or SIGINT, by a thread of its own.

    A handler runs inside whatever the main thread does: were it to set the event itself, a second
    signal, or one inside the event's own wait, would wait for ever for the lock it interrupted.
    """
    stop = threading.Event()
    asked, asking = os.pipe()
    os.set_blocking(asking, False)  # thousands of signals: the first was enough
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _ask(asking))
    _set_when_readable(stop, asked)
    return stop


def _ask(asking: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.write(asking, b".")


def _set_when_readable(stop: threading.Event, descriptor: int) -> None:
    """Set `stop` once there is something to read, or the other end is closed."""

    def watch() -> None:
        os.read(descriptor, 1)
        stop.set()

    threading.Thread(target=watch, daemon=True).start()


def _stop_with_parent(stop: threading.Event) -> None:
    if lifeline := os.environ.pop(_LIFELINE, ""):
        _set_when_readable(stop, int(lifeline))


def _strays_if_alone(store: Store) -> Strays:
    """What an earlier crash has left in the vault; nothing while somebody is writing already."""
    try:
        return fsck.strays(store)
    except Busy:
        log.info("objects are being written already: no sweep at this start")
        return Strays()


def _settle(store: Store, strays: Strays, stop: threading.Event) -> None:
    """Settle the strays beside the listener: a large one takes a while to read."""
    try:
        settled = fsck.settle(store, strays, stop)
    except StorageFault as fault:
        store.vault.condemn(fault)
        log.error("the sweep has ended: %s", fault)
    except EdgePacsError as error:
        log.warning("the sweep has ended: %s: %s", type(error).__name__, error)
    except Exception as error:  # noqa: BLE001  what it leaves waits for the next start
        log.error("the sweep has failed: %s", place_of(error))
    else:
        if settled != fsck.Settled():
            log.info(
                "objects without a row: %d removed, %d made known, %d set aside, %d left",
                settled.removed,
                settled.adopted,
                settled.set_aside,
                settled.left,
            )


class _Child:
    """One role as a child process, started again when it dies.

    It inherits `told` once, and closes it when it is up.
    """

    def __init__(self, config: Config, role: str, lifeline: int, told: int | None = None) -> None:
        self.role = role
        self._command = [sys.executable, "-m", "edgepacs", "--config", str(config.path), role]
        self._lifeline = lifeline
        self.process = self._start({} if told is None else {_READY: told})

    def _start(self, more: Mapping[str, int]) -> subprocess.Popen[bytes]:
        passed = {_LIFELINE: self._lifeline, **more}
        environment = {**os.environ, **{name: str(fd) for name, fd in passed.items()}}
        return subprocess.Popen(  # noqa: S603  our own interpreter and module
            self._command, env=environment, pass_fds=tuple(passed.values())
        )

    def exit_code(self) -> int | None:
        return self.process.poll()

    def restart(self) -> None:
        self.process = self._start({})


def serve(config: Config) -> int:
    """Run every role in the foreground until SIGTERM or SIGINT; the exit code.

    Raises EdgePacsError when the node cannot be opened at all.
    """
    _prepare_process("serve")
    Store.open(config).close()
    stop = _stop_on_signals()
    reading, writing = os.pipe()
    first, *others = ROLES
    children = [_start_first(config, first, reading, stop)]
    children += [_Child(config, role, reading) for role in others]
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


def _start_first(config: Config, role: str, lifeline: int, stop: threading.Event) -> _Child:
    """Start the receiver and wait until it is up: the others would keep modalities waiting."""
    ready, told = os.pipe()
    child = _Child(config, role, lifeline, told)
    os.close(told)
    deadline = time.monotonic() + _FIRST_SECONDS
    while not stop.is_set() and time.monotonic() < deadline:
        if select.select([ready], [], [], _LOOK_SECONDS)[0]:
            break
    os.close(ready)
    return child


def _watch(children: list[_Child], stop: threading.Event) -> int:
    """Keep all children running; returns when stopped, or when one can never run."""
    while not stop.wait(_LOOK_SECONDS):
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
