"""Write and check the locked dependency sets in requirements/.

`lock.py write` resolves pyproject.toml anew with uv, for CPython 3.11 to 3.13 on Linux, one
version of each package for all of them, every file hashed. `lock.py check` needs no network: it
fails when pyproject.toml has moved on, when a pin does not satisfy it, when two sets disagree,
when a hash is missing, when a line names where packages come from, or when a package stands in
a set that must never be in the process (FORBIDDEN).
"""

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
OLDEST_PYTHON = "3.11"

# What an editable install by hatchling adds, and what deid-data, a source package, is built with.
EXTRA_BUILD_REQUIREMENTS = ("editables", "setuptools")
# Each set is resolved under the pins of those before it, so that all fit into one environment.
SETS = ("runtime", "build", "test", "check")

# GPLv3 code in the process would bind the whole product to it.
FORBIDDEN = frozenset({"pylibjpeg-libjpeg"})

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)", re.MULTILINE)
_ORIGIN = re.compile(r"https?:|--(?:extra-)?index|--find-links|--trusted-host|\s@\s", re.IGNORECASE)


def requirements(name: str, project: dict[str, Any]) -> list[str]:
    """The direct requirements of the set `name`, as pyproject.toml writes them."""
    if name == "runtime":
        return list(project["project"]["dependencies"])
    if name == "build":
        return [*project["build-system"]["requires"], *EXTRA_BUILD_REQUIREMENTS]
    return list(project["dependency-groups"][name])


def fingerprint(wanted: list[str]) -> str:
    """A short digest of direct requirements; their order does not count."""
    return hashlib.sha256(json.dumps(sorted(wanted)).encode()).hexdigest()[:16]


def header(name: str, wanted: list[str]) -> str:
    """The first lines of the lock file of set `name`."""
    return (
        f"# The {name} set, locked for CPython 3.11 to 3.13 on Linux by `make lock`.\n"
        f"# Direct requirements: {fingerprint(wanted)}\n"
    )


def pins(text: str) -> dict[str, str]:
    """Canonical name to version of everything a lock file pins."""
    return {canonicalize_name(m["name"]): m["version"] for m in _PIN.finditer(text)}


def write(project: dict[str, Any]) -> None:
    """Resolve every set and write its lock file; needs uv in this environment."""
    for position, name in enumerate(SETS):
        wanted = requirements(name, project)
        command = [
            *(sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet"),
            *("--universal", "--python-version", OLDEST_PYTHON, "--fork-strategy", "fewest"),
            *("--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate"),
        ]
        for earlier in SETS[:position]:
            command += ["--constraint", str(LOCKS / f"{earlier}.txt")]
        resolved = subprocess.run(
            command, input="\n".join(wanted), capture_output=True, text=True, check=False
        )
        if resolved.returncode:
            sys.exit(f"lock: {name}: {resolved.stderr.strip()}")
        (LOCKS / f"{name}.txt").write_text(header(name, wanted) + resolved.stdout)


def faults(texts: dict[str, str], project: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the lock files `texts`, by set name; nothing when all is well."""
    chosen: dict[str, str] = {}
    for name in SETS:
        text, wanted = texts[name], requirements(name, project)
        locked = pins(text)
        if not text.startswith(header(name, wanted)):
            yield f"{name}: pyproject.toml has changed since it was locked"
        for requirement in map(Requirement, wanted):
            version = locked.get(canonicalize_name(requirement.name))
            if version is None or version not in requirement.specifier:
                yield f"{name}: {requirement} is not satisfied (pinned: {version})"
        for block in re.split(r"\n(?=\S)", text):
            if _PIN.match(block) and "--hash=sha256:" not in block:
                yield f"{name}: {block.split()[0]} has no hash"
        if _ORIGIN.search(text):
            yield f"{name}: names where packages come from"
        yield from (f"{name}: {bad} must not be used" for bad in sorted(FORBIDDEN & locked.keys()))
        for package, version in locked.items():
            if chosen.setdefault(package, version) != version:
                yield f"{name}: {package} {version}, but {chosen[package]} in another set"


def main(arguments: list[str]) -> None:
    """Run `write` or `check`; ends with status 1 and one line per fault."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    if arguments == ["write"]:
        write(project)
    elif arguments != ["check"]:
        sys.exit("usage: lock.py write|check")
    found = list(faults({name: (LOCKS / f"{name}.txt").read_text() for name in SETS}, project))
    if found:
        sys.exit("\n".join(f"lock: {fault}" for fault in found) + "\nlock: run `make lock`")


if __name__ == "__main__":
    main(sys.argv[1:])
