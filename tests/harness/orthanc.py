"""Debian's Orthanc as the central PACS, on loopback, in a directory of its own."""

import contextlib
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from harness.dcmtk import require
from harness.waiting import free_port, until


class Orthanc:
    """An Orthanc process; `start` and `stop` keep what it holds."""

    def __init__(
        self, directory: Path, ae_title: str = "ORTHANC", plugins: Sequence[str] = ()
    ) -> None:
        self.directory = directory
        self.ae_title = ae_title
        self._plugins = plugins
        self.port = free_port()
        self.http_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._config = directory / "orthanc.json"
        self._config.write_text(json.dumps(self._configuration(), indent=2))

    def _configuration(self) -> dict[str, Any]:
        return {
            "Name": "Central PACS",
            "StorageDirectory": str(self.directory / "storage"),
            "IndexDirectory": str(self.directory / "storage"),
            "Plugins": list(self._plugins),
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAet": self.ae_title,
            "DicomPort": self.port,
            "DicomCheckCalledAet": False,
            "DicomAlwaysAllowEcho": True,
            "DicomAlwaysAllowStore": True,
            "UnknownSopClassAccepted": True,
            "AcceptedTransferSyntaxes": ["*"],
            "OverwriteInstances": False,
            "HttpDescribeErrors": True,
        }

    def start(self) -> "Orthanc":
        """Start and wait until it answers."""
        assert self._process is None
        with (self.directory / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen(
                [require("Orthanc"), str(self._config)], stdout=log, stderr=log
            )
        until(self._answers, "Orthanc answers", seconds=30)
        return self

    def stop(self) -> None:
        """End the process, by force if it lingers."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "Orthanc ended; see orthanc.log"
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            self.get("/system")
            return True
        return False

    def get(self, path: str) -> Any:
        """The JSON answer of a GET."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=10) as got:
            return json.load(got)

    def file(self, identifier: str) -> bytes:
        """One instance as a DICOM file, as it holds it."""
        url = f"http://127.0.0.1:{self.http_port}/instances/{identifier}/file"
        with urllib.request.urlopen(url, timeout=10) as got:
            return bytes(got.read())

    def held(self) -> dict[str, dict[str, str]]:
        """What it holds: by SOP Instance UID its Orthanc identifier and transfer syntax."""
        found = {}
        for one in self.get("/instances?expand"):
            identifier = one["ID"]
            uid = one["MainDicomTags"]["SOPInstanceUID"]
            found[uid] = {"id": identifier, "transfer_syntax": self._syntax(identifier)}
        return found

    def _syntax(self, identifier: str) -> str:
        path = f"/instances/{identifier}/metadata/TransferSyntax"
        url = f"http://127.0.0.1:{self.http_port}{path}"
        with urllib.request.urlopen(url, timeout=10) as got:
            return str(got.read().decode())


DICOMWEB = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"  # of Debian's orthanc-dicomweb


def with_dicomweb(directory: Path) -> Orthanc:
    """An Orthanc with DICOMweb under /dicom-web."""
    assert Path(DICOMWEB).exists(), "orthanc-dicomweb is not installed: make peers"
    return Orthanc(directory, plugins=[DICOMWEB])
