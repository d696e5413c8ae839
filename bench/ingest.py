"""How fast instances are received, beside Orthanc and DCMTK: `make bench-ingest`.

Every round sends the same to each server in turn; ratios are taken round by round. What is
measured and why stands in docs/benchmarks.md. From the environment: ROUNDS; how many a run sends,
CT, SMALL, CINE, EACH, ECHO, STORESCU; LARGE, in MiB; ASSOCIATIONS, WORKLOADS and SERVERS, lists
with commas, to leave some out; EVERY n-th instance is compared afterwards; QUIET, the most
seconds to wait for a quiet device; OUT, a Markdown file.
"""

import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from harness import corpus
from harness.box import Box

from bench import machine, measure, report, servers
from bench.cases import FASTEST, LIMIT, OURS, Case, Plan
from bench.measure import Sample, Stand
from bench.sender import Order
from bench.servers import EdgePacs, OrthancServer, Server, StoreScp

_ROOM = 2 << 30  # bytes left free on the device
_COLUMNS = (
    "server",
    "at once",
    "per second",
    "MB/s",
    "EdgePACS : it",
    "CPU ms each (whole service)",
    "its CPU : EdgePACS",
    "peak RSS MiB",
    "p50 ms",
    "p99 ms",
)


@dataclass(slots=True)
class Contestant:
    """One server in one case, or the device itself, with what came of its runs."""

    name: str
    case: Case
    server: Server | None
    samples: list[Sample] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    others: int = 0  # acknowledged besides those of the orders

    def compete(self, stand: Stand, file: Path) -> None:
        """Make one run; `file` is what storescu sends."""
        case, server = self.case, self.server
        if server is None:
            self.samples.append(stand.limit(case.sizes()))
        elif case.storescu is not None:
            self.samples.append(stand.storescu(server, file, case.shares(), case.storescu))
            self.others += case.count
        else:
            orders = case.orders(server.port)
            self.samples.append(stand.send(server, orders))
            self.orders += orders if case.templates else []

    def acknowledged(self) -> int:
        """How many instances the server has answered with Success."""
        return sum(order.count for order in self.orders) + self.others

    def check(self, every: int) -> int:
        """How many of them were read out and compared; AssertionError when one is not there."""
        if self.server is None:
            return 0
        held, wanted = self.server.count(), self.acknowledged()
        assert held == wanted, f"{self.name}: {held} instances, {wanted} were acknowledged"
        return self.server.compared(self.orders, every)


class Bench:
    """All cases, one after the other."""

    def __init__(self, stand: Stand, every: int) -> None:
        self._stand = stand
        self._every = every
        self._template = Box.made(stand.directory / "template")
        self._file = next(one for one in corpus.files() if one.name == "693_UNCR.dcm")
        self.acknowledged = self.compared = 0

    def run(self, case: Case) -> list[list[str]]:
        """Fresh servers, one run of each to warm up, the rounds, the proof; a row for each."""
        size = sum(map(sum, case.sizes())) or case.count * self._file.stat().st_size
        machine.require_disk(
            self._stand.directory, size * len(case.servers) * (case.rounds + 1) + _ROOM
        )
        print(f"\n{case.title}; {case.associations} at once, {case.count} a run", flush=True)
        with tempfile.TemporaryDirectory(dir=self._stand.directory) as folder, ExitStack() as stack:
            all_of_them = [
                self._contestant(case, name, Path(folder), stack) for name in case.servers
            ]
            for number in range(case.rounds + 1):
                self._round(all_of_them, number)
            for contestant in all_of_them:
                self.acknowledged += contestant.acknowledged()
                self.compared += contestant.check(self._every)
        return _rows(all_of_them)

    def _round(self, contestants: Sequence[Contestant], number: int) -> None:
        """One run of each; another one begins each time."""
        first = number % len(contestants)
        for contestant in (*contestants[first:], *contestants[:first]):
            contestant.compete(self._stand, self._file)
        words = [f"{one.name} {one.samples[-1].rate:,.1f}/s" for one in contestants]
        print(f"  {f'round {number}' if number else 'warm-up'}: {', '.join(words)}", flush=True)

    def _contestant(self, case: Case, name: str, folder: Path, stack: ExitStack) -> Contestant:
        if name == LIMIT:
            return Contestant("write + fdatasync", case, None)
        with servers.environment(case.nagle):
            server = stack.enter_context(self._server(name, folder / name))
        return Contestant(server.name, case, server)

    def _server(self, name: str, directory: Path) -> Server:
        if name == OURS:
            return EdgePacs(directory, self._template)
        if name == "storescp":
            return StoreScp(directory)
        if name == FASTEST:
            return StoreScp(directory, "--bit-preserving")
        return OrthancServer(directory, int(name.removeprefix("orthanc")) << 10)


def _rows(contestants: Sequence[Contestant]) -> list[list[str]]:
    ours = next((one.samples[1:] for one in contestants if one.name == EdgePacs.name), [])
    return [_row(one, one.samples[1:], ours) for one in contestants]


def _row(contestant: Contestant, samples: Sequence[Sample], ours: Sequence[Sample]) -> list[str]:
    """One line of the table; `ours` are EdgePACS's samples of the same rounds."""
    mine = contestant.name == EdgePacs.name
    ratios = [one.rate / other.rate for one, other in zip(ours, samples, strict=False)]
    cpu = _each_ms(samples, lambda one: one.cpu)
    whole = _each_ms(samples, lambda one: one.service_cpu)
    ours_cpu = _each_ms(ours, lambda one: one.cpu) if ours else 0.0
    ratio = "" if mine or not ours else report.spread(ratios, 2)
    if ratio and contestant.server is None:
        ratio += f", {100 * (1 - statistics.median(ratios)):.0f} % below"
    return [
        contestant.name,
        str(contestant.case.associations),
        report.spread([one.rate for one in samples], 1),
        report.middle([one.size / one.seconds / 1e6 or None for one in samples], 0),
        ratio,
        f"{cpu:.2f}" + (f" ({whole:.2f})" if mine else ""),
        "" if mine or not ours_cpu else f"{cpu / ours_cpu:.1f}",
        report.middle([one.peak_mib for one in samples], 1),
        report.middle([one.wait_ms(0.5) for one in samples], 2),
        report.middle([one.wait_ms(0.99) for one in samples], 2),
    ]


def _each_ms(samples: Sequence[Sample], cpu: Callable[[Sample], float]) -> float:
    return statistics.median(1000 * cpu(one) / one.count for one in samples)


def _facts(bench: Bench, stand: Stand, plan: Plan) -> Mapping[str, str]:
    return {
        **machine.description(stand.directory),
        **servers.versions(),
        "Rounds": str(plan.rounds),
        "Acknowledged": f"{bench.acknowledged:,} instances, every one there afterwards",
        "Compared": f"{bench.compared:,} of EdgePACS's, by SHA-256 of the data set read out",
        "Runs on a device that was not quiet": f"{stand.restless} of {stand.runs}",
    }


def main() -> None:
    plan = Plan(os.environ)
    sections: dict[str, list[list[str]]] = {}
    with measure.stand(plan.crew) as stand:
        bench = Bench(stand, int(os.environ.get("EVERY") or 1))
        for case in plan.cases():
            sections.setdefault(case.title, []).extend(bench.run(case))
        parts = [report.about(_facts(bench, stand, plan))]
    parts += [f"### {title}\n\n{report.table(_COLUMNS, rows)}" for title, rows in sections.items()]
    report.publish("ingest", "\n\n".join(parts))


if __name__ == "__main__":
    main()
