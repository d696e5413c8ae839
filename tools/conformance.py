"""Write docs/conformance.md, the DICOM Conformance Statement: `conformance.py write|check`.

docs/conformance.toml says, in the order of the template of PS3.2, what this node does on the wire.
What the code knows itself is taken from there: values stand in the text as `${module.NAME}`, with
a format where one is needed (`${errors.NoRoom.dimse_status:04X}`), and a part with a `source` is a
table made of the code's own. Every row names its clauses, the code and the tests that show it;
`check` finds what is missing and fails.
"""

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import conformance_tables as made
from conformance_tables import NATIVE, named, table, uid_name
from pydicom._uid_dict import UID_dictionary

from edgepacs.dimse import contexts
from edgepacs.dimse.items import ProposedContext
from edgepacs.model import Service
from edgepacs.pixels.syntaxes import TABLE
from edgepacs.scp.services import PROVIDED

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edgepacs"
SOURCE = ROOT / "docs" / "conformance.toml"
PAGE = ROOT / "docs" / "conformance.md"
WIRE = ("dimse", "forward", "orders", "scp")  # where a citation is about the wire
HOW = "python tools/conformance.py write"

_REGISTERED = ("SOP Class", "Meta SOP Class", "Well-known SOP Instance", "Transfer Syntax")


# --- what the TOML holds -------------------------------------------------------------------


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row about the wire: what it says, and where that is laid down, done and shown."""

    cells: list[str]
    clause: list[str]
    code: list[str]
    test: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Prose, and below it a table: of rows about the wire, of plain cells, or of the code's own."""

    text: str = ""
    columns: list[str] = field(default_factory=lambda: ["", "Behaviour"])
    rows: list[Row] = field(default_factory=list)
    plain: list[list[str]] = field(default_factory=list)
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section; `level` 2 is a chapter. Others link to it as `[words](@id)`."""

    id: str
    level: int
    title: str
    parts: list[Part]


@dataclass(frozen=True, slots=True, kw_only=True)
class SopClass:
    """One SOP class beside storage. As SCP it is what PROVIDED says; `scu` names its context."""

    uid: str
    group: str
    clause: str
    section: str
    scu: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """docs/conformance.toml."""

    title: str
    preface: str
    services: Mapping[str, str]  # a word of model.Service and the section about it
    sop_classes: list[SopClass]
    sections: list[Section]

    def rows(self) -> Iterator[tuple[Section, Row]]:
        """Every row about the wire, with its section."""
        return ((one, row) for one in self.sections for part in one.parts for row in part.rows)


def _row(raw: dict[str, Any]) -> Row:
    for name in ("clause", "code", "test"):
        raw[name] = _list(raw.get(name, []))
    return Row(**raw)


def _part(raw: dict[str, Any]) -> Part:
    return Part(rows=[_row(one) for one in raw.pop("row", [])], **raw)


def load(text: str) -> Statement:
    """The statement `text` holds; raises ValueError naming a section that cannot be read."""
    raw = tomllib.loads(text)
    sections = []
    for one in raw["section"]:
        try:
            parts = [_part(part) for part in one.pop("part", [])]
            sections.append(Section(parts=parts, **one))
        except (TypeError, AttributeError) as error:
            raise ValueError(f"section {one.get('id')}: {error}") from error
    return Statement(
        title=raw["title"],
        preface=raw["preface"],
        services=raw["service"],
        sop_classes=[SopClass(**one) for one in raw["sop_class"]],
        sections=sections,
    )


# --- values of the code --------------------------------------------------------------------

_VALUE = re.compile(r"\$\{([A-Za-z_][\w.]*)(?::(\w+))?\}")
_SCALES: Mapping[str, Callable[[Any], str]] = {
    "MiB": lambda value: f"{value >> 20}",
    "ms_s": lambda value: f"{value / 1000:g}",
    "ms_min": lambda value: f"{value / 60_000:g}",
    "days": lambda value: f"{value / 86_400_000:g}",
}


@cache
def resolved(dotted: str) -> Any:
    """The module, class, function, constant or default of that name; AttributeError without."""
    parts = dotted.split(".")
    found: Any = importlib.import_module("edgepacs")
    for depth, name in enumerate(parts, 1):
        path = PACKAGE.joinpath(*parts[:depth])
        if path.is_dir() or path.with_suffix(".py").is_file():
            found = importlib.import_module(".".join(["edgepacs", *parts[:depth]]))
            continue
        known = {one.name: one for one in fields(found)} if is_dataclass(found) else {}
        default = known[name].default if name in known else MISSING
        found = getattr(found, name) if default is MISSING else default
    return found


def _value(found: re.Match[str]) -> str:
    value, form = resolved(found[1]), found[2] or ""
    if form in _SCALES:
        return _SCALES[form](value)
    return f"{value:g}" if isinstance(value, float) and not form else format(value, form)


# --- the page ------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    """What a link to a heading is called."""
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def headings(sections: Iterable[Section]) -> dict[str, str]:
    """The heading of each section by its id, numbered."""
    counts: list[int] = []
    found = {}
    for one in sections:
        depth = one.level - 1
        counts = [*counts[:depth], 0] if len(counts) < depth else counts[:depth]
        counts[depth - 1] += 1
        found[one.id] = f"{'.'.join(map(str, counts))} {one.title}"
    return found


class Page:
    """docs/conformance.md as it is written out of a statement."""

    def __init__(self, statement: Statement) -> None:
        self._statement = statement
        self._headings = headings(statement.sections)
        self._sources: Mapping[str, Callable[[], str]] = {
            "contents": self._contents,
            "network-services": self._network_services,
            "callers-services": self._callers_services,
            "contexts-accepted": self._contexts_accepted,
            "contexts-proposed": self._contexts_proposed,
            "clauses": self._clauses,
            "storage-sop-classes": made.storage_sop_classes,
            "transfer-syntaxes": made.transfer_syntaxes,
            "scu-statuses": made.scu_statuses,
            "query-options": made.query_options,
            "query-keys": made.query_keys,
            "worklist-keys": made.worklist_keys,
            "hl7-messages": made.hl7_messages,
            "hl7-controls": made.hl7_controls,
            "hl7-places": made.hl7_places,
            "hl7-errors": made.hl7_errors,
        }

    def written(self) -> str:
        """The whole page; AttributeError, KeyError for what the code or the page does not have."""
        blocks = [
            f"# {self._statement.title}",
            "<!-- Written from conformance.toml and the code by tools/conformance.py. -->",
            self._filled(self._statement.preface),
        ]
        for one in self._statement.sections:
            blocks.append(f"{'#' * one.level} {self._headings[one.id]}")
            for part in one.parts:
                blocks += [self._filled(part.text)] if part.text else []
                blocks += [found] if (found := self._table(part)) else []
        return "\n\n".join(blocks) + "\n"

    def _table(self, part: Part) -> str:
        if part.source:
            return self._sources[part.source]()
        if part.plain:
            return table(part.columns, ([self._filled(one) for one in row] for row in part.plain))
        if not part.rows:
            return ""
        return table(
            [*part.columns, "Clause", "Module", "Shown by"],
            (
                [*(self._filled(cell) for cell in row.cells)]
                + [", ".join(row.clause)]
                + [", ".join(f"`{one}`" for one in names) for names in (row.code, row.test)]
                for row in part.rows
            ),
        )

    def _filled(self, text: str) -> str:
        """`text` with the values of the code, and with its links."""
        text = _VALUE.sub(_value, text.strip())
        return re.sub(r"\]\(@([\w-]+)\)", lambda found: f"]({self._link(found[1])})", text)

    def _link(self, section: str) -> str:
        return f"#{anchor(self._headings[section])}"

    def _to(self, section: str) -> str:
        """A link to a section, by its number."""
        return f"[{self._headings[section].partition(' ')[0]}]({self._link(section)})"

    def _contents(self) -> str:
        return "\n".join(
            f"{'  ' * (one.level - 2)}- [{self._headings[one.id]}]({self._link(one.id)})"
            for one in self._statement.sections
            if one.level <= 4
        )

    def _network_services(self) -> str:
        """Every SOP class beside storage, in groups, and storage as one row of each."""
        every = len(contexts.STORAGE_SOP_CLASSES)
        storage = f"Storage: {every} SOP classes of the standard, private and unknown ones"
        home = self._to(self._statement.services[Service.STORE])
        rows = [["**Transfer**", "", "", "", "", ""], [storage, "", "yes", "yes", "PS3.4 B", home]]
        for group, classes in groupby(self._statement.sop_classes, lambda one: one.group):
            rows += [[f"**{group}**", "", "", "", "", ""]] if group != "Transfer" else []
            rows += [
                [
                    uid_name(one.uid),
                    f"`{one.uid}`",
                    "yes" if one.scu else "no",
                    "yes" if one.uid in PROVIDED else "no",
                    one.clause,
                    self._to(one.section),
                ]
                for one in classes
            ]
        return table(("SOP class", "UID", "SCU", "SCP", "Clause", "Section"), rows)

    def _callers_services(self) -> str:
        """What each word of the allow-list opens."""
        rows = []
        for one in Service:
            opened = [uid_name(uid) for uid, row in PROVIDED.items() if row.service is one]
            opened += ["every storage SOP class"] if one is Service.STORE else []
            home = self._to(self._statement.services[one])
            rows.append((f"`{one}`", one.meaning, ", ".join(opened) or "nothing yet", home))
        return table(("Word", "What it is", "Abstract syntaxes accepted", "Section"), rows)

    def _contexts_accepted(self) -> str:
        rows = [
            (uid_name(uid), f"`{uid}`", f"`{row.service}`", named(NATIVE))
            for uid, row in PROVIDED.items()
        ]
        names = ("Abstract syntax", "UID", "Needs", "Transfer syntaxes, best first")
        return table(names, rows)

    def _contexts_proposed(self) -> str:
        rows = []
        for one in self._statement.sop_classes:
            context = resolved(one.scu) if one.scu else None
            if isinstance(context, ProposedContext):
                name, uid = uid_name(one.uid), f"`{one.uid}`"
                rows.append((name, uid, named(context.transfer_syntaxes), "SCU"))
        return table(("Abstract syntax", "UID", "Transfer syntax", "Role"), rows)

    def _clauses(self) -> str:
        """Every clause a row names, and the sections it is named in."""
        found: dict[str, list[str]] = {}
        for section, row in self._statement.rows():
            for clause in cited(" ".join(row.clause)):
                here = found.setdefault(clause, [])
                here += [] if section.id in here else [section.id]
        rows = (
            (clause, ", ".join(self._to(one) for one in found[clause]))
            for clause in sorted(found, key=_clause_order)
        )
        return table(("Clause", "Sections"), rows)


# --- what is missing -----------------------------------------------------------------------

_CLAUSE = r"(?:[Aa]nnex )?(?:[A-Z]{1,2}(?![a-z])|\d+)(?:\.\d+)*"
_FURTHER = r"(?:,? and |, | to )(?:[A-Z]{1,2}|\d+)(?:\.\d+)+"
_CITATION = re.compile(rf"PS3\.(\d+) ({_CLAUSE}(?:{_FURTHER})*)")
_OTHER_STANDARDS = ("HL7 ", "IHE ", "RFC ")
_UID_TEXT = re.compile(r"[12](?:\.\d+){4,}")


def cited(text: str) -> list[str]:
    """Every clause `text` names, e.g. `PS3.4 C.4.1`, in its order."""
    return [
        f"PS3.{part} {clause}"
        for part, clauses in _CITATION.findall(text)
        for clause in re.findall(r"[A-Z]{1,2}(?![A-Za-z])[\d.]*\d|[A-Z]{1,2}\b|\d[\d.]*", clauses)
    ]


def _clause_order(clause: str) -> tuple[int, list[tuple[int, str]]]:
    part, _, rest = clause.removeprefix("PS3.").partition(" ")
    return int(part), [
        (int(one), "") if one.isdigit() else (-1, one.zfill(2)) for one in rest.split(".")
    ]


def citations() -> dict[str, str]:
    """Every clause cited beside code that meets the wire, and one module that does."""
    found: dict[str, str] = {}
    for path in sorted(one for folder in WIRE for one in (PACKAGE / folder).glob("*.py")):
        text = re.sub(r"\s*\n\s*(?:#\s*)?", " ", path.read_text())
        for clause in cited(text):
            found.setdefault(clause, path.relative_to(PACKAGE).as_posix())
    return found


def uids_in_code() -> dict[str, str]:
    """Every SOP class, SOP instance and transfer syntax the code names, and a module that does."""
    found: dict[str, str] = dict.fromkeys((*TABLE, *PROVIDED, *contexts.STORAGE_SOP_CLASSES), "")
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for uid in _UID_TEXT.findall(node.value):
                    found.setdefault(uid, path.relative_to(PACKAGE).as_posix())
    return {
        uid: where
        for uid, where in found.items()
        if UID_dictionary.get(uid, ("", ""))[1] in _REGISTERED
    }


def tests_in_code() -> set[str]:
    """Every test, as `test_module::test_name`."""
    return {
        f"{path.stem}::{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }


def untold_clauses(statement: Statement, cited_in_code: Mapping[str, str]) -> Iterator[str]:
    """Clauses the code cites and no row names."""
    told = {one for _, row in statement.rows() for one in cited(" ".join(row.clause))}
    for clause, where in cited_in_code.items():
        if clause not in told:
            yield f"no row names {clause}, which {where} cites"


def untold_uids(page: str, uids: Mapping[str, str]) -> Iterator[str]:
    """SOP classes and transfer syntaxes the code knows and the page does not."""
    told = set(_UID_TEXT.findall(page))
    for uid, where in uids.items():
        if uid not in told:
            name, kind, *_ = UID_dictionary[uid]
            yield f"{kind} {uid} ({name}) of {where or 'a table'} is not in the statement"


def untold_services(statement: Statement, provided: Iterable[str]) -> Iterator[str]:
    """Services the code provides, or knows the word of, that have no section."""
    there = {one.id for one in statement.sections}
    for word in Service:
        if statement.services.get(word) not in there:
            yield f"the service {word} has no section"
    known = {one.uid: one.section for one in statement.sop_classes}
    for uid in provided:
        if known.get(uid) not in there:
            yield f"the abstract syntax {uid} ({uid_name(uid)}) is provided and has no section"
    for one in statement.sop_classes:
        context = resolved(one.scu) if one.scu else None
        if isinstance(context, ProposedContext) and context.abstract_syntax != one.uid:
            yield f"{one.scu} is no context of {one.uid}"


def unshown(statement: Statement, tests: set[str]) -> Iterator[str]:
    """Rows that do not say where they are done and shown, or name what is not there."""
    for section, row in statement.rows():
        where = f"section {section.id}, row {row.cells[0]!r}"
        if not row.code or not row.test:
            yield f"{where}: names no code or no test"
        for one in row.code:
            try:
                resolved(one)
            except (AttributeError, ImportError):
                yield f"{where}: there is no {one}"
        yield from (f"{where}: there is no test {one}" for one in row.test if one not in tests)
        for clause in row.clause:
            if not cited(clause) and not clause.startswith(_OTHER_STANDARDS):
                yield f"{where}: {clause!r} is no clause"


def misshapen(statement: Statement) -> Iterator[str]:
    """Sections out of order, and rows with another number of cells than their table has."""
    levels = [1, *(one.level for one in statement.sections)]
    for one, (before, after) in zip(statement.sections, pairwise(levels), strict=True):
        if after > before + 1 or not 2 <= after <= 6:
            yield f"section {one.id}: level {after} after {before}"
        for part in one.parts:
            for cells in [*(row.cells for row in part.rows), *part.plain]:
                if len(cells) != len(part.columns):
                    yield f"section {one.id}, row {cells[0]!r}: {len(cells)} cells"
    ids = [one.id for one in statement.sections]
    yield from (f"section {one}: twice" for one in set(ids) if ids.count(one) > 1)


def faults(statement: Statement, page: str) -> list[str]:
    """What keeps the statement from being whole."""
    return [
        *misshapen(statement),
        *unshown(statement, tests_in_code()),
        *untold_services(statement, PROVIDED),
        *untold_uids(page, uids_in_code()),
        *untold_clauses(statement, citations()),
    ]


def main(arguments: list[str]) -> None:
    """Run `check` or `write`; ends with status 1 and one line per fault."""
    if arguments not in (["write"], ["check"]):
        sys.exit("usage: conformance.py check|write")
    statement = load(SOURCE.read_text("utf-8"))
    page = Page(statement).written()
    if arguments == ["write"]:
        PAGE.write_text(page, "utf-8")
    found = faults(statement, page)
    if PAGE.read_text("utf-8") != page:
        found.append(f"docs/conformance.md is out of date; run `{HOW}`")
    if found:
        sys.exit("\n".join(f"conformance: {fault}" for fault in found))


if __name__ == "__main__":
    main(sys.argv[1:])
