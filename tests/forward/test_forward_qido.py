"""Inquiry by QIDO-RS (PS3.18 10.6), against a scripted server, and both ways against Orthanc."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from forward.sending import forwarding, hasten
from harness import corpus, made
from harness.orthanc import Orthanc, with_dicomweb
from harness.part10 import Part10
from harness.waiting import until
from harness.web_peer import Got, Reply, Request, WebPeer
from store.making import states_of, take_in_part

from edgepacs.errors import EdgePacsError, NotAdmitted, PeerBusy, PeerRefused, PeerUnreachable
from edgepacs.forward import desk, proof, qido, stow
from edgepacs.model import UID
from edgepacs.store import Store, destinations
from edgepacs.store.commitments import Sought
from edgepacs.store.destinations import Destination


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of minutes as fractions of a second."""
    hasten(monkeypatch)
    monkeypatch.setattr(stow, "LINGER_SECONDS", 0.01)
    monkeypatch.setattr(desk, "RETRY_FIRST_MS", 100)
    monkeypatch.setattr(proof, "GATHER_MS", 100)
    monkeypatch.setattr(proof, "IDLE_SECONDS", 0.2)


@pytest.fixture
def peer() -> Iterator[WebPeer]:
    with WebPeer() as one:
        yield one


def destination(store: Store, url: str, **settings: str) -> Destination:
    with store.db.write() as tx:
        destinations.add_web(tx, name="pacs", url=url, actor="test")
        destinations.change(tx, "pacs", settings, actor="test")
    return destinations.named(store.db, "pacs")


def sought(part: Part10) -> Sought:
    found = part.dataset()
    return Sought(
        delivery=0,
        sop_class_uid=UID(part.sop_class),
        sop_instance_uid=UID(part.sop_instance),
        series_instance_uid=UID(str(found.SeriesInstanceUID)),
        study_instance_uid=UID(str(found.StudyInstanceUID)),
        asked=0,
    )


def series(count: int) -> list[Part10]:
    study, one = made.new_uid(), made.new_uid()
    return [made.ct(study=study, series=one, number=n) for n in range(count)]


def put(peer: WebPeer, parts: list[Part10]) -> None:
    peer.keep([Got(p.sop_class, p.sop_instance, p.transfer_syntax, p.data) for p in parts])


def uids(parts: list[Part10]) -> set[str]:
    return {part.sop_instance for part in parts}


@pytest.mark.parametrize("lists", [True, False], ids=["lists", "no lists"])
@pytest.mark.parametrize("there", [0, 1, 30, 50])
def test_what_is_there_is_found_whatever_the_server_makes_of_lists(
    store: Store, peer: WebPeer, there: int, *, lists: bool
) -> None:
    parts, other, alone = series(50), series(3), series(1)
    put(peer, parts[:there])
    put(peer, alone)
    peer.lists = lists
    wanted = [sought(part) for part in (*parts, *other, *alone)]
    found = qido.found(store, destination(store, peer.url), wanted)
    assert found == uids(parts[:there]) | uids(alone)
    assert len(peer.requests) <= 12
    assert peer.connections == 1


def test_nothing_is_asked_about_nothing(store: Store, peer: WebPeer) -> None:
    assert qido.found(store, destination(store, peer.url), []) == set()
    assert not peer.requests


def test_others_than_were_asked_for_do_not_count(store: Store, peer: WebPeer) -> None:
    parts = series(5)
    body = json.dumps([{"00080018": {"vr": "UI", "Value": [made.new_uid()]}}]).encode()
    peer.gate = lambda _: Reply(200, body)
    assert qido.found(store, destination(store, peer.url), [sought(p) for p in parts]) == set()


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[null]", b'[{"00080018": 7}]', b'[{"00080018": {"Value": [{}]}}]', b"[]", b"7"],
)
def test_an_odd_answer_finds_nothing(store: Store, peer: WebPeer, body: bytes) -> None:
    peer.gate = lambda _: Reply(200, body)
    assert qido.found(store, destination(store, peer.url), [sought(p) for p in series(2)]) == set()


def test_no_content_is_nothing(store: Store, peer: WebPeer) -> None:
    peer.gate = lambda _: Reply(204)
    assert qido.found(store, destination(store, peer.url), [sought(made.ct())]) == set()


def test_not_found_is_nothing_where_other_queries_are_answered(store: Store, peer: WebPeer) -> None:
    peer.gate = lambda request: Reply(404) if "/series/" in request.target else None
    assert qido.found(store, destination(store, peer.url), [sought(made.ct())]) == set()


def test_a_server_without_queries_says_so(store: Store, peer: WebPeer) -> None:
    peer.queries = False
    with pytest.raises(PeerRefused, match="does not offer this"):
        qido.found(store, destination(store, peer.url), [sought(made.ct())])


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(401), NotAdmitted),
        (Reply(503), PeerBusy),
        (Reply(200, b"<html>", kind="text/html"), PeerRefused),
        (Reply(200, b"[" + b" " * 999 + b"]", cut=300), PeerUnreachable),
        (Reply(200, b"[]", cut=0), PeerUnreachable),
    ],
)
def test_what_is_no_answer_is_no_absence(
    store: Store, peer: WebPeer, reply: Reply, error: type[Exception]
) -> None:
    peer.gate = lambda _: reply
    with pytest.raises(error):
        qido.found(store, destination(store, peer.url), [sought(made.ct())])


def test_a_series_that_is_too_long_is_asked_for_one_by_one(store: Store, peer: WebPeer) -> None:
    parts = series(4)
    put(peer, parts[:2])
    peer.lists = False
    peer.gate = lambda request: (
        Reply(200, b"[" + b" " * (5 << 20) + b"]") if "limit" in request.target else None
    )
    found = qido.found(store, destination(store, peer.url), [sought(part) for part in parts])
    assert found == uids(parts[:2])


def test_what_was_sent_is_confirmed_by_query(store: Store, peer: WebPeer) -> None:
    destination(store, peer.url)
    for part in series(5):
        take_in_part(store, part)
    with forwarding(store):
        until(lambda: states_of(store) == ["confirmed_by_query"] * 5, "found", seconds=30)


def test_a_busy_server_is_not_taken_to_have_nothing(store: Store, peer: WebPeer) -> None:
    """What is in doubt waits until it can be asked for."""
    destination(store, peer.url, proof="response")
    for part in series(6):
        take_in_part(store, part)
    lost: list[int] = []

    def script(request: Request) -> Reply:
        reply = peer.accepted(request.instances)
        if len(request.instances) > 1 and not lost:
            lost.append(len(request.instances))
            reply.cut = 0
        return reply

    def busy(request: Request) -> Reply | None:
        queried = "/series/" in request.target
        if queried and len(lost) == 1:
            lost.append(0)
            return Reply(503, fields={"Retry-After": "1"})
        return None

    peer.script, peer.gate = script, busy
    with forwarding(store):
        arrived = {"sent", "confirmed_by_query"}
        until(lambda: set(states_of(store)) <= arrived, "all are there", seconds=30)
    assert len(lost) == 2
    assert set(peer.times_sent.values()) == {1}


# --- Orthanc


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    with with_dicomweb(tmp_path / "orthanc") as one:
        yield one


@pytest.mark.peers
def test_orthanc_takes_all_and_is_asked(store: Store, orthanc: Orthanc) -> None:
    destination(store, f"http://127.0.0.1:{orthanc.http_port}/dicom-web")
    parts = []
    for part in (*corpus.sample(200_000), *series(60)):
        try:
            take_in_part(store, part)
        except EdgePacsError:
            continue
        parts.append(part)
    with forwarding(store):
        finished = {"confirmed_by_query", "failed"}
        until(
            lambda: set(states_of(store)) <= finished,
            f"all are settled {Counter(states_of(store))}",
            seconds=60,
        )
    held = orthanc.held()
    states = dict(zip((part.sop_instance for part in parts), states_of(store), strict=True))
    assert {uid for uid, state in states.items() if state != "failed"} == set(held)
    assert list(states.values()).count("failed") <= len(parts) // 20
    for part in parts:
        if one := held.get(part.sop_instance):
            assert one["transfer_syntax"] == part.transfer_syntax
            assert part.data in orthanc.file(one["id"])
