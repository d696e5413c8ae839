"""Which presentation contexts are accepted, and with which transfer syntax.

Within one context the choice falls on what loses least: native before reversible before lossy,
because choosing JPEG Baseline would make a modality compress lossily what it holds natively.
What nobody knows is accepted last and stored verbatim.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import MappingProxyType

from edgepacs.dimse.items import DEFAULT_ROLES, ContextResult, ProposedContext, Roles


def _registry() -> Mapping[str, tuple[str, str, str, str, str]]:
    """The UIDs of PS3.6 annex A as pydicom keeps them, without loading the rest of pydicom.

    A receiver needs nothing else of it, and with numpy it would be 20 MB larger.
    """
    package = find_spec("pydicom")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "_uid_dict.py"
    spec = spec_from_file_location("edgepacs_uid_registry", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.UID_dictionary  # type: ignore[no-any-return]


_REGISTRY = _registry()

VERIFICATION = "1.2.840.10008.1.1"  # PS3.4 A.4
STORAGE_SERVICE_CLASS = "1.2.840.10008.4.2"  # PS3.6 annex A
STORAGE_COMMITMENT_PUSH = "1.2.840.10008.1.20.1"  # PS3.4 J.3
MODALITY_WORKLIST_FIND = "1.2.840.10008.5.1.4.31"  # PS3.4 K.6
PERFORMED_PROCEDURE_STEP = "1.2.840.10008.3.1.2.3.3"  # PS3.4 F.7
INSTANCE_AVAILABILITY = "1.2.840.10008.5.1.4.33"  # PS3.4 R.3

EXPLICIT_VR_LE = "1.2.840.10008.1.2.1"
IMPLICIT_VR_LE = "1.2.840.10008.1.2"
EXPLICIT_VR_BE = "1.2.840.10008.1.2.2"
DEFLATED_EXPLICIT_VR_LE = "1.2.840.10008.1.2.1.99"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
HTJ2K_LOSSLESS = "1.2.840.10008.1.2.4.201"
JPEG_XL_LOSSLESS = "1.2.840.10008.1.2.4.110"
RLE_LOSSLESS = "1.2.840.10008.1.2.5"

# PS3.4 B.3.1, Service-Class-Application-Information of an A-ASSOCIATE-AC: level 2 (all elements
# kept), digital signature level 3 (bit-preserving), no coercion of elements.
STORAGE_SUPPORT = bytes((2, 0, 3, 0, 0))


class Preference(IntEnum):
    """Classes of transfer syntaxes, best first."""

    EXPLICIT = 0
    IMPLICIT = 1
    NATIVE = 2
    REVERSIBLE = 3
    LOSSY = 4
    UNKNOWN = 5


_JPEG_FAMILY = "1.2.840.10008.1.2.4."  # PS3.6 annex A: JPEG, MPEG, HEVC, JPEG 2000, JPEG XL
_PREFERENCE: Mapping[str, Preference] = MappingProxyType(
    {
        EXPLICIT_VR_LE: Preference.EXPLICIT,
        IMPLICIT_VR_LE: Preference.IMPLICIT,
        EXPLICIT_VR_BE: Preference.NATIVE,
        DEFLATED_EXPLICIT_VR_LE: Preference.NATIVE,
        "1.2.840.10008.1.2.1.98": Preference.NATIVE,  # encapsulated uncompressed
        "1.2.840.10008.1.2.8.1": Preference.REVERSIBLE,  # Deflated Image Frame
        JPEG_LOSSLESS: Preference.REVERSIBLE,
        "1.2.840.10008.1.2.4.58": Preference.REVERSIBLE,  # retired JPEG Lossless processes
        "1.2.840.10008.1.2.4.65": Preference.REVERSIBLE,
        "1.2.840.10008.1.2.4.66": Preference.REVERSIBLE,
        JPEG_LOSSLESS_SV1: Preference.REVERSIBLE,
        JPEG_LS_LOSSLESS: Preference.REVERSIBLE,
        JPEG_2000_LOSSLESS: Preference.REVERSIBLE,
        "1.2.840.10008.1.2.4.92": Preference.REVERSIBLE,  # JPEG 2000 Part 2, lossless only
        HTJ2K_LOSSLESS: Preference.REVERSIBLE,
        "1.2.840.10008.1.2.4.202": Preference.REVERSIBLE,  # HTJ2K lossless with RPCL
        RLE_LOSSLESS: Preference.REVERSIBLE,
        JPEG_XL_LOSSLESS: Preference.REVERSIBLE,
    }
)
# Their pixels stay with the sender: Success would be a promise nobody can keep.
PIXELS_ELSEWHERE = frozenset(
    {
        "1.2.840.10008.1.2.4.94",  # JPIP Referenced
        "1.2.840.10008.1.2.4.95",
        "1.2.840.10008.1.2.4.204",  # JPIP HTJ2K Referenced
        "1.2.840.10008.1.2.4.205",
        "1.2.840.10008.1.2.7.1",  # SMPTE ST 2110, real-time video
        "1.2.840.10008.1.2.7.2",
        "1.2.840.10008.1.2.7.3",
    }
)

# PS3.4 GG, Non-Patient Object Storage: neither patient nor study, so nothing to file them under.
_NON_PATIENT = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.200.1",  # CT Defined Procedure Protocol
        "1.2.840.10008.5.1.4.1.1.200.3",  # Protocol Approval
        "1.2.840.10008.5.1.4.1.1.200.7",  # XA Defined Procedure Protocol
        "1.2.840.10008.5.1.4.1.1.201.1",  # Inventory
        "1.2.840.10008.5.1.4.38.1",  # Hanging Protocol
        "1.2.840.10008.5.1.4.39.1",  # Color Palette
        "1.2.840.10008.5.1.4.43.1",  # Generic Implant Template
        "1.2.840.10008.5.1.4.44.1",  # Implant Assembly Template
        "1.2.840.10008.5.1.4.45.1",  # Implant Template Group
    }
)
# Registered SOP classes with "Storage" in the name that no C-STORE to an archive carries.
_OTHER_SERVICES = frozenset(
    {
        "1.2.840.10008.1.3.10",  # Media Storage Directory: a DICOMDIR lives on media
        STORAGE_COMMITMENT_PUSH,
        "1.2.840.10008.1.20.2",  # Storage Commitment Pull, retired
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextAnswer:
    """What to answer to one proposed presentation context.

    `roles` are the requestor's accepted ones, where it proposed any; None means the default
    roles (PS3.7 D.3.3.4). `application_information` answers an extended negotiation
    (PS3.7 D.3.3.5); empty means none is given.
    """

    result: ContextResult
    transfer_syntax: str = ""
    roles: Roles | None = None
    application_information: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedContext:
    """A presentation context both sides agreed on; `roles` are the requestor's.

    `application_information` is what extended negotiation came to (PS3.7 D.3.3.5).
    """

    id: int
    abstract_syntax: str
    transfer_syntax: str
    roles: Roles = DEFAULT_ROLES
    application_information: bytes = b""


def preference(transfer_syntax: str) -> Preference:
    """How good a choice `transfer_syntax` is for receiving."""
    known = _PREFERENCE.get(transfer_syntax)
    if known is not None:
        return known
    return Preference.LOSSY if transfer_syntax.startswith(_JPEG_FAMILY) else Preference.UNKNOWN


def choose(transfer_syntaxes: Iterable[str]) -> str:
    """The transfer syntax to receive in; among equals the one proposed first.

    Raises ValueError when none is proposed.
    """
    return min(transfer_syntaxes, key=preference)


def choose_native(transfer_syntaxes: Iterable[str]) -> str | None:
    """The same for services other than storage: what every reader of a data set reads, or None."""
    native = [one for one in transfer_syntaxes if preference(one) <= Preference.IMPLICIT]
    return min(native, key=preference) if native else None


def is_storage(uid: str, service_class: str = "") -> bool:
    """Whether instances of the abstract syntax `uid` arrive by C-STORE to be kept.

    A UID nobody knows counts as storage, private ones included, unless its requestor names
    another `service_class` (PS3.7 D.3.3.6).
    """
    if uid in _OTHER_SERVICES or uid in _NON_PATIENT:
        return False
    entry = _REGISTRY.get(uid)
    if entry is None:
        return service_class in ("", STORAGE_SERVICE_CLASS)
    name, kind = entry[0], entry[1]
    return kind == "SOP Class" and (not name or "Storage" in name)


def storage_answer(proposed: ProposedContext) -> ContextAnswer:
    """Accept storage and verification, refuse every other abstract syntax (PS3.8 9.3.3.2)."""
    if proposed.abstract_syntax == VERIFICATION:
        return native_answer(proposed)
    if not is_storage(proposed.abstract_syntax, proposed.service_class):
        return ContextAnswer(result=ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED)
    held = [one for one in proposed.transfer_syntaxes if one not in PIXELS_ELSEWHERE]
    if not held:
        return ContextAnswer(result=ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED)
    support = STORAGE_SUPPORT if proposed.application_information else b""
    return ContextAnswer(
        result=ContextResult.ACCEPTED,
        transfer_syntax=choose(held),
        application_information=support,
    )


def native_answer(proposed: ProposedContext, roles: Roles | None = None) -> ContextAnswer:
    """Accept a service other than storage where a native transfer syntax is offered."""
    syntax = choose_native(proposed.transfer_syntaxes)
    if syntax is None:
        return ContextAnswer(result=ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED)
    return ContextAnswer(result=ContextResult.ACCEPTED, transfer_syntax=syntax, roles=roles)


def _storage_sop_classes() -> dict[str, str]:
    return {
        uid: entry[0]
        for uid, entry in _REGISTRY.items()
        if entry[1] == "SOP Class" and entry[0] and is_storage(uid)
    }


STORAGE_SOP_CLASSES: Mapping[str, str] = MappingProxyType(_storage_sop_classes())
