"""A receiver as a process of its own, measured from outside while it is mistreated."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import psutil
from harness.made import CT
from harness.part10 import EXPLICIT_LE, Part10
from harness.waiting import free_port, until
from store.making import node_in

from edgepacs import config
from edgepacs.custody import readout
from edgepacs.dimse import Association, Limits, ProposedContext, request
from edgepacs.dimse.contexts import VERIFICATION
from edgepacs.errors import PeerError
from edgepacs.model import UID, AETitle, InstanceId, Service
from edgepacs.store import Store, instances, peers
from edgepacs.store.audit import AuditRecord
from edgepacs.store.instances import Instance
from edgepacs.telemetry import doorbell

_KNOWN = ("HARNESS", "GOOD", "CT1")  # who may call, from any host
_SWEPT = re.compile(r"failed: |Traceback")


class Receiver:
    """`edgepacs scp` over a node in `folder`, and the node's store as another process sees it."""

    def __init__(self, folder: Path, *, reserve_mib: int = 0, **dicom: int) -> None:
        made = node_in(folder).path
        self.port = free_port()
        self.tls_port = free_port()
        self.trust = folder / "tls" / "site.crt"
        settings = {"port": self.port, "tls_port": self.tls_port, **dicom}
        text = made.read_text().replace("reserve_mib = 0", f"reserve_mib = {reserve_mib}")
        for name in settings:
            text = re.sub(rf"(\[dicom\][^\[]*?)\n{name} = [^\n]*", r"\1", text)
        lines = "".join(f"\n{name} = {value}" for name, value in settings.items())
        made.write_text(text.replace("[dicom]", f"[dicom]{lines}"))
        self.log = folder.with_name(folder.name + ".log")
        self._config = made
        self.store = Store.open(config.load(made))
        with self.store.db.write() as tx:
            for title in _KNOWN:
                services = tuple(Service)
                peers.add_ae(tx, title=title, host="*", port=104, services=services, actor="test")
        self._process: subprocess.Popen[bytes] | None = None
        self._owed: list[tuple[str, str]] = []

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edgepacs", "--config", str(self._config), "scp"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"},
            )
        until(self._answers, "the receiver answers C-ECHO", seconds=30)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            self.store.close()
            doorbell.cache_clear()

    def _answers(self) -> bool:
        self.require_sound()
        try:
            with self.associate(VERIFICATION, "1.2.840.10008.1.2") as association:
                return association.echo() == 0
        except PeerError:
            return False

    # -- the process

    def require_sound(self) -> None:
        """AssertionError where the process has ended, or an association in it has failed."""
        assert self._process is not None, "not started"
        code = self._process.poll()
        assert code is None, f"the receiver ended with {code}: {self.log_text()[-1500:]}"
        failed = [line for line in self.log_text().splitlines() if _SWEPT.search(line)]
        assert not failed, failed[:5]

    def log_text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    @property
    def process(self) -> psutil.Process:
        assert self._process is not None, "not started"
        return psutil.Process(self._process.pid)

    def rss(self) -> int:
        """Resident bytes now."""
        return int(self.process.memory_info().rss)

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def forget_peak(self) -> int:
        """Let `peak` count from here on; resident bytes now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # proc(5)
        return self.rss()

    def peak(self) -> int:
        """Most resident bytes since `forget_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found, "no VmHWM in /proc"
        return int(found[1]) << 10

    def mapped(self) -> set[str]:
        """Names of the shared objects the process has loaded."""
        maps = Path(f"/proc/{self.process.pid}/maps").read_text()
        return {line.split()[-1] for line in maps.splitlines() if ".so" in line}

    # -- what it keeps

    def trail(self) -> list[AuditRecord]:
        """The audit trail, oldest first."""
        with self.store.db.read() as tx:
            return tx.records(
                AuditRecord,
                "SELECT id, at_ms, actor, act, kind, subject, detail FROM audit ORDER BY id",
            )

    def owes(self, act: str, words: str) -> None:
        """In the end the trail must hold a record of `act` with `words` in its detail."""
        self._owed.append((act, words))

    def require_records(self) -> None:
        """AssertionError unless the trail holds what is owed, soon, and tells it apart."""

        def missing() -> list[tuple[str, str]]:
            trail = self.trail()
            return [
                (act, words)
                for act, words in self._owed
                if not any(act == one.act and words in one.detail for one in trail)
            ]

        assert self._owed
        try:
            until(lambda: not missing(), "every attack is in the trail")
        except AssertionError:
            raise AssertionError(f"not in the trail: {missing()}") from None
        assert not any(one.act == "other incidents" for one in self.trail())
        self.require_sound()

    def versions(self, sop_instance: str) -> list[Instance]:
        """Every version kept under a UID, quarantined ones included."""
        with self.store.db.read() as tx:
            found = tx.rows(
                "SELECT id FROM instance WHERE sop_instance_uid = ? ORDER BY id", sop_instance
            )
        return [instances.instance(self.store.db, InstanceId(int(one))) for (one,) in found]

    def sealed(self, instance: Instance) -> bytes:
        """The data set kept for `instance`."""
        with readout.sealed(self.store, instance) as reader:
            return b"".join(reader.chunks())

    def objects(self) -> int:
        """How many objects there are that hold anything; blanks are empty."""
        found = self.store.paths.objects.glob("??/*")
        return sum(1 for path in found if path.is_file() and path.stat().st_size)

    # -- peers

    def associate(
        self, sop_class: str = CT, syntax: str = EXPLICIT_LE, *, calling: str = "GOOD"
    ) -> Association:
        """An association with one presentation context; raises PeerError."""
        return request(
            "127.0.0.1",
            self.port,
            calling=AETitle(calling),
            called=AETitle("EDGEPACS"),
            contexts=[ProposedContext(abstract_syntax=sop_class, transfer_syntaxes=(syntax,))],
            limits=Limits(response=20.0),
        )


def store(association: Association, one: Part10) -> tuple[int, str]:
    """Send `one`; status and comment of the answer. Raises PeerError where none comes."""
    context = association.accepted(one.sop_class, one.transfer_syntax)
    assert context is not None, "presentation context refused"
    answer = association.store(context, UID(one.sop_class), UID(one.sop_instance), [one.data])
    return answer.status, answer.comment
