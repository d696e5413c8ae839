from collections.abc import Iterator
from pathlib import Path

import pytest
from orders.speaking import Hearing, Sender, hearing


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
