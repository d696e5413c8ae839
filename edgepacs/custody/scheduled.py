"""Worklist entries as data sets: the Modality Worklist Information Model (PS3.4 K.6.1.2).

One table says which attribute stands for what of an entry (PS3.4 table K.6-1). Queries are
answered by it, and what is read from other worklists and from files becomes entries by it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepacs.custody import text
from edgepacs.dimse import identifier
from edgepacs.dimse.identifier import SPECIFIC_CHARACTER_SET, Identifier
from edgepacs.model import EntryState
from edgepacs.store.worklist import PATIENT_FIELDS, Entry, Held, Patient

STEP_SEQUENCE = 0x00400100  # Scheduled Procedure Step Sequence
STEP_STATUS = 0x00400020  # Scheduled Procedure Step Status
_COMMENTS = (0x00401400, 0x00402400)  # of the procedure and of the request, where others put them
STATUSES = {EntryState.SCHEDULED: "SCHEDULED", EntryState.STARTED: "STARTED"}


@dataclass(frozen=True, slots=True)
class Leaf:
    """One attribute: `read` gives its text out of what its level is about, '' where empty.

    `field` is what of an entry it stands for, '' where it stands for something computed.
    """

    tag: int
    vr: str
    field: str
    read: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Branch:
    """One sequence: `items` gives what its items are about, which `parts` read."""

    tag: int
    field: str
    items: Callable[[Any], Sequence[Any]]
    parts: Mapping[int, "Leaf | Branch"]


Part = Leaf | Branch


def _leaf(tag: int, vr: str, field: str) -> Leaf:
    if field in PATIENT_FIELDS:
        return Leaf(tag, vr, field, lambda held: str(getattr(held.entry.patient, field)))
    return Leaf(tag, vr, field, lambda held: str(getattr(held.entry, field)))


def _place(tag: int, vr: str, place: int) -> Leaf:
    """One part of a code, or of another ID."""
    return Leaf(tag, vr, "", lambda parts: str(parts[place]))


def _empty(tag: int, vr: str) -> Leaf:
    return Leaf(tag, vr, "", lambda _: "")


def _by_tag(*parts: Part) -> Mapping[int, Part]:
    return {part.tag: part for part in sorted(parts, key=lambda part: part.tag)}


def _split(value: str, parts: int) -> list[tuple[str, ...]]:
    """The parts of each of several codes or IDs, written with ^ between."""
    found = [one.split("^", parts - 1) for one in value.split("\\") if one]
    return [(*one, *[""] * (parts - len(one))) for one in found]


CODE_PLACES = (0x00080100, 0x00080102, 0x00080104)  # the parts of a code, as entries have it
_OTHER_ID_PLACES = (0x00100020, 0x00100021)
_CODE = _by_tag(
    _place(0x00080100, "SH", 0),  # Code Value
    _place(0x00080102, "SH", 1),  # Coding Scheme Designator
    _empty(0x00080103, "SH"),  # Coding Scheme Version
    _place(0x00080104, "LO", 2),  # Code Meaning
)
_REFERENCE = _by_tag(_empty(0x00081150, "UI"), _empty(0x00081155, "UI"))
_OTHER_ID = _by_tag(
    _place(0x00100020, "LO", 0),
    _place(0x00100021, "LO", 1),
    Leaf(0x00100022, "CS", "", lambda _: "TEXT"),  # Type of Patient ID (PS3.3 C.7.1.1)
)


def _codes(tag: int, field: str) -> Branch:
    return Branch(tag, field, lambda held: _split(getattr(held.entry, field), 3), _CODE)


def _other_ids(held: Held) -> list[tuple[str, ...]]:
    return _split(held.entry.patient.other_ids, 2)


# What an answer says of one entry, and a file of each of its steps (PS3.4 table K.6-1).
STEP = _by_tag(
    _leaf(0x00080060, "CS", "modality"),
    _leaf(0x00321070, "LO", "contrast_agent"),
    _leaf(0x00400001, "AE", "station_ae"),
    _leaf(0x00400002, "DA", "start_date"),
    _leaf(0x00400003, "TM", "start_time"),
    _leaf(0x00400006, "PN", "performing_physician"),
    _leaf(0x00400007, "LO", "step_description"),
    _codes(0x00400008, "step_code"),
    _leaf(0x00400009, "SH", "step_id"),
    _leaf(0x00400010, "SH", "station_name"),
    _leaf(0x00400011, "SH", "location"),
    _leaf(0x00400012, "LO", "pre_medication"),
    Leaf(STEP_STATUS, "CS", "", lambda held: STATUSES.get(held.state, "")),
    _leaf(0x00400400, "LT", "comments"),
)
MODEL = _by_tag(
    _leaf(0x00080050, "SH", "accession_number"),
    _leaf(0x00080090, "PN", "referring_physician"),
    Branch(0x00081110, "", lambda _: (), _REFERENCE),  # Referenced Study Sequence
    Branch(0x00081120, "", lambda _: (), _REFERENCE),  # Referenced Patient Sequence
    _leaf(0x00100010, "PN", "name"),
    _leaf(0x00100020, "LO", "patient_id"),
    _leaf(0x00100021, "LO", "issuer"),
    _leaf(0x00100030, "DA", "birth_date"),
    _leaf(0x00100040, "CS", "sex"),
    Leaf(0x00101000, "LO", "", lambda held: "\\".join(one[0] for one in _other_ids(held))),
    Branch(0x00101002, "other_ids", _other_ids, _OTHER_ID),
    _leaf(0x00101020, "DS", "size"),
    _leaf(0x00101030, "DS", "weight"),
    _leaf(0x00102000, "LO", "alerts"),
    _leaf(0x00102110, "LO", "allergies"),
    _leaf(0x001021C0, "US", "pregnancy"),
    _leaf(0x0020000D, "UI", "study_instance_uid"),
    _leaf(0x00200060, "CS", "laterality"),
    _leaf(0x00321032, "PN", "requesting_physician"),
    _leaf(0x00321033, "LO", "requesting_service"),
    _leaf(0x00321060, "LO", "procedure_description"),
    _codes(0x00321064, "procedure_code"),
    _leaf(0x00380010, "LO", "admission_id"),
    _leaf(0x00380050, "LO", "special_needs"),
    _leaf(0x00380300, "LO", "patient_location"),
    _leaf(0x00380500, "LO", "patient_state"),
    # Exactly one item: an answer is about one step (PS3.4 K.6.1.2.2).
    Branch(STEP_SEQUENCE, "", lambda held: (held,), STEP),
    _leaf(0x00401001, "SH", "procedure_id"),
    _leaf(0x00401003, "SH", "procedure_priority"),
    _leaf(0x00401004, "LO", "transport"),
    _leaf(0x00402016, "LO", "placer_order"),
    _leaf(0x00402017, "LO", "filler_order"),
    _leaf(0x00403001, "LO", "confidentiality"),
)

# What images of a step say of their order (PS3.3 table 10-9): an item for each step.
REQUEST = Branch(
    0x00400275,
    "",
    lambda held: (held,),
    _by_tag(
        *(MODEL[tag] for tag in (0x00080050, 0x0020000D, 0x00321060, 0x00321064, 0x00401001)),
        *(STEP[tag] for tag in (0x00400007, 0x00400008, 0x00400009)),
    ),
)


def _fields(parts: Mapping[int, Part]) -> Iterator[tuple[str, str]]:
    for part in parts.values():
        if isinstance(part, Branch):
            yield part.field, "LO"
            yield from _fields(part.parts) if part.tag == STEP_SEQUENCE else ()
        else:
            yield part.field, part.vr


VRS: Mapping[str, str] = {field: vr for field, vr in _fields(MODEL) if field}


# --- read --------------------------------------------------------------------------------------


def entries_of(values: Identifier) -> list[Entry]:
    """The entries a data set is about, one for each scheduled step: an answer, or a file.

    Nothing is checked: `store.worklist.put` does that. What it holds beside is left out. Raises
    InvalidValue, naming the tag, for what does not fit its VR.
    """
    found = []
    for step in identifier.items(values, STEP_SEQUENCE) or ({},):
        written_in = character_set(values)
        said = _read(MODEL, values, "") | _read(STEP, step, written_in)
        for tag in _COMMENTS:
            said["comments"] = said["comments"] or text.value(values, tag, written_in)
        patient = Patient(**{name: said.pop(name) for name in PATIENT_FIELDS if name in said})
        found.append(Entry(patient=patient, **said))
    return found


def character_set(values: Identifier, outer: str = "") -> str:
    """That of a data set or an item, else of what holds it (PS3.3 C.12.1.1.2)."""
    return identifier.text(values, SPECIFIC_CHARACTER_SET) or outer


def _read(parts: Mapping[int, Part], values: Identifier, outer: str) -> dict[str, str]:
    written_in = character_set(values, outer)
    said = {}
    for part in parts.values():
        if not part.field:
            continue
        if isinstance(part, Branch):
            items = identifier.items(values, part.tag)
            said[part.field] = "\\".join(_joined(item, part, written_in) for item in items)
        else:
            said[part.field] = text.value(values, part.tag, written_in)
    return said


def _joined(item: Identifier, branch: Branch, outer: str) -> str:
    """A code or another ID as one text; its parts hold neither ^ nor backslash."""
    written_in = character_set(item, outer)
    places = CODE_PLACES if branch.parts is _CODE else _OTHER_ID_PLACES
    parts = [text.value(item, tag, written_in) for tag in places]
    return "^".join(one.replace("^", " ").replace("\\", " ") for one in parts).rstrip("^")
