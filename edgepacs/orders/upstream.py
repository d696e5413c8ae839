"""The worklist upstream: asked by C-FIND on a schedule, merged into the one here (PS3.4 K.4.1).

What could not be asked, or was answered in part, changes nothing: the list stays, and its age is
what tells. What is gone upstream is retired, never deleted.
"""

import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta

from edgepacs.clock import wall_ms
from edgepacs.custody import scheduled
from edgepacs.custody.scheduled import MODEL, STEP_SEQUENCE, Branch, Part
from edgepacs.dimse import Limits, identifier, query, request
from edgepacs.dimse.contexts import MODALITY_WORKLIST_FIND
from edgepacs.dimse.identifier import SPECIFIC_CHARACTER_SET, Identifier, Values
from edgepacs.errors import EdgePacsError, InvalidValue, PeerError, StorageFault
from edgepacs.model import EntryOrigin, EntryState
from edgepacs.store import Store, hours, sources, twins, worklist
from edgepacs.store.db import Transaction
from edgepacs.store.sources import Source
from edgepacs.store.worklist import Entry
from edgepacs.telemetry import log, place_of

MATCHES_MOST = 5000  # entries of one worklist
CONNECT_SECONDS = 10.0
_LIMITS = Limits(stall=30.0, release=2.5)
_AT_ONCE = 50  # entries of one transaction, so that a modality never waits for all of them
_BACK_DAYS = 1  # what was to be done yesterday may still be done
_ASCII = "ISO_IR 6"
_MODALITY, _START_DATE = 0x00080060, 0x00400002


def ask_due(store: Store, stop: threading.Event) -> None:
    """Ask every worklist that is due, one after the other. Raises StorageFault."""
    for source in sources.every(store.db):
        if stop.is_set():
            return
        if sources.is_due(source, wall_ms()):
            _ask(store, source)


def _ask(store: Store, source: Source) -> None:
    try:
        ask(store, source)
    except StorageFault as fault:
        store.vault.condemn(fault)
        raise
    except EdgePacsError as error:  # no room, or the index is in use
        log.warning("worklist source: %s: %s", type(error).__name__, error)
    except Exception as error:  # noqa: BLE001  one source never stops the others
        log.error("worklist source failed: %s", place_of(error))
        with store.db.write() as tx:
            sources.failed(tx, source.name, "an error in this program", doubts=source.doubts)


def ask(store: Store, source: Source) -> None:
    """Ask one worklist and merge what it has; what came of it stands with the source.

    A worklist that suddenly has nothing is asked again before that is believed. Raises what the
    index cannot do.
    """
    try:
        entries = list(_heard(store, source))
    except (PeerError, InvalidValue) as error:
        with store.db.write() as tx:
            sources.failed(tx, source.name, str(error), doubts=source.doubts)
        return
    if not entries and source.entries and not source.doubts:
        with store.db.write() as tx:
            words = "it had nothing: asked again before anything is retired"
            sources.failed(tx, source.name, words, doubts=1)
        return
    _merge(store, source, entries)


def _heard(store: Store, source: Source) -> Iterator[Entry]:
    """Everything it has, in full. Raises PeerError, and InvalidValue for what cannot be read."""
    tls = ssl.create_default_context() if source.tls else None
    with request(
        source.host,
        source.port,
        calling=store.config.node.ae_title,
        called=source.ae_title,
        contexts=[query.WORKLIST_AS_SCU],
        limits=_LIMITS,
        tls=tls,
        connect_timeout=CONNECT_SECONDS,
    ) as association:
        context = association.accepted(MODALITY_WORKLIST_FIND)
        assert context is not None  # an association without any would have been refused
        for modality in source.modality.split("\\"):
            keys = _keys(MODEL, {_START_DATE: _period(source.days), _MODALITY: modality})
            for found in query.find(association, context, keys, MATCHES_MOST):
                yield from scheduled.entries_of(_written_in(found, source.character_set))


def _written_in(found: Identifier, assumed: str) -> Identifier:
    """An answer that names no character set beyond ASCII, read as if it named `assumed`.

    It would have to name what it is written in (PS3.4 K.4.1.1.3.2); some do not.
    """
    named = identifier.text(found, SPECIFIC_CHARACTER_SET)
    if not assumed or named not in ("", _ASCII):
        return found
    return {**found, SPECIFIC_CHARACTER_SET: assumed.encode()}


def _keys(parts: Mapping[int, Part], asked: Mapping[int, str]) -> Values:
    """All that an entry is made of, to be returned; of the step, what is `asked` for."""
    keys: dict[int, str | bytes | Sequence[Values]] = {}
    for tag, part in parts.items():
        if isinstance(part, Branch):
            inner = asked if tag == STEP_SEQUENCE else {}
            keys[tag] = [_keys(part.parts, inner)]
        else:
            keys[tag] = asked.get(tag, "") or b""
    return keys


def _period(days: int) -> str:
    """From yesterday to so many days ahead (PS3.4 C.2.2.2.5)."""
    today = hours.day_of(wall_ms() / 1000)
    first, last = today - timedelta(days=_BACK_DAYS), today + timedelta(days=days)
    return f"{first:%Y%m%d}-{last:%Y%m%d}"


def _key(entry: Entry) -> str:
    """By what a worklist tells one entry from others; '' where it has nothing to tell by."""
    named = entry.study_instance_uid or entry.accession_number or entry.procedure_id
    return f"{named}/{entry.step_id}" if named else ""


def _merge(store: Store, source: Source, entries: Iterable[Entry]) -> None:
    by_key = {_key(entry): entry for entry in entries}
    odd = ["an entry without a number"] if by_key.pop("", None) is not None else []
    keyed = list(by_key.items())
    for start in range(0, len(keyed), _AT_ONCE):
        with store.db.write() as tx:
            odd += [_put(tx, source, *one) for one in keyed[start : start + _AT_ONCE]]
    wrong = [one for one in odd if one]
    words = f"{len(wrong)} cannot be entries: {wrong[0]}" if wrong else ""
    with store.db.write() as tx:
        if not sources.is_asked(tx, source.name):
            return  # removed meanwhile: its entries are retired
        actor, keys = _actor(source), set(by_key)
        worklist.retire_missing(tx, EntryOrigin.UPSTREAM, source.name, keys, actor=actor)
        sources.heard(tx, source.name, entries=len(keys), words=words)
    if words:
        log.warning("worklist source: %s", words)
    store.ring("forward")  # priors may be wanted


def _put(tx: Transaction, source: Source, key: str, entry: Entry) -> str:
    """Put one entry in, unless HL7 has told of it; why it cannot be one, or ''."""
    actor = _actor(source)
    if entry.study_instance_uid:
        known = worklist.of_step(tx, entry.study_instance_uid, entry.step_id)
        by_message = known is not None and known.origin is EntryOrigin.HL7
        if by_message and known is not None and known.state is not EntryState.RETIRED:
            return ""
    is_new = worklist.by_key(tx, EntryOrigin.UPSTREAM, source.name, key) is None
    try:
        number = worklist.put(
            tx, entry, origin=EntryOrigin.UPSTREAM, source=source.name, key=key, actor=actor
        )
    except InvalidValue as error:
        return str(error)
    if is_new:
        twins.meet(tx, number, actor=actor)
    return ""


def _actor(source: Source) -> str:
    return f"worklist of {source.name}"
