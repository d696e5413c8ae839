"""How well lines are used, beside Orthanc and DCMTK: `make bench-forward`.

Three parts: lines that are slow and far away, an outage in the middle of a few instances, and no
line at all. What is measured and how stands in docs/benchmarks.md. From the environment: PARTS,
some of lines,outage,unshaped; ROUNDS; LINES, some of 384k,2M,20M; SECONDS, the least traffic of
each run there; CARRIERS, some of the names `names()` lists; COUNT, how many go unshaped; OUT, a
Markdown file.
"""

import itertools
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from harness.box import Box
from harness.recorder import Commitment, RecordingSCP
from harness.shaper import Shaper
from harness.waiting import until

from bench import machine, report, servers
from bench.carriers import FAR, Carrier, EdgePacsCarrier, OrthancCarrier, Program
from bench.images import Image, Images, Packing
from bench.servers import Nagle, StoreScp, environment

PARTS = ("lines", "outage", "unshaped")
_OUTAGE_COUNT = 20
_OUTAGE_SECONDS = 10.0
_MARGIN = 1.05  # more than SECONDS of traffic, since what is estimated may be a little less
_ROOM = 8 << 30
_LINE_COLUMNS = (
    "carrier",
    "associations",
    "native bytes : line rate, %",
    "TCP payload : line rate, %",
    "MB on the line",
    "seconds",
    "instances",
    "sent again",
    "people needed",
)
_OUTAGE_COLUMNS = (
    "carrier",
    "seconds over the optimum",
    "seconds in all",
    "instances sent twice",
    "requests",
    "people needed",
)
_UNSHAPED_COLUMNS = ("carrier", "associations", "per second", "MB/s", "EdgePACS : it")


@dataclass(frozen=True, slots=True)
class LineKind:
    """A line: bit/s and seconds."""

    name: str
    rate: float
    round_trip: float

    @property
    def title(self) -> str:
        """In words."""
        rate = f"{self.rate / 1e3:g} kbit/s" if self.rate < 1e6 else f"{self.rate / 1e6:g} Mbit/s"
        return f"{rate}, {self.round_trip * 1000:g} ms"


LINES = (
    LineKind("384k", 384e3, 0.715),
    LineKind("2M", 2e6, 0.120),
    LineKind("20M", 20e6, 0.040),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What came of one run over a line; `optimum` is what arithmetic allows, in seconds."""

    seconds: float
    native: int
    arrived: int
    share: float
    wanted: int
    held: int
    requests: int
    repeats: int
    people: int
    optimum: float


@dataclass(slots=True)
class Contestant:
    """One carrier, made anew for each run, with what came of its runs."""

    name: str
    make: Callable[[Path], Carrier]
    associations: str = "its choice"
    samples: list[Sample] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)  # unshaped: a second
    sizes: list[float] = field(default_factory=list)  # bytes of an instance as it arrived

    def begin(self, folder: Path) -> Carrier:
        """A carrier for one run, in `folder`."""
        carrier = self.make(folder)
        self.name = carrier.name
        self.associations = str(carrier.associations or self.associations)
        return carrier


class Plan:
    """What is to be run, as far as the environment asks for it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.rounds = int(environment.get("ROUNDS") or 1)
        self.seconds = float(environment.get("SECONDS") or 60)
        self.count = int(environment.get("COUNT") or 400)
        self.parts = self._words("PARTS", PARTS)
        chosen = self._words("LINES", tuple(one.name for one in LINES))
        self.lines = [one for one in LINES if one.name in chosen]
        self._carriers = self._words("CARRIERS", ())

    def _words(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
        given = self._environment.get(name)
        return tuple(given.split(",")) if given else default

    def chosen(self, offered: Sequence[Contestant]) -> list[Contestant]:
        """Those whose name begins with a word of CARRIERS, if there are any."""
        wanted = tuple(self._carriers)
        return [one for one in offered if not wanted or one.name.startswith(wanted)]


def shaped(template: Box) -> list[Contestant]:
    """Who goes over a line."""
    found = [Contestant("edgepacs", lambda folder: EdgePacsCarrier(folder, template))]
    found += [_orthanc(Packing.NATIVE), _orthanc(Packing.JPEG_2000)]
    packed = itertools.product((Packing.JPEG_2000, Packing.JPEG_LS), (1, 3, 4))
    for packing, count in ((Packing.NATIVE, 1), *packed):
        found.append(_program("storescu", packing, count))
    for packing, count in ((Packing.NATIVE, 1), (Packing.JPEG_2000, 1), (Packing.JPEG_2000, 4)):
        found.append(_program("dcmsend", packing, count))
    return found


def _orthanc(packing: Packing) -> Contestant:
    name = f"orthanc-{packing.replace(' ', '').lower()}"
    return Contestant(name, lambda folder: OrthancCarrier(folder, packing))


def _program(program: str, packing: Packing, count: int) -> Contestant:
    name = f"{program}-{packing.replace(' ', '').lower()}-{count}"
    return Contestant(name, lambda folder: Program(folder, program, packing, count))


def interrupted(template: Box) -> list[Contestant]:
    """Who meets an outage."""
    return [
        Contestant("edgepacs", lambda folder: EdgePacsCarrier(folder, template)),
        _orthanc(Packing.NATIVE),
        _program("storescu", Packing.NATIVE, 1),
        _program("dcmsend", Packing.NATIVE, 1),
    ]


def unshaped(template: Box, nagle: Nagle) -> list[Contestant]:
    """Who goes to storescp directly; `nagle` is how those of DCMTK run."""

    def ours(count: int) -> Contestant:
        return Contestant(
            f"edgepacs-{count}",
            lambda folder: EdgePacsCarrier(folder, template, count, compressed=False),
        )

    def program(name: str, count: int) -> Contestant:
        return Contestant(
            f"{name}-native-{count}",
            lambda folder: Program(folder, name, Packing.NATIVE, count, nagle),
        )

    return [
        one
        for count in (1, 4)
        for one in (ours(count), program("dcmsend", count), program("storescu", count))
    ]


class Bench:
    """All parts, round after round; another carrier begins each time."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self._directory = directory
        self._plan = plan
        self.template = Box.made(directory / "template")
        folder = directory / "images"
        folder.mkdir()
        self.images = Images(folder)
        self._numbers = itertools.count()

    def _in_turn(self, contestants: Sequence[Contestant]) -> Iterator[tuple[Contestant, Path]]:
        for number in range(self._plan.rounds):
            first = number % len(contestants)
            for contestant in (*contestants[first:], *contestants[:first]):
                with tempfile.TemporaryDirectory(dir=self._directory) as folder:
                    machine.settle(self._directory)
                    yield contestant, Path(folder)

    # --- over a line ---------------------------------------------------------------------------

    def line(self, kind: LineKind) -> list[list[str]]:
        """The table of one line."""
        contestants = self._plan.chosen(shaped(self.template))
        print(f"\n{kind.title}", flush=True)
        for contestant, folder in self._in_turn(contestants):
            carrier = contestant.begin(folder)
            packing = carrier.packing
            if isinstance(carrier, EdgePacsCarrier):
                packing = Packing.JPEG_LS  # what it makes of them, as far as sizes go
            traffic = self._plan.seconds * _MARGIN * kind.rate / 8
            images = self.images.make(
                carrier.packing, math.ceil(traffic / self.images.size(packing)), folder / "files"
            )
            contestant.samples.append(self._over(kind, carrier, images, outage=False))
            _say(contestant)
        return [_line_row(one, kind) for one in contestants]

    def interruption(self) -> list[list[str]]:
        """The table of the outage."""
        kind = LINES[1]
        contestants = self._plan.chosen(interrupted(self.template))
        print(f"\nAn outage of {_OUTAGE_SECONDS:g} s at {kind.title}", flush=True)
        for contestant, folder in self._in_turn(contestants):
            carrier = contestant.begin(folder)
            images = self.images.make(carrier.packing, _OUTAGE_COUNT, folder / "files")
            contestant.samples.append(self._over(kind, carrier, images, outage=True))
            _say(contestant)
        return [_outage_row(one) for one in contestants]

    def _over(
        self, kind: LineKind, carrier: Carrier, images: Sequence[Image], *, outage: bool
    ) -> Sample:
        """One run: everything is at hand, the line comes up, and is watched until all is there."""
        scp = RecordingSCP(FAR, digests=True)
        scp.behaviour.commitment = Commitment.SAME
        scp.behaviour.queries = True
        ours = isinstance(carrier, EdgePacsCarrier)
        wanted = {one.sop_instance for one in images}

        def arrived() -> bool:
            return wanted <= (set(scp.confirmed) if ours else scp.held())

        with scp, Shaper(scp.port, rate=kind.rate, round_trip=kind.round_trip) as line, carrier:
            line.refuse()
            carrier.load(images, line.port)
            interval = len(line.opened)
            line.up()
            if outage:
                _go_down_in_the_middle(line, scp, len(images))
            deadline = time.monotonic() + 4 * self._plan.seconds + 120
            people = _people(carrier, arrived, deadline, line)
            return _sample(scp, line, images, begun=line.opened[interval], people=people)

    # --- without a line ------------------------------------------------------------------------

    def direct(self, nagle: Nagle) -> list[list[str]]:
        """The table of sending to storescp, DCMTK's programs being run as `nagle` says."""
        contestants = self._plan.chosen(unshaped(self.template, nagle))
        print(f"\nUnshaped, {self._plan.count} CT to storescp --fork, {nagle}", flush=True)
        for contestant, folder in self._in_turn(contestants):
            carrier = contestant.begin(folder)
            self._directly(contestant, carrier, folder, nagle)
            words = f"{contestant.name}, {contestant.associations}: {contestant.rates[-1]:,.0f}/s"
            print(f"  {words}", flush=True)
        return [_direct_row(one, contestants) for one in contestants]

    def _directly(
        self, contestant: Contestant, carrier: Carrier, folder: Path, nagle: Nagle
    ) -> None:
        """From the first file that is whole to the last, by the far end's own clock."""
        images = self.images.make(carrier.packing, self._plan.count, folder / "files")
        with ExitStack() as stack:
            stack.enter_context(environment(nagle))
            far = StoreScp(folder / "far")
            stack.enter_context(carrier)
            carrier.load(images, far.port)
            machine.settle(folder)
            stack.enter_context(far)
            done = carrier.carry(lambda: far.count() >= len(images), time.monotonic() + 300)
            assert done, f"{contestant.name}: {far.count()} of {len(images)} arrived"
            until(lambda: far.count() == len(images), "the last file is there")
        moments = sorted(one.stat().st_mtime_ns for one in far.directory.iterdir())
        contestant.rates.append((len(moments) - 1) / ((moments[-1] - moments[0]) / 1e9))
        contestant.sizes.append(statistics.mean(one.size for one in images))


def _people(carrier: Carrier, arrived: Callable[[], bool], deadline: float, line: Shaper) -> int:
    """How often somebody had to act until all had arrived; who acts does so once the line is up."""
    people = 0
    while not carrier.carry(arrived, deadline) and time.monotonic() < deadline:
        people += 1
        until(lambda: line.intervals[-1][1] == math.inf, "the line is up", seconds=60)
        if people > 3:
            break
    return people


def _go_down_in_the_middle(line: Shaper, scp: RecordingSCP, count: int) -> None:
    """Once half of the instances are there, and the next has begun, the line is gone for 10 s."""

    def down() -> None:
        if len(scp.held()) < count // 2 or len(scp.order) <= count // 2:
            line.after(0.02, down)
            return
        line.refuse()
        line.after(_OUTAGE_SECONDS, line.up)

    line.after(0.02, down)


def _sample(
    scp: RecordingSCP, line: Shaper, images: Sequence[Image], *, begun: float, people: int
) -> Sample:
    held = scp.held()
    last = max((one.at for one in scp.accepted()), default=time.monotonic())
    ended = max(last + line.round_trip / 2, scp.confirmed_at)
    size = sum({one.sop_instance: one.size for one in scp.accepted()}.values())
    whole = len(held) == len(images)
    assert not scp.faults, scp.faults
    return Sample(
        seconds=ended - begun,
        native=sum(one.native for one in images if one.sop_instance in held),
        arrived=line.forth.arrived,
        share=line.share(),
        wanted=len(images),
        held=len(held),
        requests=scp.total_requests,
        repeats=sum(scp.repeats().values()),
        people=people,
        optimum=(last - line.optimum(begun, size)) if whole else math.nan,
    )


def _say(contestant: Contestant) -> None:
    one = contestant.samples[-1]
    print(
        f"  {contestant.name}: {one.held} of {one.wanted} in {one.seconds:.1f} s, "
        f"{100 * one.share:.1f} % of the line, {one.repeats} again, {one.people} people",
        flush=True,
    )


def _line_row(contestant: Contestant, kind: LineKind) -> list[str]:
    samples = contestant.samples
    return [
        contestant.name,
        contestant.associations,
        report.spread([100 * one.native * 8 / one.seconds / kind.rate for one in samples]),
        report.spread([100 * one.share for one in samples], 1),
        report.middle([one.arrived / 1e6 for one in samples], 1),
        report.middle([one.seconds for one in samples], 1),
        ", ".join(sorted({f"{one.held} of {one.wanted}" for one in samples})),
        report.middle([one.repeats for one in samples]),
        report.middle([one.people for one in samples]),
    ]


def _outage_row(contestant: Contestant) -> list[str]:
    samples = contestant.samples
    return [
        contestant.name,
        report.spread([one.optimum for one in samples], 1),
        report.middle([one.seconds for one in samples], 1),
        report.middle([one.repeats for one in samples]),
        report.middle([one.requests for one in samples]),
        report.middle([one.people for one in samples]),
    ]


def _direct_row(contestant: Contestant, everybody: Sequence[Contestant]) -> list[str]:
    mine = contestant.name.startswith("EdgePACS")
    ours = next(
        (
            one.rates
            for one in everybody
            if one.name.startswith("EdgePACS") and one.associations == contestant.associations
        ),
        [],
    )
    ratios = [one / other for one, other in zip(ours, contestant.rates, strict=False)]
    rates = zip(contestant.rates, contestant.sizes, strict=True)
    return [
        contestant.name,
        contestant.associations,
        report.spread(contestant.rates, 1),
        report.middle([rate * size / 1e6 for rate, size in rates]),
        "" if mine or not ratios else report.spread(ratios, 2),
    ]


def _facts(bench: Bench, directory: Path, plan: Plan) -> dict[str, str]:
    said = subprocess.run(["dcmsend", "--version"], capture_output=True, text=True, check=True)
    return {
        **machine.description(directory),
        **servers.versions(),
        "dcmsend": said.stdout.splitlines()[0].strip("$ "),
        "Rounds": str(plan.rounds),
        "Images": f"{bench.images.distinct} real CT, "
        f"{bench.images.size(Packing.NATIVE) / 1e6:.2f} MB native, "
        f"{bench.images.size(Packing.JPEG_2000) / 1e6:.3f} MB in JPEG 2000, "
        f"{bench.images.size(Packing.JPEG_LS) / 1e6:.3f} MB in JPEG-LS",
        "Traffic of each run over a line": f"at least {plan.seconds:g} s",
    }


def main() -> None:
    """Measure and print."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    plan = Plan(os.environ)
    parts = []
    with tempfile.TemporaryDirectory(prefix="edgepacs-forward-") as name:
        directory = Path(name)
        machine.require_disk(directory, _ROOM)
        bench = Bench(directory, plan)
        if "lines" in plan.parts:
            for kind in plan.lines:
                rows = bench.line(kind)
                parts.append(f"### {kind.title}\n\n{report.table(_LINE_COLUMNS, rows)}")
        if "outage" in plan.parts:
            title = f"### {_OUTAGE_COUNT} CT at {LINES[1].title}, {_OUTAGE_SECONDS:g} s without"
            rows = bench.interruption()
            parts.append(f"{title} a line\n\n{report.table(_OUTAGE_COLUMNS, rows)}")
        if "unshaped" in plan.parts:
            for nagle in Nagle:
                table = report.table(_UNSHAPED_COLUMNS, bench.direct(nagle))
                parts.append(f"### Unshaped, to storescp --fork; DCMTK {nagle}\n\n{table}")
        parts.insert(0, report.about(_facts(bench, directory, plan)))
    report.publish("forward", "\n\n".join(parts))


if __name__ == "__main__":
    main()
