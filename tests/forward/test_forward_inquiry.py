"""Which instances a destination has, asked of archives that answer well, badly and not at all."""

from collections.abc import Iterator

import pytest
from forward.archive import Archive
from store.making import add_destination, claim_one, fresh_uid, take_in

from edgepacs.errors import PeerError, PeerRefused, PeerUnreachable
from edgepacs.forward import inquiry
from edgepacs.model import DeliveryState
from edgepacs.store import Store, claims, commitments, destinations
from edgepacs.store.commitments import Sought


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as one:
        yield one


def sent(store: Store, archive: Archive, number: int, *, series: str = "1.2.3.2") -> list[Sought]:
    """`number` instances sent to the archive, which has not got them yet."""
    if not destinations.every(store.db):
        add_destination(store, port=archive.port)
    for _ in range(number):
        take_in(store, series=series)
        claimed = claim_one(store, 1)
        claims.finish(store.db, claimed.id, DeliveryState.SENT, result="success")
    return commitments.findable(store.db, 1, age_ms=0, most=500)


def found(store: Store, items: list[Sought]) -> set[str]:
    (destination,) = destinations.every(store.db)
    return inquiry.found(store, destination, items)


def test_each_is_asked_for_by_all_its_identifiers(store: Store, archive: Archive) -> None:
    (one,) = sent(store, archive, 1)
    assert found(store, [one]) == set()
    archive.held = {one.sop_instance_uid}
    assert found(store, [one]) == {one.sop_instance_uid}
    keys = archive.queried[0]
    assert (keys.QueryRetrieveLevel, keys.StudyInstanceUID) == ("IMAGE", "1.2.3.1")
    assert (keys.SeriesInstanceUID, keys.SOPInstanceUID) == ("1.2.3.2", one.sop_instance_uid)
    assert len(keys) == 4
    assert found(store, []) == set()


def test_lists_are_asked_of_who_matches_them(store: Store, archive: Archive) -> None:
    items = sent(store, archive, inquiry.LIST + 10)
    items = sent(store, archive, 3, series="1.2.3.9")
    archive.held = {one.sop_instance_uid for one in items} - {items[5].sop_instance_uid}
    assert found(store, items) == archive.held
    assert len(archive.queried) == 1 + 2 + 1  # a trial, two lists of one series, one of the other
    assert archive.associations == 1


def test_who_knows_no_lists_is_asked_one_by_one(store: Store, archive: Archive) -> None:
    items = sent(store, archive, 5)
    archive.behaviour.lists = False
    archive.held = {one.sop_instance_uid for one in items[:4]}
    assert found(store, items) == archive.held
    assert len(archive.queried) == 1 + 5
    assert archive.associations == 1


def test_what_was_not_asked_for_is_not_found(store: Store, archive: Archive) -> None:
    items = sent(store, archive, 2)
    archive.behaviour.flood = 50
    archive.held = {items[0].sop_instance_uid, fresh_uid()}
    assert found(store, items) == {items[0].sop_instance_uid}


def test_who_answers_with_everything_is_left(store: Store, archive: Archive) -> None:
    items = sent(store, archive, 1)
    archive.behaviour.flood = 5000
    with pytest.raises(PeerError, match="more than 100 matches") as raised:
        found(store, items)
    assert not isinstance(raised.value, PeerRefused | PeerUnreachable)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(0x0122, PeerRefused), (0x0124, PeerRefused), (0xA700, PeerError), (0xC001, PeerError)],
)
def test_a_query_that_fails_says_why(
    store: Store, archive: Archive, status: int, kind: type[PeerError]
) -> None:
    items = sent(store, archive, 1)
    archive.behaviour.find_status = status
    with pytest.raises(PeerError, match=f"0x{status:04X}") as raised:
        found(store, items)
    assert type(raised.value) is kind


def test_who_offers_no_queries_refuses_and_who_is_gone_is_unreachable(store: Store) -> None:
    with Archive() as archive:
        items = sent(store, archive, 1)
        archive.behaviour.queries = False
        with pytest.raises(PeerRefused):
            found(store, items)
    with pytest.raises(PeerUnreachable):
        found(store, items)
