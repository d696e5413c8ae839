"""The crew: worker processes that compress what has been received, and who looks after them.

Claims are recorded before the work, objects are swapped after it, both here and several in one
transaction. Whatever becomes of a worker, its instance stays as it was and its unfinished object
goes: the crew gave that object its name. docs/decisions/0019-compression-at-rest.md.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass, field, replace

from edgepacs.clock import monotonic
from edgepacs.errors import Conflict, EdgePacsError, StorageFault
from edgepacs.model import UID, ObjectId, SeriesId
from edgepacs.pixels.syntaxes import JPEG_XL
from edgepacs.store import Store, compressions, disposal
from edgepacs.store.compressions import Claim
from edgepacs.store.db import Transaction
from edgepacs.store.vault import new_object_id
from edgepacs.telemetry import failpoint, log
from edgepacs.upkeep.pace import Allowance, Pace, Usage
from edgepacs.upkeep.worker import READY, Answer, Job

_PROGRAM = "from edgepacs.upkeep.worker import main; main()"
_MIB = 1 << 20
_AHEAD = 4  # claims at hand for every worker
_TOGETHER = 8  # answers that share a transaction, where they come quickly
_SETTLE_SECONDS = 0.5
_TICK_SECONDS = 0.05
_IDLE_TICK_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one worker may take; beyond it it is ended, and its instance stays as it is.

    `memory` is in bytes beyond what an idle worker has. Time is of the processor, `base` seconds
    and one more for every `bytes_a_second`; or `asleep` seconds in which it does nothing at all.
    """

    memory: int = 1024 * _MIB
    base: float = 20.0
    bytes_a_second: int = 1 * _MIB
    asleep: float = 60.0
    idle: float = 60.0  # without work a worker ends
    rest: float = 60.0  # after something that will not pass at once, such as a full disk

    def seconds(self, length: int) -> float:
        """Seconds of processor time for an instance of `length` bytes."""
        return self.base + length / self.bytes_a_second


@dataclass(slots=True)
class _Task:
    """A job a worker has: since when it has done nothing, and what it had used when it began."""

    job: Job
    used: float
    last_used: float
    busy: float  # when it was last seen to do something


class _Worker:
    """One worker process and the job it has."""

    def __init__(self, store: Store, limits: Limits) -> None:
        arguments = (str(store.config.path), str(os.getpid()), str(limits.memory))
        self.process = subprocess.Popen(  # noqa: S603  our own interpreter and module
            [sys.executable, "-c", _PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self.process.stdout is not None
        self.answers = self.process.stdout
        os.set_blocking(self.answers.fileno(), False)
        self.allowance = Allowance(store.config.compression.cpu_percent / 100)
        self.task: _Task | None = None
        self.ready = False
        self.stopped = False
        self.idle_since = monotonic()
        self._read = b""

    def give(self, job: Job) -> None:
        """Hand out one job; a worker that has died meanwhile is found out later."""
        used = Usage.of(self.process.pid).seconds
        self.task = _Task(job, used, used, monotonic())
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(job.line())

    def hear(self) -> Answer | None:
        """The answer to its job, if it has come; also what a dead one has said last."""
        while chunk := self.answers.read(1 << 16):
            self._read += chunk
        line, end, rest = self._read.partition(b"\n")
        if not end:
            return None
        self._read = rest
        answer = Answer.from_line(line)
        if answer == READY:
            self.ready = True
            return self.hear()
        self.idle_since = monotonic()
        return answer

    def let(self, *, run: bool) -> None:
        """Let it run, or stand still."""
        if self.stopped == run:
            self.process.send_signal(signal.SIGCONT if run else signal.SIGSTOP)
            self.stopped = not run

    def end(self) -> Answer | None:
        """End it at once; the answer it may still have given."""
        self.process.kill()
        self.process.wait()
        answer = self.hear()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        return answer


@dataclass(slots=True)
class _Desk:
    """What lies between the tables and the workers."""

    claims: deque[Claim] = field(default_factory=deque)
    settled: list[tuple[Job, Answer]] = field(default_factory=list)  # but not yet in the tables
    since: float = 0.0  # when the first of them came
    tried: set[SeriesId] = field(default_factory=set)  # whose first instance is being tried

    def choose(self, series: SeriesId, choice: UID) -> None:
        """Let the others of a series follow the first; later claims have it from the tables."""
        for place, claimed in enumerate(self.claims):
            if choice and claimed.series == series and not claimed.choice:
                self.claims[place] = replace(claimed, choice=choice)

    def next(self) -> Claim | None:
        """The next claim; of a series without a choice one at a time, so that it has one."""
        for claimed in self.claims:
            if claimed.choice or claimed.series not in self.tried:
                self.claims.remove(claimed)
                if not claimed.choice:
                    self.tried.add(claimed.series)
                return claimed
        return None


class Crew:
    """The workers of one node, looked after by one thread."""

    def __init__(self, store: Store, limits: Limits | None = None) -> None:
        self._store = store
        self._limits = limits or Limits()
        self._size = store.config.compression.workers
        self._extra = (JPEG_XL,) if store.config.compression.jpeg_xl else ()
        self._pace = Pace(store.db)
        self._workers: list[_Worker] = []
        self._desk = _Desk()
        self._writing = contextlib.ExitStack()
        self._is_writing = False
        self._rest_until = 0.0
        self._write_again = 0.0  # not before: the tables could not be written
        self._has_recovered = False

    def run(self, stop: threading.Event) -> None:
        """Compress until `stop`; then nothing of what was begun is left. Raises StorageFault."""
        try:
            while not stop.is_set():
                if self._is_idle():
                    self._stand_down()
                    stop.wait(_IDLE_TICK_SECONDS)
                else:
                    self._turn()
        finally:
            self._end()

    # -- one turn

    def _is_idle(self) -> bool:
        desk = self._desk
        if desk.claims or desk.settled or any(worker.task for worker in self._workers):
            return False
        if monotonic() < self._rest_until:
            return True
        return self._has_recovered and not compressions.pending(self._store.db)

    def _turn(self) -> None:
        try:
            if not self._has_recovered:
                compressions.recover(self._store.db)
                self._has_recovered = True
            self._listen()
            self._look_after()
            self._hand_out()  # first, so that nobody waits while the tables are written
            self._settle()
            self._hand_out()
        except StorageFault:
            raise
        except EdgePacsError as error:  # a full disk, say: nothing is lost, it is done later
            self._rest(str(error))
            self._write_again = self._rest_until

    def _listen(self) -> None:
        """Wait a moment for answers, and take those that have come."""
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.answers, selectors.EVENT_READ)
            selector.select(_TICK_SECONDS)
        for worker in self._workers:
            answer = worker.hear()
            if answer is not None and worker.task is not None:
                self._note(worker.task.job, answer)
                worker.task = None

    def _note(self, job: Job, answer: Answer) -> None:
        desk, series = self._desk, job.claimed.series
        if not desk.settled:
            desk.since = monotonic()
        desk.settled.append((job, answer))
        desk.tried.discard(series)
        if answer.made is not None:
            choice = compressions.choice_of(answer.made)
            desk.choose(series, choice)
        if answer.later:
            self._rest(answer.words)

    def _rest(self, words: str) -> None:
        log.warning("compression rests: %s", words)
        self._rest_until = monotonic() + self._limits.rest

    def _look_after(self) -> None:
        """Stop and go by the pace; end whoever takes too much; bury the dead."""
        crowded = self._pace.crowded()
        for worker in list(self._workers):
            if worker.process.poll() is not None:
                self._bury(worker, _end_of(worker.process.returncode))
                continue
            usage, now = Usage.of(worker.process.pid), monotonic()
            worker.let(run=not crowded and worker.allowance.holds(usage.seconds, now))
            if worker.task is not None and (words := self._excess(worker.task, usage, now)):
                self._bury(worker, words)

    def _excess(self, task: _Task, usage: Usage, now: float) -> str:
        """What a worker has taken too much of, in words."""
        if usage.state != "S" or usage.seconds > task.last_used:
            task.busy, task.last_used = now, usage.seconds
        most = self._limits.seconds(task.job.claimed.byte_length)
        if usage.seconds - task.used > most:
            return f"it took more than {most:.0f} s of the processor"
        if now - task.busy > self._limits.asleep:
            return f"a worker did nothing for {self._limits.asleep:.0f} s over it"
        return ""

    def _bury(self, worker: _Worker, words: str) -> None:
        """A worker is gone: its instance stays as it is, its object goes."""
        answer = worker.end()
        self._workers.remove(worker)
        if not worker.ready:
            self._rest("a worker could not start")
        if worker.task is None:
            return
        job = worker.task.job
        if answer is None:
            disposal.clear_swapped(self._store, job.object_id)
            answer = Answer(broken=True, words=words)
            log.warning("instance %d: %s", job.claimed.instance, words)
        self._note(job, answer)

    # -- tables

    def _settle(self) -> None:
        """Write down what came of jobs and claim others, both in one transaction.

        Not while modalities are sending on a busy box: they wait for the same disk.
        """
        desk, now = self._desk, monotonic()
        if now < self._write_again or self._pace.crowded():
            return
        wanted = 0
        if len(desk.claims) < self._size and now >= self._rest_until:
            wanted = self._size * _AHEAD if compressions.pending(self._store.db) else 0
        waited = now - desk.since >= _SETTLE_SECONDS or len(desk.settled) >= _TOGETHER
        if wanted or (desk.settled and (waited or not desk.claims)):
            self._keep_sweeps_out()
            self._write(wanted)
        else:
            self._let_others_sweep()

    def _write(self, wanted: int) -> None:
        desk = self._desk
        with self._store.db.write() as tx:
            freed = [_settle_one(tx, job, answer) for job, answer in desk.settled]
            if wanted:
                compressions.plan(tx)
            claims = compressions.claim(tx, wanted) if wanted else []
        if any(freed):
            failpoint("compress.swapped")
        desk.settled.clear()
        desk.claims.extend(claims)
        for object_id in filter(None, freed):
            disposal.clear_swapped(self._store, object_id)

    def _keep_sweeps_out(self) -> None:
        if not self._is_writing:
            self._writing.enter_context(self._store.vault.writing())
            self._is_writing = True

    def _let_others_sweep(self) -> None:
        desk = self._desk
        if not (desk.claims or desk.settled or any(worker.task for worker in self._workers)):
            self._writing.close()
            self._is_writing = False

    # -- workers

    def _hand_out(self) -> None:
        if monotonic() < self._rest_until or self._pace.crowded():
            return
        if self._desk.claims and len(self._workers) < self._size:
            self._workers.append(_Worker(self._store, self._limits))
        for worker in self._workers:
            if worker.ready and worker.task is None and not worker.stopped:
                claimed = self._desk.next()
                if claimed is not None:
                    worker.give(Job(claimed=claimed, object_id=new_object_id(), extra=self._extra))

    def _stand_down(self) -> None:
        """Without work workers end after a while: idle ones still hold memory."""
        self._let_others_sweep()
        for worker in list(self._workers):
            if monotonic() - worker.idle_since > self._limits.idle:
                worker.end()
                self._workers.remove(worker)

    def _end(self) -> None:
        """Leave nothing that was begun: no process, no object, no claim."""
        desk = self._desk
        for worker in self._workers:
            answer = worker.end()
            if worker.task is not None:
                if answer is None:
                    disposal.clear_swapped(self._store, worker.task.job.object_id)
                    answer = Answer(later=True)
                desk.settled.append((worker.task.job, answer))
        self._workers.clear()
        for claimed in desk.claims:
            desk.settled.append(
                (Job(claimed=claimed, object_id=new_object_id()), Answer(later=True))
            )
        desk.claims.clear()
        with self._writing:
            if desk.settled:
                self._write(0)


def _end_of(code: int) -> str:
    """How a worker ended, in words."""
    if code < 0:
        return f"a worker was ended by signal {-code} over it"
    return f"a worker ended with exit code {code} over it"


def _settle_one(tx: Transaction, job: Job, answer: Answer) -> ObjectId | None:
    """Write down what came of one job; the object nobody needs from then on."""
    made, claimed = answer.made, job.claimed
    try:
        if made is not None:
            compressions.swap(tx, claimed, made)
            return claimed.object_id
        if answer.changed or answer.later:
            compressions.give_back(tx, claimed)
        elif answer.broken:
            compressions.broke(tx, claimed, answer.words)
        else:
            compressions.keep(tx, claimed, answer.words)
    except Conflict:  # the instance has changed since it was claimed
        with contextlib.suppress(Conflict):
            compressions.give_back(tx, claimed)
        return None if made is None else made.object_id
    return None
