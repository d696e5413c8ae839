"""Whether a full index slows a node down, makes it large or late: `make bench-growth`.

One node with FEW instances and one with MANY, all received over DICOM, take the same runs in turn.
On the way to MANY the memory of `scp` is read, and the node is killed and started again. From the
environment: FEW, MANY; EARLY and LATE, between which memory may grow; STARTS; ROUNDS and RUN, how
many a run sends; SENDERS; QUIET and OUT as for bench-ingest.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from harness import contract
from harness.box import Box
from harness.waiting import free_port, until

from bench import instances, machine, measure, report
from bench.cases import Case
from bench.measure import Sample, Stand
from bench.sender import echo
from bench.servers import EdgePacs

_STEP = 10_000  # instances of the fill between two looks
_ROOM = 8 << 30
_BYTES_EACH = 40_960  # of an instance on the disk, its rows and the space it is rounded up to
_START_SECONDS = 60.0
_POLL_SECONDS = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many of what."""

    few: int
    many: int
    early: int
    late: int
    starts: int
    rounds: int
    run: int
    senders: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Plan":
        """As the environment says."""

        def number(name: str, default: int) -> int:
            return int(environment.get(name) or default)

        return cls(
            few=number("FEW", 5_000),
            many=number("MANY", 200_000),
            early=number("EARLY", 10_000),
            late=number("LATE", 100_000),
            starts=number("STARTS", 5),
            rounds=number("ROUNDS", 7),
            run=number("RUN", 400),
            senders=number("SENDERS", 4),
        )

    def before(self, size: int) -> int:
        """What a node holds before the runs, so that in their middle it holds `size`."""
        return size - self.run * (self.rounds + 1) // 2

    def marks(self) -> list[int]:
        """The sizes at which the fuller node is looked at, in order."""
        last = self.before(self.many)
        return sorted({*range(_STEP, last, _STEP), self.early, self.late, last})

    def case(self, count: int) -> Case:
        """So many small instances from all senders."""
        return Case(
            workload="small",
            title="",
            associations=self.senders,
            count=count,
            rounds=self.rounds,
            templates=(instances.small(),),
        )


@dataclass(slots=True)
class Node:
    """A node that is filled over DICOM."""

    server: EdgePacs
    stand: Stand
    plan: Plan
    held: int = 0
    cold: bool = False  # it was last started with nothing of it cached
    samples: list[Sample] = field(default_factory=list)

    def fill(self, size: int) -> float:
        """Send until it holds `size`; how many a second that were."""
        count = size - self.held
        seconds = self.stand.fill(self.plan.case(count).orders(self.server.port))
        self.held = size
        return count / seconds

    def run(self) -> None:
        """One measured run."""
        case = self.plan.case(self.plan.run)
        self.samples.append(self.stand.send(self.server, case.orders(self.server.port)))
        self.held += case.count

    def start_seconds(self) -> float:
        """Kill it, forget what was cached where that is allowed, start it: to the first C-ECHO."""
        box = self.server.box
        box.kill()
        self.cold = machine.drop_caches()
        begun = time.monotonic()
        box.launch()
        until(
            lambda: echo(self.server.port),
            "C-ECHO is answered",
            seconds=_START_SECONDS,
            every=_POLL_SECONDS,
        )
        seconds = time.monotonic() - begun
        until(box.ready, "the node is ready")
        return seconds

    def check(self) -> None:
        """Every instance has its row and its delivery."""
        assert self.server.count() == self.held, "the index does not hold what was acknowledged"
        due = sum(contract.queue_states(self.server.box).values())
        assert due == self.held, f"{due} deliveries for {self.held} instances"


@dataclass(slots=True)
class Growth:
    """What was seen while the fuller node grew."""

    rows: list[list[str]] = field(default_factory=list)
    rss_mib: dict[int, float] = field(default_factory=dict)
    starts: list[float] = field(default_factory=list)

    def fill(self, node: Node) -> None:
        """Fill up to the runs, looking at each mark."""
        for mark in node.plan.marks():
            rate = node.fill(mark)
            rss, peak = node.server.rss_mib(), node.server.peak_mib()
            self.rss_mib[mark] = rss
            self.rows.append([f"{mark:,}", f"{rate:,.0f}", f"{rss:.1f}", f"{peak:.1f}"])
            print(f"  {mark:,}: {rate:,.0f}/s, scp {rss:.1f} MiB", flush=True)
            if mark == node.plan.late:
                self.starts = [node.start_seconds() for _ in range(node.plan.starts)]
                print(f"  started in {report.spread(self.starts, 2)} s", flush=True)


def _nodes(stand: Stand, plan: Plan) -> Iterator[Node]:
    """Two nodes with a destination that is down and a rule that sends everything there."""
    template = Box.made(stand.directory / "template")
    for name in ("few", "many"):
        server = EdgePacs(stand.directory / name, template)
        server.box.send_to("central", ae="CENTRAL", port=free_port())
        yield Node(server, stand, plan)


def _take_turns(few: Node, many: Node) -> None:
    """One run of each to warm up, then the rounds; another one begins each time."""
    for number in range(few.plan.rounds + 1):
        for node in (few, many) if number % 2 else (many, few):
            node.run()
        words = [f"{node.samples[-1].rate:,.0f}/s at {node.held:,}" for node in (few, many)]
        print(f"  {f'round {number}' if number else 'warm-up'}: {', '.join(words)}", flush=True)


def _rates(few: Node, many: Node) -> str:
    """The rates of both and their ratio, round by round."""
    rows = []
    for node, size in ((few, few.plan.few), (many, many.plan.many)):
        samples = node.samples[1:]
        waits = [report.middle([one.wait_ms(share) for one in samples], 1) for share in (0.5, 0.99)]
        rows.append([f"{size:,}", report.spread([one.rate for one in samples]), *waits])
    columns = ("instances in the index", "per second", "p50 ms", "p99 ms")
    pairs = zip(few.samples[1:], many.samples[1:], strict=True)
    ratio = report.spread([full.rate / empty.rate for empty, full in pairs], 3)
    return f"{report.table(columns, rows)}\n\nThe fuller one's rate by the other's: {ratio}."


def _memory(growth: Growth, plan: Plan) -> str:
    added = growth.rss_mib[plan.late] - growth.rss_mib[plan.early]
    columns = ("instances in the index", "per second until there", "RSS of scp, MiB", "its peak")
    return (
        f"{report.table(columns, growth.rows)}\n\n"
        f"From {plan.early:,} to {plan.late:,} instances scp grew by {added:.1f} MiB."
    )


def _starts(growth: Growth, node: Node, plan: Plan) -> str:
    how = "with nothing of it cached" if node.cold else "with what was cached"
    return (
        f"With {plan.late:,} instances, killed and started again {how}, the node answered its"
        f" first C-ECHO after {report.spread(growth.starts, 2)} s ({plan.starts} starts)."
    )


def main() -> None:
    plan = Plan.of(os.environ)
    growth = Growth()
    with measure.stand(plan.senders) as stand, ExitStack() as stack:
        machine.require_disk(stand.directory, (plan.few + plan.many) * _BYTES_EACH + _ROOM)
        few, many = _nodes(stand, plan)
        for node in (few, many):
            stack.enter_context(node.server)
        growth.fill(many)
        few.fill(plan.before(plan.few))
        _take_turns(few, many)
        for node in (few, many):
            node.check()
        facts = report.about(machine.description(stand.directory))
    parts = (facts, _rates(few, many), _memory(growth, plan), _starts(growth, many, plan))
    report.publish("growth", "\n\n".join(parts))


if __name__ == "__main__":
    main()
