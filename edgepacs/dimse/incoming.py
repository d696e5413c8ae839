"""One data set on its way in, fragment by fragment (PS3.7 6.3.1, PS3.8 E.1)."""

from collections.abc import Callable, Iterator

from edgepacs.clock import monotonic
from edgepacs.dimse.faults import AssociationClosed, ProtocolError
from edgepacs.dimse.line import Limits
from edgepacs.dimse.pdu import COMMAND, LAST
from edgepacs.errors import EdgePacsError, LimitExceeded

NextPdv = Callable[[float, str], tuple[int, int, memoryview]]


class IncomingData(Iterator[memoryview]):
    """The fragments of one data set as they arrive, each good until the next is asked for.

    Its size, the number of its fragments and its time are bounded by the limits: LimitExceeded.
    `ended` is told once: with None when the last fragment has come, else with the error.
    """

    def __init__(
        self,
        context: int,
        limits: Limits,
        next_pdv: NextPdv,
        ended: Callable[[EdgePacsError | None], None],
    ) -> None:
        self._context = context
        self._limits = limits
        self._next_pdv = next_pdv
        self._ended = ended
        self._deadline = monotonic() + limits.object_deadline
        self._bytes = 0
        self._left = limits.fragments
        self._complete = self._dropped = False

    def __next__(self) -> memoryview:
        if self._dropped:
            raise AssociationClosed("the rest of this data set was dropped")
        if self._complete:
            raise StopIteration
        try:
            return self._fragment()
        except EdgePacsError as error:
            self._ended(error)
            raise

    def drop(self) -> None:
        """Read the rest for nobody; whoever still iterates must not take it for complete."""
        for _ in self:
            pass
        self._dropped = True

    def _fragment(self) -> memoryview:
        now = monotonic()
        deadline = min(self._deadline, now + self._limits.stall)
        number, control, fragment = self._next_pdv(deadline, "the rest of a data set")
        if control & COMMAND:
            raise ProtocolError("PDV", "command set fragment inside a data set")
        if number != self._context:
            raise ProtocolError("PDV", "presentation context changes inside a data set")
        self._count(len(fragment), now)
        if control & LAST:
            self._complete = True
            self._ended(None)
        return fragment

    def _count(self, size: int, now: float) -> None:
        self._bytes += size
        self._left -= 1
        if self._bytes > self._limits.object_bytes:
            raise LimitExceeded(f"data set: more than {self._limits.object_bytes} bytes")
        if self._left < 0:
            raise LimitExceeded(f"data set: more than {self._limits.fragments} fragments")
        if now >= self._deadline:
            raise LimitExceeded(f"data set: not complete in {self._limits.object_deadline} s")
