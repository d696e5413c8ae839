"""Policies: what each destination that has a study gets when the study is corrected.

Nothing a destination has is overwritten by sending: most keep what came first. So it corrects its
own copy when told by ADT (IHE PIR), or what it has is rejected and comes again under other UIDs
(IHE IOCM), or a person sees to it there. ADT is never used to merge two people: it says only that
one patient is called otherwise, or that an ID was given up for another.
"""

from dataclasses import dataclass

from edgepacs.model import CorrectionPolicy, InstanceId, Mismatch, StudyId
from edgepacs.store import reconciliation, worklist
from edgepacs.store.announcing import Trigger
from edgepacs.store.db import Database, Transaction
from edgepacs.store.instances import OWN_NOTE
from edgepacs.store.reconciliation import Reconciliation
from edgepacs.store.worklist import Patient

LEFT = "('sending', 'sent', 'awaiting_commitment', 'committed', 'confirmed_by_query')"
_M = Mismatch
_OF_THE_PATIENT = {_M.NAME, _M.ID, _M.BIRTH_DATE, _M.SEX}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one destination gets: by `policy`, in view of the `instances` of the study it has.

    `trigger` is the ADT message it gets, with the policy of that name.
    """

    destination: int
    name: str
    policy: CorrectionPolicy
    trigger: Trigger | None
    instances: tuple[InstanceId, ...]


def planned(db: Database, study: StudyId) -> list[Plan]:
    """What correcting a study by its order would do where it is already; by name."""
    with db.read() as tx:
        return within(tx, study)


def within(tx: Transaction, study: StudyId) -> list[Plan]:
    """The same, as this transaction sees it."""
    known = reconciliation.within(tx, study)
    if known is None or known.entry is None:
        return []
    trigger = _trigger(tx, known, worklist.entry(tx, known.entry).entry.patient)
    there: dict[tuple[int, str, str], list[InstanceId]] = {}
    for number, name, policy, instance in tx.rows(_THERE, study):
        there.setdefault((number, name, policy), []).append(InstanceId(instance))
    return [
        _plan(number, name, CorrectionPolicy(policy), trigger, found)
        for (number, name, policy), found in there.items()
    ]


# A destination has an instance where any version of it has left: told by ADT it keeps what it has.
_THERE = f"""
SELECT destination.id, destination.name, destination.correction, instance.id
FROM series JOIN instance ON instance.series = series.id AND instance.state = 'stored'
JOIN instance AS version ON version.sop_instance_uid = instance.sop_instance_uid
JOIN delivery ON delivery.kind = 'instance' AND delivery.subject = version.id
  AND delivery.state IN {LEFT}
JOIN destination ON destination.id = delivery.destination
WHERE series.study = ? AND instance.origin IN ('modality', 'import', 'local') AND NOT {OWN_NOTE}
GROUP BY destination.id, instance.id
ORDER BY destination.name, instance.id"""  # noqa: S608  own words


def _plan(
    number: int,
    name: str,
    policy: CorrectionPolicy,
    trigger: Trigger | None,
    found: list[InstanceId],
) -> Plan:
    """What ADT cannot say is rejected and sent anew where ADT was wanted."""
    if policy is not CorrectionPolicy.ADT:
        trigger = None
    elif trigger is None:
        policy = CorrectionPolicy.REJECT
    return Plan(
        destination=number, name=name, policy=policy, trigger=trigger, instances=tuple(found)
    )


def _trigger(tx: Transaction, known: Reconciliation, patient: Patient) -> Trigger | None:
    """The message that says all in which a study differs from its order; None where none can."""
    flags = set(known.flags) - {_M.STATION}  # where it was made no correction changes
    if not flags or not flags <= _OF_THE_PATIENT:
        return None
    if _M.ID not in flags:
        return Trigger.A08
    former = former_id(tx, known.study)
    given_up = worklist.is_temporary(former[0]) or _was_merged(former, patient)
    return Trigger.A40 if given_up else None


def former_id(tx: Transaction, study: StudyId) -> tuple[str, str]:
    """Patient ID and issuer as a study says them."""
    row = tx.first("SELECT patient_id, issuer FROM study WHERE id = ?", study)
    return (row[0], row[1]) if row else ("", "")


def _was_merged(former: tuple[str, str], patient: Patient) -> bool:
    """Whether an ID is one that the order's patient had before (ADT A40)."""
    for other in patient.other_ids.split("\\"):
        number, _, issuer = other.partition("^")
        if number and number == former[0] and (not issuer or not former[1] or issuer == former[1]):
            return True
    return False
