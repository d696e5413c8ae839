"""C-FIND as SCU: Study Root (PS3.4 C.4.1, C.6.2) and Modality Worklist (PS3.4 K.4.1, K.6.1)."""

from edgepacs.dimse import identifier
from edgepacs.dimse.association import Association
from edgepacs.dimse.command import Element, Field, Priority, Value
from edgepacs.dimse.contexts import IMPLICIT_VR_LE, MODALITY_WORKLIST_FIND
from edgepacs.dimse.identifier import Identifier, Values
from edgepacs.dimse.items import ProposedContext
from edgepacs.dimse.status import NOT_AUTHORISED, SOP_CLASS_NOT_SUPPORTED, Category, lookup
from edgepacs.errors import PeerError, PeerRefused

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # PS3.4 C.6.2.3
AS_SCU = ProposedContext(abstract_syntax=STUDY_ROOT_FIND, transfer_syntaxes=(IMPLICIT_VR_LE,))
WORKLIST_AS_SCU = ProposedContext(
    abstract_syntax=MODALITY_WORKLIST_FIND, transfer_syntaxes=(IMPLICIT_VR_LE,)
)
_REFUSALS = (SOP_CLASS_NOT_SUPPORTED, NOT_AUTHORISED)


def find(association: Association, context: int, keys: Values, most: int) -> list[Identifier]:
    """What matches `keys`, text by tag and "" for what is only to be returned.

    The information model is that of `context`. More than `most` matches end the association: the
    peer does not heed the keys. Raises PeerRefused where it does not answer such queries at all,
    else PeerError.
    """
    accepted = association.contexts[context]
    elements: dict[int, Value] = {
        Element.AFFECTED_SOP_CLASS_UID: accepted.abstract_syntax,
        Element.COMMAND_FIELD: Field.C_FIND_RQ,
        Element.PRIORITY: Priority.LOW,
    }
    matches: list[Identifier] = []
    for response in association.ask(context, elements, (identifier.encode(keys),)):
        status = lookup(response.status)
        if status.category is Category.PENDING:
            matches.append(identifier.decode(response.data, accepted.transfer_syntax))
            if len(matches) > most:
                association.abort()
                raise PeerError(f"the destination answered a query with more than {most} matches")
        elif status.code in _REFUSALS:
            raise PeerRefused(f"the destination does not answer queries: {status}")
        elif status.category is not Category.SUCCESS:
            raise PeerError(f"the destination could not answer a query: {status}")
    return matches
