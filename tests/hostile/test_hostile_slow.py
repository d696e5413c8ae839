"""Peers that keep silent or trickle: ended at the deadline, recorded, and nobody else waits.

The deadlines are those of `Limits`, made short.
"""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from dimse.dimse_node import data_pdu
from harness import sender
from harness.made import CT, ct
from harness.waiting import until
from hostile.attacker import CLOSED, Attacker, harness_rq
from scp.serving import Serving, serving
from store.making import objects, small

from edgepacs.dimse import pdu
from edgepacs.dimse.command import Element, Field, Value, encode
from edgepacs.dimse.line import Limits
from edgepacs.store import peers

DEADLINE = 0.6  # seconds
bad_input = pytest.mark.bad_input


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A receiver in this process that knows HARNESS, with little patience."""
    with serving(tmp_path_factory.mktemp("slow") / "node") as one:
        one.allow(host="*")
        with one.store.db.write() as tx:
            peers.allow(tx, "HARNESS", peers.Allowance(max_object_seconds=1), actor="test")
        one.listener._limits = dataclasses.replace(
            one.listener._limits,
            pdu_deadline=DEADLINE,
            artim=DEADLINE,
            stall=DEADLINE,
            linger=0.2,
        )
        yield one


def test_the_real_deadlines_are_those_of_the_standard_and_the_house() -> None:
    limits = Limits()
    assert (limits.pdu_deadline, limits.artim, limits.stall) == (30.0, 30.0, 60.0)
    assert limits.pdu_cap == 1 << 20


def until_ended(peer: Attacker, began: float) -> float:
    """Read to the end of the connection; seconds since `began`."""
    while peer.pdu()[0] != CLOSED:
        pass
    return time.monotonic() - began


def trickle(peer: Attacker, data: bytes) -> None:
    """`data` byte by byte until the peer has enough of it."""
    with suppress(ConnectionError):
        for at in range(len(data)):
            peer.send(data[at : at + 1])
            time.sleep(0.02)


def recorded(node: Serving, words: str) -> None:
    def found() -> bool:
        with node.store.db.read() as tx:
            rows = tx.rows("SELECT detail FROM audit WHERE act = 'association broken'")
        return any(words in row[0] for row in rows)

    until(found, f"{words!r} in the trail")


def store_rq(sop: str) -> bytes:
    elements: dict[int, Value] = {
        Element.AFFECTED_SOP_CLASS_UID: CT,
        Element.COMMAND_FIELD: Field.C_STORE_RQ,
        Element.MESSAGE_ID: 1,
        Element.DATA_SET_TYPE: 1,
        Element.AFFECTED_SOP_INSTANCE_UID: sop,
    }
    return pdu.encode_p_data(1, 3, encode(elements))


@bad_input(4)
@pytest.mark.parametrize("sent", [b"\1", b"\1\0\0", harness_rq()[:5], harness_rq()[:-1]])
def test_a_request_that_stops_is_closed_at_the_deadline(
    node: Serving, host: str, sent: bytes
) -> None:
    peer = Attacker(node.port, host)
    began = time.monotonic()
    peer.send(sent)
    assert sender.echo(node.port)
    assert DEADLINE * 0.9 < until_ended(peer, began) < DEADLINE + 1.5
    recorded(node, "waited for the rest of a PDU")


@bad_input(5)
def test_a_byte_at_a_time_is_closed_at_the_deadline_of_the_pdu(node: Serving, host: str) -> None:
    peer = Attacker(node.port, host)
    began = time.monotonic()
    trickle(peer, harness_rq())
    assert until_ended(peer, began) < DEADLINE + 1.5
    recorded(node, "waited for the rest of a PDU")


@bad_input(5)
@pytest.mark.parametrize("pdus", ["one", "many"])
def test_a_data_set_byte_by_byte_is_ended_and_leaves_nothing(
    node: Serving, host: str, pdus: str
) -> None:
    peer = Attacker(node.port, host)
    assert peer.proposing(CT) == 0
    before = len(objects(node.store))
    peer.send(store_rq("1.2.3.4"))
    data = small(sop="1.2.3.4")
    began = time.monotonic()
    if pdus == "one":
        trickle(peer, data_pdu(data, context=1))
    else:
        with suppress(ConnectionError):
            for byte in data * 20:
                peer.send(data_pdu(bytes((byte,)), last=False, context=1))
                time.sleep(0.02)
    assert until_ended(peer, began) < 1 + 2
    (answer,) = sender.send([ct()], node.port)
    assert answer.status == 0
    node.idle()
    assert len(objects(node.store)) == before + 1


@bad_input(4, 15)
def test_a_silent_connection_is_closed(node: Serving, host: str) -> None:
    peer = Attacker(node.port, host)
    began = time.monotonic()
    assert DEADLINE * 0.9 < until_ended(peer, began) < DEADLINE + 1.5
    recorded(node, "waited for A-ASSOCIATE-RQ")
