"""Corrections: an instance written anew with its order's attributes, its pixel data untouched.

What was there before stands in the Original Attributes Sequence (PS3.3 C.12.1). Attributes
pass as bytes; only those that change are written anew, and all text where the character set has
to change for them. Always made of what was received, never of an earlier correction.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from typing import NamedTuple

from edgepacs.custody import elements, original, restore, rewriting, standing, text
from edgepacs.custody.elements import Encoding, announce, announced
from edgepacs.custody.original import MAX_INFLATED, PIXELS, Supply
from edgepacs.custody.scan import ITEM, SEQUENCE_END, UNDEFINED
from edgepacs.errors import Undecodable
from edgepacs.model import UID
from edgepacs.pixels.deflated import deflate_pieces, inflate
from edgepacs.pixels.description import BIG_ENDIAN, EXPLICIT_LITTLE
from edgepacs.pixels.syntaxes import DEFLATED_DATA_SET
from edgepacs.store import Store
from edgepacs.store.instances import Instance
from edgepacs.store.worklist import Entry

_CHARACTER_SET = 0x00080005
_UTF_8 = "ISO_IR 192"
_MULTI_BYTE_ALONE = ("ISO_IR 192", "GB18030", "GBK")
_TEXT_VRS = frozenset((b"LO", b"LT", b"PN", b"SH", b"ST", b"UC", b"UT"))  # PS3.5 6.1.2.3
_STEP = 1 << 18

_NAME, _ID, _ISSUER, _BORN, _SEX = 0x00100010, 0x00100020, 0x00100021, 0x00100030, 0x00100040
_ACCESSION, _REFERRING, _ADMISSION = 0x00080050, 0x00080090, 0x00380010
_LATERALITY, _IMAGE_LATERALITY = 0x00200060, 0x00200062
_REQUEST = 0x00400275
_ORIGINAL = 0x04000561
_VRS: Mapping[int, bytes] = {
    _CHARACTER_SET: b"CS",
    _ACCESSION: b"SH",
    _REFERRING: b"PN",
    _NAME: b"PN",
    _ID: b"LO",
    _ISSUER: b"LO",
    _BORN: b"DA",
    _SEX: b"CS",
    0x00101020: b"DS",
    0x00101030: b"DS",
    _LATERALITY: b"CS",
    _IMAGE_LATERALITY: b"CS",
    _ADMISSION: b"LO",
}
_READ = frozenset(_VRS)
# Of another patient none of these may stay: they came from the worklist with the wrong one.
_OF_THE_PATIENT = (
    0x00100022,  # Type of Patient ID
    0x00100024,  # Issuer of Patient ID Qualifiers Sequence
    0x00100032,  # Patient's Birth Time
    0x00101000,  # Other Patient IDs
    0x00101001,  # Other Patient Names
    0x00101002,  # Other Patient IDs Sequence
    0x00101005,  # Patient's Birth Name
    0x00101010,  # Patient's Age
    0x00101020,  # Patient's Size
    0x00101030,  # Patient's Weight
    0x00101040,  # Patient's Address
    0x00101060,  # Patient's Mother's Birth Name
    0x00102000,  # Medical Alerts
    0x00102110,  # Allergies
    0x00102154,  # Patient's Telephone Numbers
    0x00102160,  # Ethnic Group
    0x001021B0,  # Additional Patient History
    0x001021C0,  # Pregnancy Status
    0x00104000,  # Patient Comments
    0x00380050,  # Special Needs
    0x00380500,  # Patient State
)
# Signatures over what is no longer so (PS3.15 C).
_MACS, _SIGNATURES = 0x4FFE0001, 0xFFFAFFFA
_UIDS = (0x00080018, 0x0020000D, 0x0020000E)


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What instances are to say from now on, and who says so.

    `uids` are new UIDs by those they stand for; none where UIDs are kept. `system` is this node's
    name, `at_ms` when it was decided. `reason` is CORRECT for values that were wrong, COERCE for
    such as only differ (PS3.3 C.12.1).
    """

    entry: Entry
    system: str
    at_ms: int
    reason: str = "CORRECT"
    uids: Mapping[str, str] = field(default_factory=dict)


class Corrected(NamedTuple):
    """A data set written anew, in pieces that come once."""

    transfer_syntax_uid: UID
    sop_instance_uid: UID
    chunks: Iterator[bytes]


def corrected(store: Store, instance: Instance, wanted: Correction) -> Corrected | None:
    """An instance with what its order says; None where it says all that already.

    In the transfer syntax received, with the bytes of its pixel data as they came; what came in
    big endian, which is retired, becomes Explicit VR Little Endian. Raises NotFound, Gone,
    Undecodable where its attributes cannot be followed, Tampered; so may iterating `chunks`.
    """
    now = standing.opened(store, instance).instance
    syntax, pieces = now.received_syntax_uid, restore.received_chunks(store, now)
    as_stored = now.transfer_syntax_uid == now.received_syntax_uid
    offset = now.pixel_offset if as_stored else -1
    if syntax == BIG_ENDIAN:
        syntax, offset = UID(EXPLICIT_LITTLE), -1
        pieces = rewriting.written(original.opened(store, now), syntax)
    deflated = syntax == DEFLATED_DATA_SET
    plain = inflate(pieces, MAX_INFLATED) if deflated else pieces
    made = _written(plain, syntax, -1 if deflated else offset, now, wanted)
    if made is None:
        return None
    sop = UID(wanted.uids.get(now.sop_instance_uid, now.sop_instance_uid))
    return Corrected(syntax, sop, deflate_pieces(made) if deflated else made)


def _written(
    pieces: Iterable[bytes], syntax: UID, offset: int, now: Instance, wanted: Correction
) -> Iterator[bytes] | None:
    supply = Supply(pieces)
    encoding = restore.encoding_of(supply.look(6), syntax)
    _, end, has_pixels = original.attributes_of(supply, encoding, offset)
    head = _Head(supply.take(end), encoding)
    new = head.changes(wanted)
    if not new and not wanted.uids:
        return None
    edited = head.edited(new, now.source, wanted)
    rest = _pixels(supply, encoding) if has_pixels else iter(())
    return chain((edited,), rest, _tail(supply, encoding, has_pixels=has_pixels))


def _pixels(supply: Supply, encoding: Encoding) -> Iterator[bytes]:
    """The pixel data element as it came (PS3.5 A.4 where it is encapsulated)."""
    element = announced(supply.look(12), 0, encoding)
    yield supply.take(element.start)
    if element.length != UNDEFINED:
        yield from _taken(supply, element.length)
        return
    while True:
        header = supply.take(8)
        item = announced(header, 0, encoding)
        yield header
        if item.tag == SEQUENCE_END:
            return
        if item.tag != ITEM or item.length == UNDEFINED:
            raise Undecodable("Pixel data: no item where a fragment should begin")
        yield from _taken(supply, item.length)


def _taken(supply: Supply, length: int) -> Iterator[bytes]:
    while length:
        piece = supply.take(min(_STEP, length))
        length -= len(piece)
        yield piece


def _tail(supply: Supply, encoding: Encoding, *, has_pixels: bool) -> Iterator[bytes]:
    """What follows the pixel data, without signatures over what is no longer so."""
    rest = supply.rest() if has_pixels else b""
    if not rest:
        return
    after = (max(PIXELS), 1 << 32)
    yield elements.recoded(rest, encoding, encoding, changes={_SIGNATURES: None}, between=after)


class _Head:
    """A data set up to its pixel data, to be written anew once."""

    def __init__(self, head: bytes, encoding: Encoding) -> None:
        self._encoding = encoding
        self._head = elements.recoded(head, encoding, encoding)
        self._raw = elements.values(self._head, encoding, _READ)
        self._set = self._raw.get(_CHARACTER_SET, b"").decode("ascii", "replace").strip("\0 ")

    def changes(self, wanted: Correction) -> dict[int, str | None]:
        """What is to be otherwise, by tag; None for what is to be left out."""
        there = {tag: self._text(tag, raw) for tag, raw in self._raw.items()}
        present = {tag for tag, _ in rewriting.elements_of(self._head, self._encoding)}
        return {
            tag: value
            for tag, value in _wanted(wanted.entry, there).items()
            if (tag in present if value is None else value != there.get(tag))
        }

    def _text(self, tag: int, raw: bytes) -> str:
        is_name = _VRS[tag] == b"PN"
        return text.decoded(raw, self._set, person_name=is_name).strip("\0 ")

    def edited(self, new: Mapping[int, str | None], source: str, wanted: Correction) -> bytes:
        """Written anew, with what was there before in the Original Attributes Sequence."""
        encode = self._encoder([value for value in new.values() if value] + _words(wanted.entry))
        there = self._elements()
        put = {tag: self._element(tag, value, encode) for tag, value in new.items()}
        put[_REQUEST] = self._sequence(_REQUEST, [self._request(wanted.entry, encode)])
        put[_MACS] = b""
        changed = [tag for tag in sorted({*put, *(_UIDS if wanted.uids else ())}) if tag in there]
        before = b"".join(there[tag] for tag in changed if tag != _MACS)
        item = self._what_was(before, source, wanted, encode)
        put[_ORIGINAL] = self._appended(there.get(_ORIGINAL, b""), item)
        if self._set:
            put[_CHARACTER_SET] = self._plain(_CHARACTER_SET, b"CS", self._set.encode())
        if wanted.uids:
            renamed = {a.encode(): b.encode() for a, b in wanted.uids.items()}
            self._revise(lambda _tag, vr, value: _renamed(value, renamed) if vr == b"UI" else value)
        return rewriting.replaced(self._head, self._encoding, put)

    # -- text

    def _encoder(self, values: Sequence[str]) -> Callable[[str], bytes]:
        """How text is written; where the character set cannot hold `values` it becomes UTF-8.

        ASCII is the same in all of them (PS3.3 C.12.1.1.2); several values of a character set
        would ask for escape sequences.
        """
        if all(value.isascii() for value in values):
            return lambda value: value.encode("ascii")
        if self._set and "\\" not in self._set:
            try:
                codec = text.encodings(self._set)[0]
                for value in values:
                    value.encode(codec)
            except (ValueError, LookupError):  # UnicodeError is a ValueError
                pass
            else:
                return lambda value: value.encode(codec)
        self._become_utf_8()
        return lambda value: value.encode("utf-8")

    def _become_utf_8(self) -> None:
        said = self._set

        def revise(tag: int, vr: bytes, value: bytes) -> bytes:
            if tag == _CHARACTER_SET:
                if value.decode("ascii", "replace").strip("\0 ") != said:
                    raise Undecodable("Specific Character Set: another one within a sequence")
                return _padded(_UTF_8.encode(), b"CS")
            if vr not in _TEXT_VRS or (value.isascii() and b"\x1b" not in value):
                return value
            plain = text.decoded(value, said, person_name=vr == b"PN").rstrip("\0 ")
            return _padded(plain.encode("utf-8"), vr)

        self._revise(revise)
        self._set = _UTF_8

    def _revise(self, revise: elements.Revision) -> None:
        self._head = elements.recoded(self._head, self._encoding, self._encoding, revise=revise)

    # -- elements

    def _elements(self) -> dict[int, bytes]:
        """Every element at the top, whole, by tag."""
        places = rewriting.elements_of(self._head, self._encoding)
        ends = [where for _, where in places[1:]] + [len(self._head)]
        return {tag: self._head[where:end] for (tag, where), end in zip(places, ends, strict=True)}

    def _element(self, tag: int, value: str | None, encode: Callable[[str], bytes]) -> bytes:
        return b"" if value is None else self._plain(tag, _VRS[tag], encode(value))

    def _plain(self, tag: int, vr: bytes, value: bytes) -> bytes:
        padded = _padded(value, vr)
        return announce(tag, vr, len(padded), self._encoding) + padded

    def _sequence(self, tag: int, items: Sequence[bytes]) -> bytes:
        whole = b"".join(announce(ITEM, b"", len(one), self._encoding) + one for one in items)
        return announce(tag, b"SQ", len(whole), self._encoding) + whole

    def _appended(self, sequence: bytes, item: bytes) -> bytes:
        """An Original Attributes Sequence with one item more, the last."""
        items = b""
        if sequence:
            element = announced(sequence, 0, self._encoding)
            if element.vr not in (b"", b"SQ"):
                raise Undecodable("Original Attributes Sequence: not a sequence")
            end = len(sequence) - (8 if element.length == UNDEFINED else 0)
            items = sequence[element.start : end]
        items += announce(ITEM, b"", len(item), self._encoding) + item
        return announce(_ORIGINAL, b"SQ", len(items), self._encoding) + items

    def _what_was(
        self, before: bytes, source: str, wanted: Correction, encode: Callable[[str], bytes]
    ) -> bytes:
        """An item of the Original Attributes Sequence (PS3.3 table C.12-1)."""
        at = datetime.fromtimestamp(wanted.at_ms / 1000, UTC).strftime("%Y%m%d%H%M%S.%f+0000")
        parts = [
            self._sequence(0x04000550, [before]),
            self._plain(0x04000562, b"DT", at.encode()),
            self._plain(0x04000563, b"LO", encode(wanted.system)),
            self._plain(0x04000564, b"LO", source.encode("ascii", "replace")),
            self._plain(0x04000565, b"CS", wanted.reason.encode()),
        ]
        return b"".join(parts)

    def _request(self, entry: Entry, encode: Callable[[str], bytes]) -> bytes:
        """An item of the Request Attributes Sequence (PS3.3 table 10-9)."""
        parts = []
        for tag, vr, value in _request_values(entry):
            if value and vr == b"SQ":
                codes = [self._code(one, encode) for one in value.split("\\")]
                parts.append(self._sequence(tag, [one for one in codes if one]))
            elif value:
                parts.append(self._plain(tag, vr, encode(value)))
        return b"".join(parts)

    def _code(self, code: str, encode: Callable[[str], bytes]) -> bytes:
        """A code as an item (PS3.3 8.8); nothing of one that has no scheme, or is too long."""
        value, scheme, meaning, *_ = (*code.split("^"), "", "", "")
        if not value or not scheme or len(value) > 16:
            return b""
        pairs = ((0x00080100, b"SH", value), (0x00080102, b"SH", scheme))
        parts = [self._plain(tag, vr, encode(word)) for tag, vr, word in pairs]
        return b"".join((*parts, self._plain(0x00080104, b"LO", encode(meaning))))


def _wanted(entry: Entry, there: Mapping[int, str]) -> dict[int, str | None]:
    """What an order wants of an instance that says `there`; what it does not know it leaves."""
    patient = entry.patient
    wants: dict[int, str | None] = {
        _NAME: patient.name,
        _ID: patient.patient_id,
        _ISSUER: patient.issuer,
        _BORN: patient.birth_date,
        _SEX: patient.sex,
        _ACCESSION: entry.accession_number,
        _REFERRING: entry.referring_physician,
        _ADMISSION: entry.admission_id,
    }
    known: dict[int, str | None] = {tag: value for tag, value in wants.items() if value}
    if _is_other_patient(entry, there):
        known |= dict.fromkeys(_OF_THE_PATIENT)
        known |= {_BORN: patient.birth_date, _SEX: patient.sex, _ISSUER: patient.issuer or None}
        known |= {_ADMISSION: entry.admission_id or None}
        known |= {0x00101020: patient.size or None, 0x00101030: patient.weight or None}
    if entry.laterality in ("R", "L"):
        for tag in (_LATERALITY, _IMAGE_LATERALITY):
            if there.get(tag, "") in ("R", "L"):
                known[tag] = entry.laterality
    return known


def _is_other_patient(entry: Entry, there: Mapping[int, str]) -> bool:
    mine = (there.get(_ID, ""), there.get(_ISSUER, ""))
    theirs = (entry.patient.patient_id, entry.patient.issuer or mine[1])
    return bool(entry.patient.patient_id) and mine != theirs


def _request_values(entry: Entry) -> Sequence[tuple[int, bytes, str]]:
    return (
        (0x00080050, b"SH", entry.accession_number),
        (0x0020000D, b"UI", entry.study_instance_uid),
        (0x00321060, b"LO", entry.procedure_description),
        (0x00321064, b"SQ", entry.procedure_code),
        (0x00400007, b"LO", entry.step_description),
        (0x00400008, b"SQ", entry.step_code),
        (0x00400009, b"SH", entry.step_id),
        (0x00401001, b"SH", entry.procedure_id),
    )


def _words(entry: Entry) -> list[str]:
    return [value for _, _, value in _request_values(entry) if value]


def _padded(value: bytes, vr: bytes) -> bytes:
    """A value of even length (PS3.5 6.2, 7.1.1)."""
    return value + (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)


def _renamed(value: bytes, names: Mapping[bytes, bytes]) -> bytes:
    """UIDs with those that have another name now under that."""
    found = [one.strip(b"\0 ") for one in value.split(b"\\")]
    if not any(one in names for one in found):
        return value
    return _padded(b"\\".join(names.get(one, one) for one in found), b"UI")
