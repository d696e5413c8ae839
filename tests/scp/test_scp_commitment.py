"""Reports about storage commitment on associations that destinations open, roles reversed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forward.archive import INSTANCE, QUICK, encode
from pydicom.dataset import Dataset
from scp.serving import Serving, serving
from store.making import CT, add_destination, claim_one, states_of, take_in

from edgepacs.dimse import (
    Association,
    AssociationRefused,
    NoContextAccepted,
    ProposedContext,
    Roles,
    request,
)
from edgepacs.dimse.command import Element, Field
from edgepacs.dimse.contexts import (
    EXPLICIT_VR_LE,
    IMPLICIT_VR_LE,
    STORAGE_COMMITMENT_PUSH,
    VERIFICATION,
)
from edgepacs.model import AETitle, Callback, DeliveryState, Service
from edgepacs.store import Store, claims, commitments, destinations

AS_SCP = Roles(scu=False, scp=True)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path / "node") as one:
        yield one


def call(
    node: Serving,
    *,
    title: str = "PACS",
    roles: Roles | None = AS_SCP,
    abstract_syntax: str = STORAGE_COMMITMENT_PUSH,
    syntax: str = IMPLICIT_VR_LE,
) -> Association:
    return request(
        "127.0.0.1",
        node.port,
        calling=AETitle(title),
        called=AETitle("EDGEPACS"),
        contexts=[
            ProposedContext(
                abstract_syntax=abstract_syntax, transfer_syntaxes=(syntax,), roles=roles
            )
        ],
        limits=QUICK,
    )


def asked(store: Store) -> commitments.Request:
    """A request about one instance that a destination has answered."""
    destination = add_destination(store)
    take_in(store)
    claims.finish(store.db, claim_one(store, destination).id, DeliveryState.SENT, result="success")
    items = commitments.askable(store.db, destination, age_ms=0, most=9)
    made = commitments.begin(store.db, destination, items)
    assert made is not None
    return made


def report_on(made: commitments.Request, transaction: str = "") -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = CT
    item.ReferencedSOPInstanceUID = made.items[0].sop_instance_uid
    report = Dataset()
    report.TransactionUID = transaction or made.transaction_uid
    report.ReferencedSOPSequence = [item]
    return report


def tell(
    one: Association,
    data: bytes | None,
    *,
    event: int = 1,
    field: Field = Field.N_EVENT_REPORT_RQ,
    sop_class: str = STORAGE_COMMITMENT_PUSH,
) -> int:
    elements = {
        Element.AFFECTED_SOP_CLASS_UID: sop_class,
        Element.COMMAND_FIELD: field,
        Element.AFFECTED_SOP_INSTANCE_UID: INSTANCE,
        Element.EVENT_TYPE_ID: event,
    }
    (answer,) = one.ask(1, elements, None if data is None else (data,))
    if answer.status == 0:
        assert answer.command.number(Element.EVENT_TYPE_ID) == event  # PS3.7 10.3.1
    return answer.status


def reported(store: Store) -> list[str]:
    with store.db.read() as tx:
        return [str(row[0]) for row in tx.rows("SELECT state FROM commitment")]


def incidents(store: Store) -> list[str]:
    with store.db.read() as tx:
        return [str(r[0]) for r in tx.rows("SELECT detail FROM audit WHERE act = 'report refused'")]


def test_a_report_is_written_down_and_left_to_forward(node: Serving) -> None:
    made = asked(node.store)
    with call(node) as one:
        assert one.contexts[1].roles == AS_SCP
        assert tell(one, encode(report_on(made))) == 0
        assert reported(node.store) == ["reported"]  # before the answer
    assert states_of(node.store) == ["awaiting_commitment"]
    assert commitments.callback(node.store.db, 1) is Callback.NEW


def test_the_same_report_again_is_answered_with_success(node: Serving) -> None:
    made = asked(node.store)
    with call(node) as one:
        for _ in range(3):
            assert tell(one, encode(report_on(made))) == 0
    assert reported(node.store) == ["reported"]


def test_a_report_in_explicit_vr_is_read_as_well(node: Serving) -> None:
    made = asked(node.store)
    report = report_on(made)
    with call(node, syntax=EXPLICIT_VR_LE) as one:
        assert tell(one, encode(report, EXPLICIT_VR_LE)) == 0
    assert reported(node.store) == ["reported"]


def test_an_unknown_transaction_is_refused_and_noted(node: Serving) -> None:
    made = asked(node.store)
    with call(node) as one:
        assert tell(one, encode(report_on(made, "2.25.4711"))) == 0x0115  # PS3.7 10.1.1.1.8
    assert reported(node.store) == ["asked"]
    (words,) = incidents(node.store)
    assert "unknown Transaction UID" in words
    assert "4711" not in words


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08\x00",
        b"\xff" * 64,
        encode(Dataset()),
        b"\x08\x00\x99\x11\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 9,
        b"\x08\x00\x99\x11\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\x7f",
    ],
)
def test_what_cannot_be_read_is_refused_and_the_association_goes_on(
    node: Serving, data: bytes
) -> None:
    made = asked(node.store)
    with call(node) as one:
        assert tell(one, data or None) == 0x0115
        assert tell(one, encode(report_on(made))) == 0
    assert reported(node.store) == ["reported"]
    assert len(incidents(node.store)) == 1


def test_other_events_and_other_operations_are_refused(node: Serving) -> None:
    made = asked(node.store)
    with call(node) as one:
        assert tell(one, encode(report_on(made)), event=7) == 0x0113
        assert tell(one, encode(report_on(made)), field=Field.N_ACTION_RQ) == 0x0211
        assert tell(one, encode(report_on(made)), field=Field.C_STORE_RQ) == 0x0211
        assert tell(one, encode(report_on(made)), sop_class=VERIFICATION) == 0x0122
    assert reported(node.store) == ["asked"]


def test_a_destination_may_bring_reports_and_nothing_else(node: Serving) -> None:
    add_destination(node.store)
    with call(node, abstract_syntax=VERIFICATION, roles=None) as one:
        assert one.echo() == 0
    with pytest.raises(NoContextAccepted):
        call(node, abstract_syntax=CT, roles=None)


def test_a_destination_that_names_no_roles_is_understood(node: Serving) -> None:
    made = asked(node.store)
    with call(node, roles=None) as one:
        assert tell(one, encode(report_on(made))) == 0
    assert reported(node.store) == ["reported"]


def allowed(*services: Service) -> Callable[[Serving], None]:
    return lambda node: node.allow("PACS", services=services)


def elsewhere(node: Serving) -> None:
    with node.store.db.write() as tx:
        destinations.add(tx, name="far", title="PACS", host="192.0.2.1", port=104, actor="test")


def by_web(node: Serving) -> None:
    add_destination(node.store)
    with node.store.db.write() as tx:
        destinations.change(tx, "pacs", {"transport": "stow"}, actor="test")


@pytest.mark.parametrize(
    "known", [lambda node: add_destination(node.store), allowed(Service.COMMITMENT)]
)
def test_who_may_bring_reports(node: Serving, known: Callable[[Serving], object]) -> None:
    known(node)
    with call(node) as one:
        assert one.contexts[1].roles == AS_SCP


@pytest.mark.parametrize("known", [allowed(Service.ECHO, Service.STORE), elsewhere, by_web])
def test_who_may_not_bring_reports(node: Serving, known: Callable[[Serving], object]) -> None:
    known(node)
    with pytest.raises((AssociationRefused, NoContextAccepted)):
        call(node)


def test_a_modality_that_is_a_destination_as_well_may_do_both(node: Serving) -> None:
    made = asked(node.store)
    node.allow("PACS", services=(Service.STORE,))
    with call(node, abstract_syntax=CT, syntax=EXPLICIT_VR_LE, roles=None) as one:
        assert one.contexts
    with call(node) as one:
        assert tell(one, encode(report_on(made))) == 0


def test_a_modality_that_may_not_ask_us_to_commit_is_not_let(node: Serving) -> None:
    node.allow("CT1", services=(Service.ECHO, Service.STORE))
    with pytest.raises(NoContextAccepted):
        call(node, title="CT1", roles=None)
