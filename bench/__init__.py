"""Benchmarks, run from the root of the repository: `python -m bench.ingest` (docs/benchmarks.md).

They use what the tests use to make nodes and peers.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
