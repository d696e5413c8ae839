import pytest

from edgepacs import clock
from edgepacs.clock import Jumps


def test_a_clock_that_is_set_is_told_from_one_that_is_steered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = {"wall": 1_000_000_000, "monotonic": 500.0}
    monkeypatch.setattr(clock, "wall_ms", lambda: int(now["wall"]))
    monkeypatch.setattr(clock, "monotonic", lambda: now["monotonic"])
    jumps = Jumps()
    for _ in range(3):
        now["wall"] += 60_400  # 0.4 s too fast in a minute
        now["monotonic"] += 60
        assert jumps.since_last() == 0
    for by in (3_600_000, -94_608_000_000, 5000, -2000):
        jumps.since_last()
        now["wall"] += by
        told = jumps.since_last()
        assert abs(told - by) <= 1300
        assert jumps.since_last() == 0
