"""The words of EdgePACS as types: identifiers, states with their transition tables, records.

Identifiers are made by validating constructors at the edge (`uid`, `ae_title`) and trusted
from there on. Every state is a `State` member with a one-line meaning; every change of state
goes through the transition table beside it (`require_transition`).
"""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType, Self, TypeVar

from edgepacs.errors import Conflict, InvalidValue

UID = NewType("UID", str)
AETitle = NewType("AETitle", str)
ObjectId = NewType("ObjectId", bytes)  # 16 random bytes; names one sealed object
InstanceId = NewType("InstanceId", int)  # row number; also the order of arrival
SeriesId = NewType("SeriesId", int)
StudyId = NewType("StudyId", int)
EntryId = NewType("EntryId", int)  # of the worklist

UID_MAX_LENGTH = 64  # PS3.5 9.1
KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"  # Key Object Selection Document (PS3.4 B.5)
AE_TITLE_MAX_LENGTH = 16  # PS3.5 6.2, VR AE

_UID = re.compile(r"[0-9.]{1,64}")
_AE_TITLE = re.compile(r"[ -\[\]-~]{1,16}")  # printable ASCII without the backslash


def uid(text: str, name: str = "UID") -> UID:
    """`text` as a UID, its padding removed (PS3.5 9.1); leading zeros in a component are let pass.

    Raises InvalidValue, naming `name`, for anything but 1 to 64 digits and dots.
    """
    stripped = text.rstrip("\0 ").lstrip(" ")
    if not _UID.fullmatch(stripped):
        raise InvalidValue(name, f"not a UID of 1 to {UID_MAX_LENGTH} digits and dots")
    return UID(stripped)


def new_uid() -> UID:
    """A UID nobody has had before (PS3.5 B.2)."""
    return UID(f"2.25.{uuid.uuid4().int}")


def ae_title(text: str, name: str = "AE title") -> AETitle:
    """`text` as an AE title, spaces around it not being significant (PS3.5 6.2).

    Raises InvalidValue, naming `name`, when it is empty, longer than 16 or not printable ASCII.
    """
    stripped = text.strip(" ")
    if not _AE_TITLE.fullmatch(stripped):
        raise InvalidValue(name, f"not 1 to {AE_TITLE_MAX_LENGTH} printable ASCII characters")
    return AETitle(stripped)


class State(StrEnum):
    """A StrEnum whose members carry what they mean, in one line."""

    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Self:
        """Members are written as `NAME = value, meaning`."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


_AnyState = TypeVar("_AnyState", bound=State)


def require_transition(
    table: Mapping[_AnyState, frozenset[_AnyState]], old: _AnyState, new: _AnyState
) -> None:
    """Raise Conflict unless `table` lets `old` become `new`."""
    if new not in table[old]:
        raise Conflict(f"{type(old).__name__}: {old} cannot become {new}")


class InstanceState(State):
    """What stands behind one row of `instance`."""

    STORED = "stored", "durable, and the version this SOP Instance UID stands for"
    COMPARING = "comparing", "other bytes under a known UID; waits to be compared with the stored"
    QUARANTINED = "quarantined", "other content under a known UID; kept until a person decides"
    SUPERSEDED = "superseded", "replaced by another version, by a person; kept, never forwarded"
    DISCARDED = "discarded", "given up by a person, or found to be the same; a tombstone"
    EVICTED = "evicted", "bytes deleted after proof of delivery; a tombstone"

    @property
    def gone(self) -> bool:
        """Whether the row is a tombstone: its bytes are deleted, or about to be."""
        return self in (InstanceState.DISCARDED, InstanceState.EVICTED)


_I = InstanceState
INSTANCE_TRANSITIONS: Mapping[InstanceState, frozenset[InstanceState]] = {
    _I.STORED: frozenset({_I.SUPERSEDED, _I.EVICTED}),
    _I.COMPARING: frozenset({_I.QUARANTINED, _I.DISCARDED}),
    _I.QUARANTINED: frozenset({_I.STORED, _I.DISCARDED}),
    _I.SUPERSEDED: frozenset({_I.DISCARDED, _I.STORED}),
    _I.DISCARDED: frozenset(),
    _I.EVICTED: frozenset({_I.STORED}),
}


class StudyState(State):
    """What a person has said about a study."""

    RECEIVED = "received", "nobody has said anything; the routing rules decide"
    VERIFIED = "verified", "a technologist looked and approved"
    HELD = "held", "a person stopped it; nothing of it leaves"
    REJECTED = "rejected", "a technologist found it unfit; nothing of it leaves"


_S = StudyState
STUDY_TRANSITIONS: Mapping[StudyState, frozenset[StudyState]] = {
    _S.RECEIVED: frozenset({_S.VERIFIED, _S.HELD, _S.REJECTED}),
    _S.VERIFIED: frozenset({_S.HELD, _S.REJECTED}),
    _S.HELD: frozenset({_S.RECEIVED, _S.VERIFIED, _S.REJECTED}),
    _S.REJECTED: frozenset({_S.RECEIVED}),
}


class WorklistMatch(State):
    """Whether a study was ordered, as far as the worklist says."""

    MATCHED = "matched", "an entry of the worklist names it, and says the same"
    MISMATCHED = "mismatched", "an entry of the worklist names it, and says otherwise"
    KEPT = "kept", "it differs from its entry, and a person said that it stays so"
    UNMATCHED = "unmatched", "looked for in the worklist and not found"
    NONE = "none", "not looked for yet"


class Mismatch(State):
    """In what a study differs from its order."""

    NAME = "name", "Patient's Name"
    ID = "id", "Patient ID"
    BIRTH_DATE = "birth_date", "Patient's Birth Date"
    SEX = "sex", "Patient's Sex"
    ACCESSION = "accession", "Accession Number"
    LATERALITY = "laterality", "Laterality"
    STATION = "station", "the station it was made at"


class FoundBy(State):
    """How the order of a study was found; what stands first says more."""

    PERSON = "person", "a person said so"
    STUDY_UID = "study_uid", "by Study Instance UID"
    ACCESSION = "accession", "by accession number"
    PATIENT = "patient", "by patient, modality and time"
    NOTHING = "nothing", "no order was found"


class CorrectionState(State):
    """How far one correction of a study, or its undoing, has come."""

    WAITING = "waiting", "a person asked for it; it waits to be carried out"
    DONE = "done", "carried out"
    REVERTED = "reverted", "carried out, and undone since: what was received stands again"
    FAILED = "failed", "not carried out; nothing has changed"


class CorrectionPolicy(State):
    """What a destination that has a study already gets when the study is corrected."""

    HOLD = "hold", "nothing by itself: the corrected instances are held for a person"
    ADT = "adt", "an HL7 ADT message, by which it corrects its own copy, where ADT can say it"
    REJECT = "reject", "a rejection note for what it has, then corrected instances under new UIDs"


CORRECTION_TRANSITIONS: Mapping[CorrectionState, frozenset[CorrectionState]] = {
    CorrectionState.WAITING: frozenset({CorrectionState.DONE, CorrectionState.FAILED}),
    CorrectionState.DONE: frozenset({CorrectionState.REVERTED}),
    CorrectionState.REVERTED: frozenset(),
    CorrectionState.FAILED: frozenset({CorrectionState.WAITING}),
}


class EntryState(State):
    """How far one scheduled procedure step of the worklist has come."""

    SCHEDULED = "scheduled", "waits to be done; modalities are offered it"
    STARTED = "started", "a modality has said that it has begun it"
    COMPLETED = "completed", "done"
    DISCONTINUED = "discontinued", "begun, and broken off"
    CANCELLED = "cancelled", "the order was cancelled"
    RETIRED = "retired", "its source has it no more, or it is long past; kept, no longer offered"


_E = EntryState
ENTRY_TRANSITIONS: Mapping[EntryState, frozenset[EntryState]] = {
    _E.SCHEDULED: frozenset({_E.STARTED, _E.COMPLETED, _E.DISCONTINUED, _E.CANCELLED, _E.RETIRED}),
    _E.STARTED: frozenset({_E.COMPLETED, _E.DISCONTINUED, _E.CANCELLED, _E.SCHEDULED}),
    _E.COMPLETED: frozenset({_E.SCHEDULED}),
    _E.DISCONTINUED: frozenset({_E.SCHEDULED, _E.STARTED, _E.CANCELLED}),
    _E.CANCELLED: frozenset({_E.SCHEDULED}),
    _E.RETIRED: frozenset({_E.SCHEDULED, _E.STARTED, _E.COMPLETED, _E.DISCONTINUED, _E.CANCELLED}),
}


class EntryOrigin(State):
    """Where an entry of the worklist came from."""

    HL7 = "hl7", "an HL7 v2 message"
    UPSTREAM = "upstream", "the worklist of the central RIS, asked on a schedule"
    LOCAL = "local", "entered here by a person"
    IMPORT = "import", "read from a file by a person"


class StepState(State):
    """How far one performed procedure step has come (PS3.3 C.4.14)."""

    IN_PROGRESS = "in_progress", "the modality is at it"
    COMPLETED = "completed", "done, and closed: nothing more may be said of it"
    DISCONTINUED = "discontinued", "broken off, and closed: nothing more may be said of it"


STEP_TRANSITIONS: Mapping[StepState, frozenset[StepState]] = {
    StepState.IN_PROGRESS: frozenset({StepState.COMPLETED, StepState.DISCONTINUED}),
    StepState.COMPLETED: frozenset(),
    StepState.DISCONTINUED: frozenset(),
}


class MessageState(State):
    """How far one HL7 v2 message has come."""

    RECEIVED = "received", "kept; what it says is not in the worklist yet"
    APPLIED = "applied", "what it says is in the worklist"
    REFUSED = "refused", "answered with an error; nothing of it is in the worklist"


MESSAGE_TRANSITIONS: Mapping[MessageState, frozenset[MessageState]] = {
    MessageState.RECEIVED: frozenset({MessageState.APPLIED, MessageState.REFUSED}),
    MessageState.APPLIED: frozenset(),
    MessageState.REFUSED: frozenset({MessageState.RECEIVED}),
}


class TwinState(State):
    """What became of two entries of the worklist that may be one and the same."""

    OPEN = "open", "waits for a person to say whether they are one"
    MERGED = "merged", "they are one: the order stands for both"
    APART = "apart", "they are two, as a person said"


TWIN_TRANSITIONS: Mapping[TwinState, frozenset[TwinState]] = {
    TwinState.OPEN: frozenset({TwinState.MERGED, TwinState.APART}),
    TwinState.MERGED: frozenset(),
    TwinState.APART: frozenset({TwinState.MERGED}),
}


class DeliveryKind(State):
    """What a delivery carries."""

    INSTANCE = "instance", "a SOP instance, by C-STORE or STOW-RS"
    MPPS = "mpps", "a performed procedure step message"
    NOTIFICATION = "notification", "an instance availability notification"
    HL7 = "hl7", "an HL7 v2 message"
    AUDIT = "audit", "an audit record"


class DeliveryState(State):
    """How far one subject has come on its way to one destination."""

    QUEUED = "queued", "waits for its turn and for the line"
    SENDING = "sending", "an attempt was recorded and is under way, or broke off in a crash"
    SENT = "sent", "the destination answered success; no further proof yet"
    AWAITING_COMMITMENT = "awaiting_commitment", "storage commitment asked for, not yet answered"
    COMMITTED = "committed", "an N-EVENT-REPORT said the destination has committed it"
    CONFIRMED_BY_QUERY = "confirmed_by_query", "found at the destination by its own identifier"
    HELD = "held", "stopped by a rule or a person until released"
    CANCELLED = "cancelled", "a person or a rejection note said it shall not be sent"
    SUPERSEDED = "superseded", "another delivery stands for it: of a newer version, or elsewhere"
    FAILED = "failed", "refused for good; needs a person"


_D = DeliveryState
_INSTANCE_DELIVERY: Mapping[DeliveryState, frozenset[DeliveryState]] = {
    _D.QUEUED: frozenset(
        {_D.SENDING, _D.HELD, _D.CANCELLED, _D.SUPERSEDED, _D.FAILED, _D.COMMITTED}
    ),
    _D.SENDING: frozenset({_D.SENT, _D.QUEUED, _D.FAILED, _D.CONFIRMED_BY_QUERY, _D.HELD}),
    _D.SENT: frozenset(
        {_D.AWAITING_COMMITMENT, _D.COMMITTED, _D.CONFIRMED_BY_QUERY, _D.QUEUED, _D.FAILED}
    ),
    _D.AWAITING_COMMITMENT: frozenset(
        {_D.COMMITTED, _D.CONFIRMED_BY_QUERY, _D.SENT, _D.QUEUED, _D.FAILED}
    ),
    _D.COMMITTED: frozenset(),
    _D.CONFIRMED_BY_QUERY: frozenset({_D.COMMITTED}),
    _D.HELD: frozenset({_D.QUEUED, _D.CANCELLED, _D.SUPERSEDED}),
    _D.CANCELLED: frozenset({_D.QUEUED, _D.HELD}),
    _D.SUPERSEDED: frozenset({_D.QUEUED}),
    _D.FAILED: frozenset({_D.QUEUED, _D.CANCELLED, _D.SUPERSEDED, _D.COMMITTED}),
}
# A message is proved by the answer to it: `sent` is its end.
_MESSAGE_DELIVERY: Mapping[DeliveryState, frozenset[DeliveryState]] = {
    state: frozenset() if state is _D.SENT else targets - {_D.COMMITTED, _D.CONFIRMED_BY_QUERY}
    for state, targets in _INSTANCE_DELIVERY.items()
    if state not in (_D.AWAITING_COMMITMENT, _D.COMMITTED, _D.CONFIRMED_BY_QUERY)
}
DELIVERY_TRANSITIONS: Mapping[DeliveryKind, Mapping[DeliveryState, frozenset[DeliveryState]]] = {
    kind: _INSTANCE_DELIVERY if kind is DeliveryKind.INSTANCE else _MESSAGE_DELIVERY
    for kind in DeliveryKind
}


class HoldReason(State):
    """Who or what keeps a delivery in `held`."""

    UNVERIFIED = "unverified", "a rule wants the study verified first"
    STUDY = "study", "the study is held or rejected"
    PERSON = "person", "a person held this delivery"
    ORDER = "order", "the study differs from its order; a person decides"
    REJECTION = "rejection", "until the rejection note of what it stands for has arrived there"


class ProofWanted(State):
    """Which proof of arrival a destination owes before its delivery is done."""

    COMMITTED = "committed", "storage commitment; where it is not offered, found by query"
    FOUND = "found", "found at the destination by its own identifier"
    RESPONSE = "response", "the answer to the transfer alone; never enough to delete anything here"


class Callback(State):
    """Which way a destination's storage commitment reports come, as far as is known."""

    UNKNOWN = "unknown", "no report has come yet"
    SAME = "same", "on the association that asked"
    NEW = "new", "on an association of the destination's own"
    NEVER = "never", "none came in time; it is asked by query instead"


class CommitmentState(State):
    """How far one storage commitment request has come."""

    ASKED = "asked", "asked for; its report is awaited"
    REPORTED = "reported", "a report has come that has not been acted on"
    EXPIRED = "expired", "no report came in time; a late one still counts"
    SETTLED = "settled", "its report has been acted on"


class PledgeState(State):
    """How far one storage commitment that a modality has asked us for has come."""

    ASKED = "asked", "written down; its instances are to be looked at"
    CHECKED = "checked", "its instances have been looked at; the report is to be delivered"
    REPORTED = "reported", "whoever asked has taken the report"
    GIVEN_UP = "given_up", "the report could not be delivered for days"


_G = PledgeState
PLEDGE_TRANSITIONS: Mapping[PledgeState, frozenset[PledgeState]] = {
    _G.ASKED: frozenset({_G.CHECKED, _G.GIVEN_UP}),
    _G.CHECKED: frozenset({_G.REPORTED, _G.GIVEN_UP, _G.ASKED}),
    _G.REPORTED: frozenset({_G.ASKED}),
    _G.GIVEN_UP: frozenset({_G.ASKED}),
}


class LinkState(State):
    """What is known about the line to a destination."""

    UNKNOWN = "unknown", "not tried since start"
    UP = "up", "the last association or probe went through"
    DEGRADED = "degraded", "reachable, but the last exchange failed"
    DOWN = "down", "not reachable; probed until it answers"


class Kept(State):
    """Why a study's bytes may not be deleted here, the weightiest last."""

    RECENT = "recent", "everything has arrived; it is younger than the least age"
    UNPROVED = "unproved", "on its way, or arrived without the proof its destination owes"
    RESPONSE = "response", "sent where an answer, or a lossy copy, is all the proof there is"
    CANCELLED = "cancelled", "a person or a rejection note said it shall not be sent"
    HELD = "held", "held by a rule or a person"
    FAILED = "failed", "refused for good by a destination; a person has to see to it"
    UNWANTED = "unwanted", "no rule sends it anywhere"
    DISPUTED = "disputed", "another version of an instance waits for a person, or was replaced"
    STOPPED = "stopped", "the study is held or rejected"


class CompressionState(State):
    """How far the compression of an instance at rest has come."""

    WAITING = "waiting", "stands as it was received; waits for a worker"
    COMPRESSING = "compressing", "an attempt was recorded; a worker has it, or broke off in a crash"
    COMPRESSED = "compressed", "stands smaller, and was proved to restore to what was received"
    NATIVE = "native", "stays as it was received, for a reason that is recorded"
    FAILED = "failed", "stays as it was received: every worker that tried it crashed or hung"


_C = CompressionState
COMPRESSION_TRANSITIONS: Mapping[CompressionState, frozenset[CompressionState]] = {
    _C.WAITING: frozenset({_C.COMPRESSING, _C.NATIVE}),
    _C.COMPRESSING: frozenset({_C.COMPRESSED, _C.NATIVE, _C.FAILED, _C.WAITING}),
    _C.COMPRESSED: frozenset({_C.WAITING}),
    _C.NATIVE: frozenset({_C.WAITING}),
    _C.FAILED: frozenset({_C.WAITING}),
}


class Origin(State):
    """Where an instance came from. Only modality, import and local are routed."""

    MODALITY = "modality", "sent by a peer by C-STORE or STOW-RS"
    IMPORT = "import", "read from files by a person"
    LOCAL = "local", "made on this node"
    PREFETCH = "prefetch", "a prior fetched from outside"
    FETCH_BACK = "fetch_back", "fetched again from a destination that had it"

    @property
    def routed(self) -> bool:
        """Whether the routing rules apply to instances of this origin."""
        return self in (Origin.MODALITY, Origin.IMPORT, Origin.LOCAL)


class PriorsBy(State):
    """How priors of a patient are fetched from a destination."""

    NONE = "none", "not at all"
    GET = "get", "by C-FIND and C-GET, on our own association"
    MOVE = "move", "by C-FIND and C-MOVE to our own AE title, which the destination must know"
    WEB = "web", "by QIDO-RS and WADO-RS at the address of the destination"


class PrefetchReason(State):
    """What named the patient whose priors are fetched."""

    STUDY = "study", "the first instance of a new study"
    WORKLIST = "worklist", "an entry of the worklist"
    PERSON = "person", "a person asked"


class PrefetchState(State):
    """How far the fetching of one patient's priors from one destination has come."""

    WAITING = "waiting", "waits until the line has nothing else to do"
    ASKING = "asking", "an attempt was recorded; the destination is asked for the patient's studies"
    FETCHING = "fetching", "studies are being fetched, or a crash broke that off"
    DONE = "done", "what was to be had within the bounds is here"
    FAILED = "failed", "refused for good, given up after several attempts, or crowded out"
    CANCELLED = "cancelled", "a person said they shall not be fetched"

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it by itself."""
        return self in (PrefetchState.DONE, PrefetchState.FAILED, PrefetchState.CANCELLED)


_P = PrefetchState
PREFETCH_TRANSITIONS: Mapping[PrefetchState, frozenset[PrefetchState]] = {
    _P.WAITING: frozenset({_P.ASKING, _P.FAILED, _P.CANCELLED}),
    _P.ASKING: frozenset({_P.FETCHING, _P.DONE, _P.WAITING, _P.FAILED, _P.CANCELLED}),
    _P.FETCHING: frozenset({_P.DONE, _P.WAITING, _P.FAILED, _P.CANCELLED}),
    _P.DONE: frozenset({_P.WAITING}),
    _P.FAILED: frozenset({_P.WAITING}),
    _P.CANCELLED: frozenset({_P.WAITING}),
}


class Service(State):
    """What a calling AE title may use."""

    ECHO = "echo", "C-ECHO"
    STORE = "store", "C-STORE"
    FIND = "find", "C-FIND"
    MOVE = "move", "C-MOVE"
    GET = "get", "C-GET"
    WORKLIST = "worklist", "modality worklist C-FIND"
    MPPS = "mpps", "modality performed procedure step"
    COMMITMENT = "commitment", "storage commitment"


class Role(State):
    """What a user or token may do; each role may all that the one before it may."""

    VIEWER = "viewer", "look at studies"
    TECHNOLOGIST = "technologist", "verify, hold, reject and send studies; import"
    ADMIN = "admin", "manage AE titles, destinations, rules, queue and users"

    def covers(self, needed: "Role") -> bool:
        """Whether this role may do what `needed` may."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The association an instance came by; `number` is its row's, once it has one."""

    calling_ae: AETitle
    called_ae: AETitle
    host: str
    implementation: str
    number: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """What is known of an instance before its data set is read."""

    sop_class_uid: UID
    sop_instance_uid: UID
    transfer_syntax_uid: UID
    origin: Origin
    source: str  # calling AE title, user name or path-free description
    caller: Caller | None = None
    study_instance_uid: str = ""  # the study it was asked for in; '' for any
    corrects: bytes = b""  # received digest of the instance it was written anew of


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """What the index keeps of a data set: decoded text, empty where absent, never None.

    `flags` names, in short words, what was odd about the data set.
    """

    sop_class_uid: UID
    sop_instance_uid: UID
    study_instance_uid: UID
    series_instance_uid: UID
    patient_id: str = ""
    issuer_of_patient_id: str = ""
    patient_name: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    study_date: str = ""
    study_time: str = ""
    study_id: str = ""
    accession_number: str = ""
    study_description: str = ""
    referring_physician: str = ""
    institution: str = ""
    modality: str = ""
    series_number: str = ""
    series_description: str = ""
    body_part: str = ""
    station_name: str = ""
    laterality: str = ""
    instance_number: str = ""
    rows: int = 0
    columns: int = 0
    frames: int = 0
    flags: tuple[str, ...] = field(default=())


class Outcome(State):
    """What committing an instance came to; each is Success to the modality."""

    STORED = "stored", "a new instance"
    DUPLICATE = "duplicate", "the same bytes were here already; the new copy replaces the old"
    COMPARING = "comparing", "other bytes under a known UID; kept aside until compared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The durable result of one ingest.

    `replaced` is an object no row refers to any more: the earlier copy of a duplicate. `due`
    says that there is something for forward/ to do, `association` is the row of the caller's.
    """

    outcome: Outcome
    instance_id: InstanceId
    study_id: StudyId
    replaced: ObjectId | None = None
    due: bool = False
    association: int | None = None
