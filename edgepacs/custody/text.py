"""Text in the character sets of PS3.3 C.12.1.1.2, apart, since pydicom brings numpy along."""

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

_LATIN = ["iso8859"]


def encodings(character_set: str) -> list[str]:
    """Python's names of a Specific Character Set (0008,0005); raises ValueError."""
    try:
        return list(convert_encodings([term.strip() for term in character_set.split("\\")]))
    except LookupError as error:
        raise ValueError(character_set) from error


def decoded(raw: bytes, character_set: str, *, person_name: bool) -> str:
    """The text of a value; what its character set does not explain is read as UTF-8."""
    try:
        names = encodings(character_set) if character_set else _LATIN
    except ValueError:
        names = _LATIN
    try:
        text = decode_bytes(raw, names, PN_DELIMS if person_name else TEXT_VR_DELIMS)
    except (LookupError, UnicodeError):
        text = raw.decode("utf-8", "replace")
    return text.encode("utf-8", "replace").decode()
