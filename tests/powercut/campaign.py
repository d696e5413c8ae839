"""A run of power cuts on one node that is never repaired, and what became of what it acknowledged.

Each round starts the node on what the last cut left, compares, lets the senders work, and cuts
the power at a moment of one of the kinds below. Everything random comes from the seed.
"""

import itertools
import json
import random
import statistics
import subprocess
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from harness.box import Box
from harness.recorder import RecordingSCP
from harness.waiting import until
from powercut import autopsy, check, load
from powercut.check import Findings
from powercut.crew import Crew, Pending
from powercut.disk import Disk
from powercut.evidence import Evidence
from powercut.load import Key, Order, Report
from powercut.node import FailedStart, Node, stop

_SURVEY_EVERY = 25  # cuts between two looks at all rows and objects, without reading them
_WHOLE_EVERY = 500  # cuts between two readings of everything
_EARLIER = 20  # instances of earlier cuts read again at each cut
_AGAIN = 40  # never answered, sent again by each sender
_STORESCU_EVERY = 5  # cuts in which one of the senders is DCMTK's
_SECONDS = 60.0
_MOMENT = (0.02, 0.4)  # seconds, from which the random moment is taken
_SECOND_BATCH = 1_000_000  # the first number sent after a start in the same round


class Kind(StrEnum):
    """When the power goes."""

    MOMENT = "at a random moment"
    SUCCESS = "right after a Success"
    SEALED = "when killed at ingest.sealed"
    COMMITTED = "when killed at ingest.committed"
    FORWARDING = "while deliveries are sent"
    CLAIMED = "when killed at forward.claimed"
    SENT = "when killed at forward.sent"
    STARTING = "while the node starts"
    STOPPING = "while the node stops"
    RESTARTED = "after a kill and a start"
    KEY_UNSYNCED = "when killed before the keystore was synced"
    KEY_TRUSTED = "after a kill before the keystore was synced, and a start"
    OBJECT_TRUSTED = "after a kill before an object was synced, and a start"
    REMOVING = "when killed while the sweep removes"
    ADOPTING = "when killed before the sweep makes an object known"
    ADOPTED = "when killed after the sweep made an object known"
    FAILING = "a while before the node is killed"
    SERVE = "under all roles"


_FORWARDING = (Kind.FORWARDING, Kind.CLAIMED, Kind.SENT, Kind.SERVE)
_KEYSTORE = ("--neighbour", "keystore", "--kill-before-sync", "/keystore:{}")
_SEALED = ("--kill-at", "ingest.sealed:{}")
# Which role dies, by which options of the driver, and between which passages.
_DEATHS: Mapping[StrEnum, tuple[str, tuple[str, ...], tuple[int, int]]] = {
    Kind.SEALED: ("scp", _SEALED, (1, 60)),
    Kind.COMMITTED: ("scp", ("--kill-at", "ingest.committed:{}"), (1, 60)),
    Kind.CLAIMED: ("forward", ("--kill-at", "forward.claimed:{}"), (1, 1)),
    Kind.SENT: ("forward", ("--kill-at", "forward.sent:{}"), (1, 20)),
    Kind.KEY_UNSYNCED: ("scp", _KEYSTORE, (1, 1)),
    Kind.KEY_TRUSTED: ("scp", _KEYSTORE, (1, 1)),
    Kind.OBJECT_TRUSTED: ("scp", ("--kill-before-sync", "/objects/:{}"), (1, 60)),
    Kind.REMOVING: ("scp", _SEALED, (5, 60)),
    Kind.ADOPTING: ("scp", _SEALED, (5, 60)),
    Kind.ADOPTED: ("scp", _SEALED, (5, 60)),
}
# Where the role that is started again dies in its turn: the first death has left it work.
_SECOND_DEATHS: Mapping[StrEnum, tuple[str, ...]] = {
    Kind.REMOVING: ("--kill-at", "sweep.removing:2"),
    Kind.ADOPTING: ("--kill-at", "sweep.synced:1"),
    Kind.ADOPTED: ("--kill-at", "sweep.committed:1"),
}
MIXTURE = (*(6 * (Kind.MOMENT,)), *(3 * (Kind.SUCCESS,)), *Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One cut."""

    number: int
    kind: StrEnum
    chance: random.Random

    @property
    def role(self) -> str:
        """What receives."""
        return "serve" if self.kind is Kind.SERVE else "scp"

    def death(self) -> tuple[str, list[str]]:
        """Which role dies by itself, and the driver's options for it; nobody for most kinds."""
        role, options, passages = _DEATHS.get(self.kind, ("", (), (1, 1)))
        passage = self.chance.randint(*passages)
        return role, [option.format(passage) for option in options]

    @property
    def moment(self) -> float:
        """Seconds until the random moment."""
        return self.chance.uniform(*_MOMENT)


def plans(seed: int, kinds: Sequence[StrEnum]) -> Iterator[Plan]:
    """Plans without end: all of `kinds` in an order of chance, then all of them again."""
    order = random.Random(f"{seed} kinds")
    number = itertools.count(1)
    while True:
        for kind in order.sample(kinds, len(kinds)):
            this = next(number)
            yield Plan(number=this, kind=kind, chance=random.Random(f"{seed} {this} plan"))


@dataclass(slots=True)
class Result:
    """What a campaign found."""

    cuts: int = 0
    filled: int = 0  # put there before the first cut, and compared like the others
    acknowledged: dict[Key, float] = field(default_factory=dict)
    found: Findings = field(default_factory=Findings)
    refused: int = 0  # answered with something else than Success before the power went
    failed_starts: list[str] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)  # seconds to the first C-ECHO, scp alone
    serve_starts: list[float] = field(default_factory=list)
    forwarded: int = 0
    kinds: Counter[StrEnum] = field(default_factory=Counter)
    cut_at: list[float] = field(default_factory=list)  # monotonic seconds
    evidence: list[Path] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether nothing at all was wrong."""
        found = self.found
        wrong = (found.lost, found.altered, found.remade, found.others)
        return not (any(wrong) or self.failed_starts or self.refused)

    def summary(self) -> str:
        """All in one line."""
        starts = self.starts or [0.0]
        serve = f", all roles at most {max(self.serve_starts):.2f} s" if self.serve_starts else ""
        return (
            f"{self.cuts} cuts in {self.seconds:.0f} s, "
            f"{len(self.acknowledged) - self.filled} acknowledged beside {self.filled} filled, "
            f"{len(self.found.lost)} lost, {len(self.found.altered)} altered, "
            f"{len(self.found.remade)} rows lost and made again, "
            f"{len(self.found.others)} other findings, {self.refused} refused, "
            f"{len(self.failed_starts)} failed starts, 0 repairs (none is ever made), "
            f"{self.forwarded} forwarded; start to C-ECHO median "
            f"{statistics.median(starts):.2f} s, at most {max(starts):.2f} s{serve}"
        )

    def details(self) -> Iterator[str]:
        """Every finding in a line of its own, and where its evidence lies."""
        yield from self.failed_starts
        for word, keys in (("lost", self.found.lost), ("altered", self.found.altered)):
            for key, words in keys.items():
                yield f"{word}: {key}, {self._answered(key)}: {words}"
        for key in self.found.remade:
            yield f"row lost and made again: {key}, {self._answered(key)}"
        yield from self.found.others
        yield from (f"evidence: {path}" for path in self.evidence)

    def _answered(self, key: Key) -> str:
        """When Success came for it, by the cut next to that moment."""
        at = self.acknowledged[key]
        cut = min(self.cut_at, key=lambda cut: abs(cut - at), default=at)
        return f"answered {abs(at - cut):.6f} s {'after' if at > cut else 'before'} a cut"

    def report(self) -> str:
        """Summary and details."""
        return "\n".join([self.summary(), *self.details()])


class Campaign:
    """Cuts the power under one node in `work` until told otherwise; use as a context manager.

    `spoilt` are the driver's options for the role that receives, for the controls. What goes
    wrong leaves its evidence below `evidence`, else in `work`.
    """

    def __init__(
        self,
        work: Path,
        template: Box,
        crew: Crew,
        *,
        seed: int,
        mib: int = 2048,
        spoilt: Sequence[str] = (),
        evidence: Path | None = None,
    ) -> None:
        self.result = Result()
        self._seed = seed
        self._crew = crew
        self._spoilt = spoilt
        self._chance = random.Random(f"{seed} campaign")
        self._unseen: list[Key] = []  # acknowledged since the last comparison
        self._pending: list[Key] = []  # sent, and never answered
        self._doubtful: set[Key] = set()  # not answered at some time: the start may adopt it
        self._confirmed: dict[str, int] = {}  # recorded as sent, and the requests seen by then
        self._cut_at = 0.0  # monotonic seconds
        self._begun = time.monotonic()
        with ExitStack() as stack:
            self._disk = stack.enter_context(Disk(work, mib=mib))
            self._recorder = RecordingSCP()
            self.node = Node(self._settle(template, work))
            stack.callback(self.node.kill)
            self._evidence = Evidence(evidence or work / "evidence", work / "before", self.node.box)
            self._stack = stack.pop_all()

    def _settle(self, template: Box, work: Path) -> Box:
        """A node on the disk whose log and temporary files are not: they must survive."""
        box = Box.copied(template, self._disk.at / "node")
        box.log, box.temporary = work / "node.log", work / "temporary"
        box.temporary.mkdir()
        box.send_to("central", ae=self._recorder.ae_title, port=self._recorder.port)
        self._disk.sync()
        return box

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._recorder.down()
        self._stack.close()

    def fill(self, number: int) -> None:
        """Bring `number` small instances into the node before the first cut."""
        keys = [Key(self._seed, load.FILLED, 0, one) for one in range(number)]
        self._crew.checker.ask(load.fill, self.node.box.config, keys)
        self._disk.sync()
        self._acknowledge(dict.fromkeys(keys, time.monotonic()))
        self.result.filled = number
        self._doubtful.update(keys)

    def run(self, kinds: Sequence[StrEnum], cuts: int) -> Iterator[Result]:
        """Cut `cuts` times, then compare everything; yields after each cut and at the end."""
        for plan in itertools.islice(plans(self._seed, kinds), cuts):
            self._watched(self._round, plan)
            if self.result.failed_starts:
                break
            yield self.result
        if not self.result.failed_starts:
            self._watched(self._end)
        yield self.result

    def _watched(self, part: Callable[..., None], *values: object) -> None:
        """Run a part of the campaign; whatever goes wrong in it leaves evidence."""
        before = self.result.found.number
        try:
            part(*values)
        except FailedStart as failed:
            self.result.failed_starts.append(f"after cut {self.result.cuts}: {failed}")
            self._keep()
        except Exception as error:
            error.add_note(self.result.report())
            error.add_note(f"evidence: {self._keep(traceback.format_exc())}")
            raise
        else:
            if self.result.found.number > before:
                self._keep()
        finally:
            self.result.seconds = time.monotonic() - self._begun

    def _keep(self, words: str = "") -> Path:
        """Keep what may explain what has just gone wrong; where it lies."""
        found = self.result.found
        keys = [*dict.fromkeys([*found.lost, *found.altered, *found.remade])]
        said = f"{self.result.report()}\n{words}"
        path = self._evidence.keep(f"cut-{self.result.cuts}", said, self._disk)
        self.result.evidence.append(path)
        try:
            lines = self._crew.checker.ask(
                autopsy.examine, self.node.box.config, self._evidence.before, keys
            )
        except AssertionError as error:  # nothing can be opened: that is what there is to say
            lines = [str(error)]
        (path / "autopsy.txt").write_text("\n".join([*lines, ""]))
        return path

    # -- one round

    def _round(self, plan: Plan) -> None:
        reports: list[Pending[Report]] = []
        dying, options = plan.death()
        if plan.kind is Kind.STARTING:
            self.node.launch(plan.role, self._spoilt)
        else:
            self._start(plan, options if dying == plan.role else self._spoilt)
            self._compare(plan.number)
            after = plan.chance.randint(1, 60) if plan.kind is Kind.SUCCESS else 0
            reports = self._send(plan, cut_after=after)
        if plan.kind in _FORWARDING:
            self._recorder.up()
        if plan.kind in _FORWARDING and plan.kind is not Kind.SERVE:
            self.node.launch("forward", options)
        _CUTTING[plan.kind](self, plan, reports)
        self.node.kill()
        self._recorder.down()
        self._gather(reports)
        self._disk.replay()
        self._evidence.remember()
        self.result.cuts += 1
        self.result.kinds[plan.kind] += 1

    def _start(self, plan: Plan, spoilt: Sequence[str]) -> None:
        seconds = self.node.start(plan.role, spoilt)
        served = plan.kind is Kind.SERVE
        (self.result.serve_starts if served else self.result.starts).append(seconds)

    def _send(self, plan: Plan, first: int = 0, cut_after: int = 0) -> list[Pending[Report]]:
        """Let every sender begin with number `first`; the first one may cut the power itself."""
        box = self.node.box
        reports = []
        for sender, worker in enumerate(self._crew.senders):
            order = Order(
                first=Key(self._seed, plan.number, sender, first),
                port=box.dicom_port,
                again=tuple(self._pending[sender :: len(self._crew.senders)][:_AGAIN]),
                cut_after=0 if sender else cut_after,
                mounted=self._disk.at,
                groups=self.node.groups,
                temporary=box.temporary,
            )
            last = 0 < sender == len(self._crew.senders) - 1
            dcmtk = last and not plan.number % _STORESCU_EVERY
            reports.append(worker.begin(load.send_by_storescu if dcmtk else load.send, order))
        return reports

    def _gather(self, reports: Iterable[Pending[Report]]) -> None:
        """Take up what the senders say, once the node is gone."""
        for pending in reports:
            report = pending.get(_SECONDS)
            self._acknowledge(report.acknowledged)
            self._pending += report.unanswered
            self._doubtful.update(report.unanswered)
            self.result.refused += sum(at < self._cut_at for _, at in report.refused)
        again = dict.fromkeys(self._pending)
        self._pending = [key for key in again if key not in self.result.acknowledged]

    def _acknowledge(self, keys: Mapping[Key, float]) -> None:
        self.result.acknowledged.update(keys)
        self._unseen += keys

    # -- the kinds of cuts

    def _cut(self) -> None:
        """Cut the power, after which the node runs not one more line."""
        self._note_cut(time.monotonic())
        stop(self.node.groups)
        self._disk.cut()

    def _note_cut(self, at: float) -> None:
        self._cut_at = at
        self.result.cut_at.append(at)

    def _at_a_moment(self, plan: Plan, _reports: list[Pending[Report]]) -> None:
        time.sleep(plan.moment)  # the random moment itself
        self._cut()

    def _by_the_sender(self, _plan: Plan, reports: list[Pending[Report]]) -> None:
        report = reports[0].get(_SECONDS)
        said = f"{len(report.acknowledged)} acknowledged, refused: {report.refused}"
        assert report.cut_at, f"the sender ended before the cut: {said}"
        self._note_cut(report.cut_at)

    def _when_killed(self, plan: Plan, _reports: list[Pending[Report]]) -> None:
        self.node.wait(plan.death()[0], seconds=_SECONDS)
        self._cut()

    def _when_started_again(self, plan: Plan, reports: list[Pending[Report]]) -> None:
        """What the killed node had not synced is still in memory: it may trust none of it.

        The senders begin with what was under way, and the power goes at the first Success.
        """
        if plan.kind is Kind.RESTARTED:
            time.sleep(plan.moment)
        else:
            self.node.wait(plan.role, seconds=_SECONDS)
        self._end_of_first(reports)
        self._start(plan, self._spoilt)
        reports[:] = self._send(plan, first=_SECOND_BATCH, cut_after=1)
        self._by_the_sender(plan, reports)

    def _end_of_first(self, reports: list[Pending[Report]]) -> None:
        """End what the node and its senders were at; nothing is lost with its memory yet."""
        self._cut_at = time.monotonic()  # what is refused from here on does not count
        self.node.kill()
        self._gather(reports)
        reports.clear()

    def _when_killed_in_the_sweep(self, plan: Plan, reports: list[Pending[Report]]) -> None:
        """Killed with whole objects that have no row yet, then killed over the sweep of these."""
        self.node.wait(plan.role, seconds=_SECONDS)
        self._end_of_first(reports)
        self.node.launch(plan.role, _SECOND_DEATHS[plan.kind])
        self.node.wait(plan.role, seconds=_SECONDS)
        self._cut()

    def _while_forwarding(self, plan: Plan, reports: list[Pending[Report]]) -> None:
        before = self._recorder.total_requests
        until(
            lambda: self._recorder.total_requests > before, "a delivery is sent", seconds=_SECONDS
        )
        self._at_a_moment(plan, reports)

    def _while_stopping(self, plan: Plan, _reports: list[Pending[Report]]) -> None:
        time.sleep(plan.moment)
        self.node.terminate()
        time.sleep(plan.chance.uniform(0.0, 0.4))
        self._cut()

    def _and_go_on(self, plan: Plan, _reports: list[Pending[Report]]) -> None:
        """The node runs on for a while on a disk that fails: it may not say Success.

        No sync may be under way when the disk goes: that one alone would be told a lie.
        """
        time.sleep(plan.moment)
        self.node.stop_between_calls()
        self._note_cut(time.monotonic())
        self._disk.cut()
        self.node.go_on()
        time.sleep(plan.chance.uniform(0.05, 0.3))

    # -- comparing

    def _ask(self, question: Callable[..., Findings], *values: object) -> Findings:
        found = self._crew.checker.ask(question, self.node.box.config, *values)
        self.result.found.lost.update(found.lost)
        self.result.found.altered.update(found.altered)
        self.result.found.remade |= found.remade - self._doubtful
        self.result.found.others += found.others
        return found

    def _compare(self, number: int) -> None:
        """The new ones whole and some of the earlier ones; at times all of them."""
        known = list(self.result.acknowledged)
        earlier = self._chance.sample(known, min(_EARLIER, len(known)))
        keys = [*dict.fromkeys([*self._unseen, *earlier])]
        self.result.found.last = self._ask(check.compare, keys, self.result.found.last).last
        self._unseen = []
        self._compare_sent()
        if not number % _SURVEY_EVERY:
            self._ask(check.survey, known)
        if not number % _WHOLE_EVERY:
            self._ask(check.compare, known, 0)

    def _compare_sent(self) -> None:
        """What is recorded as sent has arrived, and is never sent again."""
        recorded = self._crew.checker.ask(check.sent, self.node.box.config)
        others, arrived = self.result.found.others, self._arrived()
        self.result.forwarded = len(arrived)
        for uid in set(recorded) - arrived:
            others.append(f"{Key.of(uid)}: recorded as sent, never arrived")
        for uid in recorded:
            requests = self._recorder.requests[uid]
            if self._confirmed.setdefault(uid, requests) != requests:
                others.append(f"{Key.of(uid)}: sent again after its proof")

    def _end(self) -> None:
        """Everything compared once more, by the running node's side and by fsck without it."""
        self.result.starts.append(self.node.start("scp"))
        known = list(self.result.acknowledged)
        self._ask(check.survey, known)
        self._ask(check.compare, known, 0)
        self._compare_sent()
        self._compare_arrived()
        codes = self.node.end()
        self.result.found.others += [
            f"{role} ended with {code}" for role, code in codes.items() if code
        ]
        self.result.found.others += self._fsck()

    def deliver(self, seconds: float) -> None:
        """Forward on what the cuts have left until everything acknowledged has arrived."""
        wanted = {str(key.uid) for key in self.result.acknowledged}
        self._recorder.up()
        self.node.launch("forward")
        until(lambda: wanted <= self._arrived(), "all that was acknowledged", seconds=seconds)
        self.node.end()
        self._compare_sent()
        self._compare_arrived()

    def _arrived(self) -> set[str]:
        return {one.sop_instance for one in self._recorder.accepted()}

    def _compare_arrived(self) -> None:
        for one in self._recorder.accepted():
            if one.data != load.instance(Key.of(one.sop_instance)).data:
                self.result.found.others.append(f"{Key.of(one.sop_instance)}: arrived altered")

    def _fsck(self) -> list[str]:
        """What `edgepacs fsck` says of the stopped node."""
        box = self.node.box
        run = subprocess.run(
            box.command("fsck", "--json"), capture_output=True, check=False, env=box.env()
        )
        report = json.loads(run.stdout)
        if report["sound"] and not run.returncode:
            return []
        return [f"fsck: {name} {report[name]}" for name in report if isinstance(report[name], list)]


_CUTTING: Mapping[StrEnum, Callable[[Campaign, Plan, list[Pending[Report]]], None]] = {
    Kind.MOMENT: Campaign._at_a_moment,
    Kind.SUCCESS: Campaign._by_the_sender,
    Kind.SEALED: Campaign._when_killed,
    Kind.COMMITTED: Campaign._when_killed,
    Kind.FORWARDING: Campaign._while_forwarding,
    Kind.CLAIMED: Campaign._when_killed,
    Kind.SENT: Campaign._when_killed,
    Kind.RESTARTED: Campaign._when_started_again,
    Kind.KEY_UNSYNCED: Campaign._when_killed,
    Kind.KEY_TRUSTED: Campaign._when_started_again,
    Kind.OBJECT_TRUSTED: Campaign._when_started_again,
    Kind.REMOVING: Campaign._when_killed_in_the_sweep,
    Kind.ADOPTING: Campaign._when_killed_in_the_sweep,
    Kind.ADOPTED: Campaign._when_killed_in_the_sweep,
    Kind.STARTING: Campaign._at_a_moment,
    Kind.STOPPING: Campaign._while_stopping,
    Kind.FAILING: Campaign._and_go_on,
    Kind.SERVE: Campaign._while_forwarding,
}
