"""Malformed and hostile messages: answered or closed within bounds; what is right goes on."""

import logging
import random
from pathlib import Path

import pytest
from harness import corpus
from orders.speaking import Hearing, Sender, hearing, order
from store.making import opened_store

from edgepacs.model import MessageState
from edgepacs.orders import mapping, mllp
from edgepacs.orders.reception import Reception
from edgepacs.store import messages


def still_right(node: Hearing) -> None:
    sender = Sender(node.port)
    assert sender.say(order("right", "NW", "right")).code == "AA"
    sender.close()


def test_giant_message_is_answered_and_closed(tmp_path: Path) -> None:
    with hearing(tmp_path / "node", max_message_kib=64) as node:
        sender = Sender(node.port)
        sender.socket.sendall(b"\x0b" + order("big", "NW", "1").encode() + b"x" * (65 << 10))
        answer = sender.hear()
        assert (answer.code, answer.control) == ("AR", "big")
        assert sender.closed()
        still_right(node)
        assert len(messages.listed(node.store.db)) == 1


def test_unterminated_is_not_taken(node: Hearing) -> None:
    sender = Sender(node.port)
    sender.socket.sendall(b"\x0b" + order("1", "NW", "1").encode())
    sender.close()
    sender = Sender(node.port)
    sender.socket.sendall(b"\x0b" + order("2", "NW", "2").encode())  # begun, and begun anew
    assert sender.say(order("3", "NW", "3")).control == "3"
    sender.close()
    assert [one.entry.placer_order for one in node.entries()] == ["3"]


def test_a_trickle_ends_with_its_time(node: Hearing, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = mllp.Bounds(message_bytes=1 << 20, idle=10, message=0.2)
    sender = Sender(node.port)
    monkeypatch.setattr(mllp, "monotonic", lambda: 0.0)
    framed = mllp.Framed(sender.socket, bounds)
    framed._pending = b"\x0bMSH|^~\\&|A"
    times = iter([0.0, 0.0, 1.0])  # the start of it, of the message, and when more is asked for
    monkeypatch.setattr(mllp, "monotonic", lambda: next(times))
    with pytest.raises(mllp.BrokenOff, match=r"not ended within 0\.2 s"):
        framed.message()
    sender.close()


def test_noise_between_messages_is_bounded(node: Hearing) -> None:
    sender = Sender(node.port)
    sender.socket.sendall(b"\r\n\r\nhello\r\n")
    assert sender.say(order("1", "NW", "1")).code == "AA"
    sender.socket.sendall(b"GET / HTTP/1.1\r\n" * 200)
    assert sender.closed()
    still_right(node)


def test_silent_connections_give_way(tmp_path: Path) -> None:
    with hearing(tmp_path / "node", max_connections=2) as node:
        silent = [Sender(node.port) for _ in range(2)]
        speaking = Sender(node.port)
        assert speaking.say(order("1", "NW", "1")).code == "AA"
        assert silent[0].closed()
        assert speaking.say(order("2", "NW", "2")).code == "AA"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"MSH",
        b"MSH|",
        b"MSH|^~\\&",
        b"MSH||||||",
        b"MSH|^^^^|A|B",
        b"MSH|||||",
        b"MSHAAAAAAAAA",
        b"MSH\r\r\r\r\r|",
        b"PID|1||P1",
        b"\x00" * 1000,
        b"\xff\xfe" * 500,
        b"BHS|^~\\&|A\rMSH|^~\\&|A",
        b"{" + b"[" * 5000,
        b"|" * 60_000,
    ],
)
def test_what_is_no_message_is_rejected(node: Hearing, sender: Sender, raw: bytes) -> None:
    assert sender.say(raw).code == "AR"
    assert sender.say(order("1", "NW", "1")).code == "AA"


@pytest.mark.parametrize(
    "more",
    [
        "OBX|" + "|" * 30_000,
        "OBX|" + "^" * 30_000,
        "NTE|1\r" * 3_000,
    ],
)
def test_a_bomb_of_delimiters_is_refused(node: Hearing, sender: Sender, more: str) -> None:
    assert sender.say(order("1", "NW", "1", more=(more,))).code == "AE"
    assert not node.entries()


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"\xc3", b"\x80abc"])
def test_bytes_the_character_set_does_not_have(node: Hearing, sender: Sender, raw: bytes) -> None:
    answer = sender.say(order("1", "NW", "1", name="@@").encode().replace(b"@@", raw))
    assert (answer.code, answer.error) == ("AE", ("MSH^1^18", "102"))


def mutated(raw: bytes, chance: random.Random) -> bytes:
    made = bytearray(raw)
    for _ in range(chance.randrange(1, 8)):
        at = chance.randrange(len(made))
        what = chance.randrange(4)
        if what == 0:
            made[at] = chance.choice(b'|^~\\&\r\n"=\x00\x1b\xff*')
        elif what == 1:
            del made[at : at + chance.randrange(1, 30)]
        elif what == 2:
            made[at:at] = made[: chance.randrange(1, 200)]
        else:
            made[at:at] = chance.choice(
                [b"\\E\\", b"\\X41\\", b"\\", b'""', b"OBR|", b"\rMSH|^~\\&|"]
            )
        if not made:
            break
    return bytes(made).replace(b"\x1c", b"").replace(b"\x0b", b"")


def test_mutants_are_answered_and_never_crash(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(corpus.SEED)
    with opened_store(tmp_path / "node") as store, caplog.at_level(logging.DEBUG):
        reception = Reception(store, mapping.load(None))
        for number in range(corpus.count(300, 10_000)):
            whole = order(str(number), "NW", str(number), name="Canary^Bird", step="S1")
            raw = mutated(whole.encode(), chance)
            answers = reception.take(raw, "127.0.0.1")
            assert len(answers) == 1
        assert not messages.listed(store.db, state=MessageState.RECEIVED)
        assert not [one for one in messages.listed(store.db, most=10_000) if one.error == 207]
        assert "Canary" not in caplog.text
        with store.db.read() as tx:
            words = tx.rows("SELECT detail FROM audit UNION SELECT words FROM message")
        assert not [row for row in words if "Canary" in str(row[0])]
