"""Measure how fast instances are received, beside Orthanc on the same machine: `make bench`.

Each figure is the median of ROUNDS runs that alternate between the two, with one CT instance of
0.5 MB sent COUNT times under new SOP Instance UIDs by DCMTK's storescu. TCP_NODELAY is set for
every DCMTK and Orthanc process, so that nobody waits for a delayed acknowledgement.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
os.environ["TCP_NODELAY"] = "1"

import psutil  # noqa: E402
from harness import corpus  # noqa: E402
from harness.box import Box  # noqa: E402
from harness.dcmtk import require  # noqa: E402
from harness.orthanc import Orthanc  # noqa: E402

INSTANCE = "693_UNCR.dcm"
COUNT = int(os.environ.get("COUNT", "200"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
ASSOCIATIONS = (1, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server under test: where it listens, and its processes."""

    name: str
    port: int
    processes: Callable[[], list[psutil.Process]]

    def cpu_seconds(self) -> float:
        return float(sum(sum(each.cpu_times()[:2]) for each in self.processes()))

    def rss_mib(self) -> float:
        return float(sum(each.memory_info().rss for each in self.processes())) / 2**20


def send(port: int, path: Path, associations: int) -> float:
    """Seconds until COUNT instances, spread over parallel associations, are acknowledged."""
    repeat = str(COUNT // associations)
    command = [require("storescu"), "-xe", "-aet", "STORESCU", "-aec", "EDGEPACS"]
    command += ["+II", "--repeat", repeat, "127.0.0.1", str(port), str(path)]
    begin = time.monotonic()
    senders = [subprocess.Popen(command) for _ in range(associations)]
    failed = [one.returncode for one in senders if one.wait()]
    assert not failed, f"storescu ended with {failed}"
    return time.monotonic() - begin


def measure(servers: list[Server], path: Path) -> None:
    print(f"{COUNT} x {path.name} ({path.stat().st_size / 1e6:.2f} MB), median of {ROUNDS}\n")
    print(f"{'server':10} {'associations':>12} {'instances/s':>12} {'CPU s':>8} {'RSS MiB':>8}")
    for associations in ASSOCIATIONS:
        rates: dict[str, list[float]] = {server.name: [] for server in servers}
        spent: dict[str, list[float]] = {server.name: [] for server in servers}
        for _ in range(ROUNDS):
            for server in servers:
                os.sync()
                before = server.cpu_seconds()
                rates[server.name].append(COUNT / send(server.port, path, associations))
                spent[server.name].append(server.cpu_seconds() - before)
        for server in servers:
            rate, cpu = (statistics.median(kept[server.name]) for kept in (rates, spent))
            row = f"{server.name:10} {associations:12} {rate:12.1f} {cpu:8.2f}"
            print(f"{row} {server.rss_mib():8.0f}")


def main() -> None:
    path = next(one for one in corpus.files() if one.name == INSTANCE)
    with tempfile.TemporaryDirectory(prefix="edgepacs-bench-") as directory:
        work = Path(directory)
        with Box.made(work / "node") as box, Orthanc(work / "orthanc") as orthanc:
            box.start()
            (peer,) = [
                one for one in psutil.Process().children() if "rthanc" in " ".join(one.cmdline())
            ]
            edgepacs = Server(
                name="EdgePACS",
                port=box.dicom_port,
                processes=lambda: [psutil.Process(pid) for pid in box.pids()],
            )
            measure(
                [edgepacs, Server(name="Orthanc", port=orthanc.port, processes=lambda: [peer])],
                path,
            )


if __name__ == "__main__":
    main()
