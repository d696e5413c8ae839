"""Processes that work for a role: they answer on their standard output and give way to it.

What a codec does to such a process, a crash, a hang or hunger for memory, costs one instance a
try and nobody else anything.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import warnings
from pathlib import Path
from typing import IO

from edgepacs import telemetry

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG, prctl(2)
_FIRST_TO_GO = 1000  # oom_score_adj: rather a child than the receiver


def answers() -> IO[bytes]:
    """Where the answers go; whatever a library prints goes to standard error from here on."""
    found = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return found


def give_way(parent: int, *, nice: int, memory: int, role: str) -> None:
    """Live no longer than `parent`, and take no more than `memory` bytes beyond those it has.

    An interrupt is for whoever started it, who decides when it ends. Nothing of it may lie about.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)  # it was gone before it could be told
    os.umask(0o077)
    os.nice(nice)
    with contextlib.suppress(OSError):  # a sandbox may forbid what only makes it kinder
        Path("/proc/self/oom_score_adj").write_text(str(_FIRST_TO_GO), "ascii")
    own = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (own + memory, own + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    telemetry.start_logging(role)
