"""The node under the cut: its roles as processes, started cheaply and killed at once."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness import fault
from harness.box import Box

from edgepacs.dimse import Limits, ProposedContext, request
from edgepacs.dimse.contexts import VERIFICATION
from edgepacs.errors import PeerError
from edgepacs.model import AETitle

_IMPLICIT_LE = "1.2.840.10008.1.2"
_DRIVER = Path(__file__).with_name("driver.py")
_START_SECONDS = 60.0
_POLL_SECONDS = 0.005


class FailedStart(AssertionError):
    """The node did not come up after a power cut."""


class Node:
    """The processes of one node."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def launch(self, role: str, spoilt: Sequence[str] = ()) -> None:
        """Start `role` and return at once; under the driver where it is to be spoilt."""
        assert role not in self._processes, "already running"
        driven = [sys.executable, str(_DRIVER), *spoilt, str(self.box.config), role]
        with self.box.log.open("ab") as log:
            self._processes[role] = subprocess.Popen(
                driven if spoilt else self.box.command(role),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.box.temporary,
                env=self.box.env(),
                start_new_session=True,
            )

    def start(self, role: str, spoilt: Sequence[str] = ()) -> float:
        """Start `role`; the seconds to the first C-ECHO. Raises FailedStart."""
        begun = time.monotonic()
        self.launch(role, spoilt)
        while not self._echo():
            code = self._processes[role].poll()
            if code is not None:
                raise FailedStart(f"ended with {code}: {self.box.log_text()[-1500:]}")
            if time.monotonic() - begun > _START_SECONDS:
                raise FailedStart(f"no C-ECHO after {_START_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - begun

    def _echo(self) -> bool:
        verification = ProposedContext(
            abstract_syntax=VERIFICATION, transfer_syntaxes=(_IMPLICIT_LE,)
        )
        try:
            with request(
                "127.0.0.1",
                self.box.dicom_port,
                calling=AETitle("HARNESS"),
                called=AETitle(self.box.ae_title),
                contexts=[verification],
                limits=Limits(),
            ) as association:
                return association.echo() == 0
        except PeerError:
            return False

    def wait(self, role: str, *, seconds: float = 30.0) -> None:
        """Until the process of `role` has ended."""
        self._processes[role].wait(seconds)

    def terminate(self) -> None:
        """SIGTERM to every role."""
        for process in self._processes.values():
            process.terminate()

    def stop(self, *, seconds: float = 20.0) -> dict[str, int]:
        """SIGTERM to every role, and wait; the exit codes."""
        self.terminate()
        codes = {role: process.wait(seconds) for role, process in self._processes.items()}
        self._processes.clear()
        return codes

    def kill(self) -> None:
        """SIGKILL to every process at once; returns when none is left."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes.values():
            fault.kill_group(process.pid)
            process.wait()
        self._processes.clear()
