"""Every case of broken and hostile input has a test, and the table says which."""

from pathlib import Path

import pytest
from hostile import cases


@pytest.mark.parametrize("number", cases.CASES)
def test_every_case_has_a_test(number: int) -> None:
    assert cases.marks()[number], f"case {number} ({cases.CASES[number][1]}) has no test"


def test_every_mark_names_a_case() -> None:
    assert sorted(cases.marks()) == list(range(1, 58)) == sorted(cases.CASES)


def test_the_table_is_fresh() -> None:
    assert cases.table() in str(cases.__doc__), "run: python tests/hostile/cases.py"


def test_a_mark_that_is_gone_is_missed(tmp_path: Path) -> None:
    """The check sees marks on tests and on parameters, and nothing else."""
    (tmp_path / "test_one.py").write_text(
        "@pytest.mark.bad_input(1, 2)\n"
        "def test_a(): pass\n"
        "@pytest.mark.parametrize('x', [pytest.param(1, marks=bad_input(4))])\n"
        "def test_b(x): bad_input(5)\n"
        "@bad_input(6)\n"
        "def helper(): pass\n"
    )
    found = {number for number, tests in cases.marks(tmp_path).items() if tests}
    assert found == {1, 2, 4}


def test_marks_are_those_pytest_collects(request: pytest.FixtureRequest) -> None:
    """Of the tests collected now, each carries the marks the table gives it."""
    listed = {(test, number) for number, tests in cases.marks().items() for test in tests}
    for item in request.session.items:
        path = item.path.relative_to(cases.TESTS)
        name = f"{path}::{item.name.partition('[')[0]}"
        for mark in item.iter_markers("bad_input"):
            for number in mark.args:
                assert (name, number) in listed, (name, number)
