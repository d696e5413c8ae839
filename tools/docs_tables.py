"""Renew the tables in docs/ that come from the code: `docs_tables.py`, without arguments.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; tests/test_docs.py fails when
one is out of date.
"""

import ast
import importlib
import pkgutil
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import click

import edgepacs
from edgepacs import errors, model
from edgepacs.cli import cli

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edgepacs"
PAGES = ("architecture.md", "format.md")  # conformance.md is written by tools/conformance.py
HOW = "python tools/docs_tables.py"

_BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(columns)
    lines = [names, ["---"] * len(names), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _first_sentence(text: str | None) -> str:
    paragraph = " ".join((text or "").partition("\n\n")[0].split())
    return re.split(r"\. (?=[A-Z`])", paragraph)[0].rstrip(".").replace("|", "\\|")


# --- the map -------------------------------------------------------------------------------


def layers() -> list[list[str]]:
    """The layers of pyproject.toml from the top down, siblings together."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    named = next(one["layers"] for one in settings["contracts"] if one["type"] == "layers")
    return [
        [name.strip().removeprefix("edgepacs.") for name in layer.split("|")] for layer in named
    ]


def _files(name: str) -> list[Path]:
    folder = PACKAGE / name
    return sorted(folder.glob("*.py")) if folder.is_dir() else [PACKAGE / f"{name}.py"]


def modules() -> str:
    """Every module with the first sentence of its docstring, from the top layer down."""
    rows = []
    for name in (name for layer in layers() for name in layer):
        for path in _files(name):
            words = ast.get_docstring(ast.parse(path.read_text()))
            if words is None and path.name == "__init__.py":
                continue
            own = path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("__init__")
            rows.append((f"`{own}`", _first_sentence(words)))
    return _table(("Module", "What it is"), rows)


# --- classes wherever they are written ------------------------------------------------------


def _place(kind: type) -> tuple[bool, str, int]:
    """Where a class is written, whatever was imported: errors.py and model.py come first."""
    names = list(vars(sys.modules[kind.__module__]))
    first = kind.__module__ in (errors.__name__, model.__name__)
    return not first, kind.__module__, names.index(kind.__name__)


def _import_all() -> None:
    """A class is known to its parent only once its module has been imported."""
    for module in pkgutil.walk_packages(edgepacs.__path__, "edgepacs."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


# --- words ---------------------------------------------------------------------------------

_Targets = Mapping[model.State, frozenset[model.State]]
_AnyState = TypeVar("_AnyState", bound=model.State)


def _plain(table: Mapping[_AnyState, frozenset[_AnyState]]) -> _Targets:
    return {old: frozenset(new) for old, new in table.items()}


def _transitions(kind: type[model.State]) -> list[tuple[str, _Targets]]:
    """The columns a state's table has, beside the meaning."""
    column = "may become"
    if kind is model.InstanceState:
        return [(column, _plain(model.INSTANCE_TRANSITIONS))]
    if kind is model.CompressionState:
        return [(column, _plain(model.COMPRESSION_TRANSITIONS))]
    if kind is model.StudyState:
        return [(column, _plain(model.STUDY_TRANSITIONS))]
    if kind is model.DeliveryState:
        tables = model.DELIVERY_TRANSITIONS
        return [
            (f"{column}, an instance", _plain(tables[model.DeliveryKind.INSTANCE])),
            (f"{column}, a message", _plain(tables[model.DeliveryKind.HL7])),
        ]
    return []


def _targets(table: _Targets, state: model.State) -> str:
    if state not in table:
        return "not used"
    return ", ".join(f"`{one}`" for one in type(state) if one in table[state]) or "the end"


def states() -> str:
    """Every State enum with its members, their meanings and what they may become."""
    _import_all()
    parts = []
    for kind in sorted(model.State.__subclasses__(), key=_place):
        more = _transitions(kind)
        rows = [
            (f"`{one}`", one.meaning, *(_targets(table, one) for _, table in more)) for one in kind
        ]
        names = (kind.__name__, "Meaning", *(column for column, _ in more))
        parts.append(f"{_first_sentence(kind.__doc__)}.\n\n{_table(names, rows)}")
    return "\n\n".join(parts)


def _family(kind: type[errors.EdgePacsError]) -> Iterator[type[errors.EdgePacsError]]:
    yield kind
    for child in sorted(kind.__subclasses__(), key=_place):
        yield from _family(child)


def error_classes() -> list[type[errors.EdgePacsError]]:
    """Every error, parents before children, wherever it is defined."""
    _import_all()
    return list(dict.fromkeys(_family(errors.EdgePacsError)))


def error_table() -> str:
    """Every error with what each interface answers."""
    rows = (
        (
            f"`{kind.__name__}`",
            _first_sentence(kind.__doc__),
            f"{kind.dimse_status:04X}",
            str(kind.http_status),
            str(kind.exit_code),
            "yes" if kind.transient else "",
        )
        for kind in error_classes()
    )
    return _table(("Error", "Meaning", "DIMSE", "HTTP", "Exit", "May pass"), rows)


def _walk(command: click.Command, words: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from _walk(child, f"{words} {name}".strip())
    else:
        yield words, command


def _commands() -> list[tuple[str, click.Command]]:
    return sorted(_walk(cli, ""), key=lambda one: " " in one[0])


def command_names() -> list[str]:
    """Every command as it is typed, e.g. `queue list`."""
    return [words for words, _ in _commands()]


def commands() -> str:
    """Every command with its arguments, its options and what it does."""
    rows = []
    for words, command in _commands():
        arguments = " ".join(
            one.metavar or one.name.upper()
            for one in command.params
            if isinstance(one, click.Argument) and one.name
        )
        options = (
            one for one in command.params if isinstance(one, click.Option) and one.name != "json"
        )
        flags = ", ".join(f"`{one.opts[0]}`" for one in options)
        first = (command.help or "").partition("\n\n")[0].replace("\n", " ")
        rows.append((f"`{f'{words} {arguments}'.strip()}`", first, flags))
    return _table(("Command", "What it does", "Options"), rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "modules": modules,
    "states": states,
    "errors": error_table,
    "commands": commands,
}


def renewed(text: str) -> str:
    """`text` with every table in it as the code has it now; KeyError for an unknown table."""
    return _BLOCK.sub(lambda found: found[1] + TABLES[found[2]]() + "\n" + found[3], text)


def main() -> None:
    """Rewrite the pages whose tables are out of date, naming them."""
    if len(sys.argv) > 1:
        sys.exit(f"usage: {HOW}")
    for name in PAGES:
        path = ROOT / "docs" / name
        before = path.read_text()
        after = renewed(before)
        if after != before:
            path.write_text(after)
            print(f"docs/{name}: renewed")


if __name__ == "__main__":
    main()
