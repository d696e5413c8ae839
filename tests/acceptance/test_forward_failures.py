"""Must show 4: every failure ends in the right state, in words a technologist understands.

Each case makes a far end or a line that fails, says what must then stand in the outbox and in the
words beside it, and what is done about it outside; afterwards everything has arrived, but for what
was refused for good, and nothing is left in a passing state.
"""

import re
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness import made, outbox, sender
from harness.almanac import Almanac
from harness.box import Box
from harness.outbox import PROVED, Entry
from harness.recorder import Commitment, RecordingSCP
from harness.shaper import Shaper
from harness.waiting import until

from edgepacs.model import DeliveryState

pytestmark = pytest.mark.line

MakeBox = Callable[[], Box]
_D = DeliveryState
_NOT_FOR_PEOPLE = re.compile(r"Errno|Traceback|Exception|<class|\bNone\b|\{|\}|0x[0-9a-f]{8}")


@dataclass(slots=True)
class Scene:
    """A node, a far end, the line between them, and a clock."""

    box: Box
    far: RecordingSCP
    line: Shaper
    almanac: Almanac
    folder: Path
    stack: ExitStack


Act = Callable[[Scene], None]


def _nothing(_: Scene) -> None:
    """There is nothing to be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One failure."""

    name: str
    break_: Act
    states: frozenset[DeliveryState]  # what the delivery may stand in meanwhile
    words: str  # a pattern, in the last error or in the words about the line
    meanwhile: Act = _nothing  # once the first request has been made, e.g. time passes
    heal: Act = _nothing
    ends: frozenset[DeliveryState] = PROVED
    most_requests: int = 2


@dataclass(slots=True)
class _Once:
    """True for the first asked, and no more."""

    asked: list[int] = field(default_factory=list)

    def __call__(self, _order: int, _uid: str) -> bool:
        self.asked.append(1)
        return len(self.asked) == 1


def _behave(**settings: object) -> Act:
    def act(scene: Scene) -> None:
        for name, value in settings.items():
            setattr(scene.far.behaviour, name, value)

    return act


def _answering(status: int) -> Act:
    def act(scene: Scene) -> None:
        scene.far.behaviour.status = lambda _order, _uid: status
        scene.far.behaviour.comment = "said by the far end"

    return act


def _well(scene: Scene) -> None:
    """The far end is well again, and somebody asks for it, rather than wait for some seconds."""
    scene.far.behaviour.status = lambda _order, _uid: 0
    scene.far.behaviour.hang = scene.far.behaviour.abort = lambda _order, _uid: False
    scene.far.behaviour.reject = None
    scene.far.behaviour.mute = False
    _hurry(scene)


def _hurry(scene: Scene) -> None:
    scene.almanac.pass_(seconds=120)
    scene.box.cli("queue", "retry")


def _set(*settings: str) -> Act:
    return lambda scene: scene.box.cli("destination", "set", "central", *settings)


def _pass(seconds: float) -> Act:
    return lambda scene: scene.almanac.pass_(seconds=seconds)


def _line_down(kind: str) -> Act:
    return lambda scene: getattr(scene.line, kind)()


def _hang_and_wait(scene: Scene) -> None:
    until(lambda: scene.far.total_requests == 1, "the request that hangs")
    scene.almanac.pass_(seconds=150)


def _keys(scene: Scene) -> tuple[Path, Path]:
    key, certificate = scene.folder / "far.key", scene.folder / "far.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    make += ["-nodes", "-days", "9000", "-subj", "/CN=127.0.0.1"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1"]
    make += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    return key, certificate


def _far_end_with_unknown_certificate(scene: Scene) -> None:
    key, certificate = _keys(scene)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    scene.far.tls = context
    _set("tls=1")(scene)


def _trust_it(scene: Scene) -> None:
    _set(f"authority=@{scene.folder / 'far.pem'}")(scene)


def _first_commitment_fails(reason: int) -> Act:
    def act(scene: Scene) -> None:
        seen = threading.Event()

        def fails(_uid: str) -> int:
            if seen.is_set():
                return 0
            if scene.far.reports:
                seen.set()
                return 0
            return reason

        scene.far.behaviour.fails = fails

    return act


def _never_reports(scene: Scene) -> None:
    scene.far.behaviour.commitment = Commitment.NEVER
    scene.far.behaviour.queries = True


def _hours_pass_without_a_report(scene: Scene) -> None:
    """Until the node has turned to queries; it may want to ask several times."""
    until(lambda: scene.far.asked, "commitment is asked for", seconds=60)

    def queried() -> bool:
        scene.almanac.pass_(seconds=1800)
        return scene.far.queries > 0

    until(queried, "it asks by query instead", seconds=60, every=1.0)


QUEUED = frozenset({_D.QUEUED, _D.SENDING})
FAILED = frozenset({_D.FAILED})

CASES = (
    Case(
        name="refused",
        break_=_line_down("refuse"),
        states=QUEUED,
        words="nothing listens",
        heal=_line_down("up"),
        most_requests=1,
    ),
    Case(
        name="black hole",
        break_=_line_down("silence"),
        states=QUEUED,
        words="no answer",
        heal=_line_down("up"),
        most_requests=1,
    ),
    Case(
        name="reset inside an object",
        break_=_behave(cut_after_bytes=20_000, cuts_left=1),
        states=QUEUED | PROVED | {_D.SENT, _D.AWAITING_COMMITMENT},
        words="",
    ),
    Case(
        name="aborted in place of an answer",
        break_=_behave(abort=lambda _order, _uid: True),
        states=QUEUED,
        words="abort",
        heal=_well,
        most_requests=4,
    ),
    Case(
        name="association rejected for good",
        break_=_behave(reject=(1, 1, 1)),
        states=QUEUED,
        words="reject|refuse",
        heal=_well,
        most_requests=1,
    ),
    Case(
        name="association rejected for now",
        break_=_behave(reject=(2, 3, 2)),
        states=QUEUED,
        words="reject|refuse|limit|congest",
        heal=_well,
        most_requests=1,
    ),
    Case(
        name="wrong called AE title",
        break_=lambda scene: (
            _behave(own_title_only=True)(scene),
            _set("ae_title=SOMEBODY")(scene),
        )[0],
        states=QUEUED,
        words="called AE title",
        heal=_set("ae_title=CENTRAL"),
        most_requests=1,
    ),
    Case(
        name="TLS with one that has none",
        break_=_set("tls=1"),
        states=QUEUED,
        words="TLS",
        heal=_set("tls=0"),
        most_requests=1,
    ),
    Case(
        name="TLS with an unknown certificate",
        break_=_far_end_with_unknown_certificate,
        states=QUEUED,
        words="certificate",
        heal=_trust_it,
        most_requests=1,
    ),
    Case(
        name="A700",
        break_=_answering(0xA700),
        states=QUEUED,
        words="A700, refused: out of resources.*said by the far end",
        heal=_well,
        most_requests=4,
    ),
    Case(
        name="0110",
        break_=_answering(0x0110),
        states=QUEUED,
        words="0110, processing failure",
        heal=_well,
        most_requests=4,
    ),
    Case(
        name="A900",
        break_=_answering(0xA900),
        states=FAILED,
        words="A900, data set does not match SOP class",
        ends=FAILED,
        most_requests=1,
    ),
    Case(
        name="C000",
        break_=_answering(0xC000),
        states=FAILED,
        words="C000, cannot understand",
        ends=FAILED,
        most_requests=1,
    ),
    Case(
        name="not authorised",
        break_=_answering(0x0124),
        states=FAILED,
        words="0124, refused: not authorised",
        ends=FAILED,
        most_requests=1,
    ),
    Case(
        name="a peer that hangs",
        break_=_behave(hang=_Once()),
        states=QUEUED | PROVED | {_D.SENT, _D.AWAITING_COMMITMENT},
        words="",
        meanwhile=_hang_and_wait,
    ),
    Case(
        name="a peer that never answers A-ASSOCIATE",
        break_=_behave(mute=True),
        states=QUEUED,
        words="silent|no answer",
        meanwhile=lambda scene: (threading.Event().wait(2), scene.almanac.pass_(seconds=60))[0],
        heal=_well,
        most_requests=1,
    ),
    Case(
        name="commitment never answered",
        break_=_never_reports,
        states=frozenset({_D.AWAITING_COMMITMENT, _D.SENT, _D.CONFIRMED_BY_QUERY}),
        words="",
        meanwhile=_hours_pass_without_a_report,
        ends=frozenset({_D.CONFIRMED_BY_QUERY}),
        most_requests=1,
    ),
    Case(
        name="commitment refused",
        break_=_behave(commitment=Commitment.REFUSED, queries=True),
        states=frozenset({_D.AWAITING_COMMITMENT, _D.SENT, _D.CONFIRMED_BY_QUERY}),
        words="",
        meanwhile=_hours_pass_without_a_report,
        ends=frozenset({_D.CONFIRMED_BY_QUERY}),
        most_requests=1,
    ),
    Case(
        name="neither commitment nor query",
        break_=_behave(commitment=Commitment.ABSENT, queries=False),
        states=frozenset({_D.SENT}),
        words="",
        ends=frozenset({_D.SENT}),
        most_requests=1,
    ),
    Case(
        name="not committed, may be sent again",
        break_=_first_commitment_fails(0x0110),
        states=QUEUED | PROVED | {_D.SENT, _D.AWAITING_COMMITMENT},
        words="",
        meanwhile=lambda scene: (
            until(lambda: scene.far.reports, "the report", seconds=60),
            _hurry(scene),
        )[1],
        ends=frozenset({_D.COMMITTED}),
    ),
    Case(
        name="not committed for good",
        break_=_behave(fails=lambda _uid: 0x0122),
        states=frozenset({_D.FAILED, _D.SENT, _D.AWAITING_COMMITMENT}),
        words="",
        meanwhile=lambda scene: until(lambda: scene.far.reports, "the report", seconds=60) and None,
        ends=FAILED,
        most_requests=1,
    ),
)


@pytest.fixture
def scene(new_box: MakeBox, tmp_path: Path) -> Iterator[Scene]:
    far = RecordingSCP("CENTRAL")
    far.behaviour.commitment, far.behaviour.queries = Commitment.SAME, True
    with ExitStack() as stack:
        stack.enter_context(far)
        line = stack.enter_context(Shaper(far.port))
        almanac = Almanac(tmp_path / "clock")
        box = new_box()
        box.send_to("central", ae="CENTRAL", port=line.port)
        yield Scene(box, far, line, almanac, tmp_path, stack)
        box.kill()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_failure_ends_well_and_says_what_it_is(scene: Scene, case: Case):
    box, far = scene.box, scene.far
    box.start(env=scene.almanac.env())
    case.break_(scene)
    one = made.ct(side=200)
    (answer,) = sender.send([one], box.dicom_port)
    assert answer.acknowledged
    case.meanwhile(scene)

    def fits(entry: Entry) -> bool:
        said = f"{entry.words} {entry.link_words}"
        return entry.state in case.states and bool(re.search(case.words, said))

    seen = outbox.until_entry(box, fits, f"{case.name}: {case.words!r}", seconds=60)
    assert not _NOT_FOR_PEOPLE.search(f"{seen.words} {seen.link_words}"), seen
    case.heal(scene)
    outbox.until_all(box, case.ends, seconds=90)
    assert far.total_requests <= case.most_requests
    if _D.FAILED not in case.ends:
        assert far.differing([one]) == []
    else:
        (entry,) = outbox.entries(box)
        assert entry.words, "nobody is told why"
        assert not _NOT_FOR_PEOPLE.search(entry.words), entry
    assert far.repeated == []
    assert not far.faults


@pytest.mark.parametrize("status", [0xA900, 0xC000, 0x0124, 0xA700])
def test_what_is_refused_keeps_nothing_from_the_rest(scene: Scene, status: int):
    some = [made.ct(number=number) for number in range(6)]
    bad = {one.sop_instance for one in some[::2]}
    scene.far.behaviour.status = lambda _order, uid: status if uid in bad else 0
    scene.box.start(env=scene.almanac.env())
    sender.send(some, scene.box.dicom_port)
    scene.far.wait_for(3, seconds=30)
    assert scene.far.held().isdisjoint(bad)
    wanted = _D.QUEUED if status == 0xA700 else _D.FAILED
    until(
        lambda: sum(one.state is wanted for one in outbox.entries(scene.box)) == 3,
        f"three {wanted}: {outbox.described(scene.box)}",
        seconds=30,
    )


def test_part_of_a_commitment_fails_and_that_part_alone_is_sent_again(scene: Scene):
    some = [made.ct(number=number) for number in range(5)]
    lost = some[2].sop_instance
    scene.far.behaviour.fails = lambda uid: (
        0x0112 if uid == lost and scene.far.requests[lost] == 1 else 0
    )
    scene.box.start(env=scene.almanac.env())
    sender.send(some, scene.box.dicom_port)
    until(lambda: scene.far.reports, "a report", seconds=60)
    outbox.until_entry(scene.box, lambda one: one.state is _D.COMMITTED, "what was committed")
    _hurry(scene)
    outbox.until_all(scene.box, frozenset({_D.COMMITTED}), seconds=90)
    assert scene.far.requests == {
        one.sop_instance: 2 if one.sop_instance == lost else 1 for one in some
    }
    assert scene.far.repeated == []


def test_reports_on_an_association_of_their_own_are_taken(scene: Scene):
    scene.far.behaviour.commitment = Commitment.NEW
    scene.far.behaviour.queries = False
    scene.far.report_to = ("127.0.0.1", scene.box.dicom_port, scene.box.ae_title)
    scene.box.start(env=scene.almanac.env())
    sender.send([made.ct(number=number) for number in range(3)], scene.box.dicom_port)
    outbox.until_all(scene.box, frozenset({_D.COMMITTED}), seconds=90)
    assert scene.far.repeats().total() == 0
