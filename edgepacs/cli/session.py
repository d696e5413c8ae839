"""What every command shares: the Session, --json, tables, and the root they hang from."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from edgepacs import __version__, config
from edgepacs.clock import iso
from edgepacs.errors import InvalidValue
from edgepacs.store import Store, opened

ACTOR = "cli"
_DEFAULT_CONFIG = "/etc/edgepacs/edgepacs.toml"
_DURATIONS = ("encode_ms", "verify_ms")  # other columns that end so are moments
_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(slots=True)
class Session:
    """One invocation: where the configuration is, and how to answer."""

    config_path: Path
    as_json: bool = False

    def config(self) -> config.Config:
        """The configuration; raises ConfigurationError."""
        return config.load(self.config_path)

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The store of this node."""
        with opened(self.config()) as store:
            yield store

    def say(self, data: Any, text: str) -> None:
        """Print `data` as JSON where asked for, else `text`."""
        if self.as_json:
            click.echo(json.dumps(data, default=_plain, indent=2))
        elif text:
            click.echo(text)

    def table(self, rows: Sequence[Any], columns: Sequence[str]) -> None:
        """Print dataclasses as a table of `columns`, or all their fields as JSON."""
        found = [_row(row) for row in rows]
        cells = [[_cell(name, row[name]) for name in columns] for row in found]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in [list(columns), *cells]
        ]
        self.say(found, "\n".join(lines) if found else "none")


def _row(row: Any) -> dict[str, Any]:
    made = asdict(row) if is_dataclass(row) and not isinstance(row, type) else dict(row)
    return {name: value for name, value in made.items() if not isinstance(value, bytes)}


def _cell(name: str, value: Any) -> str:
    is_moment = name.endswith("_ms") and name not in _DURATIONS
    text = iso(value) if is_moment and value else str("" if value is None else value)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _json_flag(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if value:
        context.ensure_object(Session)
        context.obj.as_json = True


def command(group: click.Group, name: str) -> Callable[[_Command], click.Command]:
    """A command of `group` that knows --json and gets the Session first."""

    def decorate(function: _Command) -> click.Command:
        flag = click.option(
            "--json", is_flag=True, expose_value=False, callback=_json_flag, help="Answer as JSON."
        )
        return group.command(name)(flag(click.pass_obj(function)))

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgepacs")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=_DEFAULT_CONFIG,
    envvar="EDGEPACS_CONFIG",
    show_default=True,
    help="The node's edgepacs.toml.",
)
@click.pass_context
def cli(context: click.Context, config_path: Path) -> None:
    """EdgePACS: the storage and worklist node beside the scanner."""
    context.obj = Session(config_path)


def group(name: str, words: str) -> click.Group:
    """A group of commands below `edgepacs`."""
    made = click.Group(name, help=words)
    cli.add_command(made)
    return made


def password_from_stdin() -> str:
    """The password on the first line of standard input; raises InvalidValue for none."""
    password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise InvalidValue("password", "standard input held none")
    return password
