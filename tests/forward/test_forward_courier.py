"""Every way a destination fails, what becomes of the delivery, and what is said of it."""

import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from forward.sending import forwarding, hasten
from harness import made
from harness.recorder import RecordingSCP
from harness.shaper import Shaper
from harness.waiting import until
from store.making import add_destination, deliveries_of, states_of, take_in, take_in_part

from edgepacs.custody import credentials
from edgepacs.dimse.items import UserIdentity
from edgepacs.errors import PeerRefused
from edgepacs.forward import desk, dial, transport
from edgepacs.forward.quirks import QUIRKS, quirk_of
from edgepacs.forward.sender import echo_in_words
from edgepacs.model import LinkState
from edgepacs.store import Store, destinations, ledger
from edgepacs.store.certificate import create


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of minutes as fractions of a second, and impatient with the peer."""
    hasten(monkeypatch)
    monkeypatch.setattr(desk, "RETRY_FIRST_MS", 200)
    impatient = replace(dial.LIMITS, stall=1.0, response=1.0, artim=1.0)
    monkeypatch.setattr(dial, "LIMITS", impatient)
    monkeypatch.setattr(transport, "LIMITS", impatient)


def set_up(store: Store, scp: RecordingSCP, port: int | None = None, **settings: str) -> int:
    number = add_destination(store, title=scp.ae_title, port=port or scp.port)
    with store.db.write() as tx:
        destinations.change(tx, "pacs", {"proof": "response", **settings}, actor="eve")
    return number


def link(store: Store) -> tuple[LinkState, str]:
    found = destinations.named(store.db, "pacs")
    return found.link, found.link_note


def attempts(store: Store, delivery: int = 1) -> list[str]:
    """What came of each attempt, in words."""
    with store.db.read() as tx:
        sql = "SELECT result FROM attempt WHERE delivery = ? ORDER BY id"
        return [str(row[0]) for row in tx.rows(sql, delivery)]


def sent(store: Store, number: int = 1) -> None:
    until(lambda: states_of(store) == ["sent"] * number, f"sent, not {states_of(store)}")


# --- answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0xA900, "answered A900, data set does not match SOP class (no thanks)"),
        (0xC000, "answered C000, cannot understand (no thanks)"),
        (0x0124, "answered 0124, refused: not authorised (no thanks)"),
        (0x0122, "answered 0122, refused: SOP class not supported (no thanks)"),
    ],
)
def test_what_is_refused_for_good_fails_in_words_and_blocks_nothing(
    store: Store, recorder: RecordingSCP, code: int, words: str
) -> None:
    set_up(store, recorder)
    recorder.behaviour.status = lambda order, _uid: code if order == 1 else 0
    recorder.behaviour.comment = "no thanks"
    receipts = [take_in(store) for _ in range(3)]
    with forwarding(store):
        until(lambda: sorted(states_of(store)) == ["failed", "sent", "sent"], "all are done")
    (bad,) = [
        one
        for receipt in receipts
        for one in ledger.of_instance(store.db, receipt.instance_id)
        if one.last_error
    ]
    assert words in bad.last_error
    assert bad.attempts == 1
    assert recorder.total_requests == 3


def test_what_is_refused_for_now_waits_and_goes(store: Store, recorder: RecordingSCP) -> None:
    set_up(store, recorder)
    recorder.behaviour.status = lambda order, _uid: 0xA700 if order == 1 else 0
    take_in(store)
    with forwarding(store):
        sent(store)
    first, second = attempts(store)
    assert first == "the destination answered A700, refused: out of resources"
    assert second == "success (0000)"


def _hang(scp: RecordingSCP) -> None:
    scp.behaviour.hang = lambda order, _uid: order == 1


def _abort(scp: RecordingSCP) -> None:
    scp.behaviour.abort = lambda order, _uid: order == 1


def _reset(scp: RecordingSCP) -> None:
    scp.behaviour.cut_after_bytes = 20_000
    scp.behaviour.cuts_left = 1


@pytest.mark.parametrize(
    ("misbehave", "words"),
    [
        (_hang, "the line broke: silent or too slow: waited for a response"),
        (_abort, "the line broke: aborted by the peer"),
        (_reset, "the line broke: connection"),
    ],
)
def test_what_breaks_off_is_tried_again(
    store: Store, recorder: RecordingSCP, misbehave: Callable[[RecordingSCP], None], words: str
) -> None:
    set_up(store, recorder)
    misbehave(recorder)
    take_in_part(store, made.ct(side=300))
    with forwarding(store):
        sent(store)
    first, second = attempts(store)
    assert first.startswith(words)
    assert second == "success (0000)"
    assert link(store)[0] is LinkState.UP


def test_a_line_that_swallows_everything_in_the_middle_is_noticed(
    store: Store, recorder: RecordingSCP
) -> None:
    with Shaper(recorder.port, rate=4_000_000, round_trip=0.01) as line:
        set_up(store, recorder, line.port)
        take_in_part(store, made.ct(side=1000))
        with forwarding(store):
            until(lambda: recorder.total_requests == 1, "it is on its way")
            line.silence()
            until(lambda: attempts(store)[0] != "", "it is noticed", seconds=20)
            line.up()
            sent(store)
    assert attempts(store)[0].startswith("the line broke: ")


# --- associations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rejection", "words"),
    [
        ((1, 1, 7), "called AE title"),
        ((1, 1, 3), "calling AE title"),
        ((2, 3, 2), "local limit exceeded"),
    ],
)
def test_a_rejection_is_said_and_costs_no_attempt(
    store: Store, recorder: RecordingSCP, rejection: tuple[int, int, int], words: str
) -> None:
    set_up(store, recorder)
    recorder.behaviour.reject = rejection
    take_in(store)
    with forwarding(store):
        until(lambda: words in link(store)[1], f"{words} (is {link(store)})")
        assert link(store)[0] is LinkState.DEGRADED
        recorder.behaviour.reject = None
        sent(store)
    assert deliveries_of(store)[0][3] == 1


def test_a_peer_that_never_answers_an_association_costs_no_attempt(
    store: Store, recorder: RecordingSCP
) -> None:
    set_up(store, recorder)
    recorder.behaviour.mute = True
    take_in(store)
    with forwarding(store):
        until(lambda: "the answer to A-ASSOCIATE-RQ" in link(store)[1], "it is said")
        recorder.behaviour.mute = False
        sent(store)
    assert deliveries_of(store)[0][3] == 1


# --- TLS and user identity ---------------------------------------------------------------------


def test_over_tls_to_a_peer_whose_certificate_is_trusted(store: Store, tmp_path: Path) -> None:
    create(tmp_path / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls" / "site.crt", tmp_path / "tls" / "site.key")
    part = made.ct(side=400)
    with RecordingSCP(tls=context) as scp:
        set_up(store, scp, tls="1")
        take_in_part(store, part)
        with forwarding(store):
            until(lambda: "certificate not accepted" in link(store)[1], f"said: {link(store)}")
            assert scp.total_requests == 0
            authority = (tmp_path / "tls" / "site.crt").read_text()
            with store.db.write() as tx:
                destinations.change(tx, "pacs", {"authority": authority}, actor="eve")
            sent(store)
        assert scp.by_uid()[part.sop_instance].data == part.data


def test_nothing_goes_over_tls_to_who_does_not_speak_it(
    store: Store, recorder: RecordingSCP
) -> None:
    set_up(store, recorder, tls="1")
    take_in(store)
    with forwarding(store):
        until(lambda: "no TLS" in link(store)[1], f"it is said, not {link(store)}")
    assert recorder.total_requests == 0
    assert deliveries_of(store)[0][3] == 0


def test_certificates_that_cannot_be_used_are_said(store: Store) -> None:
    number = add_destination(store)
    one = replace(destinations.named(store.db, "pacs"), id=number, tls=1)
    with pytest.raises(PeerRefused, match="authority"):
        credentials.tls_context(replace(one, authority="-----BEGIN CERTIFICATE-----\nx"))
    with pytest.raises(PeerRefused, match="certificate and private_key"):
        credentials.tls_context(replace(one, certificate="-----BEGIN CERTIFICATE-----\nx"))
    succeeded, words = echo_in_words(store, replace(one, certificate="-----BEGIN X-----\nx"))
    assert not succeeded
    assert "private_key" in words


def test_who_our_user_is(store: Store) -> None:
    add_destination(store)
    one = destinations.named(store.db, "pacs")
    assert credentials.user_identity(one) is None
    named = replace(one, user_name="röntgen")
    assert credentials.user_identity(named) == UserIdentity(kind=1, primary="röntgen".encode())
    both = credentials.user_identity(replace(named, passcode="secret"))
    assert both == UserIdentity(kind=2, primary="röntgen".encode(), secondary=b"secret")
    assert "secret" not in repr(both)


def test_quirks_are_dated_and_found() -> None:
    assert all(one.reason and one.seen for one in QUIRKS)
    assert "storescp" in quirk_of("1.2.276.0.7230010.3.0.3.6.7", "OFFIS_DCMTK_367").reason
    assert quirk_of("1.2.3", "NOBODY").contexts == 128
