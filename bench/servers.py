"""The servers under test: how each is started, what it costs, and what it holds afterwards."""

import contextlib
import hashlib
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import psutil
from harness.box import Box
from harness.dcmtk import echoscu, require
from harness.orthanc import Orthanc
from harness.waiting import free_port, until

from bench.sender import Order
from edgepacs import config
from edgepacs.custody import restore
from edgepacs.model import UID
from edgepacs.store import Store, instances, opened, studies

_RESET_PEAK = "5"  # written to clear_refs, proc_pid_clear_refs(5)


class Nagle(StrEnum):
    """Whether Nagle's algorithm holds back what DCMTK, or Orthanc with DCMTK inside, sends."""

    AS_SHIPPED = "as shipped"  # it does
    OFF = "TCP_NODELAY=1"


@contextmanager
def environment(nagle: Nagle) -> Iterator[None]:
    """What is started in the block is told so by its environment."""
    before = dict(os.environ)
    os.environ.pop("TCP_NODELAY", None)
    if nagle is Nagle.OFF:
        os.environ["TCP_NODELAY"] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Server(ABC):
    """One server in a directory of its own, listening on loopback while it is entered."""

    name: str
    port: int

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def start(self) -> None:
        """Start and wait until it answers."""

    @abstractmethod
    def stop(self) -> None:
        """End all its processes."""

    @abstractmethod
    def receiver(self) -> list[psutil.Process]:
        """The processes that receive."""

    def service(self) -> list[psutil.Process]:
        """Every process of the server."""
        return self.receiver()

    @abstractmethod
    def count(self) -> int:
        """How many instances it holds."""

    def compared(self, orders: Sequence[Order], every: int) -> int:  # noqa: ARG002
        """How many instances were read out and compared with what was ordered: every n-th.

        AssertionError when one differs. 0 of a server that is not asked for bytes.
        """
        return 0

    def reset_peak(self) -> None:
        """Let the peak of the receiver's memory begin anew."""
        for process in self.receiver():
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
                Path(f"/proc/{process.pid}/clear_refs").write_text(_RESET_PEAK)

    def peak_mib(self) -> float | None:
        """The peak of the receiver's resident memory; None where it is gone with its processes."""
        return self._memory_mib("VmHWM")

    def _memory_mib(self, field: str) -> float:
        (process,) = self.receiver()
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        (kib,) = [line.split()[1] for line in status if line.startswith(f"{field}:")]
        return int(kib) / 1024


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """User and system time of the processes and of the children they have waited for."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


class EdgePacs(Server):
    """All services of a node, as `edgepacs serve` runs them; `scp` is the receiver."""

    name = "EdgePACS"

    def __init__(self, directory: Path, template: Box) -> None:
        self.box = Box.copied(template, directory)
        self.port = self.box.dicom_port

    def start(self) -> None:
        self.box.start()

    def stop(self) -> None:
        self.box.kill()

    def receiver(self) -> list[psutil.Process]:
        return [one for one in self.service() if one.cmdline()[-1:] == ["scp"]]

    def service(self) -> list[psutil.Process]:
        return [psutil.Process(pid) for pid in self.box.pids()]

    def rss_mib(self) -> float:
        """The receiver's resident memory now."""
        return self._memory_mib("VmRSS")

    def peak_mib(self) -> float:
        return self._memory_mib("VmHWM")

    def count(self) -> int:
        with opened(config.load(self.box.config)) as store:
            return studies.counts(store.db)["instance"]

    def compared(self, orders: Sequence[Order], every: int) -> int:
        with opened(config.load(self.box.config)) as store:
            return sum(_compare(store, order, every) for order in orders)


def _compare(store: Store, order: Order, every: int) -> int:
    """Read every n-th instance out and compare its digest; how many that were."""
    numbers = range(0, order.count, every)
    for number in numbers:
        template = order.templates[order.turn(number)]
        identity = order.names.identity(number, template.grouping)
        row = instances.stored_version(store.db, UID(identity.sop.decode()))
        assert row is not None, "EdgePACS: an acknowledged instance is not there"
        digest = hashlib.sha256()
        for chunk in restore.received_chunks(store, row):  # it may stand compressed by now
            digest.update(chunk)
        assert digest.digest() == template.sha256(identity), "EdgePACS: an instance was altered"
    return len(numbers)


class _Process(Server):
    """A server that is one program."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._process: psutil.Process | None = None

    def receiver(self) -> list[psutil.Process]:
        assert self._process is not None
        return [self._process]


class OrthancServer(_Process):
    """Debian's Orthanc with its defaults but for the longest PDU it takes."""

    def __init__(self, directory: Path, max_pdu: int) -> None:
        super().__init__(directory)
        self.name = f"Orthanc, PDU {max_pdu >> 10} KiB"
        self._orthanc = _Orthanc(directory, max_pdu)
        self.port = self._orthanc.port

    def start(self) -> None:
        before = set(psutil.Process().children())
        self._orthanc.start()
        (self._process,) = set(psutil.Process().children()) - before

    def stop(self) -> None:
        self._orthanc.stop()

    def count(self) -> int:
        return int(self._orthanc.get("/statistics")["CountInstances"])


class _Orthanc(Orthanc):
    def __init__(self, directory: Path, max_pdu: int) -> None:
        self._max_pdu = max_pdu
        super().__init__(directory)

    def _configuration(self) -> dict[str, Any]:
        return {**super()._configuration(), "MaximumPduLength": self._max_pdu}


class StoreScp(_Process):
    """DCMTK's storescp, a process an association; it neither syncs nor encrypts nor indexes.

    With `--bit-preserving` it writes what comes as it comes, without parsing it.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        super().__init__(directory)
        self.name = " ".join(("storescp --fork", *options))
        self._options = ("--fork", "--max-pdu", "131072", *options)
        self.port = free_port()
        directory.mkdir()

    def start(self) -> None:
        command = [require("storescp"), *self._options, "-od", str(self.directory), str(self.port)]
        self._process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: echoscu(self.port) == 0, "storescp answers")

    def stop(self) -> None:
        for process in reversed(self.receiver()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert self._process is not None
        self._process.wait()

    def receiver(self) -> list[psutil.Process]:
        (parent,) = super().receiver()
        return [parent, *parent.children()]

    def peak_mib(self) -> None:
        return None

    def count(self) -> int:
        return sum(1 for _ in self.directory.iterdir())


def versions() -> dict[str, str]:
    """What the peers call themselves."""
    return {name: _version(name) for name in ("Orthanc", "storescp", "storescu")}


def _version(program: str) -> str:
    if not shutil.which(program):
        return "absent"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return said.stdout.splitlines()[0].strip("$ ")
