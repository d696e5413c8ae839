from collections.abc import Iterator
from pathlib import Path

import pytest
from store.making import opened_store

from edgepacs.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """The open store of a fresh node."""
    with opened_store(tmp_path / "node") as one:
        yield one
