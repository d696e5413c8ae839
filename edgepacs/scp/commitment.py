"""Storage commitment reports that destinations bring on associations of their own (PS3.4 J.3.3).

They are only written down here, before they are answered; forward/ acts on them.
"""

from edgepacs.dimse import Field, Message, commitment
from edgepacs.dimse.commitment import Report
from edgepacs.dimse.status import UNRECOGNISED_OPERATION
from edgepacs.errors import StorageFault
from edgepacs.model import Callback
from edgepacs.scp.conversation import Conversation
from edgepacs.store import commitments
from edgepacs.store.incidents import Incident


def serve(conversation: Conversation, message: Message) -> None:
    """Answer one message of a destination as SCP of storage commitment, we being the SCU.

    Raises PeerError when the association breaks.
    """
    store, association = conversation.store, conversation.association
    if message.command.field != Field.N_EVENT_REPORT_RQ:
        association.respond(message, UNRECOGNISED_OPERATION)
        return

    def record(report: Report) -> bool:
        try:
            return commitments.record(
                store.db, report.transaction_uid, report.outcomes, Callback.NEW
            )
        except StorageFault as fault:
            store.vault.condemn(fault)
            raise

    wrong = commitment.answer(association, message, record)
    if wrong:
        store.incidents.note(
            Incident(
                act="report refused",
                host=association.peer.host,
                actor=association.calling_ae,
                detail=wrong,
            )
        )
    else:
        store.ring("forward")
