"""Text in the character sets of PS3.3 C.12.1.1.2, to read and to write.

What is beyond ASCII is left to pydicom, loaded only then: it brings numpy along, and a receiver
is 20 MB smaller without.
"""

import re
from collections.abc import Iterator, Sequence

from edgepacs.dimse import identifier
from edgepacs.dimse.identifier import SPECIFIC_CHARACTER_SET, Identifier, Values
from edgepacs.errors import InvalidValue

UTF_8 = "ISO_IR 192"
_LATIN = ["iso8859"]
_DEFAULT = "iso8859"  # pydicom's word for the default repertoire, which is ASCII (PS3.5 6.1.1)
_BY_CHARACTER_SET = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})  # PS3.5 6.1.2.3
# What ends the reach of an escape sequence (PS3.5 6.1.2.5.3).
_Value = str | bytes | int | Sequence[Values]
_NAME_ENDS = re.compile(r"([\\^=])")
_TEXT_ENDS = re.compile(r"([\\\t\n\f\r])")
# Python's names of what needs care: JIS X 0208 and 0212, JIS X 0201, GB 2312.
_IN_G0 = {"iso2022_jp": b"\x1b$B", "iso2022_jp_2": b"\x1b$(D"}
_KATAKANA = "shift_jis"
_CHINESE = "iso_ir_58"
_CHINESE_ESCAPE = re.compile(r"\x1b\$\)A")
_BACK_TO_ASCII, _BACK_TO_ROMAN = b"\x1b(B", b"\x1b(J"


def encodings(character_set: str) -> list[str]:
    """Python's names of a Specific Character Set (0008,0005); raises ValueError."""
    from pydicom.charset import convert_encodings  # noqa: PLC0415  see the top

    try:
        return list(convert_encodings([term.strip() for term in character_set.split("\\")]))
    except LookupError as error:
        raise ValueError(character_set) from error


def checked(character_set: str) -> str:
    """A Specific Character Set as a person says it, '' for none; raises InvalidValue."""
    terms = [term.strip().upper() for term in character_set.split("\\")]
    if terms != [""] and not set(terms) - {""} <= _known():
        raise InvalidValue("character set", "not one of PS3.3 C.12.1.1.2, as ISO_IR 100")
    return "\\".join(terms)


def decoded(raw: bytes, character_set: str, *, person_name: bool) -> str:
    """The text of a value; what its character set does not explain is read as UTF-8."""
    if raw.isascii() and b"\x1b" not in raw:  # the same in every character set
        return raw.decode("ascii")
    try:
        names = encodings(character_set) if character_set else _LATIN
    except ValueError:
        names = _LATIN
    try:
        text = _read(raw, names, person_name=person_name)
    except (LookupError, UnicodeError):
        text = raw.decode("utf-8", "replace")
    return text.encode("utf-8", "replace").decode()


def _read(raw: bytes, names: list[str], *, person_name: bool) -> str:
    from pydicom.charset import decode_bytes  # noqa: PLC0415  see the top
    from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS  # noqa: PLC0415

    text = decode_bytes(raw, names, PN_DELIMS if person_name else TEXT_VR_DELIMS)
    return _CHINESE_ESCAPE.sub("", text)  # which pydicom leaves in


def value(values: Identifier, tag: int, character_set: str) -> str:
    """An element of an identifier as text without its padding, '' where it is absent.

    Binary numbers are decimal text. Raises InvalidValue for such as do not fit their VR.
    """
    if identifier.is_binary(tag):
        return identifier.numbers(values, tag)
    kind = identifier.vr(tag)
    if kind not in _BY_CHARACTER_SET:
        return identifier.text(values, tag)
    raw = values.get(tag, b"")
    if not isinstance(raw, bytes):
        raise InvalidValue(identifier.tag_text(tag), "is a sequence, but should be text")
    return decoded(raw, character_set, person_name=kind == "PN").strip("\0 ")


def encoded(values: Values, character_set: str) -> Values:
    """`values` with their text as bytes in a character set that its reader knows.

    That is `character_set`, the Specific Character Set of who asked, where it can carry all of
    the text, else UTF-8; it is named in the result (PS3.4 C.4.1.1.3.2). What is all ASCII is given
    back as it is: that is read in any.
    """
    if _is_plain(values):
        return values
    for term in (character_set, UTF_8):
        try:
            return {**_written(values, _writable(term)), SPECIFIC_CHARACTER_SET: term}
        except (ValueError, LookupError):
            continue
    raise InvalidValue("text", "is not Unicode")


def _is_plain(values: Values) -> bool:
    return all(
        one.isascii()
        if isinstance(one, str)
        else isinstance(one, int | bytes) or all(map(_is_plain, one))
        for one in values.values()
    )


def _writable(character_set: str) -> list[str]:
    """Python's names to write in; Latin 1 only where it is said. Raises ValueError for none."""
    terms = {term.strip() for term in character_set.split("\\")} - {"", "ISO_IR 6"}
    if not terms or not terms <= _known():
        raise ValueError(character_set)
    return ["ascii" if name == _DEFAULT else name for name in encodings(character_set)]


def _known() -> frozenset[str]:
    from pydicom.charset import python_encoding  # noqa: PLC0415  see the top

    return frozenset(python_encoding)


def _written(values: Values, names: list[str]) -> Values:
    return {tag: _one_written(tag, one, names) for tag, one in values.items()}


def _one_written(tag: int, one: _Value, names: list[str]) -> _Value:
    if isinstance(one, bytes | int):
        return one
    if not isinstance(one, str):
        return [_written(item, names) for item in one]
    kind = identifier.vr(tag)
    if one.isascii():
        return one
    if kind not in _BY_CHARACTER_SET:  # there is no way to write it (PS3.5 6.1.2.3)
        return one.encode("ascii", "replace").decode("ascii")
    parts = (_NAME_ENDS if kind == "PN" else _TEXT_ENDS).split(one)
    raw = b"".join(_part_written(part, names) for part in parts)
    if _read(raw, names, person_name=kind == "PN") != one:
        raise UnicodeError("several sets in one value, which readers take otherwise")
    return raw


def _part_written(part: str, names: list[str]) -> bytes:
    """What one reach of an escape sequence holds; raises UnicodeError where no set carries it.

    Two bytes of Japanese stand in place of ASCII (G0), all other sets beside it (G1); PS3.5 6.1.2.5
    says how to change between them. Each change of the one names the other anew: some readers
    know only the last.
    """
    if part.isascii():
        return part.encode("ascii")
    if len(names) == 1 and names[0] not in (*_IN_G0, _KATAKANA):
        return part.encode(names[0])
    return b"".join(_extended(part, names))


def _extended(part: str, names: list[str]) -> Iterator[bytes]:
    from pydicom.charset import ENCODINGS_TO_CODES as ESCAPES  # noqa: PLC0415  see the top

    g0, g1 = "", names[0]
    for character in part:
        if character.isascii():
            if g0:
                g0, g1 = "", ""
                yield _BACK_TO_ROMAN if names[0] == _KATAKANA else _BACK_TO_ASCII
            yield character.encode("ascii")
            continue
        name, raw = _carrier(character, names)
        if name in _IN_G0 and g0 != name:
            g0, g1 = name, ""
            yield ESCAPES[name]
        elif name not in _IN_G0 and g1 != name:
            g1 = name
            yield ESCAPES[name]
        yield raw
    if g0:
        yield _BACK_TO_ROMAN if names[0] == _KATAKANA else _BACK_TO_ASCII


def _carrier(character: str, names: list[str]) -> tuple[str, bytes]:
    """The first of the sets that has `character`, and what it is there."""
    for name in names:
        try:
            raw = character.encode("gb2312" if name == _CHINESE else name)
        except UnicodeError:
            continue
        if name in _IN_G0:
            escape = _IN_G0[name]
            if raw.startswith(escape):
                return name, raw[len(escape) : len(escape) + 2]
        elif name != _KATAKANA or len(raw) == 1:  # its codec knows kanji too
            return name, raw
    raise UnicodeError(character)
