"""Rejection notes: Key Object Selection Documents that say which instances not to use, and why.

Made here for what was sent and has been corrected since; read where others made them (IHE
RAD-66, PS3.3 A.35.4).
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from edgepacs import __version__
from edgepacs.custody import elements, original, restore, standing, text
from edgepacs.custody.ingest import Intake
from edgepacs.custody.original import Supply
from edgepacs.custody.scan import MAX_ITEMS
from edgepacs.dimse import identifier
from edgepacs.dimse.contexts import EXPLICIT_VR_LE, IMPLICIT_VR_LE
from edgepacs.dimse.identifier import Identifier, Values
from edgepacs.errors import Gone, InvalidValue, LimitExceeded
from edgepacs.model import KEY_OBJECTS, UID, Arrival, Origin, new_uid, uid
from edgepacs.pixels.deflated import inflate
from edgepacs.pixels.syntaxes import DEFLATED_DATA_SET
from edgepacs.store import Store, studies
from edgepacs.store.drafts import Draft
from edgepacs.store.instances import Instance
from edgepacs.store.rejections import Title

MAX_NOTE = 16 << 20  # bytes of a note that is read
_ITEM = b"\xfe\xff\x00\xe0"
_SERIES_NUMBER = "999"
_WAVEFORMS = "1.2.840.10008.5.1.4.1.1.9."  # PS3.4 B.5: what begins so is a waveform

_CHARACTER_SET = 0x00080005
_STUDY_UID = identifier.STUDY_INSTANCE_UID
_SERIES_SEQUENCE, _SOP_SEQUENCE = 0x00081115, identifier.REFERENCED_SOP_SEQUENCE
_SOP_CLASS, _SOP_INSTANCE = identifier.SOP_CLASSES_REFERENCED, identifier.SOP_INSTANCES_REFERENCED
_CODE, _SCHEME, _MEANING = 0x00080100, 0x00080102, 0x00080104
_RELATION, _VALUE_TYPE, _CONCEPT = 0x0040A010, 0x0040A040, 0x0040A043
_CONTENT, _EVIDENCE = 0x0040A730, 0x0040A375

# What a note says as the instances it names do: of the patient, and of the study. All that is of
# type 2 in either module stands here (PS3.3 C.7.1.1, C.7.2.1): it is there, empty where unknown.
_TYPE_2 = {
    0x00080020: "DA",  # Study Date
    0x00080030: "TM",  # Study Time
    0x00080050: "SH",  # Accession Number
    0x00080090: "PN",  # Referring Physician's Name
    0x00100010: "PN",  # Patient's Name
    0x00100020: "LO",  # Patient ID
    0x00100030: "DA",  # Patient's Birth Date
    0x00100040: "CS",  # Patient's Sex
    0x00200010: "SH",  # Study ID
}
_ALSO = {
    0x00081030: "LO",  # Study Description
    0x00100021: "LO",  # Issuer of Patient ID
    0x00100022: "CS",  # Type of Patient ID
}
_SHARED = _TYPE_2 | _ALSO


class Note(NamedTuple):
    """What a rejection note says: why, and of which instances, each once, in its order."""

    title: Title
    instances: tuple[UID, ...]


# --- made here ---------------------------------------------------------------------------------


def drafted(store: Store, instances: Sequence[Instance], *, title: Title, at_ms: int) -> Draft:
    """A note that names `instances`, sealed but not yet known; it becomes so by `instances.commit`.

    In the study of the first of them, of the patient it says, in a series of its own; of origin
    `local`. `at_ms` is when it was decided. The caller holds `Vault.writing`. Raises InvalidValue
    for a note of quality, which would have to say more, and without instances; Gone where none of
    them is here to say whose it is; Tampered, Undecodable, NoRoom, StorageFault.
    """
    if title is Title.QUALITY or not instances:
        raise InvalidValue("rejection note", "of quality, or of nothing")
    number = new_uid()
    said = _said_of(store, instances)
    arrival = Arrival(
        sop_class_uid=UID(KEY_OBJECTS),
        sop_instance_uid=number,
        transfer_syntax_uid=UID(EXPLICIT_VR_LE),
        origin=Origin.LOCAL,
        source=store.config.node.ae_title,
    )
    values = {**_document(store, instances, title, at_ms), **said.values}
    values[identifier.SOP_INSTANCE_UID] = number
    whole = text.encoded(values, said.character_set)
    intake = Intake(store, arrival)
    try:
        intake.write(identifier.encode(whole, EXPLICIT_VR_LE))
    except BaseException:
        intake.discard()
        raise
    return intake.seal()


class _Said(NamedTuple):
    """What an instance says of its patient and study, and the character set it says it in."""

    values: Values
    character_set: str


def _said_of(store: Store, instances: Iterable[Instance]) -> _Said:
    """What the first instance says whose bytes are here."""
    here = next((one for one in instances if not one.state.gone), None)
    if here is None:
        raise Gone("rejection note: nothing of what it names is here any more")
    supply, encoding = _supplied(store, here)
    _, end, _ = original.attributes_of(supply, encoding, -1)
    raw = elements.values(supply.take(end), encoding, {_CHARACTER_SET, *_SHARED})
    character_set = raw.pop(_CHARACTER_SET, b"").decode("ascii", "replace").strip("\0 ")
    found = {
        tag: text.decoded(value, character_set, person_name=_SHARED[tag] == "PN").strip("\0 ")
        for tag, value in raw.items()
    }
    return _Said(dict.fromkeys(_TYPE_2, "") | found, character_set)


def _supplied(store: Store, instance: Instance) -> tuple[Supply, elements.Encoding]:
    """A data set as it was received, inflated, and how it is encoded."""
    now = standing.opened(store, instance).instance
    pieces: Iterable[bytes] = restore.received_chunks(store, now)
    if now.received_syntax_uid == DEFLATED_DATA_SET:
        pieces = inflate(pieces, original.MAX_INFLATED)
    supply = Supply(pieces)
    return supply, restore.encoding_of(supply.look(6), now.received_syntax_uid)


def _document(store: Store, instances: Sequence[Instance], title: Title, at_ms: int) -> Values:
    """A note but for what it says of patient and study (PS3.3 A.35.4)."""
    at = time.localtime(at_ms / 1000)
    study = studies.study(store.db, instances[0].study)
    return {
        0x00080016: KEY_OBJECTS,
        0x00080023: time.strftime("%Y%m%d", at),  # Content Date
        0x00080033: time.strftime("%H%M%S", at),  # Content Time
        0x00080060: "KO",
        0x00080070: "EdgePACS",  # Manufacturer
        0x00081090: "EdgePACS",  # Manufacturer's Model Name
        0x0008103E: title.meaning,  # Series Description
        0x00081111: (),  # Referenced Performed Procedure Step Sequence, of type 2 (C.17.6.1)
        0x00181020: __version__,  # Software Versions
        _STUDY_UID: study.study_instance_uid,
        identifier.SERIES_INSTANCE_UID: new_uid(),
        0x00200011: _SERIES_NUMBER,
        0x00200013: "1",  # Instance Number
        _VALUE_TYPE: "CONTAINER",
        _CONCEPT: [{_CODE: str(title), _SCHEME: "DCM", _MEANING: title.meaning}],
        0x0040A050: "SEPARATE",  # Continuity Of Content (PS3.3 C.18.8)
        _EVIDENCE: list(_evidence(store, instances)),
        # Content Template Sequence: PS3.16 TID 2010
        0x0040A504: [{0x00080105: "DCMR", 0x0040DB00: "2010"}],
        _CONTENT: [
            {_RELATION: "CONTAINS", _VALUE_TYPE: _value_type(one), _SOP_SEQUENCE: [_named(one)]}
            for one in instances
        ],
    }


def _evidence(store: Store, instances: Sequence[Instance]) -> Iterator[Values]:
    """The same instances by study and series (PS3.3 C.17.2.1)."""
    for number in dict.fromkeys(one.study for one in instances):
        mine = [one for one in instances if one.study == number]
        every = studies.series_of(store.db, number)
        names: dict[int, str] = {one.id: one.series_instance_uid for one in every}
        by_series: dict[int, list[Values]] = {}
        for one in mine:
            by_series.setdefault(one.series, []).append(_named(one))
        yield {
            _SERIES_SEQUENCE: [
                {_SOP_SEQUENCE: those, identifier.SERIES_INSTANCE_UID: names[key]}
                for key, those in by_series.items()
            ],
            _STUDY_UID: str(studies.study(store.db, number).study_instance_uid),
        }


def _named(one: Instance) -> Values:
    return {_SOP_CLASS: str(one.sop_class_uid), _SOP_INSTANCE: str(one.sop_instance_uid)}


def _value_type(one: Instance) -> str:
    """As what a content item refers to an instance (PS3.3 C.17.3.2.1)."""
    if one.sop_class_uid.startswith(_WAVEFORMS):
        return "WAVEFORM"
    return "IMAGE" if one.frames else "COMPOSITE"


# --- read --------------------------------------------------------------------------------------


def read(store: Store, instance: Instance) -> Note | None:
    """What a Key Object Selection Document rejects; None where its title says that it rejects none.

    Raises LimitExceeded for one that is larger than notes are, InvalidValue and Undecodable where
    it cannot be read, Gone, Tampered.
    """
    if instance.byte_length > MAX_NOTE:
        raise LimitExceeded(f"rejection note: longer than {MAX_NOTE >> 20} MiB")
    supply, encoding = _supplied(store, instance)
    data = supply.look(MAX_NOTE + 1)
    if len(data) > MAX_NOTE:
        raise LimitExceeded(f"rejection note: longer than {MAX_NOTE >> 20} MiB")
    if encoding.big_endian:
        data, encoding = elements.recoded(data, encoding), elements.EXPLICIT
    if data.count(_ITEM) > MAX_ITEMS:
        raise LimitExceeded(f"rejection note: more than {MAX_ITEMS} sequence items")
    syntax = IMPLICIT_VR_LE if encoding.implicit else EXPLICIT_VR_LE
    values = identifier.decode(data, syntax)
    title = _title(values)
    return None if title is None else Note(title, tuple(dict.fromkeys(_references(values))))


def _title(values: Identifier) -> Title | None:
    for code in identifier.items(values, _CONCEPT)[:1]:
        value = identifier.text(code, _CODE)
        if identifier.text(code, _SCHEME) == "DCM" and value in list(Title):
            return Title(value)
    return None


def _references(values: Identifier) -> Iterator[UID]:
    """What stands in the evidence, which names all that the content refers to (PS3.3 C.17.6.2)."""
    for study in identifier.items(values, _EVIDENCE):
        for series in identifier.items(study, _SERIES_SEQUENCE):
            for one in identifier.items(series, _SOP_SEQUENCE):
                name = "Referenced SOP Instance UID (0008,1155)"
                yield uid(identifier.text(one, _SOP_INSTANCE), name)
