"""Know the licence of every locked package: `licences.py check` or `licences.py write`.

Reads the metadata of the installed packages, so all sets must be installed. `check` fails on a
licence of the GPL family without a linking exception, on a package that names no licence, on a
bundled shared library known to be GPL, and when docs/licences.md is out of date; `write` renews
that file.
"""

import re
import sys
from collections.abc import Iterator
from importlib import metadata

from lock import LOCKS, ROOT, SETS, pins

TABLE = ROOT / "docs" / "licences.md"

# Metadata that names no licence; what the licence file in the package says instead.
READ_BY_HAND = {
    "apsw-sqlite3mc": "any OSI-approved licence (SQLite3 Multiple Ciphers: MIT)",
    "deid-data": "MIT",
}
# Known GPL libraries that wheels have bundled; imagecodecs does on other systems (HEIF with x265).
GPL_LIBRARIES = re.compile(r"^lib(x264|x265|readline|gsl|fftw3f?|mad|postproc)\b")

_GPL = re.compile(r"\bA?GPL|GNU (Affero )?General Public", re.IGNORECASE)
_LINKABLE = re.compile(r"\bLGPL|Lesser General|exception", re.IGNORECASE)


def licence(package: str) -> str:
    """The licence of an installed package as its metadata states it, shortest form first."""
    if package in READ_BY_HAND:
        return READ_BY_HAND[package]
    facts = metadata.metadata(package).json
    classified = [
        line.rpartition(" :: ")[2]
        for line in facts.get("classifier", [])
        if line.startswith("License :: ")
    ]
    stated = str(facts.get("license", "")).strip().partition("\n")[0]
    return str(facts.get("license_expression", "")) or " and ".join(classified) or stated


def binds(stated: str) -> bool:
    """Whether every choice `stated` leaves is a GPL without permission to link.

    >>> [binds(text) for text in ("GPL-3.0-only", "MIT OR GPL-2.0-only", "LGPL-2.1-or-later")]
    [True, False, False]
    """
    choices = re.split(r"\bOR\b", stated)
    return all(
        any(_GPL.search(part) and not _LINKABLE.search(part) for part in re.split(r"\bAND\b", each))
        for each in choices
    )


def bundled(package: str) -> Iterator[str]:
    """File names of the shared libraries a package carries."""
    for path in metadata.files(package) or ():
        if ".so" in path.name:
            yield path.name


def installed(name: str) -> Iterator[tuple[str, str]]:
    """Package and version of every pin of the set `name` that this platform installs."""
    for package, version in sorted(pins((LOCKS / f"{name}.txt").read_text()).items()):
        try:
            here = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # its marker excludes this platform
        if here != version:
            sys.exit(f"licences: {package} {here} is installed, {version} is locked")
        yield package, version


def faults() -> Iterator[str]:
    """What speaks against the locked packages."""
    for name in SETS:
        for package, _ in installed(name):
            stated = licence(package)
            if not stated:
                yield f"{package}: names no licence; read it and add it to READ_BY_HAND"
            elif binds(stated):
                yield f"{package}: {stated} may not be in the process"
            for library in filter(GPL_LIBRARIES.match, bundled(package)):
                yield f"{package}: bundles {library}, which is GPL"


def table() -> str:
    """docs/licences.md."""
    lines = [
        "# Licences of the locked packages",
        "",
        "Written by `make licences` from the packages' own metadata; `make check` keeps it true.",
        "Only the runtime set is in the process of an installed EdgePACS.",
    ]
    for name in SETS:
        rows = [
            f"| {package} | {version} | {licence(package)} |"
            for package, version in installed(name)
        ]
        lines += ["", f"## {name.capitalize()}", "", "| Package | Version | Licence |"]
        lines += ["|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Run `check` or `write`; ends with status 1 and one line per fault."""
    if arguments == ["write"]:
        TABLE.write_text(table())
    elif arguments != ["check"]:
        sys.exit("usage: licences.py check|write")
    found = list(faults())
    if TABLE.read_text() != table():
        found.append("docs/licences.md is out of date; run `make licences`")
    if found:
        sys.exit("\n".join(f"licences: {fault}" for fault in found))


if __name__ == "__main__":
    main(sys.argv[1:])
