"""Tables in Markdown, on the terminal and in docs/benchmarks.md."""

import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up on a terminal; all but the first to the right."""
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    shown = [
        [cell.rjust(width) if at else cell.ljust(width) for at, (cell, width) in enumerate(cells)]
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    rule = ["-" * width if not at else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (shown[0], rule, *shown[1:]))


def about(facts: Mapping[str, str]) -> str:
    """Facts as a list."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median of `values` and, where there are several, their range."""
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} [{min(values):,.{digits}f} to {max(values):,.{digits}f}]"


def middle(values: Sequence[float | None], digits: int = 0) -> str:
    """The median of what was measured; empty where nothing was."""
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):,.{digits}f}" if known else ""


def publish(name: str, text: str) -> None:
    """Print `text`; where OUT names a file, put it there between the marks of `name`.

    A file without the marks, or that is not there, becomes `text` alone.
    """
    print(f"\n{text}")
    if not (out := os.environ.get("OUT")):
        return
    path = Path(out)
    block = f"<!-- bench: {name} -->\n{text}\n<!-- end -->"
    page = path.read_text() if path.exists() else ""
    marked = re.compile(rf"<!-- bench: {name} -->\n.*?<!-- end -->", re.DOTALL)
    path.write_text(marked.sub(lambda _: block, page) if marked.search(page) else f"{block}\n")
