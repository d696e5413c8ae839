from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dimse_node import QUICK, Node, Script

from edgepacs.dimse import Limits


@pytest.fixture
def node() -> Iterator[Callable[..., Node]]:
    """Make acceptors; all are closed and joined at the end."""
    made: list[Node] = []

    def make(limits: Limits = QUICK, **options: Any) -> Node:
        made.append(Node(limits, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
        one.join()


@pytest.fixture
def script() -> Iterator[Callable[[Node], Script]]:
    made: list[Script] = []

    def make(to: Node) -> Script:
        made.append(Script(to.port))
        return made[-1]

    yield make
    for one in made:
        one.close()
