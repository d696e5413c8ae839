"""Conditions with deadlines, in place of sleeps."""

import random
import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(
    condition: Callable[[], T], what: str, *, seconds: float = 20.0, every: float = 0.02
) -> T:
    """The first true value of `condition`; AssertionError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what} (last: {value!r})"
        time.sleep(every)


def stays(condition: Callable[[], bool], what: str, *, seconds: float, every: float = 0.05) -> None:
    """Assert that `condition` holds now and during the next `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert condition(), f"did not stay: {what}"
        time.sleep(every)


def free_port() -> int:
    """A loopback TCP port nobody listens on, below the range the kernel gives to clients."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
