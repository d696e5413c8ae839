"""Priors by DIMSE: asked for by C-FIND, brought by C-GET or C-MOVE (PS3.4 C.4.1 to C.4.3).

A study of which a part is here already, since an attempt was interrupted, is asked for its
instances, and only those that are missing are fetched.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from edgepacs.dimse import Association, Message, ProposedContext, identifier, query, retrieve
from edgepacs.dimse.contexts import STORAGE_SOP_CLASSES
from edgepacs.dimse.identifier import Identifier
from edgepacs.dimse.requestor import CONTEXTS_MAX
from edgepacs.dimse.retrieve import Keys
from edgepacs.errors import InvalidValue, PeerError
from edgepacs.forward import dial
from edgepacs.forward.dial import LIMITS
from edgepacs.forward.priors import MATCHES_MOST, Haul, Match, chosen, uid_or_empty
from edgepacs.model import UID, Arrival, Origin, PriorsBy, uid
from edgepacs.store import prefetches

_INSTANCES_MOST = 20_000  # of one series
_AT_ONCE = 50  # instances asked for in one C-GET or C-MOVE
# Small PDUs, so that one arrives within its deadline even on a slow line.
_LIMITS = replace(LIMITS, max_pdu_length=65_536, object_deadline=4 * 3600.0)
_CLASS = "1.2.840.10008.5.1.4.1.1."
# What a study holds beside its images (PS3.4 B.5): secondary captures, reports, key objects,
# presentation states, encapsulated PDFs.
_USUAL: Final = ("7", "7.4", "88.11", "88.22", "88.33", "88.59", "88.67", "11.1", "104.1")
_OF_MODALITY: Final[Mapping[str, tuple[str, ...]]] = {
    "CT": ("2", "2.1"),
    "MR": ("4", "4.1", "4.2"),
    "CR": ("1", "1.1"),
    "DX": ("1.1", "1"),
    "MG": ("1.2", "13.1.3", "1.1"),
    "US": ("6.1", "3.1"),
    "IVUS": ("6.1", "3.1"),
    "XA": ("12.1", "12.1.1", "13.1.1"),
    "RF": ("12.2", "12.2.1"),
    "NM": ("20",),
    "PT": ("128", "130"),
    "OP": ("77.1.5.1", "77.1.5.2"),
    "OPT": ("77.1.5.4",),
    "ES": ("77.1.1", "77.1.1.1"),
    "XC": ("77.1.4", "77.1.4.1"),
    "PX": ("1.1", "1"),
    "IO": ("1.3", "1"),
    "ECG": ("9.1.1", "9.1.2"),
}


def fetch(haul: Haul) -> list[Match]:
    """Fetch a patient's priors; what was wanted. What has come of it stands in `haul`.

    Raises PeerError, LimitExceeded, Busy, NoRoom, StorageFault.
    """
    wanted = _find(haul)
    for match in wanted:
        haul.require_leave()
        prefetches.fetching(haul.store.db, haul.task.id)
        if haul.destination.priors is PriorsBy.MOVE:
            _Moving(haul, match).bring()
        else:
            _Getting(haul, match).bring()
        prefetches.end_study(haul.store.db, match.study_instance_uid)
        haul.studies += 1
    return wanted


def _find(haul: Haul) -> list[Match]:
    """The studies to fetch (PS3.4 C.6.2.1, STUDY level).

    The issuer is asked back, not matched: few archives match it, and it is compared here.
    """
    keys = {
        identifier.QUERY_RETRIEVE_LEVEL: "STUDY",
        identifier.PATIENT_ID: haul.task.patient_id,
        identifier.ISSUER_OF_PATIENT_ID: "",
        identifier.STUDY_INSTANCE_UID: "",
        identifier.STUDY_DATE: "",
        identifier.MODALITIES_IN_STUDY: "",
        identifier.SOP_CLASSES_IN_STUDY: "",
    }
    with dial.open_association(haul.store, haul.destination, (), [query.AS_SCU]) as association:
        haul.opened = True
        matches = [_match(one) for one in _ask(association, keys, MATCHES_MOST)]
    return chosen(haul.store, haul.destination, haul.task, matches)


def _ask(association: Association, keys: Mapping[int, str], most: int) -> list[Identifier]:
    context = association.accepted(query.STUDY_ROOT_FIND)
    assert context is not None  # an association without any would have been refused
    try:
        return query.find(association, context, keys, most)
    except InvalidValue as error:
        raise PeerError(f"the destination's answer to a query: {error}") from error


def _match(found: Identifier) -> Match:
    def several(tag: int) -> list[str]:
        return [one.strip("\0 ") for one in identifier.text(found, tag).split("\\") if one]

    return Match(
        study_instance_uid=uid_or_empty(identifier.text(found, identifier.STUDY_INSTANCE_UID)),
        patient_id=identifier.text(found, identifier.PATIENT_ID),
        issuer=identifier.text(found, identifier.ISSUER_OF_PATIENT_ID),
        study_date=identifier.text(found, identifier.STUDY_DATE).replace(".", ""),
        modalities=frozenset(several(identifier.MODALITIES_IN_STUDY)),
        sop_classes=tuple(
            filter(None, map(uid_or_empty, several(identifier.SOP_CLASSES_IN_STUDY)))
        ),
    )


def sop_classes(match: Match) -> list[str]:
    """What instances of a study may be of, likeliest first: as answered, or by its modalities."""
    guessed = [
        _CLASS + one for name in sorted(match.modalities) for one in _OF_MODALITY.get(name, ())
    ]
    if not match.sop_classes and not guessed:
        guessed = [_CLASS + one for several in _OF_MODALITY.values() for one in several]
    found = dict.fromkeys([*match.sop_classes, *guessed, *(_CLASS + one for one in _USUAL)])
    return [one for one in found if one in match.sop_classes or one in STORAGE_SOP_CLASSES]


class _Bringing:
    """One study on its way, by one association."""

    def __init__(self, haul: Haul, match: Match) -> None:
        self.haul = haul
        self.study = match.study_instance_uid
        self._match = match

    def bring(self) -> None:
        """Fetch what is missing of the study."""
        partly = prefetches.begin_study(self.haul.store.db, self.study)
        proposed = [query.AS_SCU, *self.contexts(self._match)]
        limits = replace(_LIMITS, object_bytes=self.haul.destination.priors_mib << 20)
        with dial.open_association(
            self.haul.store, self.haul.destination, (), proposed, limits
        ) as association:
            for keys in self._missing(association) if partly else (retrieve.of_study(self.study),):
                outcome = self.ask(association, keys)
                if outcome.words:
                    self.haul.notes.append(outcome.words)
                self.haul.require_leave()

    def contexts(self, match: Match) -> list[ProposedContext]:
        """What to propose beside the query."""
        raise NotImplementedError

    def ask(self, association: Association, keys: Keys) -> retrieve.Outcome:
        """Ask for what has these keys, and see it through."""
        raise NotImplementedError

    def _missing(self, association: Association) -> Iterator[Keys]:
        """The keys of what is not here, a few instances of one series at a time."""
        if association.accepted(query.STUDY_ROOT_FIND) is None:
            yield retrieve.of_study(self.study)
            return
        here = prefetches.instances_here(self.haul.store.db, self.study)
        for series in self._uids(association, "SERIES", {}, identifier.SERIES_INSTANCE_UID):
            of_series = {identifier.SERIES_INSTANCE_UID: series}
            every = self._uids(association, "IMAGE", of_series, identifier.SOP_INSTANCE_UID)
            missing = [one for one in every if one not in here]
            for start in range(0, len(missing), _AT_ONCE):
                yield retrieve.of_instances(self.study, series, missing[start : start + _AT_ONCE])

    def _uids(
        self, association: Association, level: str, more: Mapping[int, str], tag: int
    ) -> list[str]:
        keys = {
            identifier.QUERY_RETRIEVE_LEVEL: level,
            identifier.STUDY_INSTANCE_UID: self.study,
            **more,
            tag: "",
        }
        found = _ask(association, keys, _INSTANCES_MOST)
        return sorted({uid_or_empty(identifier.text(one, tag)) for one in found} - {""})


class _Getting(_Bringing):
    """By C-GET: the instances come on our own association."""

    def contexts(self, match: Match) -> list[ProposedContext]:
        storage = retrieve.storage_contexts(sop_classes(match), CONTEXTS_MAX - 2)
        return [retrieve.GET_AS_SCU, *storage]

    def ask(self, association: Association, keys: Keys) -> retrieve.Outcome:
        return retrieve.get(association, keys, self._take, self.haul.may_go_on)

    def _take(self, message: Message) -> int:
        """One C-STORE sub-operation; the status to answer (PS3.4 B.2.3)."""
        if message.data is None:
            return self.haul.judged(InvalidValue("data set", "absent from the C-STORE request"))
        try:
            arrival = self._arrival(message)
        except InvalidValue as error:
            return self.haul.judged(error)
        return self.haul.take(arrival, self.haul.watched(message.data))

    def _arrival(self, message: Message) -> Arrival:
        command = message.command
        return Arrival(
            sop_class_uid=uid(command.sop_class_uid, "Affected SOP Class UID (0000,0002)"),
            sop_instance_uid=uid(command.sop_instance_uid, "Affected SOP Instance UID (0000,1000)"),
            transfer_syntax_uid=UID(message.context.transfer_syntax),
            origin=Origin.PREFETCH,
            source=self.haul.destination.ae_title,
            study_instance_uid=self.study,
        )


class _Moving(_Bringing):
    """By C-MOVE: the instances come to the receiver, which knows them by what it is told here."""

    def contexts(self, match: Match) -> list[ProposedContext]:  # noqa: ARG002
        return [retrieve.MOVE_AS_SCU]

    def ask(self, association: Association, keys: Keys) -> retrieve.Outcome:
        store, task = self.haul.store, self.haul.task
        self._before = prefetches.arrived(store.db, self.study)

        def begun(message_id: int) -> None:
            prefetches.fetching(store.db, task.id, uid=self.study, message_id=message_id)

        def go_on() -> bool:
            self._count()
            return self.haul.may_go_on()

        title = store.config.node.ae_title
        outcome = retrieve.move(association, keys, title, begun, go_on)
        prefetches.fetching(store.db, task.id)
        self._count()
        if outcome.completed and not any(prefetches.arrived(store.db, self.study)):
            raise PeerError(
                "the destination says it has sent them, and nothing has come: has it our AE title "
                "with this node's address?"
            )
        return outcome

    def _count(self) -> None:
        """Count what the receiver has taken in meanwhile."""
        instances, size = prefetches.arrived(self.haul.store.db, self.study)
        self.haul.instances += instances - self._before[0]
        grown, self._before = size - self._before[1], (instances, size)
        self.haul.count(max(0, grown))
