"""What has happened to a study, and what would, in a technologist's words."""

import re

from flask import Flask

from edgepacs.model import CorrectionPolicy, Mismatch
from edgepacs.store.announcing import Trigger
from edgepacs.store.audit import AuditRecord
from edgepacs.store.policies import Plan
from edgepacs.web.wording import counted, visible

_ACTS = {
    "study matched": "Says what its order says",
    "study mismatched": "Differs from its order",
    "study kept": "Stays as it is, though it differs from its order",
    "study unmatched": "No order was found for it",
    "study none": "Nothing of it stands here any more",
    "study linked": "Linked with an order by hand",
    "study reopened": "To be decided again",
    "study corrected": "Corrected by its order",
    "study received": "Released",
    "study verified": "Verified",
    "study held": "Put on hold",
    "study rejected": "Rejected",
    "study sent": "Sent by hand",
    "study evicted": "Deleted here, since it has arrived",
    "correction asked for": "The order was applied",
    "correction failed": "The correction failed; nothing has changed",
    "correction undone": "Back to what was received",
    "announcement queued": "A destination is told by HL7 ADT",
    "delivery queued": "Queued for sending",
    "delivery held": "Sending was stopped",
    "delivery cancelled": "Sending was cancelled",
    "delivery superseded": "Something else is sent in its place",
    "priors asked for": "Priors were asked for",
    "instances retrieved": "Retrieved by a peer",
    "availability notified": "A destination is told that it is there",
}
_WITH_WORDS = ("correction failed",)  # their details are written for people
_FLAGS = {str(one): one.meaning for one in Mismatch}
_ITSELF = ("worklist", "upkeep", "forward", "ingest")
_COUNT = re.compile(r"(\d+) (?:instances|from)\b")


def told(record: AuditRecord) -> str:
    """One act on a study: what it was, in what it differed, and how many instances it was about."""
    what = _ACTS.get(record.act) or record.act.capitalize()
    if record.act in _WITH_WORDS:
        return f"{what}: {visible(record.detail)}"
    flags = [_FLAGS[word] for word in record.detail.replace(";", " ").split() if word in _FLAGS]
    if flags and record.act in ("study mismatched", "study kept", "correction asked for"):
        return f"{what}: {', '.join(flags)}"
    count = _COUNT.match(record.detail)
    return f"{what} ({counted(int(count[1]), 'instance')})" if count else what


def who(actor: str) -> str:
    """Whoever acted; the node itself where nobody did."""
    return "EdgePACS" if actor in _ITSELF else visible(actor)


def consequence(plan: Plan) -> str:
    """What a destination gets when the order of a study is applied."""
    if plan.policy is CorrectionPolicy.HOLD:
        return "the corrected instances are held for a person, since it may keep what it has"
    if plan.trigger is Trigger.A40:
        return "it is told by HL7 (A40) that the ID was given up, and corrects its own copy"
    if plan.trigger is Trigger.A08:
        return "it is told by HL7 (A08) who the patient is, and corrects its own copy"
    return "it gets a rejection note for them, then the corrected instances under new UIDs"


def install(app: Flask) -> None:
    """Make these words known to the templates."""
    app.add_template_filter(told)
    app.add_template_filter(who)
    app.add_template_filter(consequence)
