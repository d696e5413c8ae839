"""What the tests read out of the command line's JSON: the one place that knows its shapes."""

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.box import Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Fsck:
    """One run of `fsck`."""

    returncode: int
    problems: list[dict[str, Any]]
    counts: dict[str, int]

    @property
    def clean(self) -> bool:
        """Whether nothing was wrong."""
        assert (self.returncode == 0) == (not self.problems), "exit code and findings disagree"
        return not self.problems

    def kinds(self) -> Counter[str]:
        """How often each kind of problem was found."""
        return Counter(str(problem["kind"]) for problem in self.problems)


# What `fsck` calls each kind of finding.
FSCK_KINDS = {"missing": "missing", "damaged": "damaged", "stray": "stray"}
# Options under which `fsck` may remove what no row knows.
SWEEPS: tuple[tuple[str, ...], ...] = ((), ("--sweep",))


def fsck(box: Box, *options: str) -> Fsck:
    """Run `fsck --json`; findings are no failure of the command here."""
    run = box.run("fsck", *options, "--json", check=False)
    assert run.stdout, f"fsck printed nothing: {run.stderr}"
    got = json.loads(run.stdout)
    return Fsck(returncode=run.returncode, problems=got["problems"], counts=got["counts"])


def delete_index(box: Box) -> None:
    """Remove the index of a stopped node, keeping objects and keystore."""
    for name in ("index.db", "index.db-wal", "index.db-shm"):
        (box.data / name).unlink(missing_ok=name != "index.db")


def listing(box: Box) -> list[dict[str, Any]]:
    """Every patient, study, series and instance, in a stable order."""
    rows: list[dict[str, Any]] = box.cli("studies", "list")
    return rows


def run_traced(box: Box, prefix: Sequence[str], *args: str) -> None:
    """Run one command under `prefix`; AssertionError unless it succeeds."""
    run = subprocess.run(
        [*prefix, *box.command(*args)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=box.temporary,
        env=box.env(),
    )
    assert run.returncode == 0, run.stderr


def queue(box: Box) -> list[dict[str, Any]]:
    """Every row of `queue list`."""
    rows: list[dict[str, Any]] = box.cli("queue", "list")
    return rows


def queue_states(box: Box) -> Counter[str]:
    """How many deliveries stand in each state."""
    states: Counter[str] = Counter()
    for row in queue(box):
        states[row["state"]] += row.get("count", 1)
    return states


def refused(box: Box) -> list[dict[str, Any]]:
    """Every row of `ae list --refused`."""
    rows: list[dict[str, Any]] = box.cli("ae", "list", "--refused")
    return rows


def token(box: Box, role: str) -> str:
    """A fresh bearer token."""
    return str(box.cli("token", "create", "--role", role)["token"])
