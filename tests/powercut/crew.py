"""Processes that send and compare: started once, they answer each question in a fresh fork.

A comparison must not trust what an earlier one has read, and a start of Python for each would
take longer than the cut.
"""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Generic, Self, TypeVar

_TESTS = Path(__file__).resolve().parent.parent
_PATH = (str(_TESTS), os.environ.get("PYTHONPATH", ""))
_Answer = TypeVar("_Answer")


class Failed(AssertionError):
    """A question ended with an exception, whose traceback this carries."""


class Pending(Generic[_Answer]):
    """The answer of a worker that is still at it."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._answer: tuple[_Answer | None, str] | None = None

    def get(self, seconds: float) -> _Answer:
        """Wait for it; AssertionError when it takes longer, Failed when there is none."""
        if self._answer is None:
            assert self._connection.poll(seconds), f"no answer within {seconds:g} s"
            self._answer = self._connection.recv()
        answer, trouble = self._answer
        if trouble:
            raise Failed(trouble)
        return answer  # type: ignore[return-value]


class Worker:
    """One process; asks one question at a time."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "powercut.crew", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                cwd=_TESTS,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, _PATH))},
            )

    def begin(self, question: Callable[..., _Answer], *values: object) -> Pending[_Answer]:
        """Ask, and go on meanwhile."""
        self._connection.send((question, values))
        return Pending(self._connection)

    def ask(self, question: Callable[..., _Answer], *values: object) -> _Answer:
        """Ask, and wait for the answer however long it takes."""
        return self.begin(question, *values).get(3600.0)

    def close(self) -> None:
        """End the process, what it is at included."""
        self._connection.close()
        self._process.wait(60)


class Crew:
    """Some senders and one that compares."""

    def __init__(self, senders: int = 4) -> None:
        self.checker = Worker()
        self.senders = [Worker() for _ in range(senders)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for worker in (self.checker, *self.senders):
                stack.callback(worker.close)


def _serve(connection: "Connection") -> None:
    """Answer questions, each in a fork of its own, until the other end is closed."""
    while True:
        try:
            question, values = connection.recv()
        except EOFError:
            return
        child = os.fork()
        if not child:
            connection.send(_answer(question, values))
            os._exit(0)
        os.waitpid(child, 0)


def _answer(question: Callable[..., object], values: tuple[object, ...]) -> tuple[object, str]:
    try:
        return question(*values), ""
    except BaseException:  # noqa: BLE001  it is raised again where it was asked
        return None, traceback.format_exc()


if __name__ == "__main__":
    from powercut import check  # noqa: F401  imported before the first fork, for all of them

    _serve(Connection(int(sys.argv[1])))
