"""Those who carry instances over a line: EdgePACS, Orthanc, storescu and dcmsend.

Each is given files and a port, and carries until everything has arrived or it stops by itself;
then somebody has to act, and that is counted.
"""

import json
import os
import subprocess
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from harness.box import Box
from harness.dcmtk import require
from harness.orthanc import Orthanc
from harness.waiting import until

from bench.images import Image, Packing
from bench.servers import Nagle, environment

FAR = "FAR"  # AE title of the far end
_PROPOSALS = {Packing.NATIVE: "-xe", Packing.JPEG_2000: "-xv", Packing.JPEG_LS: "-xt"}
_POLL = 0.05  # seconds
Arrived = Callable[[], bool]


class Carrier(ABC):
    """One way of getting images to the far end; entered while it may be running."""

    name: str
    packing = Packing.NATIVE
    associations: int | None = None  # None: its own choice

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @abstractmethod
    def load(self, images: Sequence[Image], port: int) -> None:
        """Have everything at hand that is to go to `port`; the line is down meanwhile."""

    @abstractmethod
    def carry(self, arrived: Arrived, deadline: float) -> bool:
        """Carry until all has `arrived`, or it stops by itself; whether it needs nobody.

        Called again it is somebody who makes it go on. `deadline` is in time.monotonic.
        """

    @abstractmethod
    def end(self) -> None:
        """Stop whatever runs."""


class Program(Carrier):
    """A program of DCMTK that sends files and ends: one process an association."""

    def __init__(
        self,
        directory: Path,
        program: str,
        packing: Packing,
        associations: int,
        nagle: Nagle = Nagle.OFF,
    ) -> None:
        super().__init__(directory)
        self._nagle = nagle
        self.program = program
        self.packing = packing
        self.associations = associations
        self.name = f"{program}, {packing}"
        self._commands: list[list[str]] = []
        self._running: list[subprocess.Popen[bytes]] = []

    def load(self, images: Sequence[Image], port: int) -> None:
        files = [str(one.file) for one in images]
        how = ["-dn"] if self.program == "dcmsend" else [_PROPOSALS[self.packing]]
        head = [
            require(self.program),
            *how,
            "-aet",
            "STORESCU",
            "-aec",
            FAR,
            "127.0.0.1",
            str(port),
        ]
        count = self.associations or 1
        self._commands = [[*head, *files[share::count]] for share in range(count)]

    def carry(self, arrived: Arrived, deadline: float) -> bool:
        with environment(self._nagle), (self.directory / "log").open("ab") as log:
            self._running = [
                subprocess.Popen(one, stdout=log, stderr=log) for one in self._commands if one[-1]
            ]
        while any(one.poll() is None for one in self._running):
            if time.monotonic() > deadline:
                self.end()
                return False
            time.sleep(_POLL)
        return arrived()

    def end(self) -> None:
        for one in self._running:
            one.kill()
            one.wait()
        self._running = []


class OrthancCarrier(Carrier):
    """Orthanc with its defaults, TCP_NODELAY set: a job that stores what it was given before."""

    def __init__(self, directory: Path, packing: Packing = Packing.NATIVE) -> None:
        super().__init__(directory)
        self.packing = packing
        self.name = f"Orthanc, {packing}"
        self.associations = 1
        self._orthanc: _Known | None = None
        self._ids: list[str] = []
        self._job = ""

    def load(self, images: Sequence[Image], port: int) -> None:
        with environment(Nagle.OFF):
            self._orthanc = _Known(self.directory / "orthanc", port)
            self._orthanc.start()
        self._ids = [self._post("/instances", one.file.read_bytes())["ID"] for one in images]

    def _post(self, path: str, body: bytes) -> Any:
        assert self._orthanc is not None
        return self._orthanc.post(path, body)

    def carry(self, arrived: Arrived, deadline: float) -> bool:
        assert self._orthanc is not None
        if self._job:
            self._post(f"/jobs/{self._job}/resubmit", b"{}")
        else:
            order = {"Resources": self._ids, "Asynchronous": True}
            self._job = self._post("/modalities/far/store", json.dumps(order).encode())["ID"]
        while time.monotonic() < deadline:
            state = self._orthanc.get(f"/jobs/{self._job}")["State"]
            if state in ("Success", "Failure"):
                return arrived()
            time.sleep(_POLL)
        return False

    def end(self) -> None:
        if self._orthanc is not None:
            self._orthanc.stop()


class _Known(Orthanc):
    """One that knows the far end."""

    def __init__(self, directory: Path, far_port: int) -> None:
        self._far_port = far_port
        super().__init__(directory)

    def _configuration(self) -> dict[str, Any]:
        modalities = {"far": [FAR, "127.0.0.1", self._far_port]}
        return {**super()._configuration(), "DicomModalities": modalities}

    def post(self, path: str, body: bytes) -> Any:
        url = f"http://127.0.0.1:{self.http_port}{path}"
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as got:
            return json.loads(got.read() or b"{}")


class EdgePacsCarrier(Carrier):
    """A node as `init` makes it: it got the images as a modality sends them, before the line."""

    def __init__(
        self, directory: Path, template: Box, associations: int = 0, *, compressed: bool = True
    ) -> None:
        super().__init__(directory)
        self.box = Box.copied(template, directory / "node")
        self.associations = associations or None
        self.name = "EdgePACS" if compressed else "EdgePACS, native"
        self._compressed = compressed

    def load(self, images: Sequence[Image], port: int) -> None:
        box = self.box
        if not self._compressed:
            box.configure('workers = "auto"', "workers = 0")
        box.send_to("far", ae=FAR, port=port)
        if self.associations:
            box.cli("destination", "set", "far", f"associations={self.associations}")
        box.start()
        files = [str(one.file) for one in images]
        command = [require("storescu"), "-xe", "-aet", "STORESCU", "-aec", "EDGEPACS"]
        with environment(Nagle.OFF):
            subprocess.run(
                [*command, "127.0.0.1", str(box.dicom_port), *files], check=True, timeout=900
            )
        if self._compressed:
            until(
                lambda: self._compressed_count() == len(images),
                "everything is compressed",
                seconds=900,
                every=1.0,
            )

    def _compressed_count(self) -> int:
        stand = self.box.cli("compression", "status")["stand"]
        return sum(one["instances"] for one in stand if one["state"] == "compressed")

    def carry(self, arrived: Arrived, deadline: float) -> bool:
        while not arrived():
            if time.monotonic() > deadline:
                return False
            self.box.require_running()
            time.sleep(_POLL)
        return True

    def sender_rss_mib(self) -> float:
        """Resident memory of the process that sends, now."""
        for pid in self.box.pids():
            line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if line[-2:-1] == [b"forward"]:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                return pages * os.sysconf("SC_PAGESIZE") / 2**20
        raise AssertionError("no sender is running")

    def end(self) -> None:
        self.box.kill()
