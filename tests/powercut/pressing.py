"""Power cuts under a node that compresses what it was sent: nothing may be lost, altered or left.

In each round pictures that can be compressed are sent and acknowledged; then two workers begin,
and the power goes at a moment of one of the kinds below. After the last cut the workers finish.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from harness.box import Box
from powercut import check, load
from powercut.campaign import Campaign, Plan, Result
from powercut.crew import Crew
from powercut.load import SMOOTH, Key, Order

from edgepacs.store.compressions import MAX_ATTEMPTS

_WORKERS = 2
_EACH = 60  # sent before each cut
_SECONDS = 60.0
_ALL_SECONDS = 600.0


class Press(StrEnum):
    """When the power goes."""

    MOMENT = "while workers compress"
    STARTING = "while workers start"
    SEALED = "when killed at compress.sealed"
    PROVED = "when killed at compress.proved"
    SWAPPED = "when killed at compress.swapped"
    REMOVING = "when killed before the former object goes"
    ASKING = "while all is asked to be compressed again"
    AGAIN = "while all is compressed again"
    AGAIN_SEALED = "when killed at compress.sealed, all being compressed again"


# By which options of the driver the crew dies, and between which passages.
_DEATHS: Mapping[StrEnum, tuple[str, str, tuple[int, int]]] = {
    Press.SEALED: ("--kill-at-in-workers", "compress.sealed", (1, 15)),
    Press.PROVED: ("--kill-at-in-workers", "compress.proved", (1, 15)),
    Press.AGAIN_SEALED: ("--kill-at-in-workers", "compress.sealed", (1, 40)),
    Press.SWAPPED: ("--kill-at", "compress.swapped", (1, 4)),
    Press.REMOVING: ("--kill-at", "disposal.decided", (1, 30)),
}
# Moments make up half of the cuts.
PRESSES = (*(4 * (Press.MOMENT,)), *(3 * (Press.AGAIN,)), *Press)


@dataclass(slots=True)
class Pressed(Result):
    """What a campaign found, and how its instances stand in the end."""

    states: dict[str, int] = field(default_factory=dict)
    failed: int = 0  # over which the power went again and again; they were compressed when asked

    def summary(self) -> str:
        """All in one line."""
        stand = ", ".join(f"{number} {state}" for state, number in self.states.items())
        said = Result.summary(self)
        return f"{said}; in the end {stand or 'not looked at'}, {self.failed} once failed"


class Pressing(Campaign):
    """Cuts the power under one node with two workers; see `Campaign`.

    `spoilt` are the driver's options for the crew.
    """

    result: Pressed

    def __init__(
        self,
        work: Path,
        template: Box,
        crew: Crew,
        *,
        seed: int,
        mib: int = 2048,
        spoilt: Sequence[str] = (),
        evidence: Path | None = None,
    ) -> None:
        super().__init__(work, template, crew, seed=seed, mib=mib, spoilt=spoilt, evidence=evidence)
        self.result = Pressed()

    def _settle(self, template: Box, work: Path) -> Box:
        box = super()._settle(template, work)
        box.compress(_WORKERS)
        self._disk.sync()
        return box

    # -- one round

    def _round(self, plan: Plan) -> None:
        self._start(plan, ())
        self._compare(plan.number)
        self._ask(check.survey, list(self.result.acknowledged))
        self._send_some(plan)
        self.node.launch("upkeep", self._spoiling(plan))
        if plan.kind in (Press.ASKING, Press.AGAIN, Press.AGAIN_SEALED):
            self.node.launch("compression", arguments=("again", "--all"))
        self._wait(plan)
        self._cut()
        self.node.kill()
        self._disk.replay()
        self._evidence.remember()
        self.result.cuts += 1
        self.result.kinds[plan.kind] += 1

    def _send_some(self, plan: Plan) -> None:
        box = self.node.box
        order = Order(
            first=Key(self._seed, plan.number, SMOOTH, 0),
            port=box.dicom_port,
            mounted=self._disk.at,
            temporary=box.temporary,
        )
        sent = self._crew.senders[0].begin(load.send_some, order, _EACH).get(_SECONDS)
        self._acknowledge(sent.acknowledged)

    def _spoiling(self, plan: Plan) -> list[str]:
        if plan.kind not in _DEATHS:
            return [*self._spoilt]
        option, point, passages = _DEATHS[plan.kind]
        return [*self._spoilt, option, f"{point}:{plan.chance.randint(*passages)}"]

    def _wait(self, plan: Plan) -> None:
        """Until the power is to go."""
        if plan.kind in _DEATHS:
            self.node.wait("upkeep", seconds=_SECONDS)
            return
        if plan.kind is Press.AGAIN:
            assert self.node.wait("compression", seconds=_SECONDS) == 0
        if plan.kind in (Press.MOMENT, Press.AGAIN):
            self._crew.checker.ask(check.compressing, self.node.box.config, _SECONDS)
        time.sleep(plan.chance.uniform(0.0, 1.0 if plan.kind is Press.ASKING else 0.4))

    # -- the end

    def _end(self) -> None:
        """The workers finish; then everything is compared as in every campaign."""
        self._finish()
        tried = self._crew.checker.ask(check.compressed, self.node.box.config)
        self.result.failed = len(tried.get("failed", []))
        self.result.found.others += [
            f"failed after {attempts} attempts"
            for attempts in tried.get("failed", [])
            if attempts < MAX_ATTEMPTS
        ]
        self.node.box.cli("compression", "again", "--state", "failed")
        self._finish()
        stand = self._crew.checker.ask(check.compressed, self.node.box.config)
        self.result.states = {state: len(attempts) for state, attempts in stand.items()}
        if stand.keys() != {"compressed"}:
            self.result.found.others.append(f"not all is compressed: {self.result.states}")
        super()._end()

    def _finish(self) -> None:
        self.node.launch("upkeep")
        self._crew.checker.ask(check.settled, self.node.box.config, _ALL_SECONDS)
        self.node.end()
