"""Cut the power under a node: `make powercut CUTS=n`; SEED, SENDERS and FILL say how.

FILL is the number of instances that are in the node before the first cut. With the argument
`compression`, as in `make powercut-compression`, the node compresses what it was sent, and the
power goes meanwhile. Prints a line now and then, and at the end one for each finding, the kinds of
cuts, and one line with everything. The same goes, with the commit and the machine, into a log: of
as many cuts as are to be shown, 1,000, or 50 with compression, it lies in docs/evidence/, else in
run/powercut/, where the evidence of findings lies as well.
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.box import Box
from powercut import disk
from powercut.campaign import MIXTURE, Campaign
from powercut.crew import Crew
from powercut.pressing import PRESSES, Pressing
from soak import git, machine

_ROOT = Path(__file__).resolve().parents[2]
_EVERY = {"powercut": 50, "compression": 10}
_FULL = {"powercut": 1000, "compression": 50}
_KEPT = _ROOT / "run" / "powercut"


class Log:
    """Everything that is printed, in a file as well."""

    def __init__(self, work: str, cuts: int) -> None:
        self.begin = datetime.now(UTC)
        folder = _ROOT / "docs" / "evidence" if cuts >= _FULL[work] else _KEPT
        folder.mkdir(parents=True, exist_ok=True)
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
        name = "powercut" if work == "powercut" else f"powercut-{work}"
        self.path = folder / f"{name}-{self.begin:%Y%m%d-%H%M}-{commit[:10]}.log"
        self._file = self.path.open("w")
        self.say(f"commit   {commit}{' with local changes' if changed else ''}", *machine())
        self.say(f"begin    {self.begin:%Y-%m-%dT%H:%M:%SZ}")

    def say(self, *lines: str) -> None:
        """Print `lines`."""
        for line in lines:
            print(line, flush=True)
            self._file.write(line.replace(f"{_ROOT}/", "") + "\n")
        self._file.flush()


def main() -> int:
    """Cut, print, and say with the exit status whether all was well."""
    what = sys.argv[1] if len(sys.argv) > 1 else "powercut"
    cuts, fill, senders, seed = (
        int(os.environ.get(name) or default)
        for name, default in (("CUTS", 100), ("FILL", 0), ("SENDERS", 4), ("SEED", 1))
    )
    with tempfile.TemporaryDirectory(prefix="edgepacs-powercut-") as folder:
        work = Path(folder)
        if reason := disk.unavailable(work):
            print(f"powercut: {reason}")
            return 1
        log = Log(what, cuts)
        log.say(f"cuts     {cuts}, {senders} senders, seed {seed}, {fill} instances before", "")
        template, kept = Box.made(work / "template"), _KEPT / f"{log.begin:%Y%m%d-%H%M%S}"
        mib, where = 4096 + 16 * cuts + fill // 50, work / "campaign"
        kind, kinds = (Pressing, PRESSES) if what == "compression" else (Campaign, MIXTURE)
        with (
            Crew(senders) as crew,
            kind(where, template, crew, seed=seed, mib=mib, evidence=kept) as campaign,
        ):
            if fill:
                campaign.fill(fill)
            for line in _campaign(campaign, kinds, cuts, _EVERY[what]):
                log.say(line)
        return 0 if campaign.result.sound else 1


def _campaign(campaign: Campaign, kinds: Sequence[StrEnum], cuts: int, every: int) -> Iterator[str]:
    result = campaign.result
    for _ in campaign.run(kinds, cuts):
        if not result.cuts % every and result.cuts < cuts:
            yield result.summary()
    yield from ("", *result.details(), "")
    yield ", ".join(f"{number} {kind}" for kind, number in result.kinds.most_common())
    yield f"powercut: {result.summary()}"


if __name__ == "__main__":
    sys.exit(main())
