"""Values of data sets and states in words for people: nothing hidden, reordered or executed.

Everything here that returns Markup has escaped what it was given.
"""

import re
from collections.abc import Sequence
from datetime import date, datetime

from flask import Flask
from markupsafe import Markup, escape

from edgepacs.clock import iso
from edgepacs.model import (
    Callback,
    CompressionState,
    DeliveryState,
    EntryOrigin,
    HoldReason,
    InstanceState,
    Kept,
    LinkState,
    Role,
    State,
    StudyState,
)
from edgepacs.store.deliveries import (
    COMMITTED_PROOF,
    FOUND,
    LOSSY_RESPONSE,
    RESPONSE,
    UNPROVABLE,
)

# Characters that show nothing or move what stands around them: controls, soft hyphen, joiners,
# fillers, bidirectional controls, tags, lone surrogates. Variation selectors choose between
# glyphs of Japanese names and stay.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\u2800\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_JOINERS = "\u200c\u200d"
_JOINING_SCRIPTS = re.compile("[\u0600-\u0dff]")  # Arabic to Sinhala write with joiners


def visible(text: str) -> str:
    """`text` with every character that would not be seen shown as a symbol or its number."""

    def mark(found: re.Match[str]) -> str:
        character, at = found.group(), found.start()
        if character in _JOINERS and at and _JOINING_SCRIPTS.match(text[at - 1]):
            return character
        code = ord(character)
        return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"

    return _HIDDEN.sub(mark, text)


def shown(text: str) -> Markup:
    """`text`, visible, escaped and isolated, so that it cannot reorder what stands beside it."""
    return Markup("<bdi>{}</bdi>").format(visible(str(text))) if text else Markup()


def _capitalised(word: str) -> str:
    return "".join(
        part.capitalize() if part.isalpha() and len(part) > 1 else part
        for part in re.split(r"([-' ])", word)
    )


def _components(group: str) -> list[str]:
    """Family, given, middle, prefix, suffix (PS3.5 6.2.1); capitals only are made readable."""
    parts = [part.strip() for part in group.split("^")]
    if "^" in group and group.upper() == group:
        parts[:3] = [_capitalised(part) for part in parts[:3]]
    return [*parts, "", "", "", "", ""][:5]


def _alphabetic(group: str) -> str:
    family, given, middle, prefix, suffix = _components(group)
    others = " ".join(part for part in (prefix, given, middle) if part)
    name = ", ".join(part for part in (family, others) if part)
    return ", ".join(part for part in (name, suffix) if part)


def person(name: str) -> Markup:
    """A person name (PS3.5 6.2.1) as people read it: "DOE^JANE=..." becomes "Doe, Jane ...".

    Ideographic and phonetic groups are kept beside the alphabetic one, family name first. What
    was recorded stands in the tooltip.
    """
    alphabetic, *others = (group.strip() for group in name.split("=", 2))
    written = " · ".join(
        " ".join(part for part in group.split("^") if part) for group in others if group.strip("^")
    )
    readable = _alphabetic(alphabetic)
    if not readable and not written:
        return Markup()
    both = Markup(' <span class="written">{}</span>').format(shown(written))
    text = shown(readable) + (both if written else "") if readable else shown(written)
    return Markup('<span title="{}">{}</span>').format(visible(name), text)


def dicom_date(text: str) -> str:
    """A DICOM date (PS3.5 6.2, VR DA) as YYYY-MM-DD; what is not one, as it is."""
    found = _parsed_date(text)
    return found.isoformat() if found else visible(text)


def _parsed_date(text: str) -> date | None:
    try:
        return datetime.strptime(text.strip(), "%Y%m%d").date()  # noqa: DTZ007  a date has no zone
    except ValueError:
        return None


def dicom_time(text: str) -> str:
    """A DICOM time (VR TM) as HH:MM; what is not one, as it is."""
    found = re.match(r"([01]\d|2[0-3]):?([0-5]\d)", text)
    return f"{found[1]}:{found[2]}" if found else visible(text)


def age(birth_date: str, study_date: str) -> str:
    """The patient's age on the day of the study, in years, or months or days of the very young."""
    born, then = _parsed_date(birth_date), _parsed_date(study_date)
    if not born or not then or then < born:
        return ""
    months = (then.year - born.year) * 12 + then.month - born.month - (then.day < born.day)
    if months >= 24:
        return f"{months // 12} y"
    return f"{months} mo" if months else f"{(then - born).days} d"


def when(ms: int) -> Markup:
    """A time of this node's clock, in its zone; the time alone when it is today's."""
    if not ms:
        return Markup()
    there = datetime.fromtimestamp(ms / 1000).astimezone()
    today = there.date() == datetime.now(there.tzinfo).date()
    text = f"Today {there:%H:%M}" if today else f"{there:%Y-%m-%d %H:%M}"
    full = f"{there:%Y-%m-%d %H:%M:%S %Z}"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(iso(ms), full, text)


def size(octets: int) -> str:
    """A number of bytes in decimal units."""
    amount, unit = float(octets), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


def counted(number: int, one: str, many: str = "") -> str:
    """`number` with its noun: 1 series, 2 instances."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


_LABELS_OF: Sequence[tuple[State, str]] = (
    (StudyState.RECEIVED, "Received"),
    (StudyState.VERIFIED, "Verified"),
    (StudyState.HELD, "On hold"),
    (StudyState.REJECTED, "Rejected"),
    (HoldReason.UNVERIFIED, "waits for verification"),
    (HoldReason.STUDY, "stopped with the study"),
    (HoldReason.PERSON, "held by a person"),
    (HoldReason.ORDER, "differs from its order"),
    (HoldReason.REJECTION, "waits for the rejection note"),
    (LinkState.UNKNOWN, "Not tried yet"),
    (LinkState.UP, "Up"),
    (LinkState.DEGRADED, "Degraded"),
    (LinkState.DOWN, "Down"),
    (DeliveryState.AWAITING_COMMITMENT, "Awaiting commitment"),
    (DeliveryState.CONFIRMED_BY_QUERY, "Confirmed by query"),
    (EntryOrigin.HL7, "HL7 message"),
    (EntryOrigin.UPSTREAM, "Worklist upstream"),
    (EntryOrigin.LOCAL, "By hand"),
    (EntryOrigin.IMPORT, "File"),
    (InstanceState.COMPARING, "Being compared"),
    (InstanceState.QUARANTINED, "Different content"),
    (CompressionState.WAITING, "Waits for a worker"),
    (CompressionState.COMPRESSING, "Being compressed"),
    (CompressionState.NATIVE, "Kept as received"),
    (CompressionState.FAILED, "Kept as received after failures"),
    (Role.ADMIN, "Administrator"),
    (Callback.UNKNOWN, "not known yet"),
    (Callback.SAME, "on the association that asked"),
    (Callback.NEW, "on an association of its own"),
    (Callback.NEVER, "never; it is asked by query instead"),
    (Kept.RECENT, "Arrived, but too young"),
    (Kept.UNPROVED, "Not proved to have arrived"),
    (Kept.RESPONSE, "No proof but an answer"),
    (Kept.CANCELLED, "Cancelled by a person or a rejection note"),
    (Kept.HELD, "Held"),
    (Kept.FAILED, "Refused by a destination"),
    (Kept.UNWANTED, "Sent nowhere"),
    (Kept.DISPUTED, "Conflicting versions"),
    (Kept.STOPPED, "On hold or rejected"),
)
# By kind as well: members of different kinds with the same value are equal, and hash alike.
_LABELS = {(type(state), state): words for state, words in _LABELS_OF}
_PROOFS = {
    COMMITTED_PROOF: "committed by the destination",
    FOUND: "found at the destination",
    RESPONSE: "answered; no proof yet",
    UNPROVABLE: "answered; the destination offers no proof",
    LOSSY_RESPONSE: "answered for a lossy copy",
}
_FLAGS = {
    "two-patients": "Two patients",
    "conflict": "Conflicting versions",
    "order-mismatch": "Differs from its order",
    "rejection-note": "Rejection note",
}


def label(state: State) -> str:
    """A state in one or two words."""
    return _LABELS.get((type(state), state), state.value.replace("_", " ").capitalize())


def proof(name: str) -> str:
    """The proof a delivery has, in words."""
    return _PROOFS.get(name, visible(name))


def reason(name: str) -> str:
    """Why a delivery is held, in words."""
    return label(HoldReason(name)) if name in list(HoldReason) else visible(name)


def flags(words: str) -> list[str]:
    """The flags of a row in words."""
    return [_FLAGS.get(word, visible(word.replace("-", " "))) for word in words.split()]


def install(app: Flask) -> None:
    """Make these words known to the templates."""
    for name, function in (
        ("shown", shown),
        ("visible", visible),
        ("person", person),
        ("dicom_date", dicom_date),
        ("dicom_time", dicom_time),
        ("when", when),
        ("size", size),
        ("counted", counted),
        ("label", label),
        ("flags", flags),
        ("proof", proof),
        ("reason", reason),
    ):
        app.add_template_filter(function, name)
    app.add_template_global(age, "age")
    app.add_template_global(escape, "escape")
