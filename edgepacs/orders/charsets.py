"""Text of messages: the character sets of MSH-18 (HL7 table 0211) and escape sequences.

A character may hold the byte of a delimiter: in Shift JIS, Big-5 or ISO 2022 the second byte of
many does. So a message is decoded whole before it is taken apart.
"""

import re
from collections.abc import Mapping

# Python's names by those of table 0211 and what else senders write, without - _ / and blanks.
_CODECS: Mapping[str, str] = {
    "": "utf-8",  # none said: ASCII, of which UTF-8 is the only extension that can be told
    "ASCII": "ascii",
    "UNICODEUTF8": "utf-8",
    "UTF8": "utf-8",
    "ISOIR192": "utf-8",
    "ISOIR6": "ascii",
    "ISOIR14": "iso2022_jp_ext",
    "ISOIR87": "iso2022_jp_ext",
    "ISOIR159": "iso2022_jp_ext",
    "SHIFTJIS": "cp932",
    "EUCJP": "euc_jp",
    "GB180302000": "gb18030",
    "GB18030": "gb18030",
    "KSX1001": "cp949",
    "BIG5": "cp950",
    "WINDOWS1252": "cp1252",
}
_LATIN = re.compile(r"(?:ISO)?8859(\d{1,2})")
_NOISE = re.compile(r"[-_/\s]")
_KOREAN = b"\x1b$)C"  # designates KS X 1001 to G1, where its bytes stand in any case
_FORMAT = re.compile(r"\.(br|sp|sk|ce|fi|nf|in|ti)[+-]?\d*")
_BREAKS = frozenset({"br", "sp", "ce"})
_HEX = re.compile(r"X((?:[0-9A-Fa-f]{2})+)")


def codec_of(names: str, repetition: str) -> str | None:
    """Python's name of what MSH-18 says; None for what is not known here.

    Of several, the one that is not ASCII counts: with ISO 2022 the escapes tell them apart.
    """
    found = [_codec(one) for one in names.split(repetition)]
    if None in found:
        return None
    other = [one for one in found if one not in ("ascii", "utf-8")]
    return other[-1] if other else found[-1]


def _codec(name: str) -> str | None:
    plain = _NOISE.sub("", name.upper())
    if latin := _LATIN.fullmatch(plain):
        number = int(latin.group(1))
        return f"iso8859_{number}" if 1 <= number <= 16 and number != 12 else None
    return _CODECS.get(plain)


def decoded(raw: bytes, codec: str) -> str:
    """The text of a whole message; raises UnicodeError for bytes the character set does not have.

    A wrong name is worse than a message that is refused: nothing is replaced.
    """
    return raw.replace(_KOREAN, b"").decode(codec) if codec == "cp949" else raw.decode(codec)


class Escapes:
    """Escape sequences of one message (HL7 2.7): undone once, from left to right."""

    def __init__(self, delimiters: str, codec: str) -> None:
        field, component, repetition, escape, subcomponent = tuple(delimiters)
        self._escape = escape
        self._codec = codec
        mark = re.escape(escape)
        self._sequence = re.compile(f"{mark}([^{mark}]{{1,512}}){mark}")
        self._plain = {
            "F": field,
            "S": component,
            "R": repetition,
            "E": escape,
            "T": subcomponent,
            "H": "",  # highlighting
            "N": "",
        }

    def undone(self, text: str) -> str:
        """`text` without escapes; what only looks like one stays as it is.

        Raises ValueError for a switch of the character set in the middle of a field: what follows
        could not be read.
        """
        return self._sequence.sub(self._one, text) if self._escape in text else text

    def _one(self, found: re.Match[str]) -> str:
        inner = found.group(1)
        if inner in self._plain:
            return self._plain[inner]
        if shape := _FORMAT.fullmatch(inner):
            return "\n" if shape.group(1) in _BREAKS else " "
        if characters := _HEX.fullmatch(inner):
            return bytes.fromhex(characters.group(1)).decode(self._codec)
        if re.fullmatch(r"C[0-9A-F]{4}|M[0-9A-F]{4,6}", inner):
            raise ValueError(inner[0])
        return "" if inner.startswith("Z") else found.group(0)
