"""Every item of A-ASSOCIATE answered, as requestors of other makes read it (PS3.7 D.3, PS3.8 9.3).

pynetdicom and DCMTK ask; what comes back is what they decoded, not what we meant.
"""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dimse.dimse_node import Script
from harness.corpus import pydicom_file
from harness.dcmtk import require
from pydicom.uid import UID
from pynetdicom import AE, build_context
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from scp.serving import Serving, serving

from edgepacs.dimse import Limits, Roles, pdu
from edgepacs.dimse.contexts import STORAGE_SUPPORT
from edgepacs.dimse.implementation import CLASS_UID, VERSION
from edgepacs.dimse.items import RoleSelection, UserInformation
from edgepacs.model import Service

VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
FIND = "1.2.840.10008.5.1.4.1.2.1.1"
PRIVATE = "1.2.826.0.1.3680043.10.999.1"
STORAGE_CLASS = "1.2.840.10008.4.2"
QUERY_CLASS = "1.2.840.10008.4.1"

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
JPEG, JPEG_SV1 = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70"
JPEG_LS, JPEG_2000, JPEG_2000_LOSSLESS = (f"1.2.840.10008.1.2.4.{n}" for n in (80, 91, 90))
HTJ2K, HTJ2K_LOSSLESS = "1.2.840.10008.1.2.4.203", "1.2.840.10008.1.2.4.201"
RLE, MPEG2, JPIP = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.94"
UNKNOWN = "1.2.826.0.1.3680043.10.999.2"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One receiver for all: nothing is stored here that counts."""
    with serving(tmp_path_factory.mktemp("negotiation") / "node") as one:
        one.allow()
        one.allow("ECHOES", services=(Service.ECHO,))
        yield one


@contextmanager
def associated(
    node: Serving,
    contexts: Sequence[tuple[str, Sequence[str]]],
    items: Sequence[Any] = (),
    *,
    calling: str = "HARNESS",
) -> Iterator[Association]:
    """An association of pynetdicom's; `items` are further user information."""
    ae = AE(ae_title=calling)
    ae.acse_timeout = ae.network_timeout = 10
    proposed = [build_context(UID(one), [UID(s) for s in syntaxes]) for one, syntaxes in contexts]
    association = ae.associate(
        "127.0.0.1", node.port, contexts=proposed, ae_title="EDGEPACS", ext_neg=list(items)
    )
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def answers(association: Association) -> dict[str, tuple[int, str]]:
    """Result and transfer syntax by abstract syntax, as they stood in the A-ASSOCIATE-AC."""
    given = association.acceptor.primitive.presentation_context_definition_results_list
    proposed = association.requestor.get_contexts("pcdl")
    names = {one.context_id: str(one.abstract_syntax) for one in proposed}
    return {
        names[one.context_id]: (one.result, str(one.transfer_syntax[0]) if not one.result else "")
        for one in given
    }


# -- presentation contexts (PS3.8 9.3.3.2)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([IMPLICIT, EXPLICIT], EXPLICIT),
        ([JPEG, IMPLICIT, EXPLICIT, JPEG_LS], EXPLICIT),
        ([BIG, IMPLICIT], IMPLICIT),
        ([JPEG_LS, BIG], BIG),
        ([JPEG, JPEG_2000_LOSSLESS], JPEG_2000_LOSSLESS),
        ([RLE, JPEG_LS, JPEG_SV1], RLE),
        ([HTJ2K_LOSSLESS, JPEG_LS], HTJ2K_LOSSLESS),
        ([JPEG_2000, JPEG, HTJ2K], JPEG_2000),
        ([UNKNOWN, JPEG], JPEG),
        ([UNKNOWN, MPEG2], MPEG2),
        ([UNKNOWN], UNKNOWN),
        ([JPIP, JPEG], JPEG),
    ],
)
def test_what_loses_least_is_chosen_and_among_equals_the_first(
    node: Serving, offered: list[str], chosen: str
) -> None:
    with associated(node, [(CT, offered)]) as association:
        assert answers(association) == {CT: (0, chosen)}


def test_every_context_has_its_own_answer(node: Serving) -> None:
    contexts = [
        (VERIFICATION, [IMPLICIT]),
        (CT, [IMPLICIT, EXPLICIT]),
        (MR, [JPIP]),
        (PRIVATE, [EXPLICIT]),
        (FIND, [EXPLICIT]),
        ("1.2.840.10008.5.1.4.38.1", [EXPLICIT]),  # Hanging Protocol Storage (PS3.4 GG)
        ("1.2.840.10008.1.20.1", [EXPLICIT]),  # Storage Commitment Push Model
    ]
    with associated(node, contexts) as association:
        assert answers(association) == {
            VERIFICATION: (0, IMPLICIT),
            CT: (0, EXPLICIT),
            MR: (4, ""),
            PRIVATE: (0, EXPLICIT),
            FIND: (1, ""),
            "1.2.840.10008.5.1.4.38.1": (3, ""),
            "1.2.840.10008.1.20.1": (1, ""),
        }


def test_verification_wants_a_native_transfer_syntax(node: Serving) -> None:
    with associated(node, [(VERIFICATION, [JPEG]), (CT, [JPEG])]) as association:
        assert answers(association) == {VERIFICATION: (4, ""), CT: (0, JPEG)}


def test_what_a_caller_may_not_is_the_users_rejection(node: Serving) -> None:
    contexts = [(VERIFICATION, [IMPLICIT]), (CT, [EXPLICIT])]
    with associated(node, contexts, calling="ECHOES") as association:
        assert answers(association) == {VERIFICATION: (0, IMPLICIT), CT: (1, "")}


def test_one_sop_class_in_many_contexts(node: Serving) -> None:
    """As modalities do: one context for each transfer syntax, accepted every one."""
    syntaxes = [IMPLICIT, EXPLICIT, JPEG, JPEG_LS, JPEG_2000_LOSSLESS, RLE]
    with associated(node, [(CT, [one]) for one in syntaxes]) as association:
        accepted = [str(one.transfer_syntax[0]) for one in association.accepted_contexts]
        assert accepted == syntaxes


# -- user information (PS3.7 D.3.3)


def test_maximum_length_and_implementation_are_told(node: Serving) -> None:
    """PS3.8 D.1, PS3.7 D.3.3.2."""
    with associated(node, [(CT, [EXPLICIT])]) as association:
        acceptor = association.acceptor
        assert acceptor.maximum_length == Limits().max_pdu_length
        assert str(acceptor.implementation_class_uid) == CLASS_UID
        assert acceptor.implementation_version_name == VERSION
        assert acceptor.primitive.application_context_name == "1.2.840.10008.3.1.1.1"
        items = {type(one).__name__ for one in acceptor.primitive.user_information}
    assert items == {
        "MaximumLengthNotification",
        "ImplementationClassUIDNotification",
        "ImplementationVersionNameNotification",
    }


@pytest.mark.parametrize(
    ("proposed", "answered"),
    [((0, 0), (16, 1)), ((1, 1), (1, 1)), ((5, 3), (5, 1)), ((1000, 1000), (16, 1))],
)
def test_the_operations_window_is_never_widened(
    node: Serving, proposed: tuple[int, int], answered: tuple[int, int]
) -> None:
    """PS3.7 D.3.3.3; 0 is without limit."""
    item = AsynchronousOperationsWindowNegotiation()
    item.maximum_number_operations_invoked, item.maximum_number_operations_performed = proposed
    with associated(node, [(CT, [EXPLICIT])], [item]) as association:
        assert association.acceptor.asynchronous_operations == answered


def roles(sop_class: str, *, scu: bool, scp: bool) -> SCP_SCU_RoleSelectionNegotiation:
    item = SCP_SCU_RoleSelectionNegotiation()
    item.sop_class_uid, item.scu_role, item.scp_role = UID(sop_class), scu, scp
    return item


def test_roles_are_answered_for_each_sop_class(node: Serving) -> None:
    """PS3.7 D.3.3.4: 1 accepts a role that was proposed, 0 turns it down."""
    items = [roles(CT, scu=True, scp=True), roles(MR, scu=True, scp=False)]
    with associated(node, [(CT, [EXPLICIT]), (MR, [EXPLICIT])], items) as association:
        given = {
            str(uid): (item.scu_role, item.scp_role)
            for uid, item in association.acceptor.role_selection.items()
        }
        assert given == {CT: (True, False), MR: (True, False)}
        assert answers(association) == {CT: (0, EXPLICIT), MR: (0, EXPLICIT)}


def test_a_context_without_a_role_left_is_rejected(node: Serving) -> None:
    """Whoever would only be SCP of a storage SOP class has nothing to do here."""
    items = [roles(CT, scu=False, scp=True)]
    with associated(node, [(CT, [EXPLICIT]), (MR, [EXPLICIT])], items) as association:
        assert answers(association) == {CT: (1, ""), MR: (0, EXPLICIT)}
        assert association.acceptor.role_selection == {}


def test_a_proposal_of_neither_role_is_none(node: Serving) -> None:
    """Some leave both at 0 for the default roles; they store all the same."""
    peer = Script(node.port)
    none = (RoleSelection(CT, Roles(scu=False, scp=False)),)
    information = UserInformation(implementation_class_uid="1.2.3", roles=none)
    kind, body = peer.associate(calling_ae="HARNESS", user_information=information)
    peer.close()
    assert kind == pdu.PduType.ASSOCIATE_AC
    accepted = pdu.decode_associate_accept(memoryview(body))
    assert [one.result for one in accepted.contexts] == [0, 0]
    assert accepted.user_information.roles == ()


def extended(sop_class: str, value: bytes) -> SOPClassExtendedNegotiation:
    item = SOPClassExtendedNegotiation()
    item.sop_class_uid, item.service_class_application_information = UID(sop_class), value
    return item


def test_extended_negotiation_is_answered_for_storage_alone(node: Serving) -> None:
    """PS3.7 D.3.3.5, PS3.4 B.3.1."""
    items = [extended(CT, b"\3\0\0\0\0"), extended(FIND, b"\1"), extended(VERIFICATION, b"\1")]
    contexts = [(CT, [EXPLICIT]), (FIND, [EXPLICIT]), (VERIFICATION, [IMPLICIT])]
    with associated(node, contexts, items) as association:
        assert association.acceptor.sop_class_extended == {UID(CT): STORAGE_SUPPORT}


@pytest.mark.parametrize(("service", "result"), [(STORAGE_CLASS, 0), (QUERY_CLASS, 3)])
def test_the_service_class_of_an_unknown_sop_class_counts(
    node: Serving, service: str, result: int
) -> None:
    """PS3.7 D.3.3.6; an A-ASSOCIATE-AC never holds this item."""
    item = SOPClassCommonExtendedNegotiation()
    item.sop_class_uid, item.service_class_uid = UID(PRIVATE), UID(service)
    item.related_general_sop_class_identification = [UID(CT)]
    with associated(node, [(PRIVATE, [EXPLICIT]), (MR, [EXPLICIT])], [item]) as association:
        assert answers(association)[PRIVATE][0] == result
        assert association.acceptor.sop_class_common_extended == {}


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5])
def test_user_identity(node: Serving, kind: int, *, asked: bool) -> None:
    """PS3.7 D.3.3.7: empty for a name, with or without passcode; a ticket, an assertion or a
    token could not be answered in kind, so that the association stands without an answer.
    """
    item = UserIdentityNegotiation()
    item.user_identity_type, item.positive_response_requested = kind, asked
    item.primary_field = b"somebody"
    if kind == 2:
        item.secondary_field = b"passcode"
    with associated(node, [(CT, [EXPLICIT])], [item]) as association:
        assert association.is_established
        answer = association.acceptor.user_identity
        if asked and kind in (1, 2):
            assert answer is not None
            assert answer.server_response == b""
        else:
            assert answer is None


def test_everything_at_once(node: Serving) -> None:
    identity = UserIdentityNegotiation()
    identity.user_identity_type, identity.positive_response_requested = 1, True
    identity.primary_field = b"somebody"
    window = AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked = 4
    items = [identity, window, roles(CT, scu=True, scp=True), extended(CT, b"\2\0\0\0\0")]
    with associated(node, [(CT, [JPEG, EXPLICIT])], items) as association:
        acceptor = association.acceptor
        assert answers(association) == {CT: (0, EXPLICIT)}
        assert acceptor.user_identity is not None
        assert acceptor.asynchronous_operations == (4, 1)
        assert acceptor.sop_class_extended == {UID(CT): STORAGE_SUPPORT}
        assert set(acceptor.role_selection) == {UID(CT)}


# -- DCMTK


def storescu(node: Serving, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(require("storescu"), "-d", "-aet", "HARNESS", "-aec", "EDGEPACS", *options),
            *("127.0.0.1", str(node.port), str(pydicom_file("CT_small.dcm"))),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.peers
@pytest.mark.parametrize(
    "options",
    [
        ("-usr", "somebody"),
        ("-usr", "somebody", "-rsp"),
        ("-usr", "somebody", "-pwd", "passcode", "-rsp"),
        ("-usr", "somebody", "-epw", "-rsp"),
        ("-kt", "TICKET"),
        ("--saml", "TICKET"),
        ("--jwt", "TICKET"),
    ],
)
def test_dcmtk_with_user_identities(node: Serving, tmp_path: Path, options: tuple[str]) -> None:
    ticket = tmp_path / "ticket"
    ticket.write_bytes(b"<a>ticket</a>")
    run = storescu(node, *(str(ticket) if one == "TICKET" else one for one in options))
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.peers
@pytest.mark.parametrize("option", ["-xs", "-xy", "-xe", "-xi", "-xb", "--propose-lossless"])
def test_dcmtk_proposes_and_is_understood(node: Serving, option: str) -> None:
    """What DCMTK offers beside a compressed syntax is native, and native is what it then sends."""
    run = storescu(node, option)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "Association Accepted" in run.stderr + run.stdout
