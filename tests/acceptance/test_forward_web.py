"""Must show 4, over STOW-RS: 503, half a multipart, a part that fails, and who is not let in."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import corpus, made, outbox, sender
from harness.almanac import Almanac
from harness.box import Box
from harness.outbox import PROVED
from harness.part10 import Part10
from harness.waiting import until
from harness.web_recorder import RecordingWeb

from edgepacs.model import DeliveryState

pytestmark = pytest.mark.line

MakeBox = Callable[[], Box]
_D = DeliveryState


@dataclass(slots=True)
class Scene:
    """A node, and a DICOMweb server it sends to."""

    box: Box
    web: RecordingWeb
    almanac: Almanac


@pytest.fixture
def scene(new_box: MakeBox, tmp_path: Path) -> Iterator[Scene]:
    almanac = Almanac(tmp_path / "clock")
    with RecordingWeb() as web:
        box = new_box()
        box.send_to("central", ae="CENTRAL", port=web.port)
        settings = ("transport=stow", f"url={web.url}", "proof=found")
        box.cli("destination", "set", "central", *settings)
        yield Scene(box.start(env=almanac.env()), web, almanac)
        box.kill()


def _send(scene: Scene, count: int, side: int = 128) -> list[Part10]:
    study, series = made.new_uid(), made.new_uid()
    some = [made.ct(study=study, series=series, number=n, side=side) for n in range(count)]
    assert all(one.acknowledged for one in sender.send(some, scene.box.dicom_port))
    return some


def _all_found(scene: Scene, some: list[Part10], *, seconds: float = 60) -> None:
    def hurried() -> bool:
        scene.almanac.pass_(seconds=5)
        return all(state in PROVED for state in outbox.states(scene.box))

    try:
        until(hurried, "all found", seconds=seconds, every=0.5)
    except AssertionError as error:
        raise AssertionError(f"{error}: {outbox.described(scene.box)}") from None
    assert scene.web.differing(some) == []
    assert scene.web.repeated == []


def test_instances_arrive_and_are_found(scene: Scene):
    some = _send(scene, 12)
    _all_found(scene, some)
    assert set(scene.web.requests.values()) == {1}


def test_503_is_waited_out(scene: Scene):
    scene.web.behaviour.statuses = [503, 429]
    some = _send(scene, 3)
    _all_found(scene, some)
    assert scene.web.posts >= 3


def test_half_a_multipart_costs_what_was_under_way(scene: Scene):
    scene.web.behaviour.cut_after_bytes = 60_000
    scene.web.behaviour.cuts_left = 1
    some = _send(scene, 8)
    _all_found(scene, some)
    assert max(scene.web.requests.values()) <= 2
    assert set(scene.web.accepted.values()) == {1}


def test_one_part_that_is_refused_keeps_nothing_from_the_rest(scene: Scene):
    bad: set[str] = set()
    scene.web.behaviour.fails = lambda uid: 0xA900 if uid in bad else 0
    some = [made.ct(number=n) for n in range(5)]
    bad.add(some[2].sop_instance)
    sender.send(some, scene.box.dicom_port)
    failed = outbox.until_entry(scene.box, lambda one: one.state is _D.FAILED, "the refused one")
    assert failed.sop_instance == some[2].sop_instance
    assert "A900" in failed.words
    scene.web.wait_for(4)


def test_who_is_not_let_in_is_told_so(scene: Scene):
    scene.web.behaviour.token = "the right one"
    some = _send(scene, 2)
    waits = outbox.until_entry(
        scene.box,
        lambda one: "401" in f"{one.words}{one.link_words}",
        "who is to be let in",
    )
    assert waits.state in (_D.QUEUED, _D.SENDING)
    assert scene.web.denied
    scene.box.cli("destination", "set", "central", "token=the right one")
    _all_found(scene, some)


@pytest.mark.skipif(not corpus.soak(), reason="two minutes in the kernel, where no clock is moved")
def test_a_server_that_hangs_is_given_up_and_asked_again(scene: Scene):
    scene.web.behaviour.hang = 1
    some = _send(scene, 2)
    until(lambda: scene.web.posts == 1, "the request that hangs")
    _all_found(scene, some, seconds=200)
    assert set(scene.web.accepted.values()) == {1}
