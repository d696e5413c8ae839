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
from time import monotonic
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from harness import corpus, part10  # noqa: E402
from harness.box import ADMIN_PASSWORD, PROGRAM, Box  # noqa: E402
from harness.browser import Browser  # noqa: E402
from harness.dcmtk import PROPOSALS, storescu  # noqa: E402
from harness.orthanc import Orthanc  # noqa: E402
from harness.waiting import until  # noqa: E402

# One day's work, from the packages pydicom, pydicom-data and deid-data.
DAY = {
    "two views from the radiography room": ["RG1_UNCR.dcm", "RG3_J2KR.dcm"],
    "two CTs": ["ctbrain1.dcm", "693_UNCR.dcm"],
    "two MRs": ["MR2_UNCR.dcm", "examples_overlay.dcm"],
    "ultrasound, with two cine loops": [
        "ultrasound-multiframe.dcm",
        "color3d_jpeg_baseline.dcm",
        "GREYSCALE_IMAGE.dcm",
        "RGB_IMAGE.dcm",
    ],
    "the veterinary corner": ["cat.dcm"],
    "an ECG, a report": ["waveform_ecg.dcm", "test-SR.dcm"],
    "a CT under a UID that came before, with other content": ["ctbrain2.dcm"],
}
MODALITY = "ROOM1"
PACS = "CENTRAL"
UNAVAILABLE = 69  # exit code: a peer does not answer
STUDY_LIST = "/studies.json?limit=500"


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

    def command(self, *arguments: str) -> str:
        """Run one command of the node, and show it and its answer as a person would see them."""
        print(f"   $ edgepacs {shlex.join(arguments)}")
        run = self.box.run(*arguments, check=False)
        print(textwrap.indent((run.stdout + run.stderr).rstrip(), "   "))
        if run.returncode not in (0, UNAVAILABLE):
            sys.exit(f"demo: this ended with exit code {run.returncode}")
        return run.stdout

    @property
    def wanted(self) -> set[str]:
        """The SOP Instance UIDs that have to reach the central PACS."""
        return {one.sop_instance for one in self.sent}

    def counted(self) -> int:
        """How many instances Orthanc says it has."""
        return int(self.pacs.get("/statistics")["CountInstances"])

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
    day.command("destination", "echo", "central")
    if day.box.run("destination", "echo", "central", check=False).returncode != UNAVAILABLE:
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
    """The study list, its pages, and a verdict."""
    day.stage("The technologist looks")
    browser = day.box.login()
    found = listed(day, browser)
    print(f"   {'study':7}{'patient':26}{'what':34}{'images':>6}  page")
    for study in found:
        name = study["patient_name"].strip("^ ").replace("^", " ") or "no name"
        what = f"{study['modalities'] or '-'} {study['description'].strip('^ ')}"
        row = f"{study['id']:<7}{name[:24]:26}{what[:32]:34}{study['instance_count']:>6}"
        print(f"   {row}  {day.url}/studies/{study['id']}")
    count = sum(study["instance_count"] for study in found)
    if count != len(day.wanted):
        sys.exit(f"demo: {count} instances are listed, {len(day.wanted)} were sent")
    print()
    until(lambda: kept_aside(browser, found) == 1, "the other content was compared", seconds=30)
    say(
        "The instance that came under a known UID with other content is kept aside: its study "
        "shows both versions, and nothing of the new one is sent before a person decides."
    )
    for study in found:
        verify(browser, study["id"])
    states = [study["state"] for study in listed(day, browser)]
    if states != ["verified"] * len(found):
        sys.exit(f"demo: the studies are {', '.join(states)}, not all verified")
    say(f"All {len(found)} pages were opened and their studies verified, by the button on each.")


def listed(day: Day, browser: Browser) -> list[dict[str, Any]]:
    """The study list as the node gives it to scripts, the first received first."""
    page = browser.get(STUDY_LIST)
    if page.status != 200:
        sys.exit(f"demo: {day.url}{STUDY_LIST} answers {page.status}")
    return list(reversed(page.json()["studies"]))


def kept_aside(browser: Browser, found: list[dict[str, Any]]) -> int:
    """How many versions wait for a person in these studies."""
    pages = [browser.get(f"/studies/{study['id']}.json").json() for study in found]
    return sum(len(page["quarantined"]) for page in pages)


def verify(browser: Browser, study: int) -> None:
    """Open a study's page and press its button."""
    page = browser.get(f"/studies/{study}", Accept="text/html")
    (form,) = [
        one for one in page.parts().forms if one.fields.get("state", ("", ""))[1] == "verified"
    ]
    answer = browser.submit(page, form, {})
    if answer.status != 200:
        sys.exit(f"demo: verifying answers {answer.status}: {answer.text()[:200]}")


def queued(day: Day) -> None:
    """What waits for the line."""
    day.stage("What waits for the line")
    day.command("queue", "list")
    waiting = sum(row["count"] for row in day.box.cli("queue", "list"))
    if waiting != len(day.wanted):
        sys.exit(f"demo: {waiting} deliveries wait, not {len(day.wanted)}")


def line_up(day: Day) -> None:
    """The PACS comes up and gets everything."""
    day.stage("The line comes up")
    day.pacs.start()
    say(f"Orthanc answers at http://127.0.0.1:{day.pacs.http_port}/app/explorer.html")
    begun = monotonic()
    until(lambda: day.counted() >= len(day.wanted), "everything is in Orthanc", seconds=90)
    took = monotonic() - begun
    held = day.pacs.held()
    if set(held) != day.wanted:
        sys.exit(f"demo: Orthanc holds {len(held)} instances, not the {len(day.wanted)} due")
    until(lambda: not day.box.cli("queue", "list"), "the queue is empty", seconds=30)
    print(f"\n   $ curl http://127.0.0.1:{day.pacs.http_port}/statistics")
    counts = day.pacs.get("/statistics")
    print(f"   {counts['CountStudies']} studies, {counts['CountInstances']} instances\n")
    day.command("destination", "list")
    day.command("queue", "list")
    print()
    say(
        f"{len(held)} of {len(day.wanted)} instances arrived within {took:.1f} s, by Orthanc's own "
        "count, and their SOP Instance UIDs are those that were sent."
    )


def evening(day: Day) -> None:
    """What is kept, proved."""
    day.stage("In the evening")
    day.command("fsck")
    say("Every row has its object, every object its row, and every seal is whole.")


def stop(number: int, frame: FrameType | None) -> None:
    """Signal handler: end as Ctrl-C does, so that everything is put away."""
    del number, frame
    raise KeyboardInterrupt


def main() -> None:
    """Play the day."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="stay until Ctrl-C, to look around")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgepacs-demo-")))
        day = Day(work, stack)
        for act in (begin, line_down, studies_arrive, looked_at, queued, line_up, evening):
            act(day)
        if options.keep:
            print("\nEverything stays up until Ctrl-C.")
            sys.stdout.flush()
            signal.pause()
    print("\nAll of it was removed again. To look around: make demo KEEP=1")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nStopped; everything has been put away.")
