"""C-GET and C-MOVE as SCU in the Study Root information model (PS3.4 C.4.2, C.4.3, C.6.2).

One study, or some of its instances, at a time. The instances of a C-GET come as C-STORE
sub-operations on the association that asked, for whose SOP classes we are SCP then
(PS3.7 D.3.3.4); those of a C-MOVE go to an AE title by associations of their own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from edgepacs.dimse import contexts, identifier
from edgepacs.dimse.association import Association
from edgepacs.dimse.command import Element, Field, Priority, Value
from edgepacs.dimse.items import ProposedContext, Roles
from edgepacs.dimse.message import Message, Response
from edgepacs.dimse.status import (
    NOT_AUTHORISED,
    SOP_CLASS_NOT_SUPPORTED,
    SUCCESS,
    UNRECOGNISED_OPERATION,
    Category,
    lookup,
)
from edgepacs.errors import EdgePacsError, PeerError, PeerRefused

STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"  # PS3.4 C.6.2.3
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
GET_AS_SCU = ProposedContext(
    abstract_syntax=STUDY_ROOT_GET, transfer_syntaxes=(contexts.IMPLICIT_VR_LE,)
)
MOVE_AS_SCU = ProposedContext(
    abstract_syntax=STUDY_ROOT_MOVE, transfer_syntaxes=(contexts.IMPLICIT_VR_LE,)
)
_MOVE_DESTINATION_UNKNOWN = 0xA801  # PS3.4 C.4.2.1.5
_REFUSALS = (SOP_CLASS_NOT_SUPPORTED, NOT_AUTHORISED, _MOVE_DESTINATION_UNKNOWN)
_HEEDED_WITHIN = 3  # sub-operations and responses that may still come after a C-CANCEL
_NATIVE = (contexts.EXPLICIT_VR_LE, contexts.IMPLICIT_VR_LE)
# Encapsulated forms an archive may hold, each in a context of its own, so that it need not decode
# what it has: PS3.8 9.3.3.2 leaves the choice within a context to the acceptor.
_ENCAPSULATED = (
    contexts.JPEG_LOSSLESS_SV1,
    contexts.JPEG_2000_LOSSLESS,
    contexts.JPEG_LS_LOSSLESS,
    contexts.JPEG_BASELINE,
    contexts.RLE_LOSSLESS,
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.4.51",  # JPEG Extended
    contexts.HTJ2K_LOSSLESS,
    "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
    contexts.JPEG_LOSSLESS,
    "1.2.840.10008.1.2.4.102",  # MPEG-4 AVC/H.264
    "1.2.840.10008.1.2.4.100",  # MPEG2
)

Keys = Mapping[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a retrieval ended: its sub-operations by what the peer counted (PS3.7 9.1.3.1)."""

    completed: int
    failed: int
    words: str  # "" where all went well


def storage_contexts(sop_classes: Iterable[str], most: int) -> list[ProposedContext]:
    """Up to `most` contexts by which a peer may send instances of `sop_classes` to us as SCP.

    First native for each class, then what archives hold encapsulated, for as many as there is
    room.
    """
    classes = [one for one in sop_classes if contexts.is_storage(one)]
    wanted: list[tuple[str, tuple[str, ...]]] = [(one, _NATIVE) for one in classes]
    wanted += [(one, (syntax,)) for syntax in _ENCAPSULATED for one in classes]
    as_scp = Roles(scu=False, scp=True)
    return [
        ProposedContext(abstract_syntax=one, transfer_syntaxes=syntaxes, roles=as_scp)
        for one, syntaxes in islice(wanted, most)
    ]


def of_study(study: str) -> Keys:
    """The keys of a whole study."""
    return {identifier.QUERY_RETRIEVE_LEVEL: "STUDY", identifier.STUDY_INSTANCE_UID: study}


def of_instances(study: str, series: str, instances: Iterable[str]) -> Keys:
    """The keys of some instances of one series: a list of UIDs (PS3.4 C.4.3.1.3, PS3.5 6.4)."""
    return {
        identifier.QUERY_RETRIEVE_LEVEL: "IMAGE",
        identifier.STUDY_INSTANCE_UID: study,
        identifier.SERIES_INSTANCE_UID: series,
        identifier.SOP_INSTANCE_UID: "\\".join(instances),
    }


def get(
    association: Association, keys: Keys, take: Callable[[Message], int], go_on: Callable[[], bool]
) -> Outcome:
    """C-GET what has these keys. `take` gets each C-STORE request and returns the status to answer.

    Between instances `go_on` is asked; once it says no, C-CANCEL goes out (PS3.7 9.3.2.3). What
    still comes is taken as before, but who does not heed it soon is aborted. Raises PeerRefused
    where the peer does not do this at all, PeerError, and what `take` raises, which ends the
    association.
    """
    context = _context(association, STUDY_ROOT_GET)
    elements: dict[int, Value] = {
        Element.AFFECTED_SOP_CLASS_UID: STUDY_ROOT_GET,
        Element.COMMAND_FIELD: Field.C_GET_RQ,
        Element.PRIORITY: Priority.LOW,
    }
    events = association.converse(context, elements, (identifier.encode(keys),))
    return _followed(association, context, _taken(association, events, take), go_on)


def move(
    association: Association,
    keys: Keys,
    destination: str,
    begun: Callable[[int], None],
    go_on: Callable[[], bool],
) -> Outcome:
    """C-MOVE what has these keys to the AE title `destination`.

    `begun` is told the Message ID it will have, before it is sent; its sub-operations name it
    (PS3.7 9.1.1.1). `go_on` is asked with every pending response. Raises as `get`.
    """
    context = _context(association, STUDY_ROOT_MOVE)
    elements: dict[int, Value] = {
        Element.AFFECTED_SOP_CLASS_UID: STUDY_ROOT_MOVE,
        Element.COMMAND_FIELD: Field.C_MOVE_RQ,
        Element.PRIORITY: Priority.LOW,
        Element.MOVE_DESTINATION: destination,
    }
    begun(association.last_message_id + 1)
    responses = association.ask(context, elements, (identifier.encode(keys),))
    return _followed(association, context, responses, go_on)


def _context(association: Association, abstract_syntax: str) -> int:
    context = association.accepted(abstract_syntax)
    if context is None:
        asked = "C-GET" if abstract_syntax == STUDY_ROOT_GET else "C-MOVE"
        raise PeerRefused(f"the destination does not offer {asked}")
    return context


def _taken(
    association: Association,
    events: Iterator[Message | Response],
    take: Callable[[Message], int],
) -> Iterator[Response | None]:
    """The responses, and None for each sub-operation once it is answered."""
    for event in events:
        if isinstance(event, Response):
            yield event
        elif event.command.field != Field.C_STORE_RQ:
            association.respond(event, UNRECOGNISED_OPERATION)
        elif event.command.sop_class_uid != event.context.abstract_syntax:
            association.respond(event, SOP_CLASS_NOT_SUPPORTED)
        else:
            association.respond(event, take(event))
            yield None


def _followed(
    association: Association,
    context: int,
    events: Iterable[Response | None],
    go_on: Callable[[], bool],
) -> Outcome:
    """What came of it; whatever ends this early ends the association."""
    request = association.last_message_id
    after_cancel = 0  # sub-operations and responses
    cancelled = False
    final: Response | None = None
    try:
        for event in events:
            final = event
            if event is not None and lookup(event.status).category is not Category.PENDING:
                break
            if cancelled:
                after_cancel += 1
            elif not go_on():
                association.cancel(context, request)
                cancelled = True
            if after_cancel > _HEEDED_WITHIN:
                association.abort()
                return Outcome(completed=0, failed=0, words="")
    except PeerError:
        raise
    except EdgePacsError:
        association.abort()
        raise
    assert final is not None  # a final response, or PeerError
    return _outcome(final)


def _outcome(final: Response) -> Outcome:
    status = lookup(final.status)
    if status.code in _REFUSALS:
        raise PeerRefused(f"the destination does not send studies to us: {status}")
    counted = final.command.number
    completed, failed = counted(Element.COMPLETED), counted(Element.FAILED)
    if status.category is Category.CANCEL:  # as we asked
        return Outcome(completed=completed, failed=failed, words="")
    words = []
    if status.code != SUCCESS:
        said = f" ({final.command.comment})" if final.command.comment else ""
        words.append(f"the destination answered {status}{said}")
    if failed:
        words.append(f"{failed} instances failed")
    return Outcome(completed=completed, failed=failed, words=", ".join(words))
