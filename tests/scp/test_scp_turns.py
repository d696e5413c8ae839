"""Back-pressure per AE, over the wire: who sends much waits; who sends little does not."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from harness import sender
from harness.made import ct
from harness.part10 import Part10
from harness.waiting import until
from scp.serving import Serving

from edgepacs.model import AETitle
from edgepacs.scp import shares
from edgepacs.scp.shares import AT_WORK, Share
from edgepacs.store import studies

BUSY, QUIET = AETitle("HARNESS"), AETitle("OTHER")


class Sending:
    """One instance sent in a thread of its own; `status` once it is answered."""

    def __init__(self, node: Serving, title: str, part: Part10) -> None:
        self.answers: list[sender.Answer] = []
        self._thread = threading.Thread(target=self._run, args=(node, title, part), daemon=True)
        self._thread.start()

    def _run(self, node: Serving, title: str, part: Part10) -> None:
        self.answers.extend(sender.send([part], node.port, calling=title))

    def status(self) -> int | None:
        self._thread.join(30)
        (answer,) = self.answers
        return answer.status


def share(node: Serving, title: AETitle) -> Share:
    return node.listener._shares._shares.get(title, Share())


def waiting(node: Serving, title: AETitle) -> int:
    return len(share(node, title).waiting)


def stored(node: Serving) -> int:
    return studies.counts(node.store.db)["instance"]


@contextmanager
def nothing_becomes_durable(node: Serving) -> Iterator[None]:
    """Whoever has the write lock keeps every commit waiting."""
    with node.store.db.write():
        yield


def test_of_many_associations_few_are_at_work_and_the_rest_waits(
    node: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "SENDING_SECONDS", 60.0)
    node.allow(QUIET)
    assert Sending(node, QUIET, ct()).status() == 0
    with nothing_becomes_durable(node):
        sendings = [Sending(node, BUSY, ct(side=600)) for _ in range(AT_WORK + 3)]
        until(lambda: waiting(node, BUSY) == 3, "the rest waits")
        assert share(node, BUSY).working == AT_WORK
        other = Sending(node, QUIET, ct())
        until(lambda: share(node, QUIET).working == 1, "the quiet AE is at work at once")
    assert other.status() == 0
    assert [one.status() for one in sendings] == [0] * len(sendings)
    assert stored(node) == 2 + len(sendings)


def test_an_ae_that_sends_alone_has_all_its_associations_at_work(node: Serving) -> None:
    with nothing_becomes_durable(node):
        sendings = [Sending(node, BUSY, ct()) for _ in range(5)]
        until(lambda: share(node, BUSY).working == 5, "all are at work")
    assert [one.status() for one in sendings] == [0] * 5


@pytest.mark.parametrize("wrong", ["9.9.9", ""])
def test_a_refused_instance_gives_its_turn_back(node: Serving, wrong: str) -> None:
    part = ct()
    broken = Part10(
        path=None,
        sop_class=part.sop_class,
        sop_instance=wrong or part.sop_instance,
        transfer_syntax=part.transfer_syntax,
        modality="CT",
        data=part.data if wrong else part.data[:-3],
    )
    kinds = [(part.sop_class, part.transfer_syntax)]
    with sender.association(node.port, kinds) as association:
        assert sender.store(association, broken).status in (0xA900, 0xC000)
        assert share(node, BUSY).working == 0
        assert sender.store(association, part, 2).status == 0
        until(lambda: share(node, BUSY).working == 0, "the turn has ended")
