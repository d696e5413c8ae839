from collections.abc import Iterator
from pathlib import Path

import pytest
from orders.speaking import Hearing, Sender, hearing
from store.making import opened_store

from edgepacs.store import Store


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Hearing]:
    """A node that hears HL7."""
    with hearing(tmp_path / "node") as one:
        yield one


@pytest.fixture
def sender(node: Hearing) -> Iterator[Sender]:
    one = Sender(node.port)
    yield one
    one.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """The open store of a fresh node."""
    with opened_store(tmp_path / "node") as one:
        yield one
