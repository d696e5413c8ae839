from collections.abc import Iterator
from pathlib import Path

import pytest
from scp.serving import Serving, serving


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Serving]:
    """A receiver that knows the harness's caller."""
    with serving(tmp_path / "node") as one:
        one.allow()
        yield one
