"""One run: what is sent to one server, how long it takes and what it costs."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from harness.dcmtk import require

from bench.machine import settle
from bench.sender import Crew, Order, Report
from bench.servers import Nagle, Server, cpu_seconds, environment

_INDEX_RECORD = bytes(4096)  # what an index appends for one instance
_SUCCESS = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run. Times in seconds, CPU times included; `waits` are those of each answer, sorted."""

    count: int
    size: int = 0  # bytes of all data sets
    seconds: float
    cpu: float = 0.0
    service_cpu: float = 0.0
    peak_mib: float | None = None
    waits: tuple[float, ...] = ()

    @property
    def rate(self) -> float:
        """How many a second."""
        return self.count / self.seconds

    def wait_ms(self, share: float) -> float | None:
        """The milliseconds that `share` of the answers did not exceed; None where not timed."""
        if not self.waits:
            return None
        return 1000 * self.waits[min(len(self.waits) - 1, int(share * len(self.waits)))]


class _Meter:
    """What a server costs from now on."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = self._costs()

    def _costs(self) -> tuple[float, float]:
        return cpu_seconds(self._server.receiver()), cpu_seconds(self._server.service())

    def added_to(self, sample: Sample) -> Sample:
        """`sample` with the costs until now."""
        (receiver, service), (before, service_before) = self._costs(), self._before
        return replace(sample, cpu=receiver - before, service_cpu=service - service_before)


@contextmanager
def stand(crew: int) -> Iterator["Stand"]:
    """A stand with so many senders, in a directory that is gone afterwards, whatever ends it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="edgepacs-bench-") as folder, Crew(crew) as senders:
        yield Stand(senders, Path(folder))


class Stand:
    """Where runs are made, one after the other, each on a quiet device."""

    def __init__(self, crew: Crew, directory: Path) -> None:
        self._crew = crew
        self.directory = directory
        self.runs = 0
        self.restless = 0  # runs before which the device did not become quiet

    def _settle(self) -> None:
        self.runs += 1
        self.restless += not settle(self.directory)

    def send(self, server: Server, orders: Sequence[Order]) -> Sample:
        """Let the crew carry out `orders`; AssertionError unless every answer is Success."""
        self._settle()
        server.reset_peak()
        self._crew.prepare(orders)
        meter = _Meter(server)
        seconds, reports = self._answered(orders)
        sample = Sample(
            count=sum(order.count for order in orders),
            size=sum(sum(order.lengths()) for order in orders),
            seconds=seconds,
            peak_mib=server.peak_mib(),
            waits=tuple(sorted(wait for report in reports for wait in report.seconds)),
        )
        settle(self.directory)  # what the server has put off is part of what it costs
        return meter.added_to(sample)

    def fill(self, orders: Sequence[Order]) -> float:
        """As `send`, without waiting for anything; only the seconds it took."""
        self._crew.prepare(orders)
        return self._answered(orders)[0]

    def _answered(self, orders: Sequence[Order]) -> tuple[float, list[Report]]:
        seconds, reports = self._crew.start()
        statuses = sum((report.statuses for report in reports), Counter[int]())
        wanted = sum(order.count for order in orders)
        assert statuses == {_SUCCESS: wanted}, f"{wanted} sent, answers by status: {statuses}"
        return seconds, reports

    def storescu(self, server: Server, path: Path, counts: Sequence[int], nagle: Nagle) -> Sample:
        """Let a storescu for each of `counts` send `path` so often, from its start to its end."""
        self._settle()
        server.reset_peak()
        command = [require("storescu"), "-xe", "-aet", "STORESCU", "-aec", "EDGEPACS", "+II"]
        address = ["127.0.0.1", str(server.port), str(path)]
        meter = _Meter(server)
        begun = time.monotonic()
        with environment(nagle):
            senders = [
                subprocess.Popen([*command, "--repeat", str(count), *address]) for count in counts
            ]
        failed = [sender.returncode for sender in senders if sender.wait()]
        seconds = time.monotonic() - begun
        assert not failed, f"storescu into {server.name} ended with {failed}"
        sample = Sample(
            count=sum(counts),
            size=sum(counts) * path.stat().st_size,
            seconds=seconds,
            peak_mib=server.peak_mib(),
        )
        settle(self.directory)
        return meter.added_to(sample)

    def limit(self, sizes: Sequence[Sequence[int]]) -> Sample:
        """What the device allows: a thread for each of `sizes`, every object written and synced.

        The files are there before the clock starts; after each, 4 KiB go to the end of one
        shared file, which is synced too, as the log of an index.
        """
        self._settle()
        with _Files(self.directory / "limit", sizes) as files:
            before = time.process_time()
            seconds = files.write()
            cpu = time.process_time() - before
        size = sum(map(sum, sizes))
        return Sample(count=sum(map(len, sizes)), size=size, seconds=seconds, cpu=cpu)


class _Files:
    """Empty files, their names durable, and a log; gone at the end."""

    def __init__(self, directory: Path, sizes: Sequence[Sequence[int]]) -> None:
        self._directory = directory
        self._sizes = sizes
        self._noise = memoryview(random.Random(1).randbytes(max(map(max, sizes))))
        self._begun = 0.0

    def __enter__(self) -> Self:
        self._directory.mkdir()
        self._log = os.open(self._directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for thread, own in enumerate(self._sizes):
            for number in range(len(own)):
                self._path(thread, number).touch()
        os.sync()
        return self

    def _path(self, thread: int, number: int) -> Path:
        return self._directory / f"{thread}-{number}"

    def write(self) -> float:
        """Write everything; the seconds it took."""
        count = len(self._sizes)
        barrier = threading.Barrier(count, action=self._begin)
        with ThreadPoolExecutor(count) as pool:
            threads = [pool.submit(self._write, barrier, number) for number in range(count)]
            return max(thread.result() for thread in threads) - self._begun

    def _begin(self) -> None:
        self._begun = time.monotonic()

    def _write(self, barrier: threading.Barrier, thread: int) -> float:
        barrier.wait()
        for number, size in enumerate(self._sizes[thread]):
            descriptor = os.open(self._path(thread, number), os.O_WRONLY)
            written = os.write(descriptor, self._noise[:size])
            assert written == size, "the device is full"
            os.fdatasync(descriptor)
            os.close(descriptor)
            os.write(self._log, _INDEX_RECORD)
            os.fdatasync(self._log)
        return time.monotonic()

    def __exit__(self, *_: object) -> None:
        os.close(self._log)
        shutil.rmtree(self._directory)
