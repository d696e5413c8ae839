import errno
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import sender
from harness.corpus import sample
from harness.fault import flip_bit
from harness.made import ct, new_uid
from harness.part10 import EXPLICIT_LE, Part10
from harness.sender import Rejected
from harness.waiting import free_port, until
from pynetdicom import AE
from pynetdicom.sop_class import PatientRootQueryRetrieveInformationModelFind
from scp.serving import Serving, serving
from store.making import objects, small, take_in

from edgepacs.custody import readout
from edgepacs.dimse import Association, Element, Field, Limits, ProposedContext, request
from edgepacs.errors import ConfigurationError, PeerError, StorageFault
from edgepacs.model import UID, AETitle, InstanceState, Service
from edgepacs.scp import admission
from edgepacs.store import fsck, instances, peers, studies

CT = "1.2.840.10008.5.1.4.1.1.2"


def refused(node: Serving) -> list[tuple[str, str, str]]:
    return [(one.calling_ae, one.called_ae, one.reason) for one in peers.refused(node.store.db)]


def part_of(data: bytes, sop: str, sop_class: str = CT) -> Part10:
    return Part10(
        path=None,
        sop_class=sop_class,
        sop_instance=sop,
        transfer_syntax=EXPLICIT_LE,
        modality="CT",
        data=data,
    )


def send_one(node: Serving, part: Part10) -> sender.Answer:
    (answer,) = sender.send([part], node.port)
    return answer


# -- who may call


def test_a_known_caller_is_answered(node: Serving) -> None:
    assert sender.echo(node.port)
    assert sender.echo(node.port, called="OLDNAME")
    assert refused(node) == []
    with node.store.db.read() as tx:
        assert tx.number("SELECT COUNT(*) FROM association") == 0  # an echo leaves none


@pytest.mark.bad_input(21)
@pytest.mark.parametrize(
    ("calling", "called", "answer", "reason"),
    [
        ("STRANGER", "EDGEPACS", (1, 1, 3), admission.UNKNOWN_CALLER),
        ("HARNESS", "NOBODY", (1, 1, 7), admission.WRONG_CALLED),
        ("STRANGER", "NOBODY", (1, 1, 7), admission.WRONG_CALLED),
        ("ELSEWHERE", "EDGEPACS", (1, 1, 3), admission.WRONG_HOST),
    ],
)
def test_others_are_refused_and_listed(
    node: Serving, calling: str, called: str, answer: tuple[int, int, int], reason: str
) -> None:
    """PS3.8 9.3.4: result, source and reason."""
    node.allow("ELSEWHERE", "192.0.2.7")
    assert node.rejection(calling, called) == answer
    node.idle()
    assert refused(node) == [(calling, called, reason)]


def test_one_command_lets_a_refused_caller_in(node: Serving) -> None:
    assert not sender.echo(node.port, calling="STRANGER")
    node.idle()
    (one,) = peers.refused(node.store.db)
    node.allow(one.calling_ae, one.host)
    assert sender.echo(node.port, calling="STRANGER")
    assert refused(node) == []


@pytest.mark.parametrize(
    ("services", "may_echo", "may_store"),
    [
        ((Service.ECHO,), True, False),
        ((Service.STORE,), False, True),
        ((Service.FIND,), False, False),
    ],
)
def test_a_caller_may_what_it_was_allowed(
    node: Serving, services: tuple[Service, ...], *, may_echo: bool, may_store: bool
) -> None:
    node.allow(services=services)
    with_both = [("1.2.840.10008.1.1", "1.2.840.10008.1.2"), (CT, EXPLICIT_LE)]
    if not (may_echo or may_store):
        with pytest.raises(Rejected), sender.association(node.port, with_both):
            pass
        return
    with sender.association(node.port, with_both) as association:
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
    assert ("1.2.840.10008.1.1" in accepted) == may_echo
    assert (CT in accepted) == may_store


def test_other_services_are_not_accepted(node: Serving) -> None:
    find = str(PatientRootQueryRetrieveInformationModelFind)
    with sender.association(node.port, [(find, EXPLICIT_LE), (CT, EXPLICIT_LE)]) as association:
        assert [c.abstract_syntax for c in association.accepted_contexts] == [CT]


def own_association(node: Serving) -> Association:
    """An association of our own requestor, with context 1 for CT storage."""
    return request(
        "127.0.0.1",
        node.port,
        calling=AETitle("HARNESS"),
        called=AETitle("EDGEPACS"),
        contexts=[ProposedContext(abstract_syntax=CT, transfer_syntaxes=(EXPLICIT_LE,))],
        limits=Limits(response=10.0),
    )


def test_a_context_for_one_class_stores_no_other(node: Serving) -> None:
    """What was negotiated is what was allowed."""
    part = ct()
    with own_association(node) as association:
        uid = UID(part.sop_instance)
        other = association.store(1, UID("1.2.840.10008.5.1.4.1.1.4"), uid, [part.data])
        assert other.status == 0x0122
        assert association.store(1, UID(CT), uid, [part.data]).status == 0
    assert len(objects(node.store)) == 1


@pytest.mark.bad_input(16)
def test_more_associations_than_allowed_are_refused_for_now(tmp_path: Path) -> None:
    with serving(tmp_path / "node", max_associations=2) as node:
        node.allow()
        with sender.association(node.port), sender.association(node.port):
            assert node.rejection() == (2, 3, 2)  # PS3.8 9.3.4
        node.idle()
        assert sender.echo(node.port)
        assert refused(node) == []  # not for who it was


# -- storing


def test_every_kind_of_instance_is_kept_as_it_came(node: Serving) -> None:
    parts = [part for part in sample() if part.transfer_syntax != "1.2.840.10008.1.2.4.94"]
    answers = sender.send(parts, node.port)
    kept = {part.sop_instance: part for part in parts}
    stored = 0
    for answer in answers:
        if answer.status != 0:
            assert answer.status in (0xA900, 0xC000)
            assert answer.comment
            continue
        stored += 1
        row = instances.stored_version(node.store.db, UID(answer.sop_instance))
        assert row is not None
        part = kept[answer.sop_instance]
        with readout.sealed(node.store, row) as sealed:
            assert b"".join(sealed.chunks()) == part.data
        assert (row.sop_class_uid, row.transfer_syntax_uid, row.source) == (
            part.sop_class,
            part.transfer_syntax,
            "HARNESS",
        )
    assert stored > 20
    assert fsck.check(node.store).sound


def test_private_and_unknown_classes_are_storage(node: Serving) -> None:
    data = small(sop="1.2.77", sop_class="1.2.840.99999.1")
    assert send_one(node, part_of(data, "1.2.77", "1.2.840.99999.1")).status == 0


def test_an_instance_knows_its_association(node: Serving) -> None:
    part = ct()
    assert send_one(node, part).status == 0
    with node.store.db.read() as tx:
        rows = tx.rows(
            "SELECT calling_ae, called_ae, host FROM instance JOIN association "
            "ON association.id = instance.association"
        )
    assert rows == [("HARNESS", "EDGEPACS", "127.0.0.1")]


@pytest.mark.bad_input(28, 40)
@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (small(sop="9.9.9"), 0xA900, "SOP Instance UID"),
        (small(sop="1.2.3.4", study=""), 0xA900, "Study Instance UID (0020,000D)"),
        (small(sop="1.2.3.4", series="../x"), 0xA900, "Series Instance UID (0020,000E)"),
        (small(sop="1.2.3.4")[:-1], 0xC000, "middle of an element"),
    ],
)
def test_a_refusal_names_the_field(node: Serving, data: bytes, status: int, words: str) -> None:
    """PS3.4 B.2.3; the comment says what, never the value."""
    part = part_of(data, "1.2.3.4")
    good = ct()
    with sender.association(node.port, [(CT, EXPLICIT_LE)]) as association:
        answer = sender.store(association, part)
        assert (answer.status, words in answer.comment) == (status, True), answer
        assert len(answer.comment) <= 64
        assert sender.store(association, good, 2).status == 0  # the association lives on
    assert len(objects(node.store)) == 1


def test_the_same_again_and_other_content_are_both_success(node: Serving) -> None:
    part = ct()
    other = ct(sop=part.sop_instance, patient_name="Other^Name")
    answers = sender.send([part, part, other], node.port)
    assert [one.status for one in answers] == [0, 0, 0]
    assert len(instances.waiting(node.store.db, InstanceState.COMPARING)) == 1
    assert len(objects(node.store)) == 2


@pytest.mark.bad_input(36)
def test_a_full_disk_is_a700(tmp_path: Path) -> None:
    with serving(tmp_path / "node") as node:
        node.allow()
        node.store.vault._reserve = 1 << 60
        answer = send_one(node, ct())
        assert answer.status == 0xA700
        assert "reserve" in answer.comment
        assert objects(node.store) == []
        node.store.vault._reserve = 0
        assert send_one(node, ct()).status == 0


def test_an_object_too_large_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "node", max_object_mib=1) as node:
        node.allow()
        answer = send_one(node, ct(side=1000))
        assert answer.status is None or 0xC000 <= answer.status <= 0xCFFF
        node.idle()
        assert objects(node.store) == []
        assert send_one(node, ct()).status == 0


class _Cut(Exception):
    """The sender's own end."""


@pytest.mark.bad_input(25)
@pytest.mark.parametrize("way", ["abort", "reset"])
def test_a_line_that_breaks_within_a_data_set_leaves_nothing(node: Serving, way: str) -> None:
    part = ct(side=1500)
    association = own_association(node)

    def half() -> Iterator[bytes]:
        yield part.data[:1_000_000]
        until(lambda: objects(node.store), "the object has begun")
        if way == "reset":
            association._line._socket.shutdown(socket.SHUT_RDWR)
            yield part.data[1_000_000:]
        raise _Cut

    with pytest.raises((_Cut, PeerError)), association:
        association.store(1, UID(CT), UID(part.sop_instance), half())
    node.idle()
    assert objects(node.store) == []
    assert studies.counts(node.store.db)["instance"] == 0
    assert send_one(node, part).status == 0


def test_associations_store_side_by_side(node: Serving) -> None:
    study, series = new_uid(), new_uid()
    lots = [[ct(study=study, series=series) for _ in range(8)] for _ in range(4)]
    answers: list[sender.Answer] = []

    def run(lot: list[Part10]) -> None:
        answers.extend(sender.send(lot, node.port))

    threads = [threading.Thread(target=run, args=(lot,)) for lot in lots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [one.status for one in answers] == [0] * 32
    (found,) = studies.search(node.store.db, studies.Search())
    assert (found.instance_count, found.series_count) == (32, 1)
    assert fsck.check(node.store).verified == 32


def test_an_unknown_operation_is_answered(node: Serving) -> None:
    """PS3.7 C.5.20: unrecognised operation."""
    part = ct()
    find = {Element.AFFECTED_SOP_CLASS_UID: CT, Element.COMMAND_FIELD: Field.C_FIND_RQ}
    with own_association(node) as association:
        (answer,) = association.ask(1, find, [b"\x08\x00\x52\x00CS\x06\x00STUDY "])
        assert answer.status == 0x0211
        uid = UID(part.sop_instance)
        assert association.store(1, UID(CT), uid, [part.data]).status == 0


# -- the listener


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving(tmp_path / "node", port=port) as node:
            node.thread.join(10)
            (error,) = node.ended
            assert isinstance(error, ConfigurationError)
            assert f"port {port}" in str(error)


def test_a_stop_lets_associations_end(node: Serving) -> None:
    with sender.association(node.port, [(CT, EXPLICIT_LE)]) as association:
        assert sender.store(association, ct()).status == 0
        node.stop.set()
        assert sender.store(association, ct(), 2).status == 0
    assert node.end() is None


def test_after_a_storage_fault_the_listener_ends_with_it(
    node: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:

    def failing(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", failing)
        answer = send_one(node, ct())
    assert answer.status == 0xA700
    node.thread.join(15)
    assert isinstance(node.ended[0], StorageFault)
    assert studies.counts(node.store.db)["instance"] == 0


@pytest.mark.bad_input(14, 15)
def test_tls_and_plain_stand_side_by_side_and_silence_delays_nobody(tmp_path: Path) -> None:
    tls_port = free_port()
    with serving(tmp_path / "node", tls_port=tls_port) as node:
        node.allow()
        silent = socket.create_connection(("127.0.0.1", tls_port))
        plain = socket.create_connection(("127.0.0.1", tls_port))
        plain.sendall(b"\1\0\0\0\0\4abcd")
        trust = ssl.create_default_context(cafile=str(tmp_path / "node" / "tls" / "site.crt"))
        ae = AE("HARNESS")
        ae.add_requested_context("1.2.840.10008.1.1")
        association = ae.associate(
            "127.0.0.1", tls_port, ae_title="EDGEPACS", tls_args=(trust, "localhost")
        )
        assert association.is_established
        assert association.send_c_echo().Status == 0
        association.release()
        assert sender.echo(node.port)
        for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            weak = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            weak.check_hostname = False
            weak.verify_mode = ssl.CERT_NONE
            weak.minimum_version = ssl.TLSVersion.TLSv1
            weak.maximum_version = old
            with (
                socket.create_connection(("127.0.0.1", tls_port)) as raw,
                pytest.raises(ssl.SSLError),
            ):
                weak.wrap_socket(raw)
        silent.close()
        plain.close()


def test_an_index_that_fails_refuses_for_now(node: Serving) -> None:
    take_in(node.store)
    with node.store.db.write() as tx:
        tx.run("ALTER TABLE ae RENAME TO hidden")
    with pytest.raises(Rejected), sender.association(node.port):
        pass
    with node.store.db.write() as tx:
        tx.run("ALTER TABLE hidden RENAME TO ae")
    assert sender.echo(node.port)
    for path in objects(node.store):
        flip_bit(path, -1)
    assert not fsck.check(node.store).sound
