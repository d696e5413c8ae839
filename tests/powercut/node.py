"""The node under the cut: its roles as processes, started cheaply and killed at once."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness import fault
from harness.box import Box
from harness.waiting import until

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


def stop(groups: Iterable[int]) -> None:
    """Stop these process groups where they stand: not one more line of theirs is run.

    What the kernel has begun for them goes on, as a disk does when the processor is gone.
    """
    _signal(groups, signal.SIGSTOP)


def _signal(groups: Iterable[int], number: signal.Signals) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)


class Node:
    """The processes of one node."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def launch(self, role: str, spoilt: Sequence[str] = (), arguments: Sequence[str] = ()) -> None:
        """Start `role` and return at once; under the driver where it is to be spoilt.

        It may also be another command, with its `arguments`.
        """
        assert role not in self._processes, "already running"
        driven = [sys.executable, str(_DRIVER), *spoilt, str(self.box.config), role]
        with self.box.log.open("ab") as log:
            self._processes[role] = subprocess.Popen(
                driven if spoilt else self.box.command(role, *arguments),
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
                raise FailedStart(f"{role} ended with {code}: {self.box.log_text()[-1500:]}")
            if time.monotonic() - begun > _START_SECONDS:
                raise FailedStart(f"no C-ECHO after {_START_SECONDS:g} s: {self._doing(role)}")
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - begun

    def _doing(self, role: str) -> str:
        """Where the threads of a role wait, by the kernel's names."""
        tasks = Path(f"/proc/{self._processes[role].pid}/task").glob("*/wchan")
        return ", ".join(path.read_text() or "running" for path in tasks)

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

    def wait(self, role: str, *, seconds: float = 30.0) -> int:
        """Until the process of `role` has ended; its exit code, or minus the signal."""
        return self._processes[role].wait(seconds)

    @property
    def groups(self) -> tuple[int, ...]:
        """The process groups of the roles."""
        return tuple(process.pid for process in self._processes.values())

    def stop_between_calls(self) -> None:
        """As `stop`, and wait until the kernel is doing nothing for any of the threads."""
        stop(self.groups)
        until(self._still, "every thread of the node is stopped", seconds=10, every=0.001)

    def _still(self) -> bool:
        states = [
            path.read_text().rpartition(")")[2].split()[0]
            for group in self.groups
            for member in fault.members(group)
            for path in Path(f"/proc/{member}/task").glob("*/stat")
        ]
        return all(state == "T" for state in states)

    def go_on(self) -> None:
        """Let the stopped processes run again."""
        _signal(self.groups, signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM to every role."""
        for process in self._processes.values():
            process.terminate()

    def end(self, *, seconds: float = 20.0) -> dict[str, int]:
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
