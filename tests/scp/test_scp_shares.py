"""What AEs take at once: places that nobody can fill alone, and turns that nobody can hog."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from harness.waiting import until

from edgepacs.errors import LimitExceeded
from edgepacs.model import AETitle
from edgepacs.scp import shares
from edgepacs.scp.shares import AT_WORK, Place, Shares

A, B, C, D = (AETitle(letter) for letter in "ABCD")
MIB = 1 << 20


def place(among: Shares, title: AETitle, most: int = 16, size: int = MIB) -> Place:
    taken = among.take(title, most, size)
    assert taken is not None
    return taken


def taken(among: Shares, title: AETitle, most: int = 16) -> int:
    """How many more places `title` finds."""
    number = 0
    while among.take(title, most, MIB) is not None:
        number += 1
    return number


# -- places


def test_an_ae_has_no_more_places_than_it_may() -> None:
    among = Shares(64)
    first = place(among, A, most=2)
    assert taken(among, A, most=2) == 1
    first.leave()
    first.leave()
    assert taken(among, A, most=2) == 1


@pytest.mark.parametrize(("places", "one", "others"), [(64, 48, 16), (8, 6, 2), (2, 2, 0)])
def test_the_last_places_are_for_aes_that_have_none(places: int, one: int, others: int) -> None:
    among = Shares(places)
    assert taken(among, A, most=1000) == one
    for number in range(others):
        assert taken(among, AETitle(f"OTHER{number}"), most=1000) == 1
    assert taken(among, B, most=1000) == 0


def test_a_place_given_back_is_for_whoever_has_none() -> None:
    among = Shares(8)
    held = [place(among, A) for _ in range(6)]
    assert taken(among, B) + taken(among, C) == 2
    held.pop().leave()
    assert taken(among, A) == 0
    assert taken(among, D) == 1


def test_aes_that_have_nothing_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "SENDING_SECONDS", 0.0)
    among = Shares(64)
    for number in range(1000):
        place(among, AETitle(f"AE{number}")).leave()
    assert len(among._shares) == 1


# -- turns


class Instance:
    """An instance of one fragment in a thread of its own: at work until it is let go."""

    def __init__(self, at: Place) -> None:
        self.at_work = threading.Event()
        self.go_on = threading.Event()
        self._at = at
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for _ in self._at.turns([memoryview(b"ab")]):
            self.at_work.set()
            assert self.go_on.wait(20)
        self._at.rest()

    def end(self) -> None:
        self.go_on.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


def at_work(instances: list[Instance]) -> int:
    return sum(one.at_work.is_set() and not one.go_on.is_set() for one in instances)


def waiting(among: Shares, title: AETitle) -> int:
    return len(among._shares[title].waiting)


@pytest.fixture
def begin() -> Iterator[Callable[[Place], Instance]]:
    """Begins instances; all are let go afterwards."""
    begun: list[Instance] = []

    def one(at: Place) -> Instance:
        begun.append(Instance(at))
        return begun[-1]

    yield one
    for instance in begun:
        instance.go_on.set()
    for instance in begun:
        instance.end()


def test_an_ae_that_sends_alone_is_not_held_back(begin: Callable[[Place], Instance]) -> None:
    among = Shares(64)
    instances = [begin(place(among, A)) for _ in range(8)]
    until(lambda: at_work(instances) == 8, "all eight are at work")


def test_while_another_sends_an_ae_has_few_at_work(
    begin: Callable[[Place], Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "SENDING_SECONDS", 60.0)
    among = Shares(64)
    begin(place(among, B)).end()
    instances = [begin(place(among, A)) for _ in range(6)]
    until(lambda: waiting(among, A) == 6 - AT_WORK, "the rest wait")
    until(lambda: at_work(instances) == AT_WORK, "the first are at work")
    other = begin(place(among, B))
    until(other.at_work.is_set, "the other AE waits for none of them")
    next(one for one in instances if one.at_work.is_set()).go_on.set()
    until(lambda: at_work(instances) == AT_WORK, "the next has its turn")
    assert waiting(among, A) == 6 - AT_WORK


def test_who_waits_is_let_go_once_the_others_are_silent(
    begin: Callable[[Place], Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    among = Shares(64)
    other = begin(place(among, B))
    until(other.at_work.is_set, "another AE is at work")
    instances = [begin(place(among, A)) for _ in range(6)]
    until(lambda: waiting(among, A) == 6 - AT_WORK, "the rest wait")
    other.end()
    monkeypatch.setattr(shares, "SENDING_SECONDS", 0.0)
    next(one for one in instances if one.at_work.is_set()).end()
    until(lambda: at_work(instances) == 5, "all others are at work")


def test_no_turn_is_held_while_the_line_is_waited_for() -> None:
    among = Shares(64)
    mine = place(among, A)
    turn_at_work: list[int] = []

    def slow() -> Iterator[memoryview]:
        for fragment in (b"ab", b"cd"):
            turn_at_work.append(among._shares[A].working)  # the peer is waited for here
            yield memoryview(fragment)

    for _ in mine.turns(slow()):
        assert among._shares[A].working == 1
    assert turn_at_work == [0, 0]
    assert among._shares[A].working == 1  # to make it durable
    mine.rest()
    assert among._shares[A].working == 0


def test_a_turn_of_what_was_given_up_is_ended() -> None:
    among = Shares(64)
    mine = place(among, A)
    fragments = mine.turns([memoryview(b"ab"), memoryview(b"cd")])
    next(fragments)
    assert among._shares[A].working == 1
    mine.leave()
    assert among._shares[A].working == 0
    del fragments
    assert among._shares[A].working == 0


def test_what_is_too_long_is_cut_off() -> None:
    mine = place(Shares(64), A, size=MIB)
    whole = memoryview(bytes(MIB // 2))
    assert sum(len(one) for one in mine.turns([whole, whole])) == MIB
    mine.rest()
    with pytest.raises(LimitExceeded, match="data set: longer than 1 MiB"):
        list(mine.turns([whole, whole, memoryview(b"a")]))


def test_many_threads_of_many_aes_all_come_to_an_end() -> None:
    among = Shares(64)
    done: Counter[str] = Counter()
    most: Counter[str] = Counter()
    lock = threading.Lock()

    def run(title: AETitle, seed: int) -> None:
        chance = random.Random(seed)
        mine = place(among, title)
        for _ in range(200):
            for _ in mine.turns([memoryview(b"ab")] * chance.randrange(1, 4)):
                share = among._shares[title]
                with lock:
                    most[title] = max(most[title], share.working)
            mine.rest()
            with lock:
                done[title] += 1
        mine.leave()

    threads = [
        threading.Thread(target=run, args=(title, number), daemon=True)
        for number, title in enumerate([*[A] * 8, *[B] * 3, C])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert done == {A: 1600, B: 600, C: 200}
    assert most[C] == 1
    assert all(
        (share.places, share.working, len(share.waiting)) == (0, 0, 0)
        for share in among._shares.values()
    )
