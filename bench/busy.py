"""How long a modality waits while the node does other things: `python -m bench.busy`.

One core is kept busy, as on a small machine: a process that does nothing else is pinned to the
first, and everything else is kept off it. So the node's services, the modality, the browser and
the destination share what is left: on a machine of two cores a single one. Then a modality sends
CT over one association, one instance after the other without a pause, while

- nothing else happens,
- a browser loads page after page and picture after picture, without a pause,
- the node forwards what it has, and what comes, to DCMTK's storescp,
- both.

What counts is the time from the first byte of a C-STORE-RQ to its response: its median, the 99th
percentile and how many times the median that is. Each round takes all four in turn, every one
with a node of its own. From the environment: ROUNDS; CT, how many a run sends; FILL, how many
wait to be forwarded when it begins; CONDITIONS, to leave some out; QUIET and OUT as for
bench-ingest.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from harness.box import Box
from harness.waiting import until

from bench import instances, machine, report
from bench.instances import Names
from bench.sender import Crew, Order, Report
from bench.servers import EdgePacs, Nagle, StoreScp, environment

CONDITIONS = ("alone", "pages", "forward", "both")
_COLUMNS = (
    "the node also",
    "p50 ms",
    "p99 ms",
    "longest ms",
    "p99 : p50",
    "stored a second",
    "pages a second",
    "forwarded a second",
)
_WORDS = {"alone": "does nothing", "pages": "shows pages", "forward": "forwards", "both": "both"}
_ROOM = 8 << 30
_SPIN = "while True: pass"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many of what."""

    rounds: int
    ct: int
    fill: int
    conditions: tuple[str, ...]

    @classmethod
    def of_environment(cls) -> Self:
        """As the environment says."""

        def number(name: str, default: int) -> int:
            return int(os.environ.get(name) or default)

        chosen = tuple((os.environ.get("CONDITIONS") or ",".join(CONDITIONS)).split(","))
        assert set(chosen) <= set(CONDITIONS), f"CONDITIONS: some of {', '.join(CONDITIONS)}"
        return cls(
            rounds=number("ROUNDS", 5),
            ct=number("CT", 600),
            fill=number("FILL", 600),
            conditions=chosen,
        )


@dataclass(slots=True)
class Seen:
    """What came of the runs of one condition: seconds of each answer, and what else went on."""

    waits: list[list[float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    pages: list[float] = field(default_factory=list)  # a second
    forwarded: list[float] = field(default_factory=list)  # instances a second

    def row(self, condition: str) -> list[str]:
        """Its line of the table."""
        median = [1000 * statistics.median(waits) for waits in self.waits]
        late = [1000 * sorted(waits)[int(0.99 * len(waits))] for waits in self.waits]
        return [
            _WORDS[condition],
            report.spread(median, 1),
            report.spread(late, 1),
            report.spread([1000 * max(waits) for waits in self.waits]),
            report.spread([one / other for one, other in zip(late, median, strict=True)], 1),
            report.spread(self.rates),
            report.middle(self.pages),
            report.middle(self.forwarded),
        ]


@contextmanager
def core_kept_busy() -> Iterator[int]:
    """One core is busy; this process, and what it starts, is kept off it. How many are left."""
    cores = sorted(os.sched_getaffinity(0))
    left = cores[1:] or cores
    spinning = subprocess.Popen([sys.executable, "-c", _SPIN])
    try:
        os.sched_setaffinity(spinning.pid, cores[:1])
        os.sched_setaffinity(0, left)
        yield len(left)
    finally:
        os.sched_setaffinity(0, cores)
        spinning.kill()
        spinning.wait()


class Visitor:
    """Somebody who looks at everything there is, page after page, until told to leave."""

    def __init__(self, box: Box) -> None:
        self.pages = 0
        self._browser = box.login()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._stop.is_set():
            for page in self._browser.walk("/", limit=10):
                assert page.status in (200, 304), f"{page.status} for a page"
                self.pages += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)


class Busy:
    """All conditions, round after round."""

    def __init__(self, crew: Crew, directory: Path, plan: Plan) -> None:
        self._crew = crew
        self._directory = directory
        self._plan = plan
        self._template = Box.made(directory / "template")
        self._ct = instances.ct()
        self.seen = {condition: Seen() for condition in plan.conditions}

    def round(self, number: int) -> None:
        """Every condition once, another one first each time."""
        conditions = self._plan.conditions
        shift = number % len(conditions)
        for condition in (*conditions[shift:], *conditions[:shift]):
            self._run(condition, self._directory / f"{condition}{number}")

    def _run(self, condition: str, directory: Path) -> None:
        seen, plan = self.seen[condition], self._plan
        with ExitStack() as stack:
            server = EdgePacs(directory, self._template)
            storescp = StoreScp(directory.with_name(f"{directory.name}-received"))
            if forwards := condition in ("forward", "both"):
                server.box.send_to("central", ae="STORESCP", port=storescp.port)
            stack.enter_context(server)
            self._send(server, plan.fill)
            if forwards:  # only now, so that there is a queue when the run begins
                stack.enter_context(storescp)
                until(lambda: storescp.count() > 0, "the node forwards")
            visitor = Visitor(server.box)
            if shows := condition in ("pages", "both"):
                stack.enter_context(visitor)
            received, looked = storescp.count(), visitor.pages
            seconds, sent = self._send(server, plan.ct)
            seen.waits.append(sent.seconds)
            seen.rates.append(plan.ct / seconds)
            if shows:
                seen.pages.append((visitor.pages - looked) / seconds)
            if forwards:
                seen.forwarded.append((storescp.count() - received) / seconds)
                assert seen.forwarded[-1], "nothing was forwarded"

    def _send(self, server: EdgePacs, count: int) -> tuple[float, Report]:
        """Send so many over one association, every one answered with Success."""
        names = Names(instances.new_run(), 0)
        order = Order(port=server.port, names=names, count=count, templates=(self._ct,))
        self._crew.prepare([order])
        seconds, (sent,) = self._crew.start()
        assert sent.statuses == {0: count}, f"answers by status: {sent.statuses}"
        return seconds, sent


def main() -> None:
    """Measure and print."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    plan = Plan.of_environment()
    with (
        environment(Nagle.OFF),
        core_kept_busy() as left,
        tempfile.TemporaryDirectory(prefix="edgepacs-busy-") as folder,
        Crew(1) as crew,
    ):
        directory = Path(folder)
        machine.require_disk(directory, _ROOM)
        busy = Busy(crew, directory, plan)
        for number in range(plan.rounds):
            busy.round(number)
        facts = {
            **machine.description(directory),
            "Cores left to everything but the busy process": str(left),
            "Rounds": f"{plan.rounds}, of {plan.ct} CT each; {plan.fill} were there before",
        }
        rows = [seen.row(condition) for condition, seen in busy.seen.items()]
        report.publish("busy", f"{report.about(facts)}\n\n{report.table(_COLUMNS, rows)}")


if __name__ == "__main__":
    main()
