"""DIMSE statuses as data: what each means, and what a C-STORE SCU should make of it.

Sources: PS3.7 annex C for the general ones, PS3.4 B.2.3 for C-STORE, PS3.4 C.4 for query and
retrieve. Ranges such as A7xx stand under their first code.
"""

from dataclasses import dataclass
from enum import StrEnum

SUCCESS = 0x0000
PENDING = 0xFF00
CANCELLED = 0xFE00
OUT_OF_RESOURCES = 0xA700
DATA_SET_MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
INVALID_ATTRIBUTE_VALUE = 0x0106
PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
MISSING_ATTRIBUTE = 0x0120
MISSING_ATTRIBUTE_VALUE = 0x0121
SOP_CLASS_NOT_SUPPORTED = 0x0122
NOT_AUTHORISED = 0x0124
DUPLICATE_INVOCATION = 0x0210
UNRECOGNISED_OPERATION = 0x0211
MISTYPED_ARGUMENT = 0x0212
RESOURCE_LIMITATION = 0x0213


class Category(StrEnum):
    """The five kinds of status (PS3.7 annex C)."""

    SUCCESS = "success"
    WARNING = "warning"
    PENDING = "pending"
    CANCEL = "cancel"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Status:
    """One status. `passing` says that the same C-STORE may succeed later unchanged."""

    code: int
    meaning: str
    category: Category
    passing: bool = False

    @property
    def stored(self) -> bool:
        """Whether the SCP of a C-STORE has the instance: success, warning, or had it before."""
        had = self.code == DUPLICATE_SOP_INSTANCE
        return had or self.category in (Category.SUCCESS, Category.WARNING)

    def __str__(self) -> str:
        return f"0x{self.code:04X} {self.meaning}"


DUPLICATE_SOP_INSTANCE = 0x0111  # PS3.7 annex C
_W, _P, _F = Category.WARNING, Category.PENDING, Category.FAILURE

_EXACT: dict[int, tuple[str, Category, bool]] = {
    0x0000: ("success", Category.SUCCESS, False),
    # PS3.7 annex C
    0x0001: ("requested optional attributes are not supported", _W, False),
    0x0105: ("no such attribute", _F, False),
    0x0106: ("invalid attribute value", _F, False),
    0x0107: ("attribute list error", _W, False),
    0x0110: ("processing failure", _F, True),
    DUPLICATE_SOP_INSTANCE: ("duplicate SOP instance", _F, False),
    0x0112: ("no such SOP instance", _F, False),
    0x0113: ("no such event type", _F, False),
    0x0114: ("no such argument", _F, False),
    0x0115: ("invalid argument value", _F, False),
    0x0116: ("attribute value out of range", _W, False),
    0x0117: ("invalid SOP instance", _F, False),
    0x0118: ("no such SOP class", _F, False),
    0x0119: ("class-instance conflict", _F, False),
    0x0120: ("missing attribute", _F, False),
    0x0121: ("missing attribute value", _F, False),
    0x0122: ("refused: SOP class not supported", _F, False),
    0x0123: ("no such action", _F, False),
    0x0124: ("refused: not authorised", _F, False),
    0x0210: ("duplicate invocation", _F, True),
    0x0211: ("unrecognised operation", _F, False),
    0x0212: ("mistyped argument", _F, False),
    0x0213: ("resource limitation", _F, True),
    # PS3.4 B.2.3
    0xB000: ("coercion of data elements", _W, False),
    0xB006: ("elements discarded", _W, False),
    0xB007: ("data set does not match SOP class", _W, False),
    # PS3.4 C.4
    0xA701: ("refused: out of resources, cannot count matches", _F, True),
    0xA702: ("refused: out of resources, cannot perform sub-operations", _F, True),
    0xA801: ("refused: move destination unknown", _F, False),
    0xFE00: ("cancelled", Category.CANCEL, False),
    0xFF00: ("pending", _P, False),
    0xFF01: ("pending, some optional keys not supported", _P, False),
}
_RANGES: tuple[tuple[int, int, str, Category, bool], ...] = (
    (0xA700, 0xA7FF, "refused: out of resources", _F, True),  # PS3.4 B.2.3
    (0xA900, 0xA9FF, "data set does not match SOP class", _F, False),  # PS3.4 B.2.3
    (0xB000, 0xBFFF, "warning", _W, False),  # PS3.7 annex C
    (0xC000, 0xCFFF, "cannot understand", _F, False),  # PS3.4 B.2.3
)


def lookup(code: int) -> Status:
    """What `code` means. A code no table knows is a failure that may pass."""
    exact = _EXACT.get(code)
    if exact is not None:
        return Status(code, *exact)
    for first, last, meaning, category, passing in _RANGES:
        if first <= code <= last:
            return Status(code, meaning, category, passing)
    return Status(code, "unknown status", Category.FAILURE, passing=True)
