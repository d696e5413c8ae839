import itertools
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from custody.outcome import (
    DEFLATED,
    HTJ2K,
    JPEG_2000,
    JPEG_BASELINE,
    JPEG_LOSSLESS,
    JPEG_LS,
    NATIVE,
    RLE,
    ROOT,
    attributes_of,
    compress_all,
    frames_of,
)
from forward.sending import Odd, accepting, forwarding, hasten, to
from harness import corpus, made
from harness.part10 import EXPLICIT_LE, IMPLICIT_LE, decode, read
from harness.waiting import stays, until
from store.making import add_destination, deliveries_of, states_of, take_in_part

from edgepacs.custody import converter, prepared
from edgepacs.custody.converter import Converter, Order
from edgepacs.dimse import Association, ContextAnswer, Message, ProposedContext
from edgepacs.dimse.contexts import STORAGE_COMMITMENT_PUSH, VERIFICATION
from edgepacs.errors import EdgePacsError
from edgepacs.forward import batch, courier, desk, lane, transport
from edgepacs.model import InstanceId
from edgepacs.store import Store, claims, deliveries, fsck, instances, ledger, studies, terms

VIDEO = ROOT + ".4.102"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of minutes as fractions of a second."""
    hasten(monkeypatch)
    monkeypatch.setattr(desk, "RETRY_FIRST_MS", 100)


class Peer:
    """What an SCP was asked and sent; `accepted` may be changed while it runs."""

    def __init__(self, *accepted: str) -> None:
        self.accepted: tuple[str, ...] = accepted
        self.proposed: list[tuple[str, str]] = []
        self.got: dict[str, tuple[str, bytes]] = {}
        self.order: list[str] = []

    def context(self, proposed: ProposedContext) -> ContextAnswer:
        if proposed.abstract_syntax not in (VERIFICATION, STORAGE_COMMITMENT_PUSH):
            self.proposed.append((proposed.abstract_syntax, proposed.transfer_syntaxes[0]))
        return accepting(*self.accepted)(proposed)

    def answer(self, association: Association, message: Message, data: bytes) -> None:
        uid = message.command.sop_instance_uid
        assert uid not in self.got, "sent twice"
        self.got[uid] = (message.context.transfer_syntax, data)
        self.order.append(uid)
        association.respond(message, 0)

    @contextmanager
    def up(self) -> Iterator[Odd]:
        with Odd(self.answer, context=self.context) as scp:
            yield scp


def done(store: Store, *states: str, seconds: float = 60) -> None:
    until(lambda: states_of(store) == list(states), f"{states}", seconds=seconds)


def last_error(store: Store, number: int) -> str:
    return ledger.of_instance(store.db, InstanceId(number))[0].last_error


# -- whatever the peer accepts


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "accepted",
    [(IMPLICIT_LE,), (EXPLICIT_LE,), (DEFLATED, IMPLICIT_LE), (JPEG_LS, JPEG_LOSSLESS, *NATIVE)],
    ids=["implicit", "explicit", "deflated", "JPEG-LS"],
)
def test_what_arrives_shows_the_same_and_says_the_same(
    store: Store, accepted: tuple[str, ...]
) -> None:
    peer = Peer(*accepted)
    with peer.up() as scp:
        to(store, scp)
        parts = []
        for part in corpus.sample(150_000) if corpus.soak() else corpus.sample(30_000):
            if len(part.data) > 300_000 and not corpus.soak():
                continue
            try:
                row = instances.instance(store.db, take_in_part(store, part).instance_id)
                frames = frames_of(part.data, part.transfer_syntax)
            except EdgePacsError:
                continue
            if "encoding-differs" not in row.flags:
                parts.append((part, frames))
        with forwarding(store):
            until(lambda: set(states_of(store)) <= {"sent", "failed"}, "all are done", seconds=120)
    missing = [part for part, _ in parts if part.sop_instance not in peer.got]
    assert not missing
    for part, frames in parts:
        uid, data = peer.got[part.sop_instance]
        assert uid in accepted
        if uid == part.transfer_syntax:
            assert data == part.data
            continue
        assert frames_of(data, uid) == frames, (part.path, uid)
        before = _public(attributes_of(part.data, part.transfer_syntax, EXPLICIT_LE))
        assert _public(attributes_of(data, uid)) == before, (part.path, uid)


def _public(attributes: list[tuple[int, object]]) -> dict[int, object]:
    """Without private elements, whose VRs only some know, and what a decoded JPEG must say."""
    return {tag: value for tag, value in attributes if not tag >> 16 & 1 and tag != 0x00282110}


def test_the_stored_transfer_syntax_first_then_the_smallest(store: Store) -> None:
    peer = Peer(JPEG_LS, EXPLICIT_LE, IMPLICIT_LE)
    with peer.up() as scp:
        to(store, scp)
        first = take_in_part(store, made.ct())
        compress_all(store)
        assert instances.instance(store.db, first.instance_id).transfer_syntax_uid == JPEG_LS
        second = take_in_part(store, made.ct())
        with forwarding(store):
            done(store, "sent", "sent")
    assert [uid for uid, _ in peer.got.values()] == [JPEG_LS, EXPLICIT_LE]
    assert first.instance_id < second.instance_id


def test_what_is_compressed_at_rest_goes_as_received_to_a_peer_that_refuses_it(
    store: Store,
) -> None:
    peer = Peer(EXPLICIT_LE, IMPLICIT_LE)
    parts = [made.ct() for _ in range(3)]
    with peer.up() as scp:
        to(store, scp)
        for part in parts:
            take_in_part(store, part)
        compress_all(store)
        with forwarding(store):
            done(store, *["sent"] * 3)
    assert [data for _, data in peer.got.values()] == [part.data for part in parts]


# -- what is learnt


def test_the_next_association_proposes_what_was_accepted(store: Store) -> None:
    """One context per SOP class and transfer syntax, the stored one first."""
    peer = Peer(JPEG_LOSSLESS, IMPLICIT_LE)
    with peer.up() as scp:
        number = to(store, scp)
        take_in_part(store, made.ct())
        with forwarding(store):
            done(store, "sent")
            first, peer.proposed = peer.proposed, []
            take_in_part(store, made.ct())
            store.ring("forward")
            done(store, "sent", "sent")
    assert first[0] == (made.CT, EXPLICIT_LE)
    assert {uid for _, uid in first} == {
        *(EXPLICIT_LE, JPEG_2000, JPEG_LS, HTJ2K, JPEG_LOSSLESS, DEFLATED, RLE, IMPLICIT_LE)
    }
    assert len(first) == len(set(first))
    assert peer.proposed == [
        (made.CT, EXPLICIT_LE),
        (made.CT, JPEG_LOSSLESS),
        (made.CT, IMPLICIT_LE),
    ]
    known = {one.transfer_syntax_uid: one.accepted for one in terms.acceptances(store.db, number)}
    assert {uid for uid, accepted in known.items() if accepted} == {JPEG_LOSSLESS, IMPLICIT_LE}
    assert {uid for uid, _ in peer.got.values()} == {JPEG_LOSSLESS}


def test_what_is_stored_as_accepted_is_proposed_alone(store: Store) -> None:
    peer = Peer(EXPLICIT_LE, IMPLICIT_LE)
    with peer.up() as scp:
        to(store, scp)
        take_in_part(store, made.ct())
        with forwarding(store):
            done(store, "sent")
            peer.proposed = []
            take_in_part(store, made.ct())
            store.ring("forward")
            done(store, "sent", "sent")
    assert peer.proposed == [(made.CT, EXPLICIT_LE)]


def test_a_peer_that_takes_more_or_less_than_before_is_noticed(store: Store) -> None:
    peer = Peer(JPEG_2000, IMPLICIT_LE)
    with peer.up() as scp:
        to(store, scp)
        with forwarding(store):
            for number, (accepted, expected) in enumerate(
                (
                    ((JPEG_2000, IMPLICIT_LE), JPEG_2000),
                    ((IMPLICIT_LE,), IMPLICIT_LE),  # less
                    ((EXPLICIT_LE, IMPLICIT_LE), EXPLICIT_LE),  # the stored one is always proposed
                    ((RLE,), RLE),  # nothing of what is known
                ),
                start=1,
            ):
                peer.accepted = accepted
                part = made.ct()
                take_in_part(store, part)
                store.ring("forward")
                done(store, *["sent"] * number)
                assert peer.got[part.sop_instance][0] == expected
                until(lambda: not scp.serving, "nothing goes on an old association")


def test_what_was_refused_is_asked_about_again_another_day(store: Store) -> None:
    peer = Peer(IMPLICIT_LE)
    with peer.up() as scp:
        to(store, scp)
        with forwarding(store):
            take_in_part(store, made.ct())
            done(store, "sent")
            with store.db.write() as tx:
                tx.run("UPDATE acceptance SET learnt_ms = learnt_ms - ?", batch.FRESH_MS)
            peer.accepted, peer.proposed = (JPEG_2000, IMPLICIT_LE), []
            take_in_part(store, made.ct())
            store.ring("forward")
            done(store, "sent", "sent")
            take_in_part(store, made.ct())
            store.ring("forward")
            done(store, "sent", "sent", "sent")
    assert (made.CT, JPEG_2000) in peer.proposed
    assert [uid for uid, _ in peer.got.values()][-1] == JPEG_2000


def test_more_sop_classes_than_contexts_take_several_associations(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "AT_ONCE", 100)
    peer = Peer(IMPLICIT_LE)
    most: list[int] = []
    real = peer.context

    def context(proposed: ProposedContext) -> ContextAnswer:
        most.append(proposed.id)
        return real(proposed)

    peer.context = context  # type: ignore[method-assign]
    with peer.up() as scp:
        to(store, scp)
        for number in range(30):
            dataset = made.ct().dataset()
            dataset.SOPClassUID = f"1.2.3.4.5.{number}"
            take_in_part(store, made.instance(dataset))
        with forwarding(store):
            done(store, *["sent"] * 30)
    assert {uid for uid, _ in peer.got.values()} == {IMPLICIT_LE}
    assert max(most) == 255  # PS3.8 9.3.2.2
    assert scp.associations > 2


def test_a_peer_that_never_answers_the_same_twice_is_left_alone_for_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "REFUSED_SECONDS", 600.0)
    monkeypatch.setattr(transport, "LINGER_SECONDS", 0.0)
    peer = Peer()
    moods = itertools.cycle((JPEG_2000, RLE, JPEG_LS, DEFLATED))

    def answer(proposed: ProposedContext) -> ContextAnswer:
        if proposed.abstract_syntax != VERIFICATION and proposed.id == 1:
            peer.accepted = (next(moods),)
        return peer.context(proposed)

    with Odd(peer.answer, context=answer) as scp:
        to(store, scp)
        take_in_part(store, made.ct())
        with forwarding(store):
            until(lambda: "another thing" in last_error(store, 1), "it has been given up for now")
            assert states_of(store) == ["queued"]
            stays(lambda: scp.associations <= 1 + lane.FRUITLESS, "no more", seconds=0.5)


# -- what has no way


@pytest.mark.parametrize(
    ("uid", "words"),
    [
        (VIDEO, "does not accept video (MPEG-4 AVC/H.264 High Profile / Level 4.1), which goes"),
        ("1.2.840.113619.5.2", "does not accept the transfer syntax of this instance, which goes"),
    ],
)
def test_what_cannot_be_converted_fails_in_words_and_blocks_nothing(
    store: Store, uid: str, words: str
) -> None:
    peer = Peer(IMPLICIT_LE)
    with peer.up() as scp:
        to(store, scp)
        take_in_part(store, replace(made.ct(), transfer_syntax=uid))
        take_in_part(store, made.ct())
        with forwarding(store):
            done(store, "failed", "sent")
    assert words in last_error(store, 1)
    assert (made.CT, uid) in peer.proposed


def test_what_cannot_be_decoded_fails_in_words_and_blocks_nothing(store: Store) -> None:
    part = read(corpus.pydicom_file("JPEG2000-embedded-sequence-delimiter.dcm"))
    peer = Peer(EXPLICIT_LE)
    with peer.up() as scp:
        to(store, scp)
        take_in_part(store, part)
        take_in_part(store, made.ct())
        with forwarding(store):
            done(store, "failed", "sent")
    assert last_error(store, 1) == (
        "the destination does not accept JPEG 2000, and it cannot be converted: "
        "Rows, Columns: the compressed frame has another size"
    )


def test_what_failed_is_sent_when_the_peer_has_learnt_to_take_it(store: Store) -> None:
    peer = Peer(JPEG_BASELINE)
    with peer.up() as scp:
        to(store, scp)
        take_in_part(store, made.ct())
        with forwarding(store):
            done(store, "failed")
            peer.accepted = (IMPLICIT_LE,)
            with store.db.write() as tx:
                deliveries.retry(tx, deliveries.Selection(delivery=1), actor="eve")
            store.ring("forward")
            done(store, "sent")


def test_a_lossy_image_is_decoded_for_a_peer_that_refuses_it(store: Store) -> None:
    part = read(corpus.pydicom_file("SC_rgb_jpeg_dcmtk.dcm"))
    peer = Peer(IMPLICIT_LE)
    with peer.up() as scp:
        to(store, scp)
        take_in_part(store, part)
        with forwarding(store):
            done(store, "sent")
    got = decode(peer.got[part.sop_instance][1], IMPLICIT_LE)
    assert (got.LossyImageCompression, got.PhotometricInterpretation) == ("01", "RGB")


# -- ahead of the line


def test_what_can_go_at_once_does_not_wait_for_what_is_converted(store: Store) -> None:
    peer = Peer(IMPLICIT_LE)
    with peer.up() as scp:
        to(store, scp)
        slow, fast = made.ct(), made.instance(made.ct().dataset(), IMPLICIT_LE)
        for part in (slow, fast):
            take_in_part(store, part)
        with forwarding(store):
            done(store, "sent", "sent")
    assert peer.order == [fast.sop_instance, slow.sop_instance]


def test_nobody_dials_before_something_can_go(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, go = Peer(IMPLICIT_LE), threading.Event()
    real = Converter.run

    def held(self: Converter, *values: object) -> Iterator[object]:
        go.wait(20)
        yield from real(self, *values)  # type: ignore[arg-type]

    with peer.up() as scp:
        to(store, scp)
        with forwarding(store):
            take_in_part(store, made.ct())
            done(store, "sent")
            monkeypatch.setattr(Converter, "run", held)
            peer.proposed = []
            take_in_part(store, made.ct())
            store.ring("forward")
            until(lambda: states_of(store) == ["sent", "sending"], "it is being prepared")
            stays(lambda: not peer.proposed, "no association", seconds=0.5)
            go.set()
            done(store, "sent", "sent")


@pytest.mark.parametrize("large", [False, True])
def test_a_line_that_breaks_does_not_cost_the_conversion(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    large: bool,  # noqa: FBT001
) -> None:
    """Small ones stay in memory, large ones sealed; what is sent leaves nothing behind."""
    monkeypatch.setattr(prepared, "IN_MEMORY", 1000 if large else 1 << 20)
    orders: list[Order] = []
    real, breaks = Converter.run, iter((True, True))

    def counted(self: Converter, order: Order, *values: object) -> object:
        orders.append(order)
        return real(self, order, *values)  # type: ignore[arg-type]

    peer = Peer(IMPLICIT_LE)

    def answer(association: Association, message: Message, data: bytes) -> None:
        if next(breaks, False):
            association._line._socket.shutdown(2)
            return
        peer.answer(association, message, data)

    monkeypatch.setattr(Converter, "run", counted)
    part = made.ct(side=400)
    with Odd(answer, context=peer.context) as scp:
        to(store, scp)
        take_in_part(store, part)
        with forwarding(store):
            done(store, "sent")
            assert len(orders) == 1
            assert frames_of(*reversed(peer.got[part.sop_instance])) == frames_of(
                part.data, EXPLICIT_LE
            )
            until(lambda: not sealed(store), "no rendition is left")
    assert store.paths.renditions.exists() == large
    assert fsck.check(store).sound


def sealed(store: Store) -> list[Path]:
    return [path for path in store.paths.renditions.glob("??/*") if path.is_file()]


def test_renditions_are_sealed_and_what_a_crash_left_is_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "IN_MEMORY", 1000)
    go, seen = threading.Event(), threading.Event()
    peer = Peer(IMPLICIT_LE)

    def answer(association: Association, message: Message, data: bytes) -> None:
        seen.set()
        go.wait(20)
        peer.answer(association, message, data)

    dataset = made.ct().dataset()
    dataset.PatientName, dataset.PatientComments = "Visible^Nobody", "plain as day"
    with Odd(answer, context=peer.context) as scp:
        to(store, scp)
        take_in_part(store, made.instance(dataset))
        with forwarding(store):
            assert seen.wait(20)
            (one,) = sealed(store)
            content = one.read_bytes()
            assert b"Visible" not in content
            assert b"plain as day" not in content
            assert fsck.check(store).objects == 1
            go.set()
            done(store, "sent")
    left = store.paths.renditions / "00" / ("00" * 16)
    left.write_bytes(content)
    with forwarding(store):
        until(lambda: not left.exists(), "what was left is gone")


@pytest.mark.parametrize("attempts", [1, batch.TRIES])
def test_an_instance_the_converter_hangs_on_costs_only_itself(
    store: Store, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    """It is tried again some times, then a person is told."""
    poison = take_in_part(store, made.ct(sop="1.2.666")).instance_id
    patience = converter._patience

    def hangs(instance: instances.Instance) -> float:
        return 0.0 if instance.id == poison else patience(instance)

    monkeypatch.setattr(converter, "_patience", hangs)
    monkeypatch.setattr(desk, "RETRY_FIRST_MS", 600_000 if attempts == 1 else 50)
    peer = Peer(IMPLICIT_LE)
    with peer.up() as scp:
        to(store, scp)
        study = studies.search(store.db, studies.Search())[0].id
        with store.db.write() as tx:
            deliveries.send_study(tx, study, [1], actor="eve")
        for _ in range(3):
            take_in_part(store, made.ct())
        with forwarding(store):
            done(store, "queued" if attempts == 1 else "failed", "sent", "sent", "sent")
    assert deliveries_of(store)[0][3] == attempts
    assert "took too long" in last_error(store, poison)


def test_the_role_ends_soon_while_something_is_converted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = threading.Event()
    real = Converter._ready

    def ready(self: Converter) -> "subprocess.Popen[bytes]":
        process = real(self)
        process.send_signal(19)  # SIGSTOP: it hangs
        started.set()
        return process

    monkeypatch.setattr(Converter, "_ready", ready)
    peer = Peer(IMPLICIT_LE)
    with peer.up() as scp:
        to(store, scp)
        for _ in range(5):
            take_in_part(store, made.ct())
        with forwarding(store) as role:
            assert started.wait(20)
            couriers = list(role._couriers.values())
        until(lambda: not any(one._thread.is_alive() for one in couriers), "they have ended")
    assert states_of(store) == ["queued"] * 5


def test_what_is_compressed_while_it_waits_goes_as_it_was_received(store: Store) -> None:
    peer = Peer(EXPLICIT_LE)
    first, go = threading.Event(), threading.Event()

    def answer(association: Association, message: Message, data: bytes) -> None:
        first.set()
        go.wait(20)
        peer.answer(association, message, data)

    parts = [made.ct() for _ in range(2)]
    with Odd(answer, context=peer.context) as scp:
        to(store, scp)
        for part in parts:
            take_in_part(store, part)
        with forwarding(store):
            assert first.wait(20)
            compress_all(store)
            go.set()
            done(store, "sent", "sent")
    assert [data for _, data in peer.got.values()] == [part.data for part in parts]


def test_what_was_rewritten_beyond_what_was_proposed_waits_for_the_next_association(
    store: Store,
) -> None:
    part = made.ct()
    peer = Peer(JPEG_LS)
    with peer.up() as scp:
        number = to(store, scp)
        take_in_part(store, part)
        compress_all(store)
        with store.db.write() as tx:
            tx.run("UPDATE delivery SET next_ms = 1")
        (claimed,) = claims.claim(store.db, number, 1)
        assert claimed.transfer_syntax_uid == JPEG_LS
        claims.give_back(store.db, [claimed.id], result="")
        with forwarding(store):
            done(store, "sent")
    assert peer.got[part.sop_instance][0] == JPEG_LS


# -- loss, where a destination is to have it


def test_a_destination_may_be_sent_lossy_images(store: Store) -> None:
    """Under a UID of their own; what had better not lose anything does not."""
    lossy = ROOT + ".4.91"
    peer = Peer(lossy, JPEG_BASELINE, EXPLICIT_LE)
    dataset = made.ct().dataset()
    del dataset.PixelPaddingValue
    eye, padded = made.instance(dataset), made.ct()
    with peer.up() as scp:
        to(store, scp)
        with store.db.write() as tx:
            terms.set_lossy(tx, "pacs", 75, actor="eve")
        rows = [take_in_part(store, part).instance_id for part in (eye, padded)]
        with forwarding(store):
            done(store, "sent", "sent")
    assert peer.got.pop(padded.sop_instance) == (EXPLICIT_LE, padded.data)
    ((sop, (uid, data)),) = peer.got.items()
    got = decode(data, uid)
    assert (uid, got.SOPInstanceUID, got.LossyImageCompression) == (lossy, sop, "01")
    assert sop != eye.sop_instance
    assert got.SourceImageSequence[0].ReferencedSOPInstanceUID == eye.sop_instance
    proofs = [ledger.of_instance(store.db, one)[0].proof for one in rows]
    assert proofs == [deliveries.LOSSY_RESPONSE, deliveries.RESPONSE]
    kept = instances.instance(store.db, rows[0])
    assert kept.transfer_syntax_uid == EXPLICIT_LE


def _said(store: Store, send_as: str) -> None:
    """What a rule says of the transfer syntax of all that is queued."""
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET send_as = ?", send_as)


def test_a_rule_may_want_it_native_though_the_peer_takes_it_as_it_stands(store: Store) -> None:
    peer = Peer(JPEG_LS, EXPLICIT_LE, IMPLICIT_LE)
    with peer.up() as scp:
        to(store, scp)
        part = made.ct()
        row = take_in_part(store, part).instance_id
        compress_all(store)
        assert instances.instance(store.db, row).transfer_syntax_uid == JPEG_LS
        _said(store, "native")
        with forwarding(store):
            done(store, "sent")
    assert peer.got == {part.sop_instance: (EXPLICIT_LE, part.data)}


def test_a_peer_that_takes_nothing_native_gets_it_as_it_stands(store: Store) -> None:
    peer = Peer(JPEG_LS)
    with peer.up() as scp:
        to(store, scp)
        part = made.ct()
        take_in_part(store, part)
        compress_all(store)
        _said(store, "native")
        with forwarding(store):
            done(store, "sent")
    assert [uid for uid, _ in peer.got.values()] == [JPEG_LS]


@pytest.mark.parametrize(("quality", "said"), [(0, "lossy:75"), (75, "lossless")])
def test_a_rule_goes_before_what_the_destination_is_sent_otherwise(
    store: Store, quality: int, said: str
) -> None:
    peer = Peer(JPEG_BASELINE, ROOT + ".4.91", EXPLICIT_LE)
    dataset = made.ct().dataset()
    del dataset.PixelPaddingValue
    part = made.instance(dataset)
    with peer.up() as scp:
        to(store, scp)
        with store.db.write() as tx:
            terms.set_lossy(tx, "pacs", quality, actor="eve")
        row = take_in_part(store, part).instance_id
        _said(store, said)
        with forwarding(store):
            done(store, "sent")
    ((sop, (uid, _)),) = peer.got.items()
    lossless = said == "lossless"
    assert (sop == part.sop_instance, uid == EXPLICIT_LE) == (lossless, lossless)
    proof = deliveries.RESPONSE if lossless else deliveries.LOSSY_RESPONSE
    assert ledger.of_instance(store.db, row)[0].proof == proof


def test_a_peer_that_refuses_lossy_gets_it_lossless(store: Store) -> None:
    dataset = made.ct().dataset()
    del dataset.PixelPaddingValue
    part = made.instance(dataset)
    peer = Peer(IMPLICIT_LE)
    with peer.up() as scp:
        to(store, scp)
        with store.db.write() as tx:
            terms.set_lossy(tx, "pacs", 75, actor="eve")
        take_in_part(store, part)
        with forwarding(store):
            done(store, "sent")
    assert peer.got[part.sop_instance][0] == IMPLICIT_LE


@pytest.mark.parametrize("quality", [-1, 101])
def test_a_quality_is_between_none_and_all(store: Store, quality: int) -> None:
    add_destination(store)
    with pytest.raises(EdgePacsError, match="between"), store.db.write() as tx:
        terms.set_lossy(tx, "pacs", quality, actor="eve")
    with pytest.raises(EdgePacsError, match="none is called"), store.db.write() as tx:
        terms.set_lossy(tx, "nobody", 50, actor="eve")
