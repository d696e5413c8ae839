"""C-FIND as SCU in the Study Root information model (PS3.4 C.4.1, C.6.2)."""

from collections.abc import Mapping

from edgepacs.dimse import identifier
from edgepacs.dimse.association import Association
from edgepacs.dimse.command import Element, Field, Priority, Value
from edgepacs.dimse.contexts import IMPLICIT_VR_LE
from edgepacs.dimse.identifier import Identifier
from edgepacs.dimse.items import ProposedContext
from edgepacs.dimse.status import NOT_AUTHORISED, SOP_CLASS_NOT_SUPPORTED, Category, lookup
from edgepacs.errors import PeerError, PeerRefused

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # PS3.4 C.6.2.3
AS_SCU = ProposedContext(abstract_syntax=STUDY_ROOT_FIND, transfer_syntaxes=(IMPLICIT_VR_LE,))
_REFUSALS = (SOP_CLASS_NOT_SUPPORTED, NOT_AUTHORISED)


def find(
    association: Association, context: int, keys: Mapping[int, str], most: int
) -> list[Identifier]:
    """What matches `keys`, text by tag and "" for what is only to be returned.

    More than `most` matches end the association: the peer does not heed the keys. Raises
    PeerRefused where it does not answer such queries at all, else PeerError.
    """
    elements: dict[int, Value] = {
        Element.AFFECTED_SOP_CLASS_UID: STUDY_ROOT_FIND,
        Element.COMMAND_FIELD: Field.C_FIND_RQ,
        Element.PRIORITY: Priority.LOW,
    }
    syntax = association.contexts[context].transfer_syntax
    matches: list[Identifier] = []
    for response in association.ask(context, elements, (identifier.encode(keys),)):
        status = lookup(response.status)
        if status.category is Category.PENDING:
            matches.append(identifier.decode(response.data, syntax))
            if len(matches) > most:
                association.abort()
                raise PeerError(f"the destination answered a query with more than {most} matches")
        elif status.code in _REFUSALS:
            raise PeerRefused(f"the destination does not answer queries: {status}")
        elif status.category is not Category.SUCCESS:
            raise PeerError(f"the destination could not answer a query: {status}")
    return matches
