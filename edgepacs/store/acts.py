"""Acts: what a person does with deliveries, and why some of those selected stay as they are.

Each act takes selections, does what the transition table allows, and tells how many it changed
and, in words, why not the others.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from edgepacs.errors import NotFound
from edgepacs.model import DeliveryState, HoldReason
from edgepacs.store import deliveries
from edgepacs.store.db import Database, Transaction
from edgepacs.store.deliveries import MAY_LEAVE, NOT_LEFT, STILL_STANDS, Selection

_AT_ONCE = 500  # deliveries re-routed in one transaction, while every other writer waits
_D = DeliveryState
_STOPPED = "the study is held or rejected"
_GONE = "the instance was replaced or deleted"


@dataclass(slots=True)
class Done:
    """What came of an act: deliveries changed, and those that were not by the reason why."""

    changed: int = 0
    unchanged: dict[str, int] = field(default_factory=dict)

    def leave(self, why: str, count: int) -> None:
        """`count` more stay as they are."""
        if count > 0:
            self.unchanged[why] = self.unchanged.get(why, 0) + count


@dataclass(frozen=True, slots=True)
class _Kind:
    """Deliveries that an act treats alike."""

    state: DeliveryState
    hold_reason: str
    may_leave: bool
    stands: bool
    later: bool  # waits for its time
    priority: int

    @property
    def words(self) -> str:
        """That its state is in the way."""
        return f"it is {self.state.replace('_', ' ')}"


_KINDS = f"""
SELECT state, hold_reason, {MAY_LEAVE}, {STILL_STANDS}, next_ms > 0, priority, COUNT(*)
FROM delivery WHERE {{where}} GROUP BY 1, 2, 3, 4, 5, 6"""  # noqa: S608  own words
_Why = Callable[[_Kind], str]
_Act = Callable[[Transaction, Selection], int]


def _each(db: Database, chosen: Iterable[Selection], act: _Act, why: _Why) -> Done:
    done = Done()
    for selection in chosen:
        with db.write() as tx:
            for *kind, count in tx.rows(_KINDS.format(where=selection.where), *selection.values):
                state, reason, may_leave, stands, later, priority = kind
                one = _Kind(_D(state), reason, bool(may_leave), bool(stands), bool(later), priority)
                if words := why(one):
                    done.leave(words, count)
            done.changed += act(tx, selection)
    return done


def hold(db: Database, chosen: Iterable[Selection], *, actor: str) -> Done:
    """Stop what is queued."""

    def why(one: _Kind) -> str:
        return "" if one.state is _D.QUEUED else one.words

    return _each(db, chosen, lambda tx, some: deliveries.hold(tx, some, actor=actor), why)


def release(
    db: Database,
    chosen: Iterable[Selection],
    *,
    actor: str,
    reasons: Sequence[HoldReason] = tuple(HoldReason),
) -> Done:
    """Let go what is held for one of `reasons`, unless its study is stopped."""

    def why(one: _Kind) -> str:
        if one.state is not _D.HELD:
            return one.words
        if one.hold_reason not in reasons:
            return f"held: {HoldReason(one.hold_reason).meaning}"
        return "" if one.may_leave else _STOPPED

    def act(tx: Transaction, some: Selection) -> int:
        return deliveries.release(tx, some, actor=actor, reasons=reasons)

    return _each(db, chosen, act, why)


def retry(db: Database, chosen: Iterable[Selection], *, actor: str) -> Done:
    """Queue again what failed or was cancelled, and try what waits for its time now."""

    def why(one: _Kind) -> str:
        if one.state is _D.QUEUED:
            return "" if one.later else "it is queued, and its turn comes"
        if one.state not in (_D.FAILED, _D.CANCELLED):
            return one.words
        if not one.may_leave:
            return _STOPPED
        return "" if one.stands else _GONE

    return _each(db, chosen, lambda tx, some: deliveries.retry(tx, some, actor=actor), why)


def cancel(db: Database, chosen: Iterable[Selection], *, actor: str) -> Done:
    """Say that what is queued, held or failed shall not be sent."""

    def why(one: _Kind) -> str:
        return "" if one.state in (_D.QUEUED, _D.HELD, _D.FAILED) else one.words

    return _each(db, chosen, lambda tx, some: deliveries.cancel(tx, some, actor=actor), why)


def prioritise(db: Database, chosen: Iterable[Selection], priority: int, *, actor: str) -> Done:
    """Give what has not left another priority; `deliveries.STAT` goes before all else."""

    def why(one: _Kind) -> str:
        if one.state not in NOT_LEFT:
            return one.words
        return "it has that priority" if one.priority == priority else ""

    def act(tx: Transaction, some: Selection) -> int:
        return deliveries.prioritise(tx, some, priority, actor=actor)

    return _each(db, chosen, act, why)


# --- to another destination --------------------------------------------------------------------

_SELECTED = f"""
SELECT id, state, destination, {STILL_STANDS},
       (SELECT source FROM instance WHERE instance.id = subject)
FROM delivery WHERE {{where}} AND kind = 'instance' AND id > ?4 ORDER BY id LIMIT ?5"""  # noqa: S608


def reroute(db: Database, chosen: Iterable[Selection], destination: int, *, actor: str) -> Done:
    """Send what has not left to another destination instead; raises NotFound for that.

    Some at a time: what is selected may be the whole queue. What is there already serves.
    """
    with db.read() as tx:
        place = tx.first("SELECT name, ae_title FROM destination WHERE id = ?", destination)
    if place is None:
        raise NotFound(f"destination: there is no destination {destination}")
    done = Done()
    for selection in chosen:
        after = 0
        while after >= 0:
            with db.write() as tx:
                after = _reroute_some(tx, selection, (destination, *place), after, done, actor)
    return done


def _reroute_some(
    tx: Transaction,
    selection: Selection,
    place: tuple[int, str, str],
    after: int,
    done: Done,
    actor: str,
) -> int:
    """The number of the last delivery considered; -1 after the last of all."""
    destination, name, title = place
    sql = _SELECTED.format(where=selection.where)
    rows = tx.rows(sql, *selection.values, after, _AT_ONCE)
    going = []
    for number, state, there, stands, source in rows:
        if why := _why_stays(_D(state), stands, there == destination, source == title):
            done.leave(why, 1)
        else:
            going.append(number)
    words = f"sent to {name} instead"
    done.changed += deliveries.move(
        tx, going, destination, over=deliveries.BY_PERSON, words=words, actor=actor
    )
    return rows[-1][0] if len(rows) == _AT_ONCE else -1


def _why_stays(state: DeliveryState, stands: int, same: int, back: int) -> str:
    if state not in deliveries.MOVABLE:
        return f"it is {state.replace('_', ' ')}"
    if same:
        return "it goes there"
    if back:
        return "it came from there"
    return "" if stands else _GONE
