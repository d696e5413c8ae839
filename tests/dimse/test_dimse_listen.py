"""The side that asks, while it listens for what the other side may ask of it."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from dimse.dimse_node import CONTEXTS, QUICK, Node

from edgepacs.dimse import Association, Message, PeerTimedOut, request
from edgepacs.dimse.command import Element, Field
from edgepacs.dimse.contexts import VERIFICATION
from edgepacs.errors import PeerUnreachable
from edgepacs.model import AETitle

Service = Callable[[Association, Message, list[bytes]], None]


@pytest.fixture
def node() -> Iterator[Node]:
    one = Node(QUICK)
    yield one
    one.close()


def open_to(node: Node) -> Association:
    return request(
        "127.0.0.1",
        node.port,
        calling=AETitle("TEST"),
        called=AETitle("NODE"),
        contexts=CONTEXTS,
        limits=QUICK,
    )


def echoing_back(association: Association, message: Message, _box: list[bytes]) -> None:
    """Answer, then ask the same of whoever asked."""
    association.respond(message, 0)
    elements = {
        Element.AFFECTED_SOP_CLASS_UID: VERIFICATION,
        Element.COMMAND_FIELD: Field.C_ECHO_RQ,
    }
    (answer,) = association.ask(message.context.id, elements)
    assert answer.status == 0


def test_a_request_of_the_other_side_is_heard_and_answered(node: Node) -> None:
    node.service = echoing_back
    with open_to(node) as association:
        assert association.echo() == 0
        message = association.listen(2.0)
        assert message is not None
        assert message.command.field == Field.C_ECHO_RQ
        association.respond(message, 0)
        assert association.listen(0.0) is None
        node.service = lambda one, asked, _box: one.respond(asked, 0)
        assert association.echo() == 0  # it goes on


def test_silence_is_waited_for_no_longer_than_said(node: Node) -> None:
    with open_to(node) as association:
        begun = time.monotonic()
        assert association.listen(0.1) is None
        assert 0.1 <= time.monotonic() - begun < 0.4
        assert association.is_open


def test_a_release_by_the_other_side_ends_it(node: Node) -> None:
    def releasing(association: Association, message: Message, _box: list[bytes]) -> None:
        association.respond(message, 0)
        association.release()

    node.service = releasing
    association = open_to(node)
    assert association.echo() == 0
    assert association.listen(2.0) is None
    assert not association.is_open
    assert association.listen(2.0) is None


def test_an_abort_is_told_and_interrupts(node: Node) -> None:
    association = open_to(node)
    timer = threading.Timer(0.1, association.abort)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(PeerUnreachable) as raised:
        association.listen(5.0)
    timer.join()
    assert not isinstance(raised.value, PeerTimedOut)
    assert time.monotonic() - begun < 2.0
