"""What the tests share. `tests/` is on the import path: see pythonpath in pyproject.toml."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness.box import Box
from harness.recorder import RecordingSCP


@pytest.fixture
def recorder() -> Iterator[RecordingSCP]:
    """A recording SCP that is up."""
    with RecordingSCP() as scp:
        yield scp


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Box:
    """A node as `init` made it, that knows the harness's callers; never started.

    But it compresses nothing: most tests count objects, and compare what goes out with what came
    in byte for byte. Those that are about compression let it (`Box.compress`).
    """
    box = Box.made(tmp_path_factory.mktemp("template") / "node")
    box.compress(0)
    return box


@pytest.fixture
def new_box(template: Box, tmp_path: Path) -> Iterator[Callable[[], Box]]:
    """Makes nodes; whatever of them still runs afterwards is killed."""
    with ExitStack() as stack:
        made: list[Box] = []

        def make() -> Box:
            box = Box.copied(template, tmp_path / f"node{len(made)}")
            made.append(stack.enter_context(box))
            return box

        yield make


@pytest.fixture
def box(new_box: Callable[[], Box]) -> Box:
    """A running node without destinations."""
    return new_box().start()


@pytest.fixture(scope="module")
def shared_box(template: Box, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A running node for all tests of a module that neither stop it nor need it empty."""
    with Box.copied(template, tmp_path_factory.mktemp("shared") / "node") as box:
        yield box.start()
