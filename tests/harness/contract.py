"""What the tests read out of the command line's JSON: the one place that knows its shapes."""

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.box import Box

from edgepacs import config
from edgepacs.store import opened

# How `fsck` is run while somebody writes; it may remove only what no one will commit.
SWEEPS: tuple[tuple[str, ...], ...] = ((), ("--sweep",))
_FINDINGS = ("missing", "broken", "mismatched", "orphans", "foreign", "unsettled", "index")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fsck:
    """One run of `fsck`; `problems` are (kind, what) pairs."""

    returncode: int
    problems: list[tuple[str, str]]
    rows: int
    objects: int
    verified: int

    @property
    def clean(self) -> bool:
        """Whether nothing was wrong and nothing lies about."""
        return not self.problems

    def kinds(self) -> Counter[str]:
        """How often each kind of problem was found."""
        return Counter(kind for kind, _ in self.problems)


def fsck(box: Box, *options: str) -> Fsck:
    """Run `fsck --json`; findings are no failure of the command here."""
    run = box.run("fsck", *options, "--json", check=False)
    assert run.stdout, f"fsck printed nothing: {run.stderr}"
    got = json.loads(run.stdout)
    problems = [(kind, str(one)) for kind in _FINDINGS for one in got[kind]]
    settled = [kind for kind, _ in problems if kind != "unsettled"]
    assert got["sound"] == (not settled), "the verdict contradicts the findings"
    assert (run.returncode == 0) == got["sound"], "the exit code contradicts the verdict"
    return Fsck(
        returncode=run.returncode,
        problems=problems,
        rows=got["rows"],
        objects=got["objects"],
        verified=got["verified"],
    )


def delete_index(box: Box) -> None:
    """Remove the index of a stopped node, keeping objects and keystore."""
    for name in ("index.db", "index.db-wal", "index.db-shm"):
        (box.data / name).unlink(missing_ok=name != "index.db")


Rows = dict[str, list[dict[str, Any]]]
_TABLES = {
    "patient": "SELECT * FROM patient",
    "study": "SELECT study.*, p.patient_id AS of_patient, p.issuer AS of_issuer, p.alone_in"
    " FROM study JOIN patient p ON p.id = study.patient",
    "series": "SELECT series.*, s.study_instance_uid AS of_study"
    " FROM series JOIN study s ON s.id = series.study",
    "instance": "SELECT instance.*, s.series_instance_uid AS of_series"
    " FROM instance JOIN series s ON s.id = instance.series",
}
# Numbers of rows, and what only the index can know.
_OWN = frozenset(
    ("id", "patient", "study", "series", "association", "state_by", "state_ms", "created_ms")
)


def listing(box: Box) -> Rows:
    """Every patient, study, series and instance row of a stopped node, by table.

    No command prints instance rows, so this opens the store itself, as `rebuild` does.
    """
    found = {}
    with opened(config.load(box.config)) as store, store.db.read() as tx:
        for table, query in _TABLES.items():
            cursor = tx._connection.execute(query)
            rows: list[dict[str, Any]] = []
            for values in cursor:
                names = [column[0] for column in cursor.get_description()]
                row = dict(zip(names, values, strict=True))
                rows.append({name: row[name] for name in row if name not in _OWN})
            found[table] = sorted(rows, key=repr)
    return found


def changes(before: Rows, after: Rows) -> list[str]:
    """What differs between two listings, row by row; nothing when they are equal."""
    found = []
    for table, rows in before.items():
        old, new = {_key(row): row for row in rows}, {_key(row): row for row in after[table]}
        found += [f"{table} {key} is gone" for key in old.keys() - new.keys()]
        found += [f"{table} {key} is new" for key in new.keys() - old.keys()]
        for key in old.keys() & new.keys():
            one, other = old[key], new[key]
            found += [
                f"{table} {key}: {name} was {one[name]!r}, is {other[name]!r}"
                for name in one
                if one[name] != other[name]
            ]
        assert len(old) == len(rows), f"{table}: two rows with one key"
    return found


def _key(row: dict[str, Any]) -> str:
    """What names a row for good."""
    names = ("object_id", "of_series", "series_instance_uid", "of_study", "study_instance_uid")
    names += ("of_patient", "patient_id", "issuer", "alone_in")
    return " ".join(str(row[name]) for name in names if name in row)


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
    """The rows of `queue list`, those that were sent included."""
    waiting: list[dict[str, Any]] = box.cli("queue", "list")
    sent: list[dict[str, Any]] = box.cli("queue", "list", "--state", "sent")
    return waiting + sent


def queue_states(box: Box) -> Counter[str]:
    """How many deliveries stand in each state."""
    states: Counter[str] = Counter()
    for row in queue(box):
        states[row["state"]] += row["count"]
    return states


def refused(box: Box) -> list[dict[str, Any]]:
    """Every row of `ae list --refused`."""
    rows: list[dict[str, Any]] = box.cli("ae", "list", "--refused")
    return rows


def token(box: Box, role: str) -> str:
    """A fresh bearer token."""
    return str(box.cli("token", "create", "--role", role)["token"])
