"""`make demo` plays its day to the end and puts everything away."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "tools" / "demo.py"


@pytest.mark.peers
def test_the_demo_plays_to_its_end(tmp_path: Path):
    run = subprocess.run(
        [sys.executable, str(DEMO)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={"PATH": "/usr/bin:/bin:/usr/sbin", "TMPDIR": str(tmp_path), "LANG": "C.UTF-8"},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    arrived, due = map(int, re.findall(r"(\d+) of (\d+) instances arrived", run.stdout)[0])
    assert arrived == due > 10
    assert list(tmp_path.iterdir()) == []
