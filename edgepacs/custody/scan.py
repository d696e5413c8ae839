"""Scanning a data set while it arrives: its identity and what the index keeps of it.

Works on the encoded bytes in constant memory, whatever their order, nesting or length, and never
decodes pixels. What is odd is flagged and stored all the same; what has no identity, or ends in
the middle of an element, is refused. Pixel data and everything behind it is passed over.
"""

import struct
import zlib
from dataclasses import dataclass

from edgepacs.errors import DatasetMismatch, InvalidValue, LimitExceeded
from edgepacs.model import UID, Arrival, Attributes, uid

IMPLICIT_VR_LE = "1.2.840.10008.1.2"
EXPLICIT_VR_BE = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"

MAX_DEPTH = 32
MAX_ITEMS = 100_000
MAX_ELEMENTS = 1_000_000
MAX_VALUE = 65_536  # of an element the index wants
MAX_TEXT = 1024  # characters the index keeps of one value
# A data set that inflates further than this, and by more than the ratio, is a bomb.
INFLATED_FREE = 32 << 20
INFLATED_RATIO = 200
_INFLATED_AT_ONCE = 1 << 20

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_CHARACTER_SET = 0x00080005
_CHARACTER_SETS = frozenset(  # PS3.3 C.12.1.1.2, the terms in use
    {"", "ISO_IR 100", "ISO_IR 101", "ISO_IR 109", "ISO_IR 110", "ISO_IR 144", "ISO_IR 127"}
    | {"ISO_IR 126", "ISO_IR 138", "ISO_IR 148", "ISO_IR 166", "ISO_IR 13", "ISO_IR 192"}
    | {"ISO_IR 6", "GB18030", "GBK", "ISO 2022 IR 6", "ISO 2022 IR 100", "ISO 2022 IR 87"}
)
PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_NEVER_PLAIN = (0x0002, 0x7FE0, 0xFFFE)
SHORT_VRS = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split()  # PS3.5 7.1.2
)
_TEXT = {
    0x00080020: "study_date",
    0x00080030: "study_time",
    0x00080050: "accession_number",
    0x00080060: "modality",
    0x00080080: "institution",
    0x00080090: "referring_physician",
    0x00081010: "station_name",
    0x00081030: "study_description",
    0x0008103E: "series_description",
    0x00100010: "patient_name",
    0x00100020: "patient_id",
    0x00100021: "issuer_of_patient_id",
    0x00100030: "patient_birth_date",
    0x00100040: "patient_sex",
    0x00180015: "body_part",
    0x00200010: "study_id",
    0x00200011: "series_number",
    0x00200013: "instance_number",
    0x00200060: "laterality",
}
_NAMES = frozenset({0x00080090, 0x00100010})
_UIDS = {
    0x00080016: ("sop_class_uid", "SOP Class UID (0008,0016)"),
    0x00080018: ("sop_instance_uid", "SOP Instance UID (0008,0018)"),
    0x0020000D: ("study_instance_uid", "Study Instance UID (0020,000D)"),
    0x0020000E: ("series_instance_uid", "Series Instance UID (0020,000E)"),
}
_FRAMES, _ROWS, _COLUMNS = 0x00280008, 0x00280010, 0x00280011
_WANTED = frozenset({_CHARACTER_SET, _FRAMES, _ROWS, _COLUMNS, *_TEXT, *_UIDS})
_IDENTITY = frozenset(_UIDS)


@dataclass(frozen=True, slots=True)
class _Level:
    """One open sequence or item of undefined length; `implicit` inside a UN (PS3.5 6.2.2)."""

    sequence: bool
    implicit: bool


class Scanner:
    """Fed with the data set as it arrives; `finish` gives what was found."""

    def __init__(self, transfer_syntax_uid: UID) -> None:
        self._implicit = transfer_syntax_uid == IMPLICIT_VR_LE
        self._order = ">" if transfer_syntax_uid == EXPLICIT_VR_BE else "<"
        self._pair = struct.Struct(self._order + "HH").unpack_from
        self._short = struct.Struct(self._order + "HH2sH").unpack_from
        self._u16 = struct.Struct(self._order + "H").unpack_from
        self._u32 = struct.Struct(self._order + "I").unpack_from
        self._inflater = zlib.decompressobj(-15) if transfer_syntax_uid == DEFLATED else None
        self._deflated_length = 0
        self._inflated_length = 0
        self._tail = b""
        self._skip = 0
        self._position = 0  # of the first byte of _tail within the data set
        self._levels: list[_Level] = []
        self._items = 0
        self._elements = 0
        self._last_tag = 0
        self._values: dict[int, bytes] = {}
        self._flags: dict[str, None] = {}
        self._pixel_offset = -1
        self._done = False

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes; raises LimitExceeded for a deflated bomb, InvalidValue."""
        if self._inflater is None:
            if not self._done:
                self._take(data)
            return
        self._inflate(data)

    def _inflate(self, data: bytes | memoryview) -> None:
        assert self._inflater is not None
        self._deflated_length += len(data)
        rest, more = bytes(data), True
        while more and not self._inflater.eof:
            try:
                plain = self._inflater.decompress(rest, _INFLATED_AT_ONCE)
            except zlib.error:
                raise InvalidValue("data set", "its deflated bytes do not inflate") from None
            rest = self._inflater.unconsumed_tail
            # A full answer may leave its end within the inflater after all input has gone in.
            more = bool(rest) or len(plain) == _INFLATED_AT_ONCE
            self._inflated_length += len(plain)
            if self._inflated_length > max(INFLATED_FREE, INFLATED_RATIO * self._deflated_length):
                raise LimitExceeded(
                    f"data set: inflates to more than {INFLATED_RATIO} times its size"
                )
            if not self._done:
                self._take(plain)

    def _take(self, data: bytes | memoryview) -> None:
        """Walk over `data`, keeping only an unfinished element for the next call."""
        if self._skip >= len(data) and not self._tail:
            self._skip -= len(data)
            self._position += len(data)
            return
        buffer = memoryview(self._tail + data if self._tail else data)
        used = self._walk(buffer)
        self._position += used
        self._tail = b"" if self._done else bytes(buffer[used:])

    def _walk(self, buffer: memoryview) -> int:
        """How many bytes of `buffer` are dealt with; stops where an element is incomplete."""
        position, end = 0, len(buffer)
        while not self._done:
            if self._skip:
                step = min(self._skip, end - position)
                position += step
                self._skip -= step
            if self._last_tag and not self._levels and not self._implicit:
                position = self._stride(buffer, position, end)
            if self._skip or end - position < 8:
                break
            used = self._element(buffer, position, end)
            if not used:
                break
            position += used
            self._elements += 1
            if self._elements > MAX_ELEMENTS:
                self._opaque("too-many-elements", MAX_ELEMENTS)
        return position

    def _stride(self, buffer: memoryview, position: int, end: int) -> int:
        """Pass over top elements that are whole, in order and unremarkable; where that ends.

        Nearly all are, and what `_element` does for each of them is most of what ingest costs.
        """
        last, values, passed = self._last_tag, self._values, 0
        while end - position >= 8:
            group, element, vr, length = self._short(buffer, position)
            tag = group << 16 | element
            after = position + 8 + length
            if tag <= last or length & 1 or vr not in SHORT_VRS or after > end:
                break
            if group in _NEVER_PLAIN or tag in values:
                break
            if tag in _WANTED and length <= MAX_VALUE:
                values[tag] = bytes(buffer[position + 8 : after])
            last, position = tag, after
            passed += 1
        self._last_tag = last
        self._elements += passed
        return position

    def _element(self, buffer: memoryview, position: int, end: int) -> int:
        """Deal with the element at `position`; bytes used, 0 where more are needed."""
        group, element = self._pair(buffer, position)
        tag = group << 16 | element
        if group == 0xFFFE:
            length = self._u32(buffer, position + 4)[0]
            self._delimiter(tag, length)
            return 8
        if not self._last_tag and not self._levels:
            self._believe_bytes(bytes(buffer[position + 4 : position + 6]))
        vr, length, head = self._head(buffer, position, end)
        if not head:
            return 0
        if self._done:
            return head
        if self._levels:
            self._pass_over(vr, length)
            return head
        return self._top(tag, vr, length, head, buffer, position)

    def _believe_bytes(self, vr: bytes) -> None:
        """The first element shows whether VRs are explicit, whatever the syntax claims."""
        looks_explicit = vr.isalpha() and vr.isupper()
        if looks_explicit == self._implicit:
            self._implicit = not looks_explicit
            self._flag("encoding-differs-from-syntax")

    def _head(self, buffer: memoryview, position: int, end: int) -> tuple[bytes, int, int]:
        """VR (b"" where implicit), value length and header length; the last 0 for: need more."""
        implicit = self._levels[-1].implicit if self._levels else self._implicit
        if implicit:
            return b"", self._u32(buffer, position + 4)[0], 8
        vr = bytes(buffer[position + 4 : position + 6])
        if vr in SHORT_VRS:
            return vr, self._u16(buffer, position + 6)[0], 8
        if not vr.isalpha():
            self._opaque("unreadable-vr")
            return vr, 0, 8
        if end - position < 12:
            return vr, 0, 0
        return vr, self._u32(buffer, position + 8)[0], 12

    def sop_uid(self, tag: int) -> str:
        """SOP Class or Instance UID as far as it has been read, unchecked; "" before."""
        return self._values.get(tag, b"").decode("ascii", "replace").strip("\0 ")

    def _top(
        self, tag: int, vr: bytes, length: int, head: int, buffer: memoryview, position: int
    ) -> int:
        if tag in PIXEL_TAGS:
            self._pixel_offset = -1 if self._inflater else self._position + position
            if length != UNDEFINED:
                self._skip = length
            self._done = self._inflater is not None or length == UNDEFINED
            self._last_tag = tag
            return head
        wanted = tag in _WANTED and length <= MAX_VALUE
        if wanted and len(buffer) - position < head + length:
            return 0
        self._note_order(tag, length)
        if wanted and tag not in self._values:
            start = position + head
            self._values[tag] = bytes(buffer[start : start + length])
        self._pass_over(vr, length)
        return head

    def _note_order(self, tag: int, length: int) -> None:
        if tag == self._last_tag or tag in self._values:
            self._flag("duplicate-element")
        elif tag < self._last_tag:
            self._flag("elements-out-of-order")
        if length % 2 and length != UNDEFINED:
            self._flag("odd-length")
        if tag >> 16 == 0x0002:
            self._flag("group-2-in-data-set")
        self._last_tag = tag

    def _pass_over(self, vr: bytes, length: int) -> None:
        """Skip a value; one of undefined length is a sequence, or cannot be followed."""
        if length != UNDEFINED:
            self._skip = length
        elif vr in (b"SQ", b"UN", b""):
            inherited = self._levels[-1].implicit if self._levels else self._implicit
            self._open(_Level(sequence=True, implicit=inherited or vr == b"UN"))
        else:
            self._opaque("undefined-length")

    def _open(self, level: _Level) -> None:
        if len(self._levels) >= 2 * MAX_DEPTH:
            self._opaque("nested-too-deep", MAX_DEPTH)
            return
        self._levels.append(level)

    def _delimiter(self, tag: int, length: int) -> None:
        if not self._levels:
            self._opaque("stray-delimiter")
        elif tag == ITEM:
            self._items += 1
            if self._items > MAX_ITEMS:
                self._opaque("too-many-items", MAX_ITEMS)
            elif length == UNDEFINED:
                self._open(_Level(sequence=False, implicit=self._levels[-1].implicit))
            else:
                self._skip = length
        elif tag in (ITEM_END, SEQUENCE_END):
            # An item that lacks its own end is closed by that of its sequence.
            while self._levels and tag == SEQUENCE_END and not self._levels[-1].sequence:
                self._levels.pop()
                self._flag("item-without-end")
            if self._levels:
                self._levels.pop()
        else:
            self._opaque("stray-delimiter")

    def _opaque(self, flag: str, limit: int | None = None) -> None:
        """Give up reading here; what follows is stored unread, if the identity is known."""
        missing = _IDENTITY - self._values.keys()
        if missing:
            tag = min(missing)
            words = flag if limit is None else f"{flag}, limit {limit}"
            raise InvalidValue("data set", f"{words}, before ({tag >> 16:04X},{tag & 0xFFFF:04X})")
        self._flag(flag)
        self._done = True

    def _flag(self, flag: str) -> None:
        self._flags[flag] = None

    def finish(self, arrival: Arrival) -> tuple[Attributes, int]:
        """The attributes and the offset of the pixel data element (-1 for none).

        Raises DatasetMismatch where the data set contradicts `arrival` or has no identity,
        InvalidValue where it ends in the middle of an element or of its deflated stream.
        """
        if not self._done and (self._skip or self._tail):
            tag = f"({self._last_tag >> 16:04X},{self._last_tag & 0xFFFF:04X})"
            raise InvalidValue("data set", f"ends in the middle of an element, after {tag}")
        if self._inflater is not None and not self._inflater.eof:
            raise InvalidValue("data set", "its deflated bytes end too early")
        if self._levels and not self._done:
            self._flag("sequence-without-end")
        identity = self._identity(arrival)
        has_pixels = self._last_tag in PIXEL_TAGS or self._pixel_offset >= 0
        number = self._number(_FRAMES)
        attributes = Attributes(
            sop_class_uid=arrival.sop_class_uid,
            sop_instance_uid=arrival.sop_instance_uid,
            study_instance_uid=identity[0],
            series_instance_uid=identity[1],
            rows=self._number(_ROWS),
            columns=self._number(_COLUMNS),
            frames=max(1, number) if has_pixels else 0,
            **self._texts(),
            flags=tuple(self._flags),
        )
        return attributes, self._pixel_offset

    def _identity(self, arrival: Arrival) -> tuple[UID, UID]:
        """Study and Series Instance UID, the SOP UIDs having been compared (PS3.4 B.2.3)."""
        found: dict[str, UID] = {}
        for tag, (name, words) in _UIDS.items():
            raw = self._values.get(tag, b"").decode("ascii", "replace")
            if raw.strip("\0 "):
                try:
                    found[name] = uid(raw, words)
                except InvalidValue as error:
                    raise DatasetMismatch(str(error), tag=tag) from None
            elif name == "sop_class_uid":
                self._flag("no-sop-class-uid")
                found[name] = arrival.sop_class_uid
            else:
                raise DatasetMismatch(f"{words}: missing from the data set", tag=tag)
        if found["sop_class_uid"] != arrival.sop_class_uid:
            raise DatasetMismatch("SOP Class UID differs from the command's", tag=0x00080016)
        if found["sop_instance_uid"] != arrival.sop_instance_uid:
            raise DatasetMismatch("SOP Instance UID differs from the command's", tag=0x00080018)
        return found["study_instance_uid"], found["series_instance_uid"]

    def _number(self, tag: int) -> int:
        """A US or IS value as a number; 0 where absent or not one."""
        raw = self._values.get(tag, b"")
        if tag != _FRAMES:
            return int(self._u16(raw)[0]) if len(raw) >= 2 else 0
        try:
            return max(0, min(int(raw.partition(b"\\")[0].strip(b"\0 ")), 2**31 - 1))
        except ValueError:
            return 0

    def _texts(self) -> dict[str, str]:
        character_set = self._character_set()
        texts = {}
        for tag, name in _TEXT.items():
            raw = self._values.get(tag)
            if raw:
                text = _decoded(raw, character_set, person_name=tag in _NAMES)
                if len(text) > MAX_TEXT:
                    self._flag("overlong-text")
                texts[name] = text[:MAX_TEXT]
        return texts

    def _character_set(self) -> str:
        """Specific Character Set (0008,0005), flagged where nobody knows it."""
        raw = self._values.get(_CHARACTER_SET, b"").decode("ascii", "replace").strip("\0 ")
        if raw and not all(term.strip() in _CHARACTER_SETS for term in raw.split("\\")):
            from edgepacs.custody.text import encodings  # noqa: PLC0415  see _decoded

            try:
                encodings(raw)
            except ValueError:
                self._flag("unknown-character-set")
        return raw


def _decoded(raw: bytes, character_set: str, *, person_name: bool) -> str:
    if raw.isascii() and b"\x1b" not in raw:  # the same in every character set of PS3.3 C.12.1.1.2
        return raw.decode("ascii").strip("\0 ")
    # Only who needs it loads pydicom: a receiver without it is 20 MB smaller.
    from edgepacs.custody.text import decoded  # noqa: PLC0415

    return decoded(raw, character_set, person_name=person_name).strip("\0 ")


def scan(data: bytes, arrival: Arrival) -> tuple[Attributes, int]:
    """Scan a whole data set at once; raises as Scanner does."""
    scanner = Scanner(arrival.transfer_syntax_uid)
    scanner.feed(data)
    return scanner.finish(arrival)
