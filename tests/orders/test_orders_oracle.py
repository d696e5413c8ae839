"""Many messages of varied kinds, order and repetition, through restarts: the worklist is right.

The oracle is a few lines over dictionaries that know no HL7: what each message means, in order.
"""

import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness import corpus
from harness.waiting import free_port, until
from orders.speaking import Hearing, Sender, configured, demographics, hearing, order

from edgepacs.model import MessageState
from edgepacs.store import messages

_ACTS = ("NW", "NW", "NW", "XO", "XO", "CA", "DC", "CM", "RL", "SC")
_OVER = {"cancelled", "completed"}


@dataclass
class Oracle:
    """Orders by number: state, patient, modality. Patients by ID: name."""

    orders: dict[str, list[str]] = field(default_factory=dict)

    def order(self, act: str, number: str, patient: str, name: str, modality: str) -> bool:
        known = self.orders.get(number)
        if act in ("NW", "XO", "SC"):
            state = known[0] if known and not (act == "NW" and known[0] == "cancelled") else ""
            self.orders[number] = [state or "scheduled", patient, name, modality]
            return True
        if known is None:
            return False
        wanted = {"CA": "cancelled", "DC": "cancelled", "CM": "completed", "RL": "scheduled"}[act]
        if act == "RL" and known[0] != "cancelled":
            return True
        if known[0] in _OVER and known[0] != wanted and act != "RL":
            return False
        known[0] = wanted
        return True

    def rename(self, patient: str, name: str, gone: str = "") -> None:
        for known in self.orders.values():
            if known[1] == (gone or patient) and known[0] != "cancelled":
                known[1:3] = [patient, name]

    def worklist(self) -> dict[str, list[str]]:
        return self.orders


def day(count: int, chance: random.Random) -> list[tuple[str, bool]]:
    """Messages and whether each is to be accepted, as `Oracle` sees it; the oracle last."""
    oracle = Oracle()
    told: list[tuple[str, bool]] = []
    for number in range(count):
        patient, name = f"P{chance.randrange(12)}", f"N{chance.randrange(9)}^Æ"
        kind = chance.random()
        if kind < 0.12 and told:
            told.append(chance.choice(told))  # the same again, late: nothing new
        elif kind < 0.2:
            oracle.rename(patient, name)
            event = chance.choice(("A01", "A04", "A08"))
            told.append((demographics(event, f"c{number}", patient, name), True))
        elif kind < 0.26:
            gone = f"P{chance.randrange(12)}"
            if gone != patient:
                oracle.rename(patient, name, gone)
            message = demographics("A40", f"c{number}", patient, name, gone=gone)
            told.append((message, gone != patient))
        else:
            act, placer = chance.choice(_ACTS), str(chance.randrange(1 + count // 8))
            modality = chance.choice(("CT", "MR", "US"))
            accepted = oracle.order(act, placer, patient, name, modality)
            kinds = ("ORM^O01", "OMG^O19", "OMI^O23")
            message = order(
                *(f"c{number}", act, placer),
                patient=patient,
                name=name,
                modality=modality,
                kind=chance.choice(kinds),
                status="IP" if act == "SC" else "",
            )
            told.append((message, accepted))
    _WANTED.append(oracle.worklist())
    return told


_WANTED: list[dict[str, list[str]]] = []


def shown(node: Hearing) -> dict[str, list[str]]:
    return {
        one.entry.placer_order: [
            str(one.state),
            one.entry.patient.patient_id,
            one.entry.patient.name,
            one.entry.modality,
        ]
        for one in node.entries()
    }


def test_the_worklist_equals_the_oracle_through_restarts(tmp_path: Path) -> None:
    chance = random.Random(corpus.SEED)
    told = day(corpus.count(250, 1000), chance)
    wanted = _WANTED.pop()
    with hearing(tmp_path / "node") as node:
        sender = Sender(node.port)
        for place, (message, accepted) in enumerate(told):
            if place % 60 == 59:
                sender.close()
                node.again()
                sender = Sender(node.port)
            assert sender.say(message).code == ("AA" if accepted else "AE"), (place, message)
        sender.close()
        assert shown(node) == wanted
        kept = messages.listed(node.store.db, most=10_000)
        assert len(kept) == len({message for message, _ in told})
        assert sum(one.repeats for one in kept) == len(told) - len(kept)
        assert all(one.state is not MessageState.RECEIVED for one in kept)


_PROGRAM = """
import sys, threading
from pathlib import Path
from edgepacs import config, orders
from edgepacs.store import Store
orders.run(Store.open(config.load(Path(sys.argv[1]))), threading.Event())
"""


@pytest.mark.parametrize("point", ["hl7.kept", "hl7.applied"])
def test_killed_before_the_answer_nothing_is_lost_or_done_twice(tmp_path: Path, point: str) -> None:
    path = configured(tmp_path / "node", {"port": (port := free_port())})
    environment = {**os.environ, "EDGEPACS_FAILPOINT": point}
    command = [sys.executable, "-c", _PROGRAM, str(path)]
    with subprocess.Popen(command, env=environment) as child:

        def connected() -> Sender | None:
            try:
                return Sender(port)
            except OSError:
                return None

        sender = until(connected, "it listens")
        with pytest.raises(ConnectionError):
            sender.say(order("1", "NW", "1"))
        assert child.wait(10) == -signal.SIGKILL
    node = Hearing(path)
    try:
        until(lambda: len(node.entries()) == 1, "what was kept is applied at the next start")
        assert Sender(node.port).say(order("1", "NW", "1")).code == "AA"
        (kept,) = messages.listed(node.store.db)
        assert (kept.state, kept.repeats, len(node.entries())) == (MessageState.APPLIED, 1, 1)
    finally:
        node.end()
