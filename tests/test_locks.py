"""The locks and licences are checked by tools that can fail."""

import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import licences  # noqa: E402
import lock  # noqa: E402

HASH = "--hash=sha256:" + "0" * 64


@pytest.fixture
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture
def texts():
    return {name: (ROOT / "requirements" / f"{name}.txt").read_text() for name in lock.SETS}


def test_locks_are_fresh(project, texts):
    assert list(lock.faults(texts, project)) == []


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        ("pylibjpeg-libjpeg==2.3.0 \\\n    " + HASH, "pylibjpeg-libjpeg must not be used"),
        ("example==1.0", "example==1.0 has no hash"),
        ("--index-url https://packages.example", "names where packages come from"),
        ("example @ file:///tmp/example.whl", "names where packages come from"),
        ("click==1.0 \\\n    " + HASH, "click 1.0, but "),
    ],
)
def test_a_bad_line_is_found(project, texts, added, fault):
    texts["test"] += added + "\n"
    (found,) = lock.faults(texts, project)
    assert fault in found


def test_a_changed_project_is_found(project, texts):
    project["project"]["dependencies"].append("click>=1000")
    stale, unsatisfied = lock.faults(texts, project)
    assert "has changed" in stale
    assert "click>=1000 is not satisfied" in unsatisfied


@pytest.mark.parametrize(
    "stated",
    [
        "GPL-3.0-only",
        "MIT AND GPL-2.0-or-later",
        "GNU General Public License v3 (GPLv3)",
        "AGPL-3.0-only",
        "GPLv3",
    ],
)
def test_gpl_binds(stated):
    assert licences.binds(stated)


@pytest.mark.parametrize(
    "stated",
    [
        "MIT",
        "MIT OR GPL-2.0-only",
        "LGPL-2.1-or-later",
        "GNU Lesser General Public License v3 (LGPLv3)",
        "BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1",
    ],
)
def test_a_choice_or_an_exception_does_not_bind(stated):
    assert not licences.binds(stated)


def test_gpl_libraries_are_known_by_name():
    assert licences.GPL_LIBRARIES.match("libx265-5d1c9a3b.so.215")
    assert not licences.GPL_LIBRARIES.match("libgslcblas.so.0")
