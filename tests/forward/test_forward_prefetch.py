"""Priors against a scripted archive: what is chosen, what is refused, what bounds and ends it."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import pytest
from forward.archive import QUICK, decode, encode
from forward.sending import forwarding, hasten
from harness.waiting import until
from pydicom.dataset import Dataset
from scp.serving import Serving, serving
from store.making import CT, arrival, element, fresh_uid, objects, small, take_in

from edgepacs.clock import wall_ms
from edgepacs.custody import ingest
from edgepacs.dimse import (
    AssociateRequest,
    Association,
    ContextAnswer,
    ContextResult,
    Limits,
    Message,
    MoveOriginator,
    Peer,
    ProposedContext,
    Rejection,
    Roles,
    accept,
    request,
)
from edgepacs.dimse.command import Element, Field
from edgepacs.dimse.contexts import EXPLICIT_VR_LE, native_answer, storage_answer
from edgepacs.dimse.query import STUDY_ROOT_FIND
from edgepacs.dimse.retrieve import STUDY_ROOT_GET, STUDY_ROOT_MOVE, storage_contexts
from edgepacs.errors import Busy, LimitExceeded, PeerError, PeerRefused, PeerUnreachable
from edgepacs.forward import prefetch, retrieval
from edgepacs.forward.pace import Pace
from edgepacs.forward.priors import Haul
from edgepacs.model import UID, AETitle, Origin, PrefetchReason, PrefetchState
from edgepacs.store import Store, destinations, instances, prefetches

PATIENT = "P1"
TODAY = "20991231"


@dataclass
class Prior:
    """One study the archive holds: its instances by SOP Instance UID."""

    uid: str = field(default_factory=fresh_uid)
    patient_id: str = PATIENT
    issuer: str = ""
    date: str = TODAY
    instances: dict[str, bytes] = field(default_factory=dict)

    def add(self, count: int = 1, size: int = 0, **attributes: str) -> "Prior":
        filling = element(0x00091001, "OB", b"\x55" * size) if size else b""
        for _ in range(count):
            sop = fresh_uid()
            values = {"study": self.uid, "patient_id": self.patient_id, **attributes}
            self.instances[sop] = small(sop=sop, more=filling, **values)
        return self


class Keeper:
    """An archive of our own engine that answers C-FIND, C-GET and C-MOVE as it is told to."""

    def __init__(self, *priors: Prior) -> None:
        self.priors = list(priors)
        self.offers = {STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE}
        self.heeds = True  # a C-CANCEL
        self.final: int | None = None  # the status of the last response of a retrieval
        self.extra: dict[str, bytes] = {}  # instances sent though nobody asked for them
        self.before_each: Callable[[], None] = lambda: None
        self.on_store: Callable[[], None] = lambda: None
        self.asked: list[Dataset] = []  # keys of retrievals
        self.finds = self.cancels = 0
        self.stored: list[str] = []
        self.answers: dict[str, int] = {}  # status by SOP Instance UID sent
        self._threads: list[threading.Thread] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._start(self._listen)

    def _start(self, run: Callable[..., None], *values: object) -> None:
        thread = threading.Thread(target=run, args=values, daemon=True)
        self._threads.append(thread)
        thread.start()

    def admit(self, _request: AssociateRequest, _peer: Peer) -> Rejection | None:
        return None

    def context(self, proposed: ProposedContext) -> ContextAnswer:
        if proposed.abstract_syntax in (STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE):
            if proposed.abstract_syntax in self.offers:
                return native_answer(proposed)
            return ContextAnswer(result=ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED)
        answer = storage_answer(proposed)
        return replace(answer, roles=proposed.roles) if proposed.roles else answer

    def limits(self, node: Limits) -> Limits:
        return node

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(10)

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                self._start(self._serve, *self._server.accept())

    def _serve(self, connection: socket.socket, address: tuple[str, int]) -> None:
        with suppress(PeerError), accept(connection, address, self, QUICK) as one:
            for message in one.messages():
                raw = b"".join(map(bytes, message.data)) if message.data else b""
                if message.command.field == Field.C_FIND_RQ:
                    self._find(one, message, decode(raw))
                elif message.command.field in (Field.C_GET_RQ, Field.C_MOVE_RQ):
                    self._retrieve(one, message, decode(raw))
                else:
                    if message.command.field == Field.C_STORE_RQ:
                        self.on_store()
                        self.stored.append(message.command.sop_instance_uid)
                    one.respond(message, 0)

    def _find(self, one: Association, message: Message, keys: Dataset) -> None:
        self.finds += 1
        for match in self._matches(keys):
            match.QueryRetrieveLevel = keys.QueryRetrieveLevel
            one.respond(message, 0xFF00, data=encode(match))
        one.respond(message, 0)

    def _matches(self, keys: Dataset) -> Iterator[Dataset]:
        for prior in self.priors:
            if keys.QueryRetrieveLevel == "STUDY":
                match = Dataset()
                match.PatientID, match.IssuerOfPatientID = prior.patient_id, prior.issuer
                match.StudyInstanceUID, match.StudyDate = prior.uid, prior.date
                match.ModalitiesInStudy = "CT"
                yield match
            elif keys.StudyInstanceUID == prior.uid and keys.QueryRetrieveLevel == "SERIES":
                match = Dataset()
                match.SeriesInstanceUID = "1.2.3.2"
                yield match
            elif keys.StudyInstanceUID == prior.uid:
                for sop in prior.instances:
                    match = Dataset()
                    match.SOPInstanceUID = sop
                    yield match

    def _retrieve(self, one: Association, message: Message, keys: Dataset) -> None:
        self.asked.append(keys)
        (prior,) = [one for one in self.priors if one.uid == keys.StudyInstanceUID]
        wanted = keys.get("SOPInstanceUID") or list(prior.instances)
        wanted = [wanted] if isinstance(wanted, str) else list(wanted)
        sent = {sop: prior.instances[sop] for sop in wanted} | self.extra
        bad = 0
        for sop, data in sent.items():
            self.before_each()
            if self.heeds and one.cancelled(message):
                self.cancels += 1
                one.respond(message, 0xFE00)
                return
            if message.command.field == Field.C_GET_RQ:
                context = one.accepted(CT, EXPLICIT_VR_LE)
                assert context is not None
                self.answers[sop] = one.store(context, CT, UID(sop), [data]).status
                bad += self.answers[sop] != 0
            one.respond(message, 0xFF00)
        counts = {Element.COMPLETED: len(sent) - bad, Element.FAILED: bad}
        final = (0xB000 if bad else 0) if self.final is None else self.final
        one.respond(message, final, extra=counts)


def pointed_at(store: Store, keeper: Keeper, **settings: str) -> destinations.Destination:
    with store.db.write() as tx:
        destinations.add(
            tx, name="pacs", title="PACS", host="127.0.0.1", port=keeper.port, actor="test"
        )
        destinations.change(tx, "pacs", {"priors": "get", **settings}, actor="test")
    return destinations.named(store.db, "pacs")


def haul(
    store: Store,
    to: destinations.Destination,
    *,
    issuer: str = "",
    yields: Callable[[], str] = str,
    urgent: Callable[[], str] = str,
) -> Haul:
    with store.db.write() as tx:
        subject = tx.number("SELECT COUNT(*) FROM prefetch") + 1000
        reason = PrefetchReason.WORKLIST
        assert prefetches.wanted(tx, PATIENT, issuer, reason=reason, subject=subject)
    due = prefetches.due(store.db, to.id)
    assert due is not None
    task = prefetches.begin(store.db, due)
    return Haul(store, to, task, Pace(store, to), yields, urgent)


def ended(store: Store, one: Haul) -> None:
    state = PrefetchState.WAITING
    prefetches.end(store.db, one.task.id, state, "", one.brought, at_once=True)
    prefetches.cancel(store.db, one.task.id, actor="test")


def held(store: Store) -> dict[str, str]:
    """The origin of every instance that stands here, by SOP Instance UID."""
    with store.db.read() as tx:
        rows = tx.rows("SELECT sop_instance_uid, origin FROM instance WHERE state = 'stored'")
    return {str(uid): str(origin) for uid, origin in rows}


# --- what is chosen ----------------------------------------------------------------------------


def test_only_this_patient_and_the_newest_that_are_missing(store: Store) -> None:
    old = Prior(date="19990101").add()
    undated = Prior(date="").add()
    other = Prior(patient_id="P10").add()
    here = Prior(date="20980101").add()
    fourth = Prior(date="20970101").add()
    newest = [Prior(date=f"2099010{day}").add() for day in (3, 2, 1)]
    take_in(store, study=here.uid)
    with Keeper(old, undated, other, here, fourth, *reversed(newest)) as keeper:
        one = haul(store, pointed_at(store, keeper))
        wanted = retrieval.fetch(one)
        assert [match.study_instance_uid for match in wanted] == [prior.uid for prior in newest]
        assert [str(keys.StudyInstanceUID) for keys in keeper.asked] == [p.uid for p in newest]
    assert (one.studies, one.instances) == (3, 3)


@pytest.mark.parametrize(
    ("ours", "theirs", "fetched"),
    [
        ("A", ["A", "B"], 1),
        ("A", ["", "B"], 1),
        ("", ["A", "A"], 2),
        ("", ["A", "B"], 0),
        ("", ["", "A"], 2),
    ],
)
def test_another_issuer_is_another_patient(
    store: Store, ours: str, theirs: list[str], fetched: int
) -> None:
    with Keeper(*(Prior(issuer=issuer).add() for issuer in theirs)) as keeper:
        one = haul(store, pointed_at(store, keeper), issuer=ours)
        assert len(retrieval.fetch(one)) == fetched


def test_the_study_that_named_the_patient_is_no_prior(store: Store) -> None:
    receipt = take_in(store)
    own = Prior(uid="1.2.3.1").add()
    with store.db.write() as tx:  # as an eviction leaves it
        tx.run("UPDATE study SET instance_count = 0")
    with Keeper(own) as keeper:
        to = pointed_at(store, keeper)
        prefetches.ask(store.db, receipt.study_id, actor="test")
        task = prefetches.begin(store.db, prefetches.due(store.db, to.id) or 0)
        assert retrieval.fetch(Haul(store, to, task, Pace(store, to), str, str)) == []


# --- what comes --------------------------------------------------------------------------------


def test_what_was_not_asked_for_is_refused_and_noted(store: Store) -> None:
    prior, stranger = Prior().add(2), Prior().add()
    with Keeper(prior) as keeper:
        keeper.extra = stranger.instances
        one = haul(store, pointed_at(store, keeper))
        retrieval.fetch(one)
    assert sorted(keeper.answers.values()) == [0, 0, 0xA900]
    assert held(store).keys() == prior.instances.keys()
    assert len(objects(store)) == 2
    assert any("not of the study asked for" in note for note in one.notes)
    assert any("1 instances failed" in note for note in one.notes)


def test_too_much_that_was_not_asked_for_ends_it(store: Store) -> None:
    prior, stranger = Prior(), Prior().add(50)
    with Keeper(prior) as keeper:
        keeper.extra = stranger.instances
        one = haul(store, pointed_at(store, keeper))
        with pytest.raises(LimitExceeded):
            retrieval.fetch(one)
    assert len(keeper.answers) < 50
    assert objects(store) == []


def test_a_failure_the_archive_counts_is_told(store: Store) -> None:
    with Keeper(Prior().add()) as keeper:
        keeper.final = 0xC000
        one = haul(store, pointed_at(store, keeper))
        retrieval.fetch(one)
    assert any("0xC000" in note for note in one.notes)


def test_the_bytes_of_one_task_are_bounded(store: Store) -> None:
    prior = Prior().add(3, size=700_000)
    with Keeper(prior) as keeper:
        one = haul(store, pointed_at(store, keeper, priors_mib="1"))
        with pytest.raises(LimitExceeded, match="priors_mib"):
            retrieval.fetch(one)
    assert list(held(store)) == list(prior.instances)[:1]
    assert len(objects(store)) == 1


def test_what_is_urgent_ends_it_within_an_instance(store: Store) -> None:
    with Keeper(Prior().add(1, size=2_000_000)) as keeper:
        one = haul(store, pointed_at(store, keeper), urgent=lambda: "something urgent")
        with pytest.raises(Busy, match="something urgent"):
            retrieval.fetch(one)
    assert objects(store) == []


def test_an_interrupted_study_goes_on_with_what_is_missing(store: Store) -> None:
    prior = Prior().add(4)
    with Keeper(prior) as keeper:
        to = pointed_at(store, keeper)
        one = haul(store, to, yields=lambda: "there is something to send" * (one.instances == 2))
        keeper.before_each = lambda: pause(0.3 * (len(keeper.answers) == 2))  # for our C-CANCEL
        with pytest.raises(Busy, match="something to send"):
            retrieval.fetch(one)
        assert keeper.cancels == 1
        came = held(store).keys()
        assert len(came) == 2
        ended(store, one)
        keeper.before_each = lambda: None
        again = haul(store, to)
        assert len(retrieval.fetch(again)) == 1
        asked = {str(uid) for uid in keeper.asked[-1].SOPInstanceUID}
        assert asked == prior.instances.keys() - came
        ended(store, again)
        assert retrieval.fetch(haul(store, to)) == []
    assert held(store).keys() == prior.instances.keys()


def test_an_archive_that_heeds_no_cancel_is_aborted(store: Store) -> None:
    prior = Prior().add(20)
    with Keeper(prior) as keeper:
        keeper.heeds = False
        to = pointed_at(store, keeper)
        one = haul(store, to, yields=lambda: "there is something to send" * (one.instances > 1))
        with pytest.raises(Busy, match="something to send"):
            retrieval.fetch(one)
    assert 2 <= len(held(store)) < 8


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def test_what_a_modality_brought_is_neither_replaced_nor_relabelled(store: Store) -> None:
    prior = Prior().add(2)
    (same, data), (other, _) = prior.instances.items()
    receipt = ingest.receive(store, arrival(sop=same), [data])
    ingest.receive(store, arrival(sop=other), [small(sop=other, study=prior.uid, number="9")])
    before = instances.instance(store.db, receipt.instance_id)
    with store.db.write() as tx:  # fetching it was begun when nothing of it was here
        tx.run("INSERT INTO prefetch_begun VALUES (?, ?)", prior.uid, wall_ms())
    with Keeper(prior) as keeper:
        keeper.extra = prior.instances  # though only what is missing is asked for
        one = haul(store, pointed_at(store, keeper))
        prior.instances[fresh_uid()] = Prior(uid=prior.uid).add().instances.popitem()[1]
        retrieval.fetch(one)
    assert keeper.answers[same] == keeper.answers[other] == 0
    assert instances.instance(store.db, receipt.instance_id) == before
    assert held(store)[same] == held(store)[other] == "modality"
    with store.db.read() as tx:
        assert tx.rows("SELECT state FROM instance WHERE origin = 'prefetch'") == [("comparing",)]
    assert len(objects(store)) == 3


def test_an_archive_without_c_get_says_so(store: Store) -> None:
    with Keeper(Prior().add()) as keeper:
        keeper.offers = {STUDY_ROOT_FIND}
        with pytest.raises(PeerRefused, match="does not offer C-GET"):
            retrieval.fetch(haul(store, pointed_at(store, keeper)))


# --- the role ----------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    monkeypatch.setattr(prefetch, "LOOK_SECONDS", 0.05)


def the_task(store: Store) -> prefetches.Prefetch:
    (task,) = prefetches.listed(store.db)
    return task


@pytest.mark.usefixtures("quick")
def test_what_is_to_be_sent_goes_first(store: Store) -> None:
    prior, sending, go = Prior().add(2), threading.Event(), threading.Event()

    def hold_up() -> None:
        sending.set()
        go.wait(10)

    with Keeper(prior) as keeper:
        keeper.on_store = hold_up
        pointed_at(store, keeper, proof="response")
        take_in(store, study=fresh_uid())
        with forwarding(store):
            assert sending.wait(10)
            until(lambda: prefetches.listed(store.db), "a task is made")
            threading.Event().wait(0.5)
            assert the_task(store).state is PrefetchState.WAITING
            assert not keeper.asked
            go.set()
            until(lambda: the_task(store).state is PrefetchState.DONE, "they are fetched")
    assert prior.instances.keys() <= held(store).keys()
    assert len(keeper.stored) == 1  # nothing fetched is sent anywhere


@pytest.mark.usefixtures("quick")
def test_a_person_who_sends_interrupts_and_it_goes_on(store: Store) -> None:
    prior, begun, sent = Prior().add(3), threading.Event(), threading.Event()

    def wait_once() -> None:
        if keeper.answers and not begun.is_set():
            begun.set()
            sent.wait(10)

    with Keeper(prior) as keeper:
        keeper.before_each = wait_once
        pointed_at(store, keeper, proof="response")
        take_in(store, study=fresh_uid())
        with forwarding(store):
            assert begun.wait(10)
            take_in(store, study=fresh_uid(), patient_id="P2")
            sent.set()
            until(lambda: len(keeper.stored) == 2, "what is new is sent")
            until(
                lambda: prior.instances.keys() <= held(store).keys(), "the rest is fetched after it"
            )


@pytest.mark.usefixtures("quick")
def test_a_refusal_for_good_is_not_asked_again(store: Store) -> None:
    with Keeper(Prior().add()) as keeper:
        keeper.offers = {STUDY_ROOT_FIND}
        pointed_at(store, keeper, proof="response")
        take_in(store, study=fresh_uid())
        with forwarding(store):
            until(lambda: [t for t in prefetches.listed(store.db) if t.state.over], "it is over")
    assert the_task(store).state is PrefetchState.FAILED
    assert "does not offer C-GET" in the_task(store).words


@pytest.mark.usefixtures("quick")
def test_a_line_that_is_down_costs_no_attempt(store: Store) -> None:
    with Keeper() as keeper:
        pointed_at(store, keeper)
    take_in(store)
    with forwarding(store):
        until(lambda: prefetches.listed(store.db), "a task is made")
        threading.Event().wait(0.5)
    assert the_task(store).attempts <= 1


@pytest.mark.usefixtures("quick")
def test_cancelled_while_it_runs(store: Store) -> None:
    prior, begun, go = Prior().add(9), threading.Event(), threading.Event()

    def wait_once() -> None:
        if keeper.answers:
            begun.set()
            go.wait(10)

    with Keeper(prior) as keeper:
        keeper.before_each = wait_once
        pointed_at(store, keeper, proof="response")
        take_in(store, study=fresh_uid())
        with forwarding(store) as sender:
            assert begun.wait(10)
            prefetches.cancel(store.db, the_task(store).id, actor="test")
            go.set()
            until(lambda: not sender._prefetcher._runs, "it has ended")
    assert the_task(store).state is PrefetchState.CANCELLED
    assert the_task(store).instances < 9


# --- what comes by C-MOVE ----------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path / "node") as one:
        yield one


def moved(node: Serving, data: bytes, sop: str, originator: MoveOriginator | None) -> int:
    """The status of a C-STORE of the destination to the node."""
    context = ProposedContext(abstract_syntax=CT, transfer_syntaxes=(EXPLICIT_VR_LE,))
    with request(
        "127.0.0.1",
        node.port,
        calling=AETitle("PACS"),
        called=AETitle("EDGEPACS"),
        contexts=[context],
        limits=QUICK,
    ) as one:
        return one.store(1, CT, UID(sop), [data], originator=originator).status


def moving(node: Serving, study: str) -> None:
    with Keeper() as keeper:
        one = haul(node.store, pointed_at(node.store, keeper, priors="move"))
    prefetches.fetching(node.store.db, one.task.id, uid=study, message_id=7)


def test_a_sub_operation_of_our_c_move_is_a_prior(node: Serving) -> None:
    (sop, data), study = Prior(uid="2.25.77").add().instances.popitem(), "2.25.77"
    moving(node, study)
    assert moved(node, data, sop, MoveOriginator("EDGEPACS", 7)) == 0
    assert held(node.store) == {sop: Origin.PREFETCH}
    with node.store.db.read() as tx:
        assert tx.number("SELECT COUNT(*) FROM delivery") == 0


def test_a_destination_may_bring_nothing_else(node: Serving) -> None:
    sop, data = Prior(uid="2.25.77").add().instances.popitem()
    moving(node, "2.25.77")
    assert moved(node, data, sop, None) == 0x0124
    assert moved(node, data, sop, MoveOriginator("SOMEBODY", 7)) == 0x0124
    assert moved(node, data, sop, MoveOriginator("EDGEPACS", 8)) == 0x0124
    other, wrong = Prior(uid="2.25.78").add().instances.popitem()
    assert moved(node, wrong, other, MoveOriginator("EDGEPACS", 7)) == 0xA900
    assert held(node.store) == {}


def test_what_comes_late_is_refused_even_of_who_may_store(node: Serving) -> None:
    sop, data = Prior(uid="2.25.77").add().instances.popitem()
    node.allow("PACS")
    assert moved(node, data, sop, MoveOriginator("EDGEPACS", 7)) == 0x0124
    assert held(node.store) == {}
    assert moved(node, data, sop, None) == 0
    assert held(node.store) == {sop: Origin.MODALITY}


def test_a_destination_that_is_asked_for_nothing_may_not_store(node: Serving) -> None:
    with Keeper() as keeper:
        pointed_at(node.store, keeper, priors="move")
    context = ProposedContext(abstract_syntax=CT, transfer_syntaxes=(EXPLICIT_VR_LE,))
    with pytest.raises((PeerRefused, PeerUnreachable)):
        request(
            "127.0.0.1",
            node.port,
            calling=AETitle("PACS"),
            called=AETitle("EDGEPACS"),
            contexts=[context],
            limits=QUICK,
        )


def test_roles_are_ours_to_store() -> None:
    found = storage_contexts([CT, "1.2.840.10008.1.1"], 5)
    assert [one.abstract_syntax for one in found] == [CT] * 5
    assert {one.roles for one in found} == {Roles(scu=False, scp=True)}
    assert all(len(one.transfer_syntaxes) == 1 for one in found[1:])
