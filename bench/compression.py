"""What a second worker gains, and what compression costs a modality: `make bench-compression`.

A node receives CT while nothing compresses. Then copies of it, round after round in turn,

- compress all of it with one worker and with two, nothing else happening: how many a second from
  the moment a tenth is done to the last one, and what a worker takes,
- receive CT over one association while that backlog is being compressed: with no worker, one and
  two, first with one core kept busy by a process that does nothing else, so that on a machine of
  two cores a single one is left to everybody, then with all cores.

From the environment: PARTS, some of `workers,ingest`; ROUNDS; FILL, how many wait to be compressed;
CT, how many are sent; QUIET and OUT as for bench-ingest.
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from harness.box import Box
from harness.waiting import until

from bench import instances, machine, report
from bench.busy import core_kept_busy
from bench.instances import Names
from bench.sender import Crew, Order
from bench.servers import EdgePacs, cpu_seconds
from edgepacs import config
from edgepacs.model import CompressionState
from edgepacs.store import Store, compressions, opened

_ROOM = 4 << 30
_LOOK_SECONDS = 0.02
_SECONDS = 120.0
_WORKERS = ("workers", "a second", "to one worker", "worker CPU ms each", "peak RSS MiB", "ratio")
_INGEST = ("cores left", "workers", "stored a second", "to none", "less", "p50 ms", "p99 ms")


@dataclass(slots=True)
class Run:
    """One run: how many a second, and what else was seen."""

    rate: float
    cpu_ms: float = 0.0  # of all workers, for each instance
    peak_mib: float = 0.0  # of the largest worker
    ratio: float = 0.0
    waits: list[float] = field(default_factory=list)  # ms of each answer, sorted


class Bench:
    """A filled node, and copies of it at work."""

    def __init__(self, directory: Path, crew: Crew, fill: int, count: int) -> None:
        self._directory = directory
        self._crew = crew
        self._fill, self._count = fill, count
        self._made = 0
        self._ct = instances.ct()
        template = Box.made(directory / "template")
        template.compress(0)
        with EdgePacs(directory / "filled", template) as server:
            self._send(server, fill)
            server.box.stop()
        self._filled = server.box
        shutil.rmtree(self._filled.data / "run")  # doorbells, which cannot be copied

    def _send(self, server: EdgePacs, count: int) -> tuple[float, list[float]]:
        order = Order(
            port=server.port,
            names=Names(instances.new_run(), 0),
            count=count,
            templates=(self._ct,),
        )
        self._crew.prepare([order])
        seconds, (sent,) = self._crew.start()
        assert sent.statuses == {0: count}, f"answers by status: {sent.statuses}"
        return seconds, sent.seconds

    @contextmanager
    def _copy(self, workers: int) -> Iterator[EdgePacs]:
        """A copy that is not running, on a quiet device; removed afterwards."""
        self._made += 1
        with tempfile.TemporaryDirectory(dir=self._directory) as folder:
            server = EdgePacs(Path(folder) / "node", self._filled)
            server.box.compress(workers)
            machine.settle(self._directory)
            yield server

    def compress(self, workers: int) -> Run:
        """Compress everything."""
        with self._copy(workers) as server, opened(config.load(server.box.config)) as store:
            upkeep = psutil.Popen(
                server.box.command("upkeep"),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=server.box.env(),
            )
            try:
                return self._watched(store, upkeep)
            finally:
                upkeep.terminate()
                upkeep.wait(30)

    def _watched(self, store: Store, upkeep: psutil.Process) -> Run:
        until(lambda: _done(store) >= self._fill // 10, "a tenth is compressed", seconds=_SECONDS)
        begun, first = time.monotonic(), _done(store)
        workers = upkeep.children()
        before = cpu_seconds(workers)
        while (done := _done(store)) < self._fill:
            assert time.monotonic() - begun < _SECONDS, f"{done} of {self._fill} are compressed"
            time.sleep(_LOOK_SECONDS)
        seconds, count = time.monotonic() - begun, self._fill - first
        found = compressions.totals(store.db)
        assert [one.state for one in found] == [CompressionState.COMPRESSED]
        return Run(
            rate=count / seconds,
            cpu_ms=1000 * (cpu_seconds(workers) - before) / count,
            peak_mib=max(map(_peak_mib, workers)),
            ratio=found[0].received_length / found[0].byte_length,
        )

    def ingest(self, workers: int) -> Run:
        """Receive while there is something to compress."""
        with self._copy(workers) as server, server, opened(config.load(server.box.config)) as store:
            if workers:
                until(lambda: _done(store), "something is compressed", seconds=_SECONDS)
            seconds, waits = self._send(server, self._count)
            assert _done(store) < self._fill, "there was nothing left to compress: FILL more"
        return Run(rate=self._count / seconds, waits=sorted(1000 * wait for wait in waits))


def _done(store: Store) -> int:
    with store.db.read() as tx:
        return tx.number("SELECT COUNT(*) FROM compression WHERE state = 'compressed'")


def _peak_mib(process: psutil.Process) -> float:
    with suppress(FileNotFoundError):
        status = Path(f"/proc/{process.pid}/status").read_text("ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return 0.0


def _each_compared(rounds: int, conditions: Sequence[int], act: object) -> dict[int, list[Run]]:
    """Runs of all conditions, another one first in each round; the first round is discarded."""
    runs: dict[int, list[Run]] = {condition: [] for condition in conditions}
    for number in range(rounds):
        shift = number % len(conditions)
        for condition in (*conditions[shift:], *conditions[:shift]):
            runs[condition].append(act(condition))  # type: ignore[operator]
        words = [f"{key}: {one[-1].rate:.1f}/s" for key, one in runs.items()]
        print(f"  round {number + 1}, by workers: {', '.join(words)}", flush=True)
    return runs


def _ratios(runs: Sequence[Run], others: Sequence[Run]) -> list[float]:
    return [one.rate / other.rate for one, other in zip(runs, others, strict=True)]


def workers(bench: Bench, rounds: int) -> str:
    """The first table."""
    runs = _each_compared(rounds, (1, 2), bench.compress)
    rows = [
        [
            str(count),
            report.spread([one.rate for one in some], 1),
            report.spread(_ratios(some, runs[1]), 2) if count > 1 else "",
            report.spread([one.cpu_ms for one in some], 1),
            report.spread([one.peak_mib for one in some]),
            report.middle([one.ratio for one in some], 2),
        ]
        for count, some in runs.items()
    ]
    return report.table(_WORKERS, rows)


def ingest(bench: Bench, rounds: int) -> str:
    """The second table."""
    rows: list[list[str]] = []
    places: tuple[AbstractContextManager[int], ...] = (
        core_kept_busy(),
        nullcontext(len(os.sched_getaffinity(0))),
    )
    for place in places:
        with place as left:
            runs = _each_compared(rounds, (0, 1, 2), bench.ingest)
        rows += [_ingest_row(left, count, some, runs[0]) for count, some in runs.items()]
    return report.table(_INGEST, rows)


def _ingest_row(left: int, count: int, runs: Sequence[Run], none: Sequence[Run]) -> list[str]:
    ratios = _ratios(runs, none)
    return [
        str(left),
        str(count),
        report.spread([one.rate for one in runs]),
        report.spread(ratios, 2) if count else "",
        f"{100 * (1 - statistics.median(ratios)):.0f} %" if count else "",
        report.spread([statistics.median(one.waits) for one in runs], 1),
        report.spread([one.waits[int(0.99 * len(one.waits))] for one in runs], 1),
    ]


_PARTS = {"workers": (workers, 3, 240), "ingest": (ingest, 5, 300)}


def main() -> None:
    """Measure and print."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    chosen = (os.environ.get("PARTS") or ",".join(_PARTS)).split(",")
    with tempfile.TemporaryDirectory(prefix="edgepacs-compression-") as folder, Crew(1) as crew:
        directory = Path(folder)
        machine.require_disk(directory, _ROOM)
        for part in chosen:
            measure, rounds, fill = _PARTS[part]
            rounds = int(os.environ.get("ROUNDS") or rounds)
            fill = int(os.environ.get("FILL") or fill)
            count = int(os.environ.get("CT") or 500)
            place = Path(tempfile.mkdtemp(dir=directory))
            table = measure(Bench(place, crew, fill, count), rounds)
            facts = {
                **machine.description(directory),
                "Rounds": f"{rounds}; {fill} CT to compress, {count} sent meanwhile",
            }
            report.publish(f"compression-{part}", f"{report.about(facts)}\n\n{table}")


if __name__ == "__main__":
    main()
