"""Routing: which deliveries an instance gets by the rules, inside the commit of the instance."""

from edgepacs.errors import NotFound
from edgepacs.model import Arrival, Attributes, HoldReason, InstanceId, Origin, StudyId, StudyState
from edgepacs.store import deliveries, rules
from edgepacs.store.db import Transaction

_FACTS = """
SELECT instance.source AS calling_ae, instance.origin, series.modality,
       instance.sop_class_uid AS sop_class, series.station_name AS station, series.body_part,
       study.description, series.description AS series_description, study.institution,
       series.laterality
FROM instance JOIN series ON series.id = instance.series JOIN study ON study.id = instance.study
WHERE instance.id = ?"""


def due(
    tx: Transaction,
    instance: InstanceId,
    study: StudyId,
    arrival: Arrival,
    attributes: Attributes,
) -> bool:
    """Make the deliveries the routing rules want for a new instance; whether there are any."""
    if not arrival.origin.routed:
        return False
    facts = {
        "calling_ae": arrival.source,
        "origin": str(arrival.origin),
        "modality": attributes.modality,
        "sop_class": attributes.sop_class_uid,
        "station": attributes.station_name,
        "body_part": attributes.body_part,
        "description": attributes.study_description,
        "series_description": attributes.series_description,
        "institution": attributes.institution,
        "laterality": attributes.laterality,
    }
    return _route(tx, instance, study, facts)


def due_again(tx: Transaction, instance: InstanceId) -> None:
    """The same for an instance that is in the index already, e.g. a version just accepted."""
    row = tx.first(_FACTS, instance)
    study = tx.number("SELECT study FROM instance WHERE id = ?", instance)
    if row is None:
        raise NotFound(f"instance: there is no instance {instance}")
    facts = dict(zip(rules.FIELDS, row, strict=True))
    if Origin(facts["origin"]).routed:
        _route(tx, instance, StudyId(study), facts)


def _route(tx: Transaction, instance: InstanceId, study: StudyId, facts: rules.Facts) -> bool:
    destinations = tx.rows("SELECT id, ae_title FROM destination")
    if not destinations:
        return False
    due = False
    matching = [rule for rule in rules.within(tx) if rules.compile_match(rule.match)(facts)]
    for number, ae_title in destinations:
        mine = [rule for rule in matching if rule.destination in (None, number)]
        if mine and ae_title != facts["calling_ae"]:
            reason = _reason_to_hold(tx, study, wait=any(rule.hold for rule in mine))
            deliveries.add(tx, instance, study, number, max(rule.priority for rule in mine), reason)
            due = True
    return due


def _reason_to_hold(tx: Transaction, study: StudyId, *, wait: bool) -> HoldReason | None:
    row = tx.first("SELECT state FROM study WHERE id = ?", study)
    state = StudyState(row[0]) if row else StudyState.RECEIVED
    # Asked first: the release of a stopped study does not release what waits for verification.
    if wait and state is not StudyState.VERIFIED:
        return HoldReason.UNVERIFIED
    if state in (StudyState.HELD, StudyState.REJECTED):
        return HoldReason.STUDY
    return None
