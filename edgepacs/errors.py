"""One hierarchy of errors, each class knowing what every interface has to answer.

An error is raised where the fault is seen and answered once, at the edge: the association
answers `dimse_status`, the web `http_status`, the command line ends with `exit_code`.
`transient` says whether the same request may succeed later without anybody changing anything.

Messages name the field and the limit and never hold values that came from a patient.
"""

from typing import ClassVar


class EdgePacsError(Exception):
    """Root of everything EdgePACS raises on purpose."""

    dimse_status: ClassVar[int] = 0xC000  # PS3.4 B.2.3: cannot understand
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 70  # EX_SOFTWARE
    transient: ClassVar[bool] = False


class InvalidValue(EdgePacsError):
    """A value outside what the standard or this node allows; names the field and the limit."""

    dimse_status = 0xC000
    http_status = 400
    exit_code = 65  # EX_DATAERR

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class DatasetMismatch(EdgePacsError):
    """The data set contradicts its command or lacks an identity (PS3.4 B.2.3, A9xx)."""

    dimse_status = 0xA900
    http_status = 409
    exit_code = 65

    def __init__(self, problem: str, *, tag: int | None = None) -> None:
        super().__init__(problem)
        self.tag = tag  # answered as Offending Element (0000,0901)


class NotFound(EdgePacsError):
    """Nothing of that name or number is known here."""

    dimse_status = 0x0112  # PS3.7 C.5.13: no such object instance
    http_status = 404
    exit_code = 66  # EX_NOINPUT


class Gone(NotFound):
    """Known, but its bytes are deleted: they have arrived elsewhere, or were given up."""

    http_status = 410


class Conflict(EdgePacsError):
    """The act does not fit the present state, or the name is already taken."""

    dimse_status = 0x0110  # PS3.7 C.5.14: processing failure
    http_status = 409
    exit_code = 65


class NotAllowed(EdgePacsError):
    """Known, but not permitted."""

    dimse_status = 0x0124  # PS3.7 C.5.12: refused, not authorised
    http_status = 403
    exit_code = 77  # EX_NOPERM


class NoRoom(EdgePacsError):
    """The disk has no room above its reserve (PS3.4 B.2.3, A700)."""

    dimse_status = 0xA700
    http_status = 507
    exit_code = 74  # EX_IOERR
    transient = True


class LimitExceeded(EdgePacsError):
    """A size, depth, count or time limit was passed; the message names it."""

    dimse_status = 0xC000
    http_status = 413
    exit_code = 65


class Busy(EdgePacsError):
    """Another process holds what is needed; the same call may succeed later."""

    dimse_status = 0xA700
    http_status = 503
    exit_code = 75  # EX_TEMPFAIL
    transient = True


class StorageFault(EdgePacsError):
    """The storage device failed; what it acknowledged can no longer be trusted."""

    dimse_status = 0xA700
    http_status = 503
    exit_code = 74


class Tampered(EdgePacsError):
    """Sealed bytes do not authenticate: flipped, swapped, truncated, or under another key."""

    dimse_status = 0x0110
    http_status = 500
    exit_code = 76  # EX_PROTOCOL


class WrongKey(EdgePacsError):
    """The key at hand does not open this store."""

    http_status = 503
    exit_code = 77


class ConfigurationError(EdgePacsError):
    """The configuration cannot be used; the message names file, key and reason."""

    http_status = 503
    exit_code = 78  # EX_CONFIG


class SchemaTooNew(ConfigurationError):
    """The index was written by a newer EdgePACS than this one."""


class Undecodable(EdgePacsError):
    """Pixel data cannot be decoded; the instance itself is kept and forwarded as it is."""

    http_status = 422
    exit_code = 65


class NotOffered(EdgePacsError):
    """An instance cannot go out in any transfer syntax that is accepted; it stays. Says why."""

    http_status = 406
    exit_code = 65


class PeerError(EdgePacsError):
    """A peer answered no, or not at all."""

    http_status = 502
    exit_code = 69  # EX_UNAVAILABLE


class PeerUnreachable(PeerError):
    """No association could be made, or it broke; the line or the peer is down."""

    transient = True


class PeerRefused(PeerError):
    """The peer rejected the association or every presentation context it needs."""


class NotAdmitted(PeerRefused):
    """The peer does not let us in, or cannot be trusted: a person has to change something."""


class PeerBusy(PeerError):
    """The peer answers and asks for patience: for `seconds`. The line is up."""

    transient = True

    def __init__(self, words: str, *, seconds: float) -> None:
        super().__init__(words)
        self.seconds = seconds
