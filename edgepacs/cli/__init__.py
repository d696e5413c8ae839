"""The command line: everything the console can do, without the web (docs/operations.md).

Every command has --json. Exit codes come from the error hierarchy; usage errors are 2.
"""

import sys
from typing import NoReturn

import click

from edgepacs.cli import (  # each adds its commands
    commitments,
    compression,
    mpps,
    node,
    orders,
    peers,
    prefetch,
    queue,
    room,
    rules,
    studies,
    users,
    worklist,
)
from edgepacs.cli.session import cli
from edgepacs.errors import EdgePacsError, StorageFault

__all__ = [
    "cli",
    "commitments",
    "compression",
    "main",
    "mpps",
    "node",
    "orders",
    "peers",
    "prefetch",
    "queue",
    "room",
    "rules",
    "studies",
    "users",
    "worklist",
]


def main() -> NoReturn:
    """Run the command line; every EdgePacsError ends in one line and its own exit code."""
    try:
        cli(standalone_mode=False)
    except EdgePacsError as error:
        click.echo(f"edgepacs: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        click.echo(f"edgepacs: {place}{error.strerror or type(error).__name__}", err=True)
        sys.exit(StorageFault.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(0)
