"""The tables of docs/conformance.md that are made of the code's own; see conformance.py."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from pydicom._uid_dict import UID_dictionary
from pydicom.datadict import dictionary_description

from edgepacs.custody.scheduled import MODEL, Branch, Leaf
from edgepacs.dimse import contexts, status
from edgepacs.orders import mapping, reading
from edgepacs.orders.faults import Place, Problem, Refusal
from edgepacs.orders.mapping import Act
from edgepacs.orders.paths import Path
from edgepacs.pixels.syntaxes import TABLE
from edgepacs.scp import query
from edgepacs.store.catalogue import ATTRIBUTES

_OPTIONS = (
    "Relational queries",
    "Combined datetime matching",
    "Fuzzy semantic matching of person names",
    "Timezone query adjustment",
    "Enhanced multi-frame image conversion",
    "Empty value matching",
    "Multiple value matching",
)
_PLACES = ("first", "second", "third", "fourth", "fifth", "last")


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    names = list(columns)
    lines = [names, ["---"] * len(names), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


NATIVE = (contexts.EXPLICIT_VR_LE, contexts.IMPLICIT_VR_LE)


def uid_name(uid: str) -> str:
    """The name the registry of PS3.6 has for `uid`."""
    name: str = UID_dictionary[uid][0]
    return name.replace(" SOP Class", "")


def named(uids: Iterable[str]) -> str:
    """UIDs with their names, in their order."""
    return ", ".join(f"{uid_name(uid).partition(':')[0]}, `{uid}`" for uid in uids)


def storage_sop_classes() -> str:
    """Every storage SOP class of the data dictionary."""
    found = sorted(contexts.STORAGE_SOP_CLASSES.items(), key=lambda one: one[1])
    return table(("SOP class", "UID"), ((name, f"`{uid}`") for uid, name in found))


def transfer_syntaxes() -> str:
    """Every transfer syntax that is accepted, in the order it is chosen in."""
    names = {uid: row.name for uid, row in TABLE.items()}
    for uid, entry in UID_dictionary.items():
        if entry[1] == "Transfer Syntax":
            names[uid] = names.get(uid, entry[0]) + (", retired" if entry[3] else "")
    found = [
        (contexts.preference(uid), name, uid, "yes" if uid in TABLE and TABLE[uid].decoder else "")
        for uid, name in names.items()
        if uid not in contexts.PIXELS_ELSEWHERE
    ]
    found.sort(key=lambda one: (one[0], [int(part) for part in one[2].split(".")]))
    rows = (
        (_PLACES[place], place.name.lower(), name, f"`{uid}`", shown)
        for place, name, uid, shown in found
    )
    return table(("Chosen", "Class", "Transfer syntax", "UID", "Shown"), rows)


def query_options() -> str:
    """The options of C-FIND in the order of their bytes (PS3.4 C.5.1.1)."""
    offered = query.options(bytes([1] * len(_OPTIONS)))
    rows = (
        (str(byte), name, "yes" if there else "no")
        for byte, (name, there) in enumerate(zip(_OPTIONS, offered, strict=True), 1)
    )
    return table(("Byte", "Option", "Supported"), rows)


def _tag_text(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def query_keys() -> str:
    """Every key of C-FIND, from the highest level down."""
    rows = (
        (one.level.name, dictionary_description(tag), _tag_text(tag), one.vr)
        for tag, one in sorted(ATTRIBUTES.items(), key=lambda each: (each[1].level, each[0]))
    )
    return table(("Level", "Attribute", "Tag", "VR"), rows)


def _worklist_rows(parts: Mapping[int, Leaf | Branch], depth: int) -> Iterator[tuple[str, ...]]:
    for tag, part in sorted(parts.items()):
        name = f"{'> ' * depth}{dictionary_description(tag)}"
        if isinstance(part, Branch):
            yield name, _tag_text(tag), "SQ"
            yield from _worklist_rows(part.parts, depth + 1)
        else:
            yield name, _tag_text(tag), part.vr


def worklist_keys() -> str:
    """Every attribute of an answer of the worklist, items of sequences below them."""
    return table(("Attribute", "Tag", "VR"), _worklist_rows(MODEL, 0))


def _fate(one: status.Status) -> str:
    if one.category is status.Category.PENDING:
        return "waits for the final response"
    if one.stored:
        return "`sent`"
    return "`queued`, tried again later" if one.passing else "`failed`, needs a person"


def scu_statuses() -> str:
    """Every status of a C-STORE response and what becomes of the delivery."""
    known = (status.lookup(code) for code in range(0x10000))
    rows = []
    for key, group in groupby(known, lambda one: (one.meaning, one.category, one.passing)):
        first, *others = group
        if first.meaning == "unknown status":
            continue
        codes = f"{first.code:04X}" + (f" to {others[-1].code:04X}" if others else "")
        rows.append((codes, key[0], str(key[1]), _fate(first)))
    other = next(one for one in map(status.lookup, range(0x10000)) if one.meaning[:3] == "unk")
    rows.append(("any other", other.meaning, str(other.category), _fate(other)))
    return table(("Status", "Meaning", "Kind", "The delivery becomes"), rows)


# --- HL7 -----------------------------------------------------------------------------------


def hl7_messages() -> str:
    """Every message that is taken."""
    return table(("Message",), ([f"`{kind}`"] for kind in reading._KINDS))  # noqa: SLF001


def hl7_controls() -> str:
    """What each order control code of ORC-1 means to the worklist."""
    by_act = {act: [c for c, one in mapping.Sender().controls.items() if one is act] for act in Act}
    rows = ((", ".join(f"`{one}`" for one in codes), act) for act, codes in by_act.items() if codes)
    return table(("ORC-1", "What is done"), rows)


def _place(path: Path) -> str:
    if path.constant is not None:
        return f"the text {path.constant}"
    parts = [path.component, path.subcomponent]
    return f"{path.segment}-{path.field}" + "".join(f".{one}" for one in parts if one)


def hl7_places() -> str:
    """Where each attribute of an entry is read from, the first place that says something."""
    rows = (
        (
            f"`{name}`",
            ", ".join(map(_place, rule.places)) or "nowhere, unless a mapping file says so",
            ", ".join(map(_place, rule.otherwise)),
        )
        for name, rule in mapping.Sender().rules.items()
    )
    return table(("Attribute", "Read from", "For new orders, else from"), rows)


def hl7_errors() -> str:
    """The condition codes of table 0357 that are answered."""
    refusals = (Refusal(Place("MSH"), one, "").verdict for one in Problem)
    rows = (
        (verdict.code, str(verdict.error), one.words)
        for one, verdict in zip(Problem, refusals, strict=True)
    )
    return table(("MSA-1", "ERR-3", "Meaning"), rows)
