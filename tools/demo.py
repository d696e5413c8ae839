"""A day beside the scanner, in two minutes: `make demo`, or `make demo KEEP=1` to look around.

A node is made, a modality (DCMTK's storescu) sends real studies while the central PACS (Orthanc)
is off; they are listed, one is looked at and verified; then the PACS comes up and everything
reaches it. All of it on loopback, in a temporary directory that is removed at the end.
"""

import argparse
import shlex
import signal
import sys
import tempfile
import textwrap
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from harness import corpus, part10  # noqa: E402
from harness.box import ADMIN_PASSWORD, PROGRAM, Box, CommandFailed  # noqa: E402
from harness.browser import Browser, Page  # noqa: E402
from harness.dcmtk import PROPOSALS, storescu  # noqa: E402
from harness.orthanc import Orthanc  # noqa: E402
from harness.waiting import until  # noqa: E402

# One day's work, from the packages pydicom, pydicom-data and deid-data.
DAY = {
    "two views from the radiography room": ["RG1_UNCR.dcm", "RG3_J2KR.dcm"],
    "three CTs, two of them one study": ["ctbrain1.dcm", "ctbrain2.dcm", "693_UNCR.dcm"],
    "two MRs": ["MR2_UNCR.dcm", "examples_overlay.dcm"],
    "ultrasound, with two cine loops": [
        "ultrasound-multiframe.dcm",
        "color3d_jpeg_baseline.dcm",
        "GREYSCALE_IMAGE.dcm",
        "RGB_IMAGE.dcm",
    ],
    "the veterinary corner": ["cat.dcm"],
    "an ECG, a report": ["waveform_ecg.dcm", "test-SR.dcm"],
}
MODALITY = "ROOM1"
PACS = "CENTRAL"


class Day:
    """The node, and what is said about it."""

    def __init__(self, work: Path, stack: ExitStack) -> None:
        self.box = stack.enter_context(Box.made(work / "node"))
        self.pacs = Orthanc(work / "pacs", ae_title=PACS)
        stack.callback(self.pacs.stop)
        self.work = work
        self.stage_number = 0
        self.sent: list[part10.Part10] = []

    def stage(self, title: str) -> None:
        """Begin a stage."""
        self.stage_number += 1
        print(f"\n{self.stage_number}. {title}\n")

    def command(self, *arguments: str) -> Any:
        """Run one command of the node and show it as one would type it."""
        print(f"   $ edgepacs {shlex.join(arguments)}")
        return self.box.cli(*arguments)

    @property
    def url(self) -> str:
        """The node's pages."""
        return f"http://127.0.0.1:{self.box.http_port}"


def say(text: str) -> None:
    """Print a paragraph."""
    print(textwrap.fill(text, 96, initial_indent="   ", subsequent_indent="   "))


def begin(day: Day) -> None:
    """The node and whom it knows."""
    day.stage("A node beside the scanner")
    day.command(
        "ae", "add", MODALITY, "--host", "127.0.0.1", "--port", "104", "--allow", "echo,store"
    )
    host = ("--host", "127.0.0.1", "--port", str(day.pacs.port))
    day.command("destination", "add", "central", "--ae", PACS, *host)
    day.box.start()
    print()
    say(f"Pages    {day.url}/   log in as: admin   password: {ADMIN_PASSWORD}")
    say(f"DICOM    EDGEPACS at 127.0.0.1 port {day.box.dicom_port}")
    say(f"Command  {PROGRAM.relative_to(ROOT)} --config {day.box.config}")
    say("         (written as `edgepacs` here)")


def line_down(day: Day) -> None:
    """The destination does not answer."""
    day.stage("The line to the central PACS is down")
    try:
        day.command("destination", "echo", "central")
    except CommandFailed as failure:
        say(f"It answers (exit code {failure.run.returncode}): {failure.run.stderr.strip()}")
    else:
        sys.exit("demo: the central PACS answers although it is off")


def studies_arrive(day: Day) -> None:
    """The modality sends the day's work, each instance in its own transfer syntax."""
    day.stage("The modality sends all the same")
    at_hand = {path.name: path for path in corpus.files()}
    for what, names in DAY.items():
        instances = [part10.read(at_hand[name]) for name in names]
        by_syntax: dict[str, list[Path]] = defaultdict(list)
        for instance in instances:
            assert instance.path is not None
            by_syntax[instance.transfer_syntax].append(instance.path)
        acknowledged = 0
        for syntax, paths in by_syntax.items():
            result = storescu(
                paths, day.box.dicom_port, proposal=PROPOSALS[syntax], calling=MODALITY
            )
            acknowledged += len(result.acknowledged)
        if acknowledged != len(instances):
            sys.exit(f"demo: {what}: {acknowledged} of {len(instances)} were acknowledged")
        day.sent += instances
        print(f"   storescu: {what}: {acknowledged} of {len(instances)} acknowledged")
    say("Each answer means: sealed, synced and in the index.")


def looked_at(day: Day) -> None:
    """The study list and its pages."""
    day.stage("The technologist looks")
    browser = day.box.login()
    raise NotImplementedError(browser)


def queued(day: Day) -> None:
    """What waits for the line."""
    day.stage("What waits for the line")
    day.command("queue", "list")


def line_up(day: Day) -> None:
    """The PACS comes up and gets everything."""
    day.stage("The line comes up")
    day.pacs.start()
    say(f"Orthanc answers at http://127.0.0.1:{day.pacs.http_port}/")
    wanted = {one.sop_instance for one in day.sent}

    def arrived() -> bool:
        return int(day.pacs.get("/statistics")["CountInstances"]) >= len(wanted)

    until(arrived, f"{len(wanted)} instances in Orthanc", seconds=90, every=0.2)
    held = day.pacs.held()
    if set(held) != wanted:
        sys.exit(f"demo: Orthanc holds {len(held)} instances, not the {len(wanted)} sent")
    say(f"Orthanc's own count: {len(held)} of {len(wanted)} instances, the same UIDs.")


def stop(number: int, frame: FrameType | None) -> None:
    """Signal handler: end as Ctrl-C does, so that everything is put away."""
    del number, frame
    raise KeyboardInterrupt


def main() -> None:
    """Play the day."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="stay until Ctrl-C, to look around")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgepacs-demo-")))
        day = Day(work, stack)
        for act in (begin, line_down, studies_arrive, looked_at, queued, line_up):
            act(day)
        if options.keep:
            print("\nEverything stays up until Ctrl-C.")
            signal.pause()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nStopped; everything has been put away.")
