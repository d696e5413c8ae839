"""What can go wrong on an association, each fault with what the peer is told about it.

A `ProtocolError` is the peer's fault and ends the association with an A-ABORT of the reason it
carries. What ends because of the line, the peer's own decision or silence is a `PeerUnreachable`.
"""

from enum import IntEnum

from edgepacs.errors import NotAllowed, PeerError, PeerRefused, PeerUnreachable


class AbortSource(IntEnum):
    """Who aborted (PS3.8 9.3.8)."""

    SERVICE_USER = 0
    SERVICE_PROVIDER = 2


class AbortReason(IntEnum):
    """Why the service provider aborted (PS3.8 9.3.8)."""

    NOT_SPECIFIED = 0
    UNRECOGNISED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNISED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


class ProtocolError(PeerError):
    """The peer broke PS3.7 or PS3.8; names the field and the limit, and why it is aborted."""

    exit_code = 76  # EX_PROTOCOL

    def __init__(
        self, field: str, problem: str, reason: AbortReason = AbortReason.INVALID_PARAMETER
    ) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem
        self.reason = reason


class AssociationClosed(PeerUnreachable):
    """The connection ended without a release, or the association is no longer open."""


class AssociationAborted(PeerUnreachable):
    """An A-ABORT arrived (PS3.8 9.3.8)."""

    def __init__(self, source: int, reason: int) -> None:
        super().__init__(f"aborted by the peer ({_abort_words(source, reason)})")
        self.source = source
        self.reason = reason


class PeerTimedOut(PeerUnreachable):
    """The peer kept silent, trickled or did not take what was sent for longer than allowed."""


class AssociationRejected(NotAllowed):
    """We answered A-ASSOCIATE-RJ; `result`, `source` and `reason` as of PS3.8 9.3.4.

    `calling_ae` and `called_ae` are as received, trimmed, and may hold any characters.
    """

    def __init__(
        self, words: str, *, codes: tuple[int, int, int], calling_ae: str, called_ae: str
    ) -> None:
        super().__init__(f"rejected: {words}")
        self.result, self.source, self.reason = codes
        self.calling_ae = calling_ae
        self.called_ae = called_ae


class AssociationRefused(PeerRefused):
    """The peer answered A-ASSOCIATE-RJ; `result`, `source` and `reason` as of PS3.8 9.3.4."""

    def __init__(self, words: str, codes: tuple[int, int, int]) -> None:
        super().__init__(f"rejected: {words}")
        self.result, self.source, self.reason = codes


class NoContextAccepted(PeerRefused):
    """The peer accepted the association, but none of the presentation contexts proposed."""


class AssociationRefusedForNow(AssociationRefused):
    """An A-ASSOCIATE-RJ with result rejected-transient (PS3.8 9.3.4)."""

    transient = True


def _abort_words(source: int, reason: int) -> str:
    """PS3.8 9.3.8: the reason is significant only when the service provider aborted."""
    if source != AbortSource.SERVICE_PROVIDER:
        return "by its application"
    try:
        return AbortReason(reason).name.lower().replace("_", " ")
    except ValueError:
        return f"reason {reason}"
