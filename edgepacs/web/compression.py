"""How instances stand at rest, in words: codec, ratio, time, whether verified, or why not."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgepacs.model import CompressionState, InstanceId, SeriesId, StudyId
from edgepacs.pixels.syntaxes import syntax
from edgepacs.store import compressions
from edgepacs.store.compressions import Result, Selection, Sum
from edgepacs.store.db import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Instances that stand alike: one, those of a series, or all. Lengths are in bytes."""

    series: SeriesId | None
    state: CompressionState | None  # None where there was never anything to compress
    codec: str
    instances: int
    received_length: int
    byte_length: int
    seconds: float  # of the processor
    reason: str

    @property
    def ratio(self) -> float:
        """How many times smaller than received."""
        return self.received_length / max(1, self.byte_length)

    @property
    def verified(self) -> bool:
        """Whether it was proved that all of it comes back bit for bit."""
        return self.state is CompressionState.COMPRESSED


def of_study(db: Database, number: StudyId) -> list[Standing]:
    """How a study stands, by series."""
    return [_standing(one) for one in compressions.of_study(db, number)]


def of_all(db: Database) -> list[Standing]:
    """How everything that is stored stands, what takes most first."""
    found = [_standing(one) for one in compressions.totals(db)]
    return sorted(found, key=lambda one: -one.received_length)


def of_instance(db: Database, number: InstanceId) -> Standing | None:
    """How one stored instance stands."""
    found = compressions.results(db, Selection(instance=number))
    return _standing(found[0]) if found else None


def whole(found: Sequence[Standing]) -> Standing:
    """All of them as if they were one: how much smaller everything is."""
    return Standing(
        series=None,
        state=None,
        codec="",
        instances=sum(one.instances for one in found),
        received_length=sum(one.received_length for one in found),
        byte_length=sum(one.byte_length for one in found),
        seconds=sum(one.seconds for one in found),
        reason="",
    )


def for_scripts(db: Database, number: StudyId) -> dict[InstanceId, dict[str, Any]]:
    """How each stored instance of a study stands, by its number."""
    return {
        one.instance: {**asdict(one), "verified": one.state == CompressionState.COMPRESSED}
        for one in compressions.results(db, Selection(study=number))
    }


def _standing(one: Result | Sum) -> Standing:
    row = syntax(one.transfer_syntax_uid)
    return Standing(
        series=one.series,
        state=CompressionState(one.state) if one.state else None,
        codec=row.name if row else one.transfer_syntax_uid,
        instances=one.instances if isinstance(one, Sum) else 1,
        received_length=one.received_length,
        byte_length=one.byte_length,
        seconds=(one.encode_ms + one.verify_ms) / 1000,
        reason=one.reason,
    )
