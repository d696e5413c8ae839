"""Cut the power under a node: `make powercut CUTS=n`; SEED, SENDERS and FILL say how.

FILL is the number of instances that are in the node before the first cut. Prints a line now and
then, and at the end one for each finding, the kinds of cuts, and one line with everything.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.box import Box
from powercut import disk
from powercut.campaign import MIXTURE, Campaign
from powercut.crew import Crew

_EVERY = 25


def main() -> int:
    cuts = int(os.environ.get("CUTS", "100"))
    fill = int(os.environ.get("FILL", "0"))
    with tempfile.TemporaryDirectory(prefix="edgepacs-powercut-") as folder:
        work = Path(folder)
        if reason := disk.unavailable(work):
            print(f"powercut: {reason}")
            return 1
        with (
            Crew(int(os.environ.get("SENDERS", "4"))) as crew,
            Campaign(
                work / "campaign",
                Box.made(work / "template"),
                crew,
                seed=int(os.environ.get("SEED", "1")),
                mib=4096 + 16 * cuts,
            ) as campaign,
        ):
            if fill:
                campaign.fill(fill)
            for result in campaign.run(MIXTURE, cuts):
                if not result.cuts % _EVERY:
                    print(result.summary(), flush=True)
    print("\n".join(result.details()))
    print(", ".join(f"{number} {kind}" for kind, number in result.kinds.most_common()))
    print(f"powercut: {result.summary()}")
    return 0 if result.sound else 1


if __name__ == "__main__":
    sys.exit(main())
