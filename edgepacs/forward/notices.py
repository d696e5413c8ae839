"""Instance Availability Notification as SCU (PS3.4 R.3): what is told, and when it is made.

Here it is made and queued; `messages` carries it.
"""

from edgepacs.clock import monotonic
from edgepacs.dimse import identifier
from edgepacs.dimse.contexts import IMPLICIT_VR_LE, PERFORMED_PROCEDURE_STEP
from edgepacs.model import UID, new_uid
from edgepacs.store import Store, notifications
from edgepacs.store.notifications import Availability

LOOK_SECONDS = 10.0
AT_ONCE = 50  # studies looked at in one round
_RETRIEVE_AE_TITLE = 0x00080054
_INSTANCE_AVAILABILITY = 0x00080056
_PERFORMED_STEPS = 0x00081111  # Referenced Performed Procedure Step Sequence
_WORKITEM_CODES = 0x00404019  # Performed Workitem Code Sequence, type 2
_SERIES = 0x00081115  # Referenced Series Sequence


class Notifier:
    """Makes the notifications of studies that have arrived where they were to go."""

    def __init__(self, store: Store) -> None:
        self._db = store.db
        self._after = 0  # the study looked at last
        self._not_before = 0.0  # monotonic

    def round(self) -> int:
        """Look at some studies when it is time; how many notifications were made."""
        if monotonic() < self._not_before:
            return 0
        self._not_before = monotonic() + LOOK_SECONDS
        notifications.consider(self._db)
        found = notifications.candidates(self._db, self._after, AT_ONCE)
        self._after = found[-1].study if len(found) == AT_ONCE else 0
        made = 0
        for due in found:
            there = notifications.availability(self._db, due.study)
            if there is not None:
                uid = new_uid()
                notifications.add(self._db, due, uid, UID(IMPLICIT_VR_LE), encoded(there))
                made += 1
        return made


def encoded(there: Availability) -> bytes:
    """The N-CREATE data set (PS3.4 table R.3.2-1)."""
    places = "\\".join(there.places)
    series: list[identifier.Values] = [
        {
            identifier.SERIES_INSTANCE_UID: uid,
            identifier.REFERENCED_SOP_SEQUENCE: [
                {
                    _RETRIEVE_AE_TITLE: places,
                    _INSTANCE_AVAILABILITY: "ONLINE",
                    identifier.SOP_CLASSES_REFERENCED: one.sop_class_uid,
                    identifier.SOP_INSTANCES_REFERENCED: one.sop_instance_uid,
                }
                for one in instances
            ],
        }
        for uid, instances in there.series.items()
    ]
    steps: list[identifier.Values] = [
        {
            identifier.SOP_CLASSES_REFERENCED: PERFORMED_PROCEDURE_STEP,
            identifier.SOP_INSTANCES_REFERENCED: uid,
            _WORKITEM_CODES: [],
        }
        for uid in there.steps
    ]
    return identifier.encode(
        {
            _PERFORMED_STEPS: steps,
            identifier.STUDY_INSTANCE_UID: there.study_instance_uid,
            _SERIES: series,
        }
    )
