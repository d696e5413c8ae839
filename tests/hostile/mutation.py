"""Associations and data sets of real instances, broken at random but for good reasons.

A mutant is made from a seed and its number alone, so that any of them can be made again. What is
changed knows the structure: PDUs, PDVs, the items of A-ASSOCIATE, the elements of command and
data sets, their lengths before all.
"""

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

from dimse.dimse_node import associate_rq
from harness.corpus import everything
from harness.part10 import (
    DEFLATED_LE,
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    Part10,
    deflated,
    inflated,
)

from edgepacs.dimse import pdu
from edgepacs.dimse.command import Element, Field, Value, encode
from edgepacs.dimse.contexts import VERIFICATION
from edgepacs.dimse.items import ProposedContext, UserInformation

LARGEST = 20_000  # bytes of a data set; what is done to a larger one is not another thing
_LENGTHS = (0, 1, 2, 3, 7, 8, 0x7F, 0xFF, 0xFFFE, 0xFFFF, 0x10000, 1 << 20, 1 << 31)
_LONGER = (0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFF0)
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # PS3.5 7.1.2
_VRS = [*_LONG_VRS, *b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split()]
_TAGS = (0x00020010, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0x7FE00010, 0x00080018, 0x0020000D, 0)

Chance = random.Random


@cache
def seeds() -> tuple[Part10, ...]:
    """Small real instances of every transfer syntax there are small ones of."""
    found = [
        part
        for part in everything()
        if len(part.data) <= LARGEST and len(part.sop_instance) >= 20 and _is_named(part)
    ]
    assert len(found) > 50
    return tuple(sorted(found, key=lambda part: (part.transfer_syntax, part.sop_instance)))


def _is_named(part: Part10) -> bool:
    plain = inflated(part.data) if part.transfer_syntax == DEFLATED_LE else part.data
    return part.sop_instance.encode() in plain[:8192]


def any_seed(chance: Chance) -> Part10:
    """One of them; every transfer syntax gets its share."""
    if chance.random() < 0.5:
        return chance.choice(seeds())
    syntax = chance.choice(sorted({part.transfer_syntax for part in seeds()}))
    return chance.choice([part for part in seeds() if part.transfer_syntax == syntax])


def renamed(part: Part10, chance: Chance) -> Part10:
    """`part` under a SOP Instance UID of its own."""
    digits = min(18, len(part.sop_instance) - 8)
    tail = str(chance.randrange(10 ** (digits - 1), 10**digits))
    return part.with_instance_uid(part.sop_instance[:-digits] + tail)


# -- elements


@dataclass(frozen=True, slots=True)
class Spot:
    """Where one element of an encoded data set lies, and its length field."""

    start: int
    length_at: int
    length_size: int
    value: int
    end: int


@lru_cache(maxsize=256)
def spots(plain: bytes, syntax: str) -> tuple[Spot, ...]:
    """Elements, items and delimiters of a data set, those inside sequences too."""
    explicit = plain[4:6].isalpha() and plain[4:6].isupper()
    return tuple(_walk(plain, ">" if syntax == EXPLICIT_BE else "<", explicit=explicit))


def _walk(plain: bytes, order: str, *, explicit: bool) -> Iterator[Spot]:
    at = 0
    while at + 8 <= len(plain):
        (group,) = struct.unpack_from(order + "H", plain, at)
        vr = plain[at + 4 : at + 6]
        if group == 0xFFFE or not explicit:
            length_at, size = at + 4, 4
        elif vr in _LONG_VRS:
            length_at, size = at + 8, 4
        else:
            length_at, size = at + 6, 2
        value = length_at + size
        if value > len(plain):
            return
        (length,) = struct.unpack_from(order + ("I" if size == 4 else "H"), plain, length_at)
        nested = length == 0xFFFFFFFF or group == 0xFFFE or vr == b"SQ"
        end = value if nested else value + length
        if end > len(plain):
            return
        yield Spot(at, length_at, size, value, end)
        at = end


def _length(chance: Chance, spot: Spot, plain: bytes, order: str) -> bytes:
    """Another length for `spot`, as it is encoded."""
    size, true = spot.length_size, spot.end - spot.value
    near = (true + 1, true - 1, true + 2, true * 2, len(plain) - spot.value)
    new = chance.choice((*_LENGTHS, *_LONGER, *near, chance.randrange(1 << 32)))
    return struct.pack(order + ("I" if size == 4 else "H"), new % (1 << 8 * size))


def _set_length(chance: Chance, plain: bytes, syntax: str) -> bytes:
    spot = chance.choice(spots(plain, syntax))
    new = _length(chance, spot, plain, _order(syntax))
    return plain[: spot.length_at] + new + plain[spot.length_at + spot.length_size :]


def _set_vr(chance: Chance, plain: bytes, syntax: str) -> bytes:
    at = chance.choice(spots(plain, syntax)).start + 4
    return plain[:at] + chance.choice(_VRS) + plain[at + 2 :]


def _set_tag(chance: Chance, plain: bytes, syntax: str) -> bytes:
    at = chance.choice(spots(plain, syntax)).start
    tag = chance.choice((*_TAGS, chance.randrange(1 << 32)))
    return (
        plain[:at] + struct.pack(_order(syntax) + "HH", tag >> 16, tag & 0xFFFF) + plain[at + 4 :]
    )


def _set_value(chance: Chance, plain: bytes, syntax: str) -> bytes:
    spot = chance.choice(spots(plain, syntax))
    return plain[: spot.value] + chance.randbytes(spot.end - spot.value) + plain[spot.end :]


def _drop(chance: Chance, plain: bytes, syntax: str) -> bytes:
    spot = chance.choice(spots(plain, syntax))
    return plain[: spot.start] + plain[spot.end :]


def _repeat(chance: Chance, plain: bytes, syntax: str) -> bytes:
    spot, other = chance.choice(spots(plain, syntax)), chance.choice(spots(plain, syntax))
    times = chance.choice((1, 1, 1, 2, 50))
    return plain[: other.start] + plain[spot.start : spot.end] * times + plain[other.start :]


def _nest(chance: Chance, plain: bytes, syntax: str) -> bytes:
    """Open sequences and items, closed or not."""
    order, at = _order(syntax), chance.choice(spots(plain, syntax)).start
    undefined = struct.pack(order + "I", 0xFFFFFFFF)
    explicit = plain[4:6].isalpha()
    opened = struct.pack(order + "HH", 0x0040, 0x0275) + (b"SQ\0\0" if explicit else b"")
    item = struct.pack(order + "HH", 0xFFFE, 0xE000)
    depth = chance.choice((1, 2, 5, 31, 33, 100, 400))
    nested = (opened + undefined + item + undefined) * depth
    if chance.random() < 0.5:
        ends = struct.pack(order + "HHI", 0xFFFE, 0xE00D, 0)
        nested += (ends + struct.pack(order + "HHI", 0xFFFE, 0xE0DD, 0)) * depth
    return plain[:at] + nested + plain[at:]


def _splice(chance: Chance, plain: bytes, syntax: str) -> bytes:
    other = _plain(chance.choice(seeds()))
    here = chance.choice(spots(plain, syntax)).start
    there = chance.choice(spots(other, EXPLICIT_LE) or (Spot(0, 0, 2, 0, 0),)).start
    return plain[:here] + other[there:]


def _cut(chance: Chance, plain: bytes, _syntax: str) -> bytes:
    return plain[: chance.randrange(len(plain) + 1)]


def _flip(chance: Chance, plain: bytes, _syntax: str) -> bytes:
    changed = bytearray(plain)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        if changed:
            changed[_place(chance, len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _stuff(chance: Chance, plain: bytes, _syntax: str) -> bytes:
    """Put in, overwrite or take out some bytes anywhere."""
    at = _place(chance, len(plain) + 1)
    gone = chance.choice((0, 0, 1, 2, 4, 100))
    put = chance.choice(
        (b"", b"\0", b"\xff" * 4, chance.randbytes(chance.randrange(20)), bytes(64))
    )
    return plain[:at] + put + plain[at + gone :]


def _place(chance: Chance, size: int) -> int:
    """Somewhere in `size` bytes, the beginning being likelier."""
    return chance.randrange(chance.choice((size, size, min(size, 400)))) if size else 0


def _order(syntax: str) -> str:
    return ">" if syntax == EXPLICIT_BE else "<"


def _plain(part: Part10) -> bytes:
    return inflated(part.data) if part.transfer_syntax == DEFLATED_LE else part.data


_Change = Callable[[Chance, bytes, str], bytes]
_CHANGES: tuple[_Change, ...] = (
    _set_length,
    _set_length,
    _set_length,
    _set_vr,
    _set_tag,
    _set_value,
    _drop,
    _repeat,
    _nest,
    _splice,
    _cut,
    _flip,
    _flip,
    _stuff,
)


def data_set(chance: Chance) -> tuple[Part10, str]:
    """A damaged data set with what its command says of it, and what was done to it."""
    part = any_seed(chance)
    if chance.random() < 0.95:
        part = renamed(part, chance)
    packed = part.transfer_syntax == DEFLATED_LE
    plain, done = _plain(part), []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        change = chance.choice(_CHANGES)
        if spots(plain, part.transfer_syntax):
            plain = change(chance, plain, part.transfer_syntax)
            done.append(change.__name__.strip("_"))
    data = deflated(plain) if packed else plain
    if packed and chance.random() < 0.5:
        data = chance.choice((_cut, _flip, _stuff))(chance, data, DEFLATED_LE)
        done.append("and its deflated bytes")
    return _with(part, data), f"data set of {part.transfer_syntax}: {', '.join(done)}"


def _with(part: Part10, data: bytes) -> Part10:
    return Part10(
        path=None,
        sop_class=part.sop_class,
        sop_instance=part.sop_instance,
        transfer_syntax=part.transfer_syntax,
        modality=part.modality,
        data=data,
    )


# -- sessions


@dataclass(slots=True)
class Pdv:
    """One presentation data value; `length` overrides its own (PS3.8 9.3.5.1)."""

    context: int
    control: int
    fragment: bytes
    length: int | None = None

    def encoded(self) -> bytes:
        length = len(self.fragment) + 2 if self.length is None else self.length
        return struct.pack(">IBB", length, self.context, self.control) + self.fragment


@dataclass(slots=True)
class Pdu:
    """One PDU, with a body or PDVs; `length` overrides its own (PS3.8 9.3)."""

    kind: int
    body: bytes = b""
    pdvs: list[Pdv] = field(default_factory=list)
    length: int | None = None

    def encoded(self) -> bytes:
        body = self.body + b"".join(one.encoded() for one in self.pdvs)
        length = len(body) if self.length is None else self.length
        return struct.pack(">BxI", self.kind, length) + body

    def copy(self) -> "Pdu":
        return Pdu(self.kind, self.body, [Pdv(p.context, p.control, p.fragment) for p in self.pdvs])


def session(chance: Chance) -> list[Pdu]:
    """What a modality says from A-ASSOCIATE-RQ to A-RELEASE-RQ."""
    parts = [renamed(any_seed(chance), chance) for _ in range(chance.choice((1, 1, 2)))]
    contexts = [
        ProposedContext(id=1, abstract_syntax=VERIFICATION, transfer_syntaxes=(IMPLICIT_LE,)),
        *(
            ProposedContext(
                id=2 * number + 3,
                abstract_syntax=part.sop_class,
                transfer_syntaxes=(part.transfer_syntax,),
            )
            for number, part in enumerate(parts)
        ),
    ]
    request = associate_rq(
        calling_ae="HARNESS",
        contexts=tuple(contexts),
        user_information=UserInformation(implementation_class_uid="1.2.3"),
    )
    said = [Pdu(1, request[pdu.HEADER_SIZE :])]
    if chance.random() < 0.3:
        echo: dict[int, Value] = {
            Element.AFFECTED_SOP_CLASS_UID: VERIFICATION,
            Element.COMMAND_FIELD: Field.C_ECHO_RQ,
            Element.MESSAGE_ID: 9,
            Element.DATA_SET_TYPE: 0x0101,
        }
        said.append(Pdu(4, pdvs=[Pdv(1, 3, encode(echo))]))
    for number, part in enumerate(parts):
        said += _store(part, 2 * number + 3, number + 1, chance)
    said.append(Pdu(5, bytes(4)))
    return said


def _store(part: Part10, context: int, message: int, chance: Chance) -> list[Pdu]:
    """A C-STORE whose PDVs are shared out among PDUs as senders do."""
    elements: dict[int, Value] = {
        Element.AFFECTED_SOP_CLASS_UID: part.sop_class,
        Element.COMMAND_FIELD: Field.C_STORE_RQ,
        Element.MESSAGE_ID: message,
        Element.PRIORITY: 0,
        Element.DATA_SET_TYPE: 1,
        Element.AFFECTED_SOP_INSTANCE_UID: part.sop_instance,
    }
    size = chance.choice((500, 4000, 16_384, len(part.data)))
    pieces = [part.data[at : at + size] for at in range(0, len(part.data), size)]
    pdvs = [Pdv(context, 3, encode(elements))]
    pdvs += [Pdv(context, 2 if one is pieces[-1] else 0, one) for one in pieces]
    together = chance.choice((1, 1, 2, 5))
    return [Pdu(4, pdvs=pdvs[at : at + together]) for at in range(0, len(pdvs), together)]


def _pdvs(said: Sequence[Pdu]) -> list[tuple[Pdu, int]]:
    return [(one, at) for one in said for at in range(len(one.pdvs))]


def _pdu_kind(chance: Chance, said: list[Pdu]) -> None:
    chance.choice(said).kind = chance.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 0x47, 0xFF))


def _pdu_length(chance: Chance, said: list[Pdu]) -> None:
    one = chance.choice(said)
    true = len(one.encoded()) - pdu.HEADER_SIZE
    one.length = chance.choice((*_LENGTHS, *_LONGER, true + 1, max(0, true - 1), true // 2))


def _pdu_again(chance: Chance, said: list[Pdu]) -> None:
    said.insert(chance.randrange(len(said) + 1), chance.choice(said).copy())


def _pdu_gone(chance: Chance, said: list[Pdu]) -> None:
    if len(said) > 1:
        said.pop(chance.randrange(len(said)))


def _pdus_swapped(chance: Chance, said: list[Pdu]) -> None:
    a, b = chance.randrange(len(said)), chance.randrange(len(said))
    said[a], said[b] = said[b], said[a]


def _pdu_foreign(chance: Chance, said: list[Pdu]) -> None:
    """One of another session, or made of noise."""
    noise = Pdu(chance.randrange(1, 8), chance.randbytes(chance.choice((0, 4, 4, 10, 74, 300))))
    other = chance.choice((noise, chance.choice(session(chance))))
    said.insert(chance.randrange(len(said) + 1), other)


def _pdv_length(chance: Chance, said: list[Pdu]) -> None:
    if places := _pdvs(said):
        one, at = chance.choice(places)
        true = len(one.pdvs[at].fragment) + 2
        one.pdvs[at].length = chance.choice((*_LENGTHS, *_LONGER, true + 1, true - 1))


def _pdv_control(chance: Chance, said: list[Pdu]) -> None:
    if places := _pdvs(said):
        one, at = chance.choice(places)
        one.pdvs[at].control = chance.choice((0, 1, 2, 3, 3, 4, 0xFF))


def _pdv_context(chance: Chance, said: list[Pdu]) -> None:
    if places := _pdvs(said):
        one, at = chance.choice(places)
        one.pdvs[at].context = chance.choice((0, 1, 2, 3, 5, 7, 255))


def _pdvs_moved(chance: Chance, said: list[Pdu]) -> None:
    """Drop, repeat or swap PDVs."""
    places = _pdvs(said)
    if not places:
        return
    (one, at), (two, to) = chance.choice(places), chance.choice(places)
    way = chance.randrange(4)
    if way == 0:
        del one.pdvs[at]
    elif way == 1:
        two.pdvs.insert(to, one.pdvs[at])
    elif way == 2:
        two.pdvs.insert(to, Pdv(one.pdvs[at].context, one.pdvs[at].control, b""))
    else:
        one.pdvs[at], two.pdvs[to] = two.pdvs[to], one.pdvs[at]


def _items(chance: Chance, said: list[Pdu]) -> None:
    """Length, type, number or value of an item of A-ASSOCIATE (PS3.8 9.3.2)."""
    one = next((one for one in said if one.kind == 1 and len(one.body) > 68), None)
    if one is None:
        return
    body = bytearray(one.body)
    at = chance.choice(list(_item_starts(body, 68, len(body))) or [68])
    way = chance.randrange(5)
    if way == 0:
        struct.pack_into(">H", body, at + 2, chance.choice((0, 1, 3, 0xFF, 0xFFFF, len(body) - at)))
    elif way == 1:
        body[at] = chance.choice((0x10, 0x20, 0x21, 0x30, 0x40, 0x50, *range(0x51, 0x5A), 0xFF))
    elif way == 2:
        (length,) = struct.unpack_from(">H", body, at + 2)
        body[at:at] = body[at : at + 4 + length] * chance.choice((1, 1, 2, 130))
    elif way == 3:
        (length,) = struct.unpack_from(">H", body, at + 2)
        del body[at : at + 4 + length]
    else:
        body[at + 4 : at + 12] = chance.randbytes(8)
    one.body = bytes(body)


def _item_starts(body: bytearray, at: int, end: int) -> Iterator[int]:
    while at + 4 <= end:
        kind, length = struct.unpack_from(">BxH", body, at)
        yield at
        if kind == 0x20:
            yield from _item_starts(body, at + 8, min(end, at + 4 + length))
        elif kind == 0x50:
            yield from _item_starts(body, at + 4, min(end, at + 4 + length))
        at += 4 + length


def _fixed_fields(chance: Chance, said: list[Pdu]) -> None:
    """Protocol version and AE titles (PS3.8 9.3.2)."""
    for one in said:
        if one.kind == 1 and len(one.body) >= 68:
            at = chance.randrange(36)
            noise = chance.choice((b"\0", b"\xff", b"\\", b"\n", b" ", chance.randbytes(1)))
            one.body = one.body[:at] + noise + one.body[at + 1 :]


def _command(chance: Chance, said: list[Pdu]) -> None:
    """Elements of a command set (PS3.7 6.3.1, E)."""
    commands = [one.pdvs[at] for one, at in _pdvs(said) if one.pdvs[at].control & 1]
    if commands:
        one = chance.choice(commands)
        change = chance.choice((*_CHANGES[:8], _cut, _flip, _stuff))
        if spots(one.fragment, IMPLICIT_LE):
            one.fragment = change(chance, one.fragment, IMPLICIT_LE)


def _command_field(chance: Chance, said: list[Pdu]) -> None:
    """Another value of a number: command field, message ID, data set type."""
    for one, at in _pdvs(said):
        fragment = one.pdvs[at].fragment
        if one.pdvs[at].control & 1 and chance.random() < 0.7:
            numbers = [s for s in spots(fragment, IMPLICIT_LE) if s.end - s.value == 2]
            if numbers:
                spot = chance.choice(numbers)
                value = chance.choice((0, 1, 0x0101, 0x0FFF, 0x20, 0x8001, 0xFFFF, 0x130))
                new = struct.pack("<H", value)
                one.pdvs[at].fragment = fragment[: spot.value] + new + fragment[spot.end :]


def _data(chance: Chance, said: list[Pdu]) -> None:
    """Bits of a data set, on its way."""
    pieces = [one.pdvs[at] for one, at in _pdvs(said) if not one.pdvs[at].control & 1]
    if pieces:
        one = chance.choice(pieces)
        one.fragment = chance.choice((_flip, _stuff, _cut))(chance, one.fragment, "")


_Damage = Callable[[Chance, list[Pdu]], None]
_DAMAGES: tuple[_Damage, ...] = (
    _pdu_kind,
    _pdu_length,
    _pdu_length,
    _pdu_again,
    _pdu_gone,
    _pdus_swapped,
    _pdu_foreign,
    _pdv_length,
    _pdv_length,
    _pdv_control,
    _pdv_context,
    _pdvs_moved,
    _pdvs_moved,
    _items,
    _items,
    _fixed_fields,
    _command,
    _command,
    _command_field,
    _data,
)


def stream(chance: Chance) -> tuple[bytes, str]:
    """A damaged session as it goes over the wire, and what was done to it."""
    said, done = session(chance), []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        damage = chance.choice(_DAMAGES)
        damage(chance, said)
        done.append(damage.__name__.strip("_"))
    sent = b"".join(one.encoded() for one in said)
    if chance.random() < 0.15:
        change = chance.choice((_cut, _flip, _stuff))
        sent = change(chance, sent, "")
        done.append(f"bytes {change.__name__.strip('_')}")
    return sent, f"session: {', '.join(done)}"


def chance_of(seed: int, number: int) -> Chance:
    """The dice of one mutant."""
    return random.Random(f"{seed} {number}")
