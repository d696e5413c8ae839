"""The documentation says what the code does: names, values, tables and the readers of format.md."""

import ast
import dataclasses
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest
from harness import made
from harness.part10 import Part10

from edgepacs import config, model
from edgepacs.custody import ingest
from edgepacs.dimse import faults
from edgepacs.errors import EdgePacsError
from edgepacs.forward import transport
from edgepacs.store import db, founding, opened, seal, studies
from edgepacs.store.keystore import recovery_key

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PACKAGE = ROOT / "edgepacs"
sys.path.insert(0, str(ROOT / "tools"))

import docs_tables  # noqa: E402
from conformance import anchor, resolved  # noqa: E402

PAGES = {name: (DOCS / name).read_text() for name in (*docs_tables.PAGES, "conformance.md")}
EVERYWHERE = "\n".join(PAGES.values())
WRITTEN = sorted(DOCS.rglob("*.md"))

# --- tables ---------------------------------------------------------------------------------


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def rows_of(page: str, first_column: str) -> list[dict[str, str]]:
    """The rows of every table on a page whose first column is called so."""
    found: list[dict[str, str]] = []
    names: list[str] = []
    for line in page.splitlines():
        cells = cells_of(line)
        if not line.startswith("|"):
            names = []
        elif not names:
            names = cells
        elif names[0] == first_column and not set(line) <= set("|- "):
            found.append(dict(zip(names, cells, strict=True)))
    return found


@pytest.mark.parametrize("name", docs_tables.PAGES)
def test_tables_are_fresh(name):
    assert docs_tables.renewed(PAGES[name]) == PAGES[name], f"run: {docs_tables.HOW}"


def test_every_table_stands_somewhere():
    marks = re.findall(r"<!-- table: ([a-z-]+) -->", EVERYWHERE)
    assert sorted(marks) == sorted(docs_tables.TABLES)


def test_a_stale_table_is_renewed():
    page = "before\n<!-- table: errors -->\nhand-written\n<!-- end -->\nafter\n"
    renewed = docs_tables.renewed(page)
    assert "hand-written" not in renewed
    assert "`NoRoom`" in renewed
    assert renewed.startswith("before\n")
    assert renewed.endswith("<!-- end -->\nafter\n")


# --- the map --------------------------------------------------------------------------------


def test_the_map_has_every_module_and_no_other():
    listed = {row["Module"].strip("`") for row in rows_of(PAGES["architecture.md"], "Module")}
    there = {
        path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("__init__")
        for path in PACKAGE.rglob("*.py")
        if path.read_text().strip() and path.parent != PACKAGE
    } | {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}
    assert listed == there


def test_every_package_has_a_layer():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    layers = " ".join(row["Layer"] for row in rows_of(PAGES["architecture.md"], "Layer"))
    assert packages <= set(re.findall(r"`([a-z]+)/`", layers))


# --- words ----------------------------------------------------------------------------------


def test_every_command_is_named():
    listed = [row["Command"].strip("`") for row in rows_of(PAGES["architecture.md"], "Command")]
    for words in docs_tables.command_names():
        assert any(f"{one} ".startswith(f"{words} ") for one in listed), words


@pytest.mark.parametrize("kind", model.State.__subclasses__())
def test_every_state_is_named_with_its_meaning(kind):
    rows = rows_of(PAGES["architecture.md"], kind.__name__)
    assert [(row[kind.__name__], row["Meaning"]) for row in rows] == [
        (f"`{one}`", one.meaning) for one in kind
    ]


def test_every_error_is_named():
    def family(kind: type[Exception]) -> set[str]:
        return {kind.__name__}.union(*(family(one) for one in kind.__subclasses__()))

    assert faults.ProtocolError.__name__ in family(EdgePacsError)
    listed = {row["Error"].strip("`") for row in rows_of(PAGES["architecture.md"], "Error")}
    assert listed == family(EdgePacsError)


def test_every_configuration_key_is_there_with_its_default():
    listed = {
        row["Key"]: row["Default"] for row in rows_of(PAGES["format.md"], "Key") if "Default" in row
    }
    keys = {}
    for section in dataclasses.fields(config.Config):
        if dataclasses.is_dataclass(section.type):
            for field in dataclasses.fields(section.type):
                value = field.metadata.get("written", field.default)
                if value is dataclasses.MISSING:
                    value = field.default_factory()  # type: ignore[misc]
                shown = f'"{value}"' if isinstance(value, str | Path) else str(value)
                keys[f"`{section.name}.{field.name}`"] = f"`{shown}`"
    assert listed == keys


def test_every_flag_is_named():
    sources = "".join(
        (PACKAGE / name).read_text()
        for name in ("custody/scan.py", "store/instances.py", "store/placing.py")
    )
    flags = set(re.findall(r'_(?:flag|opaque)\("([a-z0-9-]+)"', sources))
    flags |= set(re.findall(r'flag_study\(tx, [a-z.]+, "([a-z-]+)"', sources))
    assert {"odd-length", "two-patients", "conflict"} <= flags
    for flag in flags:
        assert f"`{flag}`" in PAGES["conformance.md"], flag


def test_every_table_of_the_index_is_named():
    every = "".join(sql for _, _, sql in db.migrations())
    tables = set(re.findall(r"CREATE TABLE (\w+)", every))
    tables -= set(re.findall(r"ALTER TABLE (\w+) RENAME TO", every))
    listed = " ".join(row["Table"] for row in rows_of(PAGES["format.md"], "Table"))
    assert set(re.findall(r"`(\w+)`", listed)) == tables


# --- names and values -----------------------------------------------------------------------

_TOP = "|".join(sorted(path.stem for path in PACKAGE.iterdir() if path.stem.isidentifier()))
_NAMED = re.compile(rf"`((?:{_TOP})(?:\.\w+)+)`(?: = ([0-9]+))?")
_KEYS = {
    f"{one}.{field.name}"
    for one, kind in config._SECTIONS.items()
    for field in dataclasses.fields(kind)
}
_FAILPOINTS = {
    name
    for path in PACKAGE.rglob("*.py")
    for name in re.findall(r'failpoint\("([a-z.]+)"\)', path.read_text())
}


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_every_name_of_ours_exists_with_the_value_it_is_given(path):
    for dotted, value in _NAMED.findall(path.read_text()):
        if dotted in _KEYS | _FAILPOINTS:
            continue
        found = resolved(dotted)
        if value:
            assert found == int(value), dotted


def test_a_name_that_is_not_there_is_found():
    assert resolved("dimse.line.Limits.artim") == 30
    with pytest.raises(AttributeError):
        resolved("store.vault.Vault.no_such_thing")


def test_every_failpoint_is_named():
    assert _FAILPOINTS
    for name in _FAILPOINTS:
        assert f"`{name}`" in PAGES["architecture.md"], name


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_every_link_leads_somewhere(path):
    for target, place in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", path.read_text()):
        page = path.parent / target if target else path
        assert page.exists(), target
        if place:
            heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            assert place in {anchor(one) for one in heads}


def test_decisions_are_numbered_and_whole():
    found = sorted((DOCS / "decisions").glob("*.md"))
    assert [path.name[:4] for path in found] == [f"{n:04}" for n in range(1, len(found) + 1)]
    for path in found:
        text = path.read_text()
        assert text.startswith(f"# {path.name[:4]} ")
        for part in ("**Context.**", "**Decision.**", "**Consequences.**"):
            assert part in text, (path.name, part)


# --- statuses -------------------------------------------------------------------------------


def test_a_status_answered_is_that_of_its_error():
    answered = [row for row in rows_of(PAGES["conformance.md"], "Status") if row.get("Error")]
    assert len(answered) >= 6
    for row in answered:
        kind = resolved("errors." + row["Error"].strip("`"))
        assert int(row["Status"], 16) == kind.dimse_status, row


def test_what_a_status_makes_of_a_delivery_is_what_the_transport_says():
    handled = [
        row for row in rows_of(PAGES["conformance.md"], "Status") if "The delivery becomes" in row
    ]
    assert len(handled) >= 30
    for row in handled:
        if row["Kind"] == "pending":
            continue
        codes = [int(one, 16) for one in re.findall(r"\b[0-9A-F]{4}\b", row["Status"])] or [0x0300]
        for code in codes:
            state = transport.judged(code, "").state
            assert row["The delivery becomes"].startswith(f"`{state}`"), (hex(code), row)


# --- the readers of format.md ---------------------------------------------------------------

CHUNK = 1 << seal.CHUNK_LOG2


def _program(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", PAGES["format.md"], re.DOTALL)
    assert found, name
    return found[1]


def _padded(one: Part10, length: int) -> Part10:
    """`one` with trailing padding (PS3.5 7.1, (FFFC,FFFC)), so that it has `length` bytes."""
    rest = length - len(one.data) - 12
    padding = b"\xfc\xff\xfc\xffOB\0\0" + rest.to_bytes(4, "little") + bytes(rest)
    return dataclasses.replace(one, data=one.data + padding)


@dataclasses.dataclass(frozen=True)
class Filled:
    """A node made and filled in this process, closed again."""

    folder: Path
    recovery: str
    sent: dict[str, Part10]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    folder = tmp_path_factory.mktemp("docs") / "node"
    founded = founding.create_node(
        folder, title="DOCS", dicom_port=0, http_port=0, password="correct horse battery"
    )
    instances = [
        made.ct(patient_name="Ünïque^Ñame"),
        made.ct(side=512),
        _padded(made.ct(), 2 * CHUNK),
        _padded(made.ct(), 2 * CHUNK + 2),
    ]
    with opened(config.load(founded.config_path)) as store:
        for one in instances:
            arrival = model.Arrival(
                sop_class_uid=model.UID(one.sop_class),
                sop_instance_uid=model.UID(one.sop_instance),
                transfer_syntax_uid=model.UID(one.transfer_syntax),
                origin=model.Origin.MODALITY,
                source="CT1",
            )
            ingest.receive(store, arrival, [one.data])
        (store.paths.objects / "00" / ("00" * 16)).touch()  # a blank a crash has left
    return Filled(folder, founded.recovery_key, {one.sop_instance: one for one in instances})


@pytest.fixture
def run(tmp_path, filled):
    """Runs a program of format.md on the node, with a key, into a target."""
    for name in ("reader.py", "index.py"):
        (tmp_path / name).write_text(_program(name))

    def run_it(name: str, key: str, out: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tmp_path / name), str(filled.folder / "data"), key, str(out)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    return run_it


@pytest.mark.parametrize("name", ["reader.py", "index.py"])
def test_the_readers_need_nothing_but_cryptography(name):
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).partition(".")[0]
        for node in ast.walk(ast.parse(_program(name)))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported - sys.stdlib_module_names <= {"cryptography", "reader"}


@pytest.mark.parametrize("which", ["device", "recovery"])
def test_the_reader_brings_back_every_instance(run, filled, tmp_path, which):
    key = str(filled.folder / "keys" / "device.key") if which == "device" else filled.recovery
    out = tmp_path / "out"
    out.mkdir()
    done = run("reader.py", key, out)
    assert (done.returncode, done.stderr) == (0, "")
    got = {}
    for path in out.iterdir():
        head = pydicom.dcmread(path)
        raw = path.read_bytes()
        length = int.from_bytes(raw[140:144], "little")  # (0002,0000)
        got[head.SOPInstanceUID] = (head.file_meta.TransferSyntaxUID, raw[144 + length :])
    assert got == {uid: (one.transfer_syntax, one.data) for uid, one in filled.sent.items()}


def test_the_reader_gives_out_nothing_that_was_altered(run, filled, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    victims = [path for path in filled.folder.glob("data/objects/??/*") if path.stat().st_size]
    before = {path: path.read_bytes() for path in victims}
    try:
        for number, path in enumerate(victims):
            broken = bytearray(before[path])
            broken[(5, 60, 2000, len(broken) - 200)[number % 4]] ^= 1
            path.write_bytes(broken)
        done = run("reader.py", filled.recovery, out)
    finally:
        for path, whole in before.items():
            path.write_bytes(whole)
    assert done.stderr.count("cannot be read") == len(victims)
    assert list(out.iterdir()) == []


def test_the_reader_refuses_a_mistyped_key(run, filled, tmp_path):
    done = run("reader.py", filled.recovery.replace(filled.recovery[:2], "AB"), tmp_path)
    assert done.returncode == 1
    assert "mistyped" in done.stderr


def test_the_index_can_be_decrypted_by_hand(run, filled, tmp_path):
    out = tmp_path / "plain.db"
    done = run("index.py", filled.recovery, out)
    assert (done.returncode, done.stderr) == (0, "")
    with sqlite3.connect(out) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = plain.execute("SELECT patient_name, instance_count FROM study").fetchall()
    with opened(config.load(filled.folder / "edgepacs.toml")) as store:
        known = studies.search(store.db, studies.Search())
    assert sorted(found) == sorted((one.patient_name, one.instance_count) for one in known)
    assert ("Ünïque^Ñame", 1) in found


def test_every_key_of_a_trailer_is_named(filled):
    with opened(config.load(filled.folder / "edgepacs.toml")) as store:
        sizes = {one: store.vault.size(one) for one in store.vault.object_ids()}
        with store.vault.open(next(one for one, size in sizes.items() if size)) as reader:
            keys = set(reader.trailer())
    section = PAGES["format.md"].partition("### Trailer")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", " ".join(r["Key"] for r in rows_of(section, "Key"))))
    assert keys == named


def test_the_recovery_key_serves_as_a_device_key(filled, tmp_path):
    command = re.search(r"python3 -c '(.*)'", PAGES["format.md"])
    assert command
    done = subprocess.run(
        [sys.executable, "-c", command[1]],
        input=filled.recovery,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0
    assert (tmp_path / "device.key").read_bytes() == recovery_key(filled.recovery)
    settings = config.load(filled.folder / "edgepacs.toml")
    keys = dataclasses.replace(settings.keys, file=tmp_path / "device.key")
    with opened(dataclasses.replace(settings, keys=keys)) as store:
        assert studies.counts(store.db)["instance"] == len(filled.sent)
