"""Priors by QIDO-RS and WADO-RS against a scripted server: odd parts, cuts, refusals."""

import json
from collections.abc import Iterator

import pytest
from forward.test_forward_prefetch import Prior, ended, haul, held
from harness.part10 import EXPLICIT_LE, part10_file
from harness.web_peer import Reply, Request, WebPeer
from store.making import CT, objects

from edgepacs.errors import Busy, LimitExceeded, NotAdmitted, PeerRefused, PeerUnreachable
from edgepacs.forward import wado
from edgepacs.forward.wado import Parts
from edgepacs.store import Store, destinations
from edgepacs.store.destinations import Destination

BOUNDARY = "a.boundary"


def files(instances: dict[str, bytes]) -> list[bytes]:
    return [part10_file(CT, sop, EXPLICIT_LE, data) for sop, data in instances.items()]


def multipart(parts: list[bytes]) -> bytes:
    head = b"Content-Type: application/dicom\r\n\r\n"
    inner = b"".join(b"\r\n--" + BOUNDARY.encode() + b"\r\n" + head + one for one in parts)
    return inner.removeprefix(b"\r\n") + b"\r\n--" + BOUNDARY.encode() + b"--\r\n"


def related(parts: list[bytes], **more: object) -> Reply:
    kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
    return Reply(200, multipart(parts), kind, **more)  # type: ignore[arg-type]


class Server:
    """Answers as an archive that holds `priors`; `study` answers what is asked of all of one."""

    def __init__(self, peer: WebPeer, *priors: Prior) -> None:
        self.priors = {prior.uid: prior for prior in priors}
        self.study = lambda prior: related(files(prior.instances))
        self.asked: list[str] = []
        peer.gate = self._answer

    def _answer(self, request: Request) -> Reply:
        path = request.target.partition("?")[0].removeprefix("/dicom-web")
        self.asked.append(path)
        steps = path.split("/")[2:]
        if not steps:
            return _json([self._match(prior) for prior in self.priors.values()])
        prior = self.priors[steps[0]]
        if len(steps) == 1:
            assert "transfer-syntax=*" in request.fields["accept"]
            return self.study(prior)
        if len(steps) == 2:
            offset = "offset=0" in request.target
            return _json([_instance(sop) for sop in prior.instances] if offset else [])
        return related(files({steps[-1]: prior.instances[steps[-1]]}))

    def _match(self, prior: Prior) -> dict[str, object]:
        values = {"00100020": prior.patient_id, "0020000D": prior.uid, "00080020": prior.date}
        return {tag: {"vr": "LO", "Value": [value]} for tag, value in values.items()}


def _instance(sop: str) -> dict[str, object]:
    values = {"00080018": sop, "0020000E": "1.2.3.2"}
    return {tag: {"vr": "UI", "Value": [value]} for tag, value in values.items()}


def _json(found: list[dict[str, object]]) -> Reply:
    return Reply(200, json.dumps(found).encode())


@pytest.fixture
def peer() -> Iterator[WebPeer]:
    with WebPeer() as one:
        yield one


def pointed_at(store: Store, peer: WebPeer, **settings: str) -> Destination:
    with store.db.write() as tx:
        destinations.add_web(tx, name="pacs", url=peer.url, actor="test")
        destinations.change(tx, "pacs", {"priors": "web", **settings}, actor="test")
    return destinations.named(store.db, "pacs")


@pytest.mark.parametrize("fields", [{}, {"Connection": "close"}])
def test_all_parts_of_a_study_come(store: Store, peer: WebPeer, fields: dict[str, str]) -> None:
    prior, other = Prior().add(3, size=200_000), Prior(patient_id="P2").add()
    server = Server(peer, prior, other)
    server.study = lambda prior: related(files(prior.instances), fields=fields, close=bool(fields))
    one = haul(store, pointed_at(store, peer))
    wado.fetch(one)
    assert held(store) == dict.fromkeys(prior.instances, "prefetch")
    assert (one.studies, one.instances) == (1, 3)
    assert server.asked == ["/studies", f"/studies/{prior.uid}"]


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_parts_are_cut_where_they_end_however_they_come(size: int) -> None:
    contents = [b"one", b"", b"\r\n--a.boundar", b"\r\n" * 9, bytes(range(256)) * 3]
    body = b"a preamble\r\n" + multipart(contents)
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    found = []
    for part in Parts(BOUNDARY, pieces):
        found.append(b"".join(iter(lambda: part.read(5), b"")))  # noqa: B023, PERF401
    assert found == contents


def test_parts_that_are_not_read_are_dropped() -> None:
    body = multipart([b"x" * 100_000, b"two", b"three"])
    parts = Parts(BOUNDARY, (body[at : at + 999] for at in range(0, len(body), 999)))
    assert [part.read(3) for part in parts] == [b"xxx", b"two", b"thr"]


def test_a_body_without_its_end_is_no_answer() -> None:
    body = multipart([b"one"])[:-4]
    parts = iter(Parts(BOUNDARY, iter([body])))
    assert next(parts).read(100) == b"one"
    with pytest.raises(PeerUnreachable):
        next(parts)


def test_what_was_not_asked_for_and_what_is_no_file_is_refused(store: Store, peer: WebPeer) -> None:
    prior, stranger = Prior().add(2), Prior().add()
    several = [b"no DICOM file", *files(stranger.instances), *files(prior.instances)]
    Server(peer, prior).study = lambda _prior: related(several)
    one = haul(store, pointed_at(store, peer))
    wado.fetch(one)
    assert held(store).keys() == prior.instances.keys()
    assert len(objects(store)) == 2
    assert any("2 instances refused" in note for note in one.notes)


def test_a_cut_answer_keeps_what_was_whole_and_goes_on(store: Store, peer: WebPeer) -> None:
    prior = Prior().add(3, size=100_000)
    server = Server(peer, prior)
    server.study = lambda prior: related(files(prior.instances), cut=250_000)
    to = pointed_at(store, peer)
    one = haul(store, to)
    with pytest.raises(PeerUnreachable):
        wado.fetch(one)
    came = held(store).keys()
    assert 0 < len(came) < 3
    assert len(objects(store)) == len(came)
    ended(store, one)
    server.asked.clear()
    wado.fetch(haul(store, to))
    assert held(store).keys() == prior.instances.keys()
    fetched = {path.rpartition("/")[2] for path in server.asked if path.count("/") == 6}
    assert fetched == prior.instances.keys() - came


def test_bounds_and_what_is_urgent_end_it(store: Store, peer: WebPeer) -> None:
    Server(peer, Prior().add(2, size=900_000))
    to = pointed_at(store, peer, priors_mib="1")
    one = haul(store, to, urgent=lambda: "something urgent")
    with pytest.raises(Busy, match="something urgent"):
        wado.fetch(one)
    assert objects(store) == []
    ended(store, one)
    with pytest.raises(LimitExceeded, match="priors_mib"):
        wado.fetch(haul(store, to))
    assert len(objects(store)) == 1


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(404), PeerRefused),
        (Reply(401), NotAdmitted),
        (Reply(200, b"not many parts", "application/dicom"), PeerRefused),
    ],
)
def test_a_server_that_does_not_give_studies_says_so(
    store: Store, peer: WebPeer, reply: Reply, error: type[Exception]
) -> None:
    Server(peer, Prior().add()).study = lambda _prior: reply
    with pytest.raises(error):
        wado.fetch(haul(store, pointed_at(store, peer)))
