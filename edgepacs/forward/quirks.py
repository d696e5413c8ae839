"""Quirks: what is known of peers that answer otherwise than the standard lets expect.

One entry for each kind of implementation, with the day it was seen and how. An entry bounds what
we do; it never relaxes what is proved.
"""

import re
from dataclasses import dataclass
from datetime import date

from edgepacs.dimse.requestor import CONTEXTS_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirk:
    """What to mind with implementations whose class UID or version name match `pattern`.

    `contexts` is how many presentation contexts it takes; `commitment_apart` says that it reports
    on storage commitment only on an association of its own.
    """

    pattern: str
    seen: date
    reason: str
    contexts: int = CONTEXTS_MAX
    commitment_apart: bool = False


QUIRKS = (
    Quirk(
        pattern=r"1\.2\.276\.0\.7230010\.3\.0\.3\.6\.\d+|OFFIS_DCMTK_36\d",
        seen=date(2026, 11, 23),
        reason="DCMTK 3.6.7 storescp without --fork leaves a second association unanswered "
        "until the first has ended; lanes beyond the first find that out by themselves",
    ),
    Quirk(
        pattern=r"1\.2\.826\.0\.1\.3680043\.8\.641|ORTHANC_.*|Orthanc.*",
        seen=date(2026, 11, 23),
        reason="Orthanc 1.10.1 reports on storage commitment on an association of its own",
        commitment_apart=True,
    ),
)
_NONE = Quirk(pattern="", seen=date(2026, 11, 23), reason="nothing is known")


def quirk_of(class_uid: str, version: str) -> Quirk:
    """What is known of an implementation (PS3.7 D.3.3.2), by its class UID or version name."""
    for one in QUIRKS:
        if any(re.fullmatch(one.pattern, said) for said in (class_uid, version)):
            return one
    return _NONE
