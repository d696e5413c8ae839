"""Attribute matching, plainly, from the text of PS3.4 C.2.2.2: what ours is compared with."""

import re
import unicodedata

EMPTY = '""'  # Empty Value Matching


def fits(pattern: str, value: str) -> bool:
    """PS3.4 C.2.2.2.4: "*" stands for any characters, "?" for one."""
    if not pattern:
        return not value
    if pattern[0] == "*":
        return any(fits(pattern[1:], value[at:]) for at in range(len(value) + 1))
    if not value:
        return False
    return pattern[0] in ("?", value[0]) and fits(pattern[1:], value[1:])


def spelled(name: str) -> str:
    """A name without case and accents, by our leave (PS3.4 C.2.2.2.1)."""
    kept = [
        c
        for c in unicodedata.normalize("NFKD", name)
        if unicodedata.category(c) != "Mn" or c in "\u3099\u309a"
    ]
    return unicodedata.normalize("NFC", "".join(kept)).casefold()


def groups_of(name: str) -> list[str]:
    """Component groups, whose empty components at the end mean nothing (PS3.5 6.2.1)."""
    return [re.sub(r"[\^ ]*$", "", re.sub("^ *", "", one)) for one in spelled(name).split("=")]


def name_matches(key: str, name: str) -> bool:
    wanted, there = groups_of(key), groups_of(name)
    while wanted and not wanted[-1]:
        wanted.pop()
    if not any(one.strip("*") for one in wanted):
        return True
    if len(wanted) == 1:
        return any(fits(wanted[0], one) for one in there)
    there += [""] * len(wanted)
    return all(not one or fits(one, there[at]) for at, one in enumerate(wanted))


def day(text: str) -> int | None:
    found = re.fullmatch(r"([0-9]{4})\.?([0-9]{2})\.?([0-9]{2})", text)
    return int("".join(found.groups())) if found else None


def microsecond(text: str) -> int | None:
    """Of the day, with what is not said being zero: 2230 matches 223000 (PS3.4 C.2.2.2.1)."""
    found = re.fullmatch(r"(\d\d)(?::?(\d\d)(?::?(\d\d)(?:\.(\d{1,6}))?)?)?", text, re.ASCII)
    if not found:
        return None
    hours, minutes, seconds, fraction = (one or "0" for one in found.groups())
    whole = (int(hours) * 100 + int(minutes)) * 100 + int(seconds)
    return whole * 1_000_000 + int(fraction.ljust(6, "0"))


def matches(vr: str, key: str, value: str) -> bool:
    """Whether a value, or any of several, matches a key, or any of several."""
    if key.strip() == EMPTY:
        return not value
    keys = [one.strip() for one in key.split("\\") if one.strip()]
    return not keys or any(
        _matches_one(vr, one, there.strip()) for one in keys for there in value.split("\\")
    )


def _matches_one(vr: str, key: str, value: str) -> bool:
    if not key.strip("*"):
        return True
    if vr == "PN":
        return name_matches(key, value)
    if vr in ("DA", "TM"):
        return _within(vr, key, value)
    if vr in ("UI", "IS", "US"):
        return key == value
    return fits(key, value)


def _within(vr: str, key: str, value: str) -> bool:
    meant = day if vr == "DA" else microsecond
    there = meant(value)
    if there is None:
        return False
    first, hyphen, last = key.partition("-")
    if not hyphen:
        return meant(key) == there
    low, high = meant(first.strip()), meant(last.strip())
    return (low is None or low <= there) and (high is None or there <= high)


def asks_for_moments(date: str, time: str) -> bool:
    """Whether the keys of a date and a time are ranges of the same form (PS3.4 C.2.2.2.5)."""
    forms = [[bool(end.strip()) for end in key.split("-")] for key in (date, time)]
    return len(forms[0]) == 2 and forms[0] == forms[1]


def moment_matches(keys: tuple[str, str], date: str, time: str) -> bool:
    """Whether a date with its time lies within ranges that are asked for as one."""
    there = day(date), microsecond(time)
    if None in there:
        return False
    (first, _, last), (begin, _, end) = (key.partition("-") for key in keys)
    low, high = (day(first), microsecond(begin)), (day(last), microsecond(end))
    return (None in low or low <= there) and (None in high or there <= high)
