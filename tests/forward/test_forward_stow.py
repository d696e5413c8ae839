"""STOW-RS as user agent (PS3.18 10.5), through the forward role, against a scripted server."""

import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest
from custody.outcome import compress_all
from forward.sending import forwarding, hasten
from harness import corpus, made
from harness.fault import flip_bit
from harness.part10 import EXPLICIT_LE, Part10, decode
from harness.waiting import free_port, stays, until
from harness.web_peer import Identity, Reply, Request, WebPeer, identity, said
from store.making import claim_one, deliveries_of, objects, states_of, take_in_part

from edgepacs.clock import wall_ms
from edgepacs.errors import (
    EdgePacsError,
    InvalidValue,
    NotAdmitted,
    PeerBusy,
    PeerError,
    PeerUnreachable,
)
from edgepacs.forward import desk, stow, web_client
from edgepacs.forward.batch import Parcel
from edgepacs.model import InstanceId, LinkState
from edgepacs.store import Store, destinations, instances, ledger, usage

JPEG_LS = "1.2.840.10008.1.2.4.80"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of minutes as fractions of a second."""
    hasten(monkeypatch)
    monkeypatch.setattr(stow, "LINGER_SECONDS", 0.01)
    monkeypatch.setattr(desk, "RETRY_FIRST_MS", 100)


@pytest.fixture
def peer() -> Iterator[WebPeer]:
    with WebPeer() as one:
        yield one


def to(store: Store, url: str, **settings: str) -> None:
    with store.db.write() as tx:
        destinations.add_web(tx, name="pacs", url=url, actor="test")
        # What the prover does about what was sent is another matter.
        destinations.change(tx, "pacs", {"proof": "response", **settings}, actor="test")


def take(store: Store, count: int, **what: object) -> list[Part10]:
    parts = [made.ct(number=n, **what) for n in range(1, count + 1)]  # type: ignore[arg-type]
    for part in parts:
        take_in_part(store, part)
    return parts


def done(store: Store, *states: str, seconds: float = 20) -> None:
    wanted = list(states)
    until(lambda: states_of(store) == wanted, f"{wanted} ({states_of(store)})", seconds=seconds)


def words(store: Store, number: int = 1) -> str:
    return ledger.of_instance(store.db, InstanceId(number))[0].last_error


def past(store: Store) -> list[usage.Change]:
    """How the line to the only destination has been; its state may pass in a moment."""
    return usage.changes(store.db, destinations.every(store.db)[0].id)


def link(store: Store) -> tuple[LinkState, str]:
    found = destinations.named(store.db, "pacs")
    return found.link, found.link_note


def first(
    answer: Callable[[Request], Reply | None], then: WebPeer
) -> Callable[[Request], Reply | None]:
    """A script that answers so once, and then as it should."""
    asked = [answer]

    def script(request: Request) -> Reply | None:
        return asked.pop()(request) if asked else then.accepted(request.instances)

    return script


# --- what arrives


def test_everything_arrives_as_it_was_received(store: Store, peer: WebPeer) -> None:
    to(store, peer.url)
    parts = []
    for part in corpus.sample(300_000):
        try:
            take_in_part(store, part)
        except EdgePacsError:
            continue
        parts.append(part)
    peer.script = lambda _: Reply(200)  # and no body: all of them are stored
    with forwarding(store):
        until(lambda: set(states_of(store)) == {"sent"}, "all are sent", seconds=60)
    got = {one.sop_instance: one for some in peer.stored for one in some}
    assert set(peer.times_sent.values()) == {1}
    for part in parts:
        one = got[part.sop_instance]
        assert (one.data, one.sop_class) == (part.data, part.sop_class)
        assert one.transfer_syntax == part.transfer_syntax
    assert link(store) == (LinkState.UP, "")


def test_the_first_of_a_kind_goes_alone_and_then_they_go_together(
    store: Store, peer: WebPeer
) -> None:
    to(store, peer.url)
    take(store, 40)
    with forwarding(store):
        done(store, *["sent"] * 40)
    sizes = [len(some) for some in peer.stored]
    assert sizes[0] == 1
    assert max(sizes) > 8
    assert sum(sizes) == 40


def test_what_is_larger_than_a_request_goes_alone(
    store: Store, peer: WebPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stow, "MOST_BYTES", 80_000)
    monkeypatch.setattr(stow, "FIRST_BYTES", 80_000)
    to(store, peer.url)
    take(store, 4, side=256)
    take(store, 6)
    with forwarding(store):
        done(store, *["sent"] * 10)
    assert all(len(some) <= 2 for some in peer.stored)
    assert [len(some) for some in peer.stored][:4] == [1, 1, 1, 1]


def test_memory_does_not_grow_with_an_instance(store: Store, peer: WebPeer) -> None:
    """While the server takes nothing, little of what is sent has been read here."""
    to(store, peer.url)
    part = made.ct(side=2048)  # 8 MiB
    take_in_part(store, part)
    asked, hold = threading.Event(), threading.Event()

    def wait(_: dict[str, str]) -> None:
        asked.set()
        hold.wait(20)

    peer.early = wait
    tracemalloc.start()
    try:
        with forwarding(store):
            assert asked.wait(20)
            before = tracemalloc.get_traced_memory()[0]
            stays(lambda: not peer.stored, "nothing is taken", seconds=0.5)
            grown = tracemalloc.get_traced_memory()[1] - before
            hold.set()
            done(store, "sent")
    finally:
        hold.set()
        tracemalloc.stop()
    assert peer.stored[0][0].data == part.data
    assert grown < 2 << 20


# --- what is said of each instance


def test_partial_success_is_told_apart_by_instance(store: Store, peer: WebPeer) -> None:
    to(store, peer.url)
    parts = take(store, 5)
    uids = [part.sop_instance for part in parts]
    reasons = {uids[1]: 0xA700, uids[2]: 0xA900, uids[3]: 0xC000}
    warned = {uids[0]: 0xB000, uids[4]: 0}

    def some(request: Request) -> Reply:
        got = [one.sop_instance for one in request.instances]
        failed = {uid: code for uid, code in reasons.items() if uid in got}
        stored = {uid: warned.get(uid, 0) for uid in got if uid not in failed}
        if uids[1] in got:
            reasons.pop(uids[1], None)  # it has room the next time
        status = 200 if not failed else 202 if stored else 409
        return Reply(status, said(stored=stored, failed=failed))

    peer.script = some
    with forwarding(store):
        done(store, "sent", "sent", "failed", "failed", "sent")
    assert "A900, data set does not match SOP class" in words(store, 3)
    assert "C000, cannot understand" in words(store, 4)
    sent = peer.times_sent
    assert [sent[uid] for uid in uids] == [1, 2, 1, 1, 1]


def test_an_answer_in_xml_is_understood(store: Store, peer: WebPeer) -> None:
    to(store, peer.url)
    (part,) = take(store, 1)
    xml = f"""<?xml version="1.0" encoding="UTF-8"?>
    <NativeDicomModel xml:space="preserve"><DicomAttribute tag="00081198" vr="SQ" keyword="x">
    <Item number="1"><DicomAttribute tag="00081155" vr="UI"><Value number="1">{part.sop_instance}
    </Value></DicomAttribute><DicomAttribute tag="00081197" vr="US"><Value number="1">290</Value>
    </DicomAttribute></Item></DicomAttribute></NativeDicomModel>"""
    peer.script = lambda _: Reply(409, xml.encode(), kind="application/dicom+xml")
    with forwarding(store):
        done(store, "failed")
    assert "0122, refused: SOP class not supported" in words(store)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Please log in</html>",
        b"[[[[",
        b"[" * 100_000,
        b'<!DOCTYPE x [<!ENTITY a "b">]><NativeDicomModel/>',
    ],
)
def test_a_success_that_is_none_of_dicomweb_is_not_believed(
    store: Store, peer: WebPeer, body: bytes
) -> None:
    to(store, peer.url)
    take(store, 1)
    kind = "text/html" if b"html" in body else "application/dicom+xml" if b"!" in body else "x/json"
    peer.script = lambda _: Reply(200, body, kind=kind)
    with forwarding(store):
        until(lambda: "not as DICOMweb does" in link(store)[1], "it says so")
        assert states_of(store) != ["sent"]
        peer.script = lambda request: peer.accepted(request.instances)
        done(store, "sent")


def test_what_an_answer_does_not_name_is_asked_for(store: Store, peer: WebPeer) -> None:
    to(store, peer.url)
    take(store, 6)

    def silent(request: Request) -> Reply:
        peer.keep(request.instances[:1])
        return Reply(202)

    peer.script = silent
    with forwarding(store):
        done(store, *["sent"] * 6)
    assert set(peer.times_sent.values()) <= {1, 2, 3}


def test_what_is_never_named_and_never_there_needs_a_person(store: Store, peer: WebPeer) -> None:
    to(store, peer.url)
    take(store, 1)
    peer.script = lambda _: Reply(202)
    with forwarding(store):
        done(store, "failed")
    assert "nothing about this instance" in words(store)
    assert deliveries_of(store)[0][3] == stow.TRIES


def test_a_success_that_lists_others_is_none(store: Store, peer: WebPeer) -> None:
    """Orthanc's DICOMweb 1.7 answers so to parts it has thrown away."""
    to(store, peer.url)
    take(store, 1)
    peer.script = lambda _: Reply(200, b'{"00081198": {"vr": "SQ"}, "00081199": {"vr": "SQ"}}')
    with forwarding(store):
        done(store, "failed")
    assert "nothing about this instance" in words(store)


# --- transfer syntaxes


def refusing(peer: WebPeer, *accepted: str, status: int = 0) -> Callable[[Request], Reply]:
    """A server that stores what has one of these transfer syntaxes alone."""

    def script(request: Request) -> Reply:
        bad = {
            o.sop_instance: 0xC122 for o in request.instances if o.transfer_syntax not in accepted
        }
        good = [one for one in request.instances if one.sop_instance not in bad]
        if bad and status:
            return Reply(status)
        peer.keep(good)
        stored = dict.fromkeys((one.sop_instance for one in good), 0)
        return Reply(202 if bad and good else 409 if bad else 200, said(stored=stored, failed=bad))

    return script


@pytest.mark.parametrize("status", [0, 415])
@pytest.mark.filterwarnings("ignore")
def test_a_refused_transfer_syntax_is_converted(store: Store, peer: WebPeer, status: int) -> None:
    to(store, peer.url)
    part = corpus_part(JPEG_LS)
    take_in_part(store, part)
    take_in_part(store, made.ct())
    peer.script = refusing(peer, EXPLICIT_LE, status=status)
    with forwarding(store):
        done(store, "sent", "sent")
        assert peer.held[part.sop_instance][2].transfer_syntax == EXPLICIT_LE
        again = len(peer.stored)
        other = replaced(part)
        take_in_part(store, other)
        store.ring("forward")
        done(store, "sent", "sent", "sent")
    # What it does not take is known then.
    assert [len(some) for some in peer.stored[again:]] == [1]
    decoded = decode(peer.held[part.sop_instance][2].data, EXPLICIT_LE)
    assert decoded.SOPInstanceUID == part.sop_instance


def test_what_no_transfer_syntax_helps_has_failed(store: Store, peer: WebPeer) -> None:
    to(store, peer.url)
    (ct,) = take(store, 1)
    other = replace_class(made.ct())
    take_in_part(store, other)

    def script(request: Request) -> Reply:
        good = [one for one in request.instances if one.sop_class != ct.sop_class]
        bad = {o.sop_instance: 0xC122 for o in request.instances if o.sop_class == ct.sop_class}
        peer.keep(good)
        stored = dict.fromkeys((one.sop_instance for one in good), 0)
        return Reply(202 if good else 409, said(stored=stored, failed=bad))

    peer.script = script
    with forwarding(store):
        done(store, "failed", "sent", seconds=30)
    assert "the destination does not accept CT Image Storage" in words(store)
    assert peer.times_sent[other.sop_instance] == 1


def corpus_part(transfer_syntax: str) -> Part10:
    """A real instance in a transfer syntax."""
    return next(
        part
        for part in corpus.everything()
        if part.transfer_syntax == transfer_syntax and len(part.data) < 1_000_000
    )


def replaced(part: Part10) -> Part10:
    """The same under another UID."""
    uid = part.sop_instance
    return part.with_instance_uid(uid[:-1] + ("1" if uid[-1] != "1" else "2"))


def replace_class(part: Part10) -> Part10:
    dataset = part.dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    return made.instance(dataset)


# --- the server wants to be left alone, or breaks


@pytest.mark.parametrize("status", [429, 503])
def test_patience_that_is_asked_for_is_had(store: Store, peer: WebPeer, status: int) -> None:
    to(store, peer.url)
    take(store, 3)
    peer.script = first(lambda _: Reply(status, fields={"Retry-After": "2"}), peer)
    with forwarding(store):
        until(lambda: link(store)[0] is LinkState.DEGRADED, "it waits")
        assert f"asks for patience ({status})" in link(store)[1]
        asked, at = len(peer.requests), wall_ms()
        stays(lambda: len(peer.requests) == asked, "left alone", seconds=1.2)
        done(store, "sent", "sent", "sent")
    assert wall_ms() - at < 8000
    assert max(peer.times_sent.values()) <= 2


def test_retry_after_is_a_number_or_a_date_within_bounds(store: Store, peer: WebPeer) -> None:
    to(store, peer.url)
    said_now = formatdate(1_000_000_000, usegmt=True)
    for fields, least, most in (
        ({"Retry-After": "7"}, 7, 7),
        ({"Retry-After": "999999999999"}, 3600, 3600),
        ({"Retry-After": "-3"}, 30, 30),
        ({}, 30, 30),
        ({"Retry-After": formatdate(1_000_000_090, usegmt=True), "Date": said_now}, 90, 90),
        ({"Retry-After": formatdate(999, usegmt=True), "Date": said_now}, 1, 1),
        ({"Retry-After": formatdate(wall_ms() / 1000 + 50, usegmt=True)}, 40, 51),
    ):
        peer.gate = lambda _, fields=fields: Reply(503, fields=fields)
        with pytest.raises(PeerBusy) as caught:
            stow.echo(store, destinations.named(store.db, "pacs"))
        assert least <= caught.value.seconds <= most, fields


def test_one_that_breaks_the_server_does_not_block_the_rest(store: Store, peer: WebPeer) -> None:
    to(store, peer.url)
    parts = take(store, 12)
    poison = parts[6].sop_instance

    def script(request: Request) -> Reply:
        if poison in (one.sop_instance for one in request.instances):
            return Reply(500, b"oops", kind="text/plain")
        return peer.accepted(request.instances)

    peer.script = script
    with forwarding(store):
        until(lambda: states_of(store).count("sent") == 11, "the others arrive")
        assert "500" in words(store, 7)
        peer.script = lambda request: peer.accepted(request.instances)
        done(store, *["sent"] * 12)
    others = {uid: count for uid, count in peer.times_sent.items() if uid != poison}
    assert max(others.values()) <= 3  # those that shared a request with it


def test_what_a_broken_server_took_all_the_same_is_not_sent_again(
    store: Store, peer: WebPeer
) -> None:
    to(store, peer.url)
    take(store, 20)

    def script(request: Request) -> Reply:
        peer.keep(request.instances)
        return Reply(504)

    peer.script = script
    with forwarding(store):
        done(store, *["sent"] * 20)
    assert set(peer.times_sent.values()) == {1}


def test_a_server_that_breaks_on_everything_is_left_alone(store: Store, peer: WebPeer) -> None:
    to(store, peer.url)
    take(store, 30)
    peer.script = lambda _: Reply(500)
    with forwarding(store):
        until(lambda: "again and again" in link(store)[1], "it is left alone")
    assert len(peer.stored) < 30


@pytest.mark.parametrize("told", [True, False], ids=["names the others", "says nothing"])
@pytest.mark.parametrize("status", [400, 409, 422])
def test_what_is_objected_to_as_a_whole_is_found_out_one_by_one(
    store: Store, peer: WebPeer, status: int, *, told: bool
) -> None:
    to(store, peer.url)
    parts = take(store, 9)
    bad = parts[4].sop_instance

    def script(request: Request) -> Reply:
        if bad in (one.sop_instance for one in request.instances):
            others = [one for one in request.instances if one.sop_instance != bad]
            return replace(peer.accepted(others), status=status) if told else Reply(status)
        return peer.accepted(request.instances)

    peer.script = script
    with forwarding(store):
        done(store, *["sent"] * 4, "failed", *["sent"] * 4)
    assert str(status) in words(store, 5)
    others = {uid: count for uid, count in peer.times_sent.items() if uid != bad}
    assert max(others.values()) == (1 if told else 2)


def test_what_is_too_large_for_the_server_alone_has_failed(store: Store, peer: WebPeer) -> None:
    to(store, peer.url)
    take(store, 10)
    take(store, 1, side=512)
    take(store, 3)

    def too_large(fields: dict[str, str]) -> Reply | None:
        return Reply(413, close=True) if int(fields["content-length"]) > 120_000 else None

    peer.early = too_large
    with forwarding(store):
        done(store, *["sent"] * 10, "failed", *["sent"] * 3)
    assert "413" in words(store, 11)
    assert set(peer.times_sent.values()) == {1}


@pytest.mark.parametrize("status", [401, 403])
def test_one_that_does_not_let_us_in_is_told_to_people_and_nothing_fails(
    store: Store, peer: WebPeer, status: int
) -> None:
    to(store, peer.url)
    take(store, 3)
    peer.gate = lambda _: Reply(status)
    with forwarding(store):
        until(lambda: "does not let us in" in link(store)[1], "it says so")
        assert states_of(store) == ["queued"] * 3
        peer.gate = lambda _: None
        done(store, "sent", "sent", "sent")
    assert set(peer.times_sent.values()) == {1}


@pytest.mark.parametrize(("status", "word"), [(404, "does not offer this"), (302, "has moved")])
def test_a_wrong_address_is_told_to_people_and_nothing_fails(
    store: Store, peer: WebPeer, status: int, word: str
) -> None:
    to(store, peer.url)
    take(store, 2)
    peer.script = lambda _: Reply(status, fields={"Location": "http://127.0.0.1:1/"})
    with forwarding(store):
        until(lambda: word in link(store)[1], "it says so")
        peer.script = lambda request: peer.accepted(request.instances)
        done(store, "sent", "sent")


# --- the line


def test_a_line_that_breaks_inside_a_request_loses_nothing(store: Store, peer: WebPeer) -> None:
    to(store, peer.url)
    take(store, 30)
    breaks = iter((100_000, 20, 140_000, 1000))

    def next_break() -> None:
        peer.take = next(breaks, None)

    next_break()

    def early(_: dict[str, str]) -> None:
        next_break()

    peer.early = early
    with forwarding(store):
        done(store, *["sent"] * 30)
    assert set(peer.times_sent.values()) == {1}


@pytest.mark.parametrize("cut", [0, 10, 200])
def test_what_arrived_but_was_not_answered_is_asked_for(
    store: Store, peer: WebPeer, cut: int
) -> None:
    """Half an answer, or none at all."""
    to(store, peer.url)
    take(store, 20)
    broken = []

    def script(request: Request) -> Reply:
        reply = peer.accepted(request.instances)
        if len(request.instances) > 3 and not broken:
            broken.append(len(request.instances))
            reply.cut = cut
        return reply

    peer.script = script
    with forwarding(store):
        until(
            lambda: "sending" not in states_of(store) and "queued" not in states_of(store), "done"
        )
    assert broken
    assert set(states_of(store)) <= {"sent", "confirmed_by_query"}
    assert set(peer.times_sent.values()) == {1}


def test_where_nobody_can_be_asked_it_is_sent_once_more(store: Store, peer: WebPeer) -> None:
    to(store, peer.url)
    take(store, 4)
    peer.queries = False

    def lost(request: Request) -> Reply:
        reply = peer.accepted(request.instances)
        reply.cut = 0
        return reply

    peer.script = first(lost, peer)
    with forwarding(store):
        done(store, "sent", "sent", "sent", "sent")
    assert max(peer.times_sent.values()) == 2


def test_one_that_hangs_is_given_up(
    store: Store, peer: WebPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_client, "_ANSWER_SECONDS", 0.5)
    to(store, peer.url)
    take(store, 2)
    peer.script = first(lambda _: None, peer)
    with forwarding(store):
        done(store, "sent", "sent")
    assert max(peer.times_sent.values()) <= 2


def test_one_that_takes_nothing_is_given_up(
    store: Store, peer: WebPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_client, "_STALL_SECONDS", 0.5)
    hold = threading.Event()
    peer.early = lambda _: hold.wait(10) and None  # type: ignore[func-returns-value]
    to(store, peer.url)
    take_in_part(store, made.ct(side=2048))
    with forwarding(store):
        until(lambda: any("takes nothing" in one.words for one in past(store)), "it is given up")
        peer.early = lambda _: None
        hold.set()
        done(store, "sent")


def test_a_copy_that_cannot_be_read_costs_itself_alone(store: Store, peer: WebPeer) -> None:
    to(store, peer.url)
    take(store, 3)
    take_in_part(store, made.ct(side=1024))
    known = set(objects(store))
    take(store, 3)
    largest = max(known, key=lambda path: path.stat().st_size)
    flip_bit(largest, largest.stat().st_size // 2)
    with forwarding(store):
        done(store, *["sent"] * 3, "failed", *["sent"] * 3)
    assert words(store, 4).startswith("not sent: ")
    assert max(peer.times_sent.values()) == 1


def test_nobody_listens_and_then_somebody_does(store: Store) -> None:
    port = free_port()
    to(store, f"http://127.0.0.1:{port}/dicom-web")
    take(store, 2)
    with forwarding(store):
        until(lambda: link(store)[0] is LinkState.DOWN, "it is down")
        assert {row[3] for row in deliveries_of(store)} == {0}
        with WebPeer() as peer:
            with store.db.write() as tx:
                destinations.change(tx, "pacs", {"url": peer.url}, actor="test")
            store.ring("forward")
            done(store, "sent", "sent")


# --- TLS and who we are


@pytest.fixture(scope="module")
def server() -> Identity:
    return identity()


def one_there(store: Store, url: str, **settings: str) -> None:
    to(store, url, **settings)
    stow.echo(store, destinations.named(store.db, "pacs"))


def test_https_with_an_authority_and_a_token(
    store: Store, server: Identity, tmp_path: Path
) -> None:
    with WebPeer(tls=server.server(tmp_path)) as peer:
        to(store, peer.url, authority=server.certificate, token="secret.token")
        take(store, 5)
        with forwarding(store):
            done(store, *["sent"] * 5)
        assert {one.fields["authorization"] for one in peer.requests} == {"Bearer secret.token"}


def test_a_user_name_and_a_passcode(store: Store, peer: WebPeer) -> None:
    one_there(store, peer.url, user_name="box", passcode="pass")
    assert peer.requests[0].fields["authorization"] == "Basic Ym94OnBhc3M="


def test_mutual_tls(store: Store, server: Identity, tmp_path: Path) -> None:
    ours = identity("edgepacs")
    with WebPeer(tls=server.server(tmp_path, clients=ours)) as peer:
        keys = {"certificate": ours.certificate, "private_key": ours.key}
        to(store, peer.url, authority=server.certificate, **keys)
        take(store, 2)
        with forwarding(store):
            done(store, "sent", "sent")


@pytest.mark.parametrize("theirs", ["", "another"])
def test_a_server_that_wants_another_certificate(
    store: Store, server: Identity, tmp_path: Path, theirs: str
) -> None:
    context = server.server(tmp_path, clients=identity("edgepacs"))
    other = identity("edgepacs")
    keys = {"certificate": other.certificate, "private_key": other.key} if theirs else {}
    with WebPeer(tls=context) as peer, pytest.raises(PeerError) as caught:
        one_there(store, peer.url, authority=server.certificate, **keys)
    assert "TLS" in str(caught.value) or "connection was lost" in str(caught.value)


def test_a_certificate_nobody_knows_and_one_of_another_host(
    store: Store, server: Identity, tmp_path: Path
) -> None:
    with WebPeer(tls=server.server(tmp_path)) as peer:
        with pytest.raises(NotAdmitted, match="not trusted: self-signed certificate"):
            one_there(store, peer.url)
        assert not peer.requests
    other = identity("pacs.example")
    with WebPeer(tls=other.server(tmp_path)) as peer:
        with store.db.write() as tx:
            settings = {"url": peer.url, "authority": other.certificate}
            destinations.change(tx, "pacs", settings, actor="test")
        with pytest.raises(NotAdmitted, match="not trusted: IP address mismatch"):
            stow.echo(store, destinations.named(store.db, "pacs"))


def test_https_to_one_that_speaks_http(
    store: Store, peer: WebPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_client, "_CONNECT_SECONDS", 0.5)
    to(store, peer.url.replace("http:", "https:"))
    with pytest.raises(PeerError):
        stow.echo(store, destinations.named(store.db, "pacs"))


def test_plain_http_stays_within_this_machine(store: Store) -> None:
    for url in ("http://pacs.example/dicom-web", "http://192.0.2.7/", "http://127.0.0.1.example/"):
        with pytest.raises(InvalidValue, match="use https"):
            to(store, url)
    for url in ("ftp://h/", "https:///x", "https://h:99999/", "https://h/?a=b", "nonsense", ""):
        with pytest.raises(InvalidValue):
            to(store, url)
    with pytest.raises(InvalidValue, match="credentials belong"):
        to(store, "https://me:secret@pacs.example/")
    to(store, "https://[::1]:8443/dicom-web/")
    found = destinations.named(store.db, "pacs")
    assert (found.transport, found.host, found.port, found.url, found.ae_title) == (
        "stow",
        "::1",
        8443,
        "https://[::1]:8443/dicom-web",
        "",
    )


# --- echo


@pytest.mark.parametrize("status", [200, 204, 400, 404, 405, 501])
def test_who_answers_is_alive(store: Store, peer: WebPeer, status: int) -> None:
    peer.gate = lambda _: Reply(status)
    one_there(store, peer.url)


@pytest.mark.parametrize("status", [500, 502, 401, 403, 301, 503])
def test_who_does_not_let_us_in_or_is_broken_is_not(
    store: Store, peer: WebPeer, status: int
) -> None:
    peer.gate = lambda _: Reply(status)
    with pytest.raises(PeerError, match=str(status)):
        one_there(store, peer.url)


def test_nobody_there(store: Store) -> None:
    with pytest.raises(PeerUnreachable, match="nothing listens"):
        one_there(store, f"http://127.0.0.1:{free_port()}/")


def test_what_was_compressed_since_it_was_claimed_goes_as_received(
    store: Store, peer: WebPeer
) -> None:
    part = made.ct()
    to(store, peer.url)
    take_in_part(store, part)
    claim = claim_one(store, destinations.named(store.db, "pacs").id)
    compress_all(store)
    assert instances.instance(store.db, claim.instance).transfer_syntax_uid == JPEG_LS
    opened = stow._opened(store, Parcel(claim))
    whole = opened.head + b"".join(opened.pieces)
    assert len(whole) == opened.length
    assert whole.endswith(part.data)
    assert opened.pair[1] == EXPLICIT_LE
