"""A worker: a process that compresses one instance after the other, and does nothing else.

It reads jobs from standard input and answers each on standard output, a line of JSON each way. It
runs when nobody else wants the processor, within an address space of its own, and dies with
whoever started it. What it makes is released by the crew (`crew`), never by itself.
"""

import contextlib
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgepacs import child, config
from edgepacs.custody.compress import Kept, compress
from edgepacs.errors import Busy, Conflict, EdgePacsError, NoRoom, NotFound, StorageFault
from edgepacs.model import InstanceState, ObjectId
from edgepacs.store import Store
from edgepacs.store.compressions import Claim, Made
from edgepacs.telemetry import log, place_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One claim, the object it is to become, and transfer syntaxes to try besides the usual."""

    claimed: Claim
    object_id: ObjectId
    extra: tuple[str, ...] = ()

    def line(self) -> bytes:
        """As it goes to a worker."""
        return json.dumps(asdict(self), default=bytes.hex).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Job":
        """The job of a line."""
        made = json.loads(line)
        claimed = made["claimed"]
        claimed["object_id"] = bytes.fromhex(claimed["object_id"])
        claimed["instance_state"] = InstanceState(claimed["instance_state"])
        return cls(
            claimed=Claim(**claimed),
            object_id=ObjectId(bytes.fromhex(made["object_id"])),
            extra=tuple(made["extra"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a job: something made, or why not, in words.

    Without `made` the instance is kept as it is; unless it has changed meanwhile (`changed`),
    nothing could be written at present (`later`), or the worker failed over it (`broken`).
    """

    made: Made | None = None
    words: str = ""
    changed: bool = False
    later: bool = False
    broken: bool = False

    def line(self) -> bytes:
        """As it goes to the crew."""
        return json.dumps(asdict(self), default=bytes.hex).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Answer":
        """The answer of a line."""
        found: dict[str, Any] = json.loads(line)
        if made := found.pop("made"):
            for name in ("object_id", "native_digest"):
                made[name] = bytes.fromhex(made[name])
            return cls(made=Made(**made))
        return cls(**found)


READY = Answer(words="ready")  # the first line of every worker


def main() -> None:
    """Work until standard input ends: `worker CONFIG PARENT MEMORY`, bytes beyond its own."""
    path, parent, memory = sys.argv[1:4]
    answers = child.answers()
    _give_way(int(parent), int(memory))
    store = Store.open(config.load(Path(path)))
    answers.write(READY.line())
    answers.flush()
    for line in sys.stdin.buffer:
        answer = _done(store, Job.from_line(line))
        answers.write(answer.line())
        answers.flush()
        if answer.later:
            break  # after a fault of the disk only a new process may write anything
    store.close()


def _give_way(parent: int, memory: int) -> None:
    """Only what nobody else wants, no more memory than that, and no life of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the crew decides when it ends
    child.give_way(parent, nice=19, memory=memory, role="upkeep")
    with contextlib.suppress(OSError):  # a sandbox may forbid what only makes it kinder
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _done(store: Store, job: Job) -> Answer:
    try:
        with store.vault.writing():
            found = compress(store, job.claimed, job.object_id, job.extra)
    except (Conflict, NotFound):
        return Answer(changed=True)
    except (Busy, NoRoom, StorageFault) as error:
        return Answer(later=True, words=str(error))
    except EdgePacsError as error:  # it does not authenticate, say: fsck says the same of it
        return Answer(words=str(error))
    except MemoryError:
        return Answer(broken=True, words="it took more memory than a worker may have")
    except Exception as error:  # noqa: BLE001  whatever a codec raises costs its own instance only
        log.error("instance %d: %s", job.claimed.instance, place_of(error))
        return Answer(broken=True, words=f"the worker failed: {type(error).__name__}")
    return Answer(words=found.reason) if isinstance(found, Kept) else Answer(made=found)


if __name__ == "__main__":
    main()
