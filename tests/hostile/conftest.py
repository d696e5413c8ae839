import itertools
from collections.abc import Iterator

import pytest
from hostile.attacker import Attacker
from hostile.receiver import Receiver

_hosts = itertools.count()


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """A running receiver for all tests of a module, with room for data sets of 128 MiB."""
    with Receiver(tmp_path_factory.mktemp("hostile") / "node", max_object_mib=128) as one:
        yield one


@pytest.fixture
def host() -> str:
    """A loopback address to attack from; few share one, since records of one host are bounded."""
    return f"127.0.0.{10 + next(_hosts) // 6}"


@pytest.fixture
def attacker(receiver: Receiver, host: str) -> Iterator[Attacker]:
    """A connection to the receiver that has said nothing yet."""
    one = Attacker(receiver.port, host)
    yield one
    one.close()
