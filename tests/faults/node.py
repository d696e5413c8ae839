"""A node whose storage the test controls, and modalities that send to it and never give up."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil
import pytest
from faults.syscalls import Rule, Storage
from harness import corpus, fault, made
from harness.box import Box
from harness.browser import Browser
from harness.part10 import EXPLICIT_LE, Part10, part10_file
from harness.waiting import until

from edgepacs import config
from edgepacs.custody import readout
from edgepacs.dimse import Association, Limits, ProposedContext, request
from edgepacs.dimse.contexts import VERIFICATION
from edgepacs.errors import EdgePacsError, PeerError
from edgepacs.model import UID, AETitle
from edgepacs.store import Store, fsck, instances, opened

SOAK = pytest.mark.skipif(not corpus.soak(), reason="run by make soak")
STORAGE_FAULT = 74  # EX_IOERR: a supervisor starts it again

_LAUNCHER = Path(__file__).with_name("launcher.py")
_IMPLICIT_LE = "1.2.840.10008.1.2"
_LIMITS = Limits(response=20.0, artim=3.0)


class Node:
    """One role, or all with `serve`, under a filter that lets the test answer storage calls."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.storage = Storage()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, role: str = "scp") -> Self:
        """Start, and wait for the first C-ECHO."""
        self.launch(role)
        until(self.echo, f"{role} answers C-ECHO", seconds=30, every=0.01)
        return self

    def launch(self, role: str = "scp", rule: Rule | None = None) -> None:
        """Start and return at once; `rule` answers from the first call on."""
        assert self._process is None, "already running"
        self.storage = Storage()
        self.storage.rule = rule
        end = self.storage.theirs.fileno()
        with self.box.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(_LAUNCHER), str(end), *self.box.command(role)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.box.temporary,
                env=self.box.env(),
                start_new_session=True,
                pass_fds=(end,),
            )
        self.storage.attach()

    def echo(self) -> bool:
        """Whether C-ECHO works; AssertionError once the process has ended."""
        assert self._process is not None, "not started"
        code = self._process.poll()
        assert code is None, f"ended with {code}: {self.box.log_text()[-1500:]}"
        try:
            with associate(self.box, VERIFICATION, _IMPLICIT_LE) as association:
                return association.echo() == 0
        except PeerError:
            return False

    @property
    def pid(self) -> int:
        """The process that was started."""
        assert self._process is not None, "not started"
        return self._process.pid

    def receiver(self) -> psutil.Process:
        """The process that listens for modalities, a child of `serve` or the one started."""
        mine = psutil.Process(self.pid)
        for one in (mine, *mine.children()):
            with contextlib.suppress(psutil.NoSuchProcess):
                if one.cmdline()[-1] == "scp":
                    return one
        raise AssertionError("no receiver runs")

    def ended(self, *, seconds: float = 20.0) -> int:
        """Wait for its end; its exit code."""
        assert self._process is not None, "not started"
        code = self._process.wait(seconds)
        self._settle()
        return code

    def stop(self, *, seconds: float = 20.0) -> int:
        """SIGTERM, and wait; the exit code."""
        assert self._process is not None, "not started"
        self._process.terminate()
        return self.ended(seconds=seconds)

    def kill(self) -> None:
        """SIGKILL to every process; returns when none is left."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        fault.kill_group(self._process.pid)
        self._process.wait()
        self._settle()

    def _settle(self) -> None:
        self._process = None
        self.storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


MakeNode = Callable[[Box], Node]


def associate(box: Box, sop_class: str = made.CT, syntax: str = EXPLICIT_LE) -> Association:
    """An association as HARNESS with one presentation context; raises PeerError."""
    return request(
        "127.0.0.1",
        box.dicom_port,
        calling=AETitle("HARNESS"),
        called=AETitle(box.ae_title),
        contexts=[ProposedContext(abstract_syntax=sop_class, transfer_syntaxes=(syntax,))],
        limits=_LIMITS,
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """A C-STORE response."""

    status: int
    comment: str

    @property
    def out_of_resources(self) -> bool:
        """PS3.4 B.2.3: A7xx, refused, out of resources."""
        return self.status >> 8 == 0xA7


def store(association: Association, one: Part10) -> Answer:
    """Send `one` and wait; raises PeerError where no answer comes."""
    context = association.accepted(one.sop_class, one.transfer_syntax)
    assert context is not None
    answer = association.store(context, UID(one.sop_class), UID(one.sop_instance), [one.data])
    return Answer(answer.status, answer.comment)


def stores(box: Box, one: Part10) -> Answer:
    """Send `one` on an association of its own."""
    with associate(box) as association:
        return store(association, one)


def upload(browser: Browser, one: Part10) -> int:
    """Import `one` through the web; the HTTP status."""
    file = part10_file(one.sop_class, one.sop_instance, one.transfer_syntax, one.data)
    headers = {"Content-Type": "application/dicom"}
    return browser.request("POST", "/import", body=file, headers=headers).status


@dataclass(slots=True)
class Tally:
    """What modalities were told. `unanswered` were sent whole and no response came."""

    acknowledged: dict[str, bytes] = field(default_factory=dict)
    refused: list[Answer] = field(default_factory=list)
    unanswered: int = 0
    associations: int = 0
    failed: int = 0  # of those, and of the calls that found nobody
    lock: threading.Lock = field(default_factory=threading.Lock)


class Modality:
    """Sends one instance after another until told to stop; what is refused is sent again."""

    def __init__(self, box: Box, tally: Tally, make: Callable[[], Part10]) -> None:
        self._box, self._tally, self._make = box, tally, make
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        one = self._make()
        while not self._stop.is_set():
            try:
                with associate(self._box) as association:
                    with self._tally.lock:
                        self._tally.associations += 1
                    one = self._send(association, one)
            except PeerError:  # no listener at the moment, or it broke: it dials again
                with self._tally.lock:
                    self._tally.failed += 1
                self._stop.wait(0.05)

    def _send(self, association: Association, one: Part10) -> Part10:
        while not self._stop.is_set():
            try:
                answer = store(association, one)
            except PeerError:
                with self._tally.lock:
                    self._tally.unanswered += 1
                raise
            with self._tally.lock:
                if answer.status == 0:
                    self._tally.acknowledged[one.sop_instance] = one.data
                else:
                    self._tally.refused.append(answer)
            if answer.status == 0:
                one = self._make()
            else:
                self._stop.wait(0.02)
        return one

    def end(self) -> None:
        """Stop after the instance being sent."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a modality hangs"


@contextlib.contextmanager
def modalities(box: Box, number: int = 4, make: Callable[[], Part10] = made.ct) -> Iterator[Tally]:
    """`number` of them at work while the block runs."""
    tally = Tally()
    at_work = [Modality(box, tally, make) for _ in range(number)]
    try:
        yield tally
    finally:
        for one in at_work:
            one.end()


def intact(box: Box, acknowledged: dict[str, bytes]) -> None:
    """Assert that all of `acknowledged` are there byte for byte, and rows and objects are sound.

    The node may run, but nothing may be on its way in.
    """
    with opened(config.load(box.config)) as there:
        lost = Counter(_lost(there, uid, data) for uid, data in acknowledged.items())
        report = fsck.check(there)
    del lost[""]
    assert not lost, f"acknowledged: {dict(lost)}"
    found = (report.missing, report.broken, report.mismatched, report.foreign, report.index)
    assert not any(found), found


def tidy(box: Box) -> None:
    """Assert that no object lies about which only the sweep of the next start would remove."""
    with opened(config.load(box.config)) as there:
        report = fsck.check(there)
    left = report.orphans + report.unsettled
    assert not left, f"{len(left)} objects that no row refers to"


def _lost(there: Store, uid: str, data: bytes) -> str:
    """What has become of an acknowledged instance; "" where nothing has."""
    row = instances.stored_version(there.db, UID(uid))
    if row is None:
        return "no row"
    try:
        with readout.sealed(there, row) as reader:
            return "" if b"".join(reader.chunks()) == data else "altered"
    except EdgePacsError as error:
        return f"{type(error).__name__}: {error}"


def seconds_until(condition: Callable[[], object], what: str, *, seconds: float = 20.0) -> float:
    """How long `condition` took to become true."""
    begun = time.monotonic()
    until(condition, what, seconds=seconds, every=0.01)
    return time.monotonic() - begun
