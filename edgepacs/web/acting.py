"""What people do with deliveries: which acts whoever may, and what came of them in words."""

from collections.abc import Callable, Mapping, Sequence

from flask import current_app, request

from edgepacs.errors import InvalidValue, NotAllowed
from edgepacs.model import HoldReason, Role
from edgepacs.store import acts, deliveries
from edgepacs.store.acts import Done
from edgepacs.store.db import Database
from edgepacs.store.deliveries import Selection
from edgepacs.web import gate
from edgepacs.web.gate import Caller

_Chosen = Sequence[Selection]
_MOST_CHOSEN = 500


def row_number(name: str) -> int | None:
    """A row number of the form; None where it has none."""
    return _number(name, request.form.get(name, ""))


def _number(name: str, text: str) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 16:
        raise InvalidValue(name, "must be a row number")
    return int(text)


def chosen() -> list[Selection]:
    """What the form's ticks stand for: `way` is STUDY-DESTINATION, `delivery` a row number."""
    found = [_way(text) for text in request.form.getlist("way")]
    numbers = [_number("delivery", text) for text in request.form.getlist("delivery")]
    among = tuple(number for number in numbers if number)
    if among:
        found.append(Selection(among=among))
    if not found or len(found) + len(among) > _MOST_CHOSEN:
        raise InvalidValue("choice", f"tick 1 to {_MOST_CHOSEN} lines first")
    return found


def _way(text: str) -> Selection:
    study, dash, destination = text.partition("-")
    if not dash or not study or not destination:
        raise InvalidValue("way", "must be a study and a destination")
    return Selection(study=_number("study", study), destination=_number("way", destination))


def carry_out(wanted: str, selections: _Chosen) -> None:
    """Do what the form asks for with deliveries; `told` says what came of it, once.

    Raises InvalidValue for an act there is not, NotAllowed for one this person may not.
    """
    me, store = gate.caller(), gate.store()
    if wanted not in _ACTS:
        raise InvalidValue("act", f"must be one of {', '.join(_ACTS)}")
    needs, act, words = _ACTS[wanted]
    if not me.role.covers(needs):
        raise NotAllowed(f"this needs the role {needs}")
    done = act(store.db, selections, me)
    store.ring("forward")
    _notes()[me.name] = _in_words(done, words)


def told() -> str:
    """What came of the last act of whoever asks, said once."""
    return _notes().pop(gate.caller().name, "")


def _notes() -> dict[str, str]:
    found: dict[str, str] = current_app.extensions["edgepacs-told"]
    return found


def _in_words(done: Done, words: str) -> str:
    said = f"{done.changed:,} {words}."
    if not done.unchanged:
        return said
    reasons = "; ".join(f"{why} ({count:,})" for why, count in done.unchanged.items())
    return f"{said} {sum(done.unchanged.values()):,} stay as they are: {reasons}."


def _hold(db: Database, some: _Chosen, me: Caller) -> Done:
    return acts.hold(db, some, actor=me.name)


def _release(db: Database, some: _Chosen, me: Caller) -> Done:
    # What a held or rejected study stops is let go with the study, and only there.
    reasons = [HoldReason.PERSON]
    if me.role.covers(Role.ADMIN):
        reasons.append(HoldReason.UNVERIFIED)
    return acts.release(db, some, actor=me.name, reasons=reasons)


def _retry(db: Database, some: _Chosen, me: Caller) -> Done:
    return acts.retry(db, some, actor=me.name)


def _cancel(db: Database, some: _Chosen, me: Caller) -> Done:
    return acts.cancel(db, some, actor=me.name)


def _stat(db: Database, some: _Chosen, me: Caller) -> Done:
    return acts.prioritise(db, some, deliveries.STAT, actor=me.name)


def _priority(db: Database, some: _Chosen, me: Caller) -> Done:
    text = request.form.get("priority", "").strip()
    if not text.removeprefix("-").isdecimal() or not text.isascii() or len(text) > 6:
        raise InvalidValue("priority", "not between -1000 and 1000")
    return acts.prioritise(db, some, int(text), actor=me.name)


def _reroute(db: Database, some: _Chosen, me: Caller) -> Done:
    to = row_number("to")
    if to is None:
        raise InvalidValue("to", "say which destination instead")
    return acts.reroute(db, some, to, actor=me.name)


_Act = Callable[[Database, _Chosen, Caller], Done]
_ACTS: Mapping[str, tuple[Role, _Act, str]] = {
    "hold": (Role.TECHNOLOGIST, _hold, "held"),
    "release": (Role.TECHNOLOGIST, _release, "released"),
    "retry": (Role.TECHNOLOGIST, _retry, "queued again"),
    "cancel": (Role.TECHNOLOGIST, _cancel, "cancelled"),
    "stat": (Role.TECHNOLOGIST, _stat, "go before all else"),
    "priority": (Role.ADMIN, _priority, "have the new priority"),
    "reroute": (Role.ADMIN, _reroute, "go to the other destination"),
}
