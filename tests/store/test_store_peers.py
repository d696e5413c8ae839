import socket

import pytest

from edgepacs.errors import Conflict, InvalidValue, NotFound
from edgepacs.model import AETitle, LinkState, ProofWanted, Service
from edgepacs.store import Store, audit, destinations, errands, peers, rules, usage


@pytest.mark.parametrize(
    ("host", "address", "expected"),
    [
        ("*", "203.0.113.9", True),
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.10", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:DB8:0:0::1", True),
        ("2001:db8::1", "2001:db8::2", False),
        ("::1", "127.0.0.1", False),
        ("fe80::1", "fe80::1%eth0", True),
        ("localhost", "127.0.0.1", True),
        ("localhost", "::ffff:127.0.0.1", True),
        ("localhost", "192.0.2.1", False),
        ("no-such-host.invalid", "127.0.0.1", False),
        ("192.0.2", "192.0.2.0", False),
    ],
)
def test_whether_an_address_is_a_host(host: str, address: str, *, expected: bool) -> None:
    assert peers.is_at(host, address) is expected


def add(store: Store, title: str = "CT1", host: str = "127.0.0.1", **more: object) -> None:
    values = {"port": 104, "services": [Service.ECHO, Service.STORE], **more}
    with store.db.write() as tx:
        peers.add_ae(tx, title=title, host=host, actor="test", **values)  # type: ignore[arg-type]


def test_an_ae_may_what_it_was_allowed(store: Store) -> None:
    add(store)
    known = peers.known_ae(store.db, AETitle("CT1"))
    assert known is not None
    assert [s for s in Service if known.may(s)] == [Service.ECHO, Service.STORE]
    add(store, host="*", services=[Service.FIND])
    known = peers.known_ae(store.db, AETitle("CT1"))
    assert known is not None
    assert (known.host, known.services) == ("*", "find")
    assert not known.may(Service.STORE)
    assert len(peers.known_aes(store.db)) == 1
    with store.db.write() as tx:
        peers.remove_ae(tx, "CT1", actor="test")
        with pytest.raises(NotFound):
            peers.remove_ae(tx, "CT1", actor="test")
    assert peers.known_ae(store.db, AETitle("CT1")) is None


class Resolver:
    """Answers as told, and counts how often it is asked."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked = 0

    def __call__(self, _host: str, _port: None, **_: object) -> list[tuple[object, ...]]:
        self.asked += 1
        if not self.addresses:
            raise socket.gaierror
        return [(0, 0, 0, "", (address, 0)) for address in self.addresses]


def test_a_host_name_is_not_asked_for_with_every_association(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver = Resolver("192.0.2.1")
    now = [1000.0]
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    monkeypatch.setattr(peers, "monotonic", lambda: now[0])
    monkeypatch.setattr(peers, "_resolved", {})
    for _ in range(3):
        assert peers.is_at("ct.example", "192.0.2.1")
        assert not peers.is_at("ct.example", "192.0.2.2")
    assert resolver.asked == 1
    resolver.addresses = ("192.0.2.2",)
    now[0] += 301
    assert peers.is_at("ct.example", "192.0.2.2")
    assert not peers.is_at("ct.example", "192.0.2.1")
    assert resolver.asked == 2


def test_a_resolver_that_is_down_keeps_no_known_caller_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line to it may be the very one that is down."""
    resolver = Resolver()
    now = [1000.0]
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    monkeypatch.setattr(peers, "monotonic", lambda: now[0])
    monkeypatch.setattr(peers, "_resolved", {})
    assert not peers.is_at("ct.example", "192.0.2.1")
    resolver.addresses = ("192.0.2.1",)
    assert peers.is_at("ct.example", "192.0.2.1")  # asked again at once, since it knew nothing
    resolver.addresses = ()
    now[0] += 301
    asked = resolver.asked
    for _ in range(3):
        assert peers.is_at("ct.example", "192.0.2.1")
        assert not peers.is_at("ct.example", "192.0.2.2")
    assert resolver.asked == asked + 1  # nor does it wait for an answer each time


def test_known_host_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Resolver("192.0.2.1"))
    monkeypatch.setattr(peers, "_resolved", {})
    monkeypatch.setattr(peers, "_RESOLVED_KEPT", 10)
    for number in range(25):
        assert peers.is_at(f"ct{number}.example", "192.0.2.1")
    assert len(peers._resolved) <= 10


def test_what_an_ae_may_take_is_said_and_stays(store: Store) -> None:
    add(store)
    known = peers.known_ae(store.db, AETitle("CT1"))
    assert known is not None
    assert (known.max_associations, known.max_object_mib, known.max_object_seconds) == (16, 0, 3600)
    with store.db.write() as tx:
        peers.allow(tx, " CT1 ", peers.Allowance(max_associations=2), actor="test")
        peers.allow(
            tx, "CT1", peers.Allowance(max_object_mib=100, max_object_seconds=60), actor="test"
        )
    add(store, host="192.0.2.9")  # moved to another address: its allowance stays
    known = peers.known_ae(store.db, AETitle("CT1"))
    assert known is not None
    assert known.host == "192.0.2.9"
    assert (known.max_associations, known.max_object_mib, known.max_object_seconds) == (2, 100, 60)
    with store.db.read() as tx:
        rows = tx.rows("SELECT detail FROM audit WHERE act = 'ae allowance' ORDER BY id")
    assert rows == [("CT1 max_associations=2",), ("CT1 max_object_mib=100 max_object_seconds=60",)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_associations": 0},
        {"max_associations": 1025},
        {"max_object_mib": -1},
        {"max_object_mib": (1 << 20) + 1},
        {"max_object_seconds": 0},
        {"max_object_seconds": 86_401},
    ],
)
def test_an_allowance_out_of_range_is_named(store: Store, wrong: dict[str, int]) -> None:
    add(store)
    (name,) = wrong
    with store.db.write() as tx, pytest.raises(InvalidValue, match=name):
        peers.allow(tx, "CT1", peers.Allowance(**wrong), actor="test")
    with store.db.write() as tx, pytest.raises(NotFound, match="CT2"):
        peers.allow(tx, "CT2", peers.Allowance(max_associations=1), actor="test")


@pytest.mark.parametrize(
    "wrong",
    [
        {"title": ""},
        {"title": "SEVENTEEN_LETTERS"},
        {"title": "A\\B"},
        {"title": "Ä"},
        {"host": ""},
        {"host": "two words"},
        {"host": "a..b"},
        {"host": "x" * 64},
        {"host": "x." * 130},
        {"host": "a\nb"},
        {"port": 0},
        {"port": 65536},
        {"port": -1},
    ],
)
def test_what_no_peer_can_have_is_refused(store: Store, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidValue):
        add(store, **wrong)  # type: ignore[arg-type]
    values = {"title": "PACS", "host": "h", "port": 104, **wrong}
    with store.db.write() as tx, pytest.raises(InvalidValue):
        destinations.add(tx, name="n", actor="test", **values)  # type: ignore[arg-type]
    assert peers.known_aes(store.db) == []
    assert destinations.every(store.db) == []


def refuse(store: Store, title: str, host: str = "192.0.2.9", now: int = 1) -> None:
    caller = peers.RefusedAE(
        calling_ae=title,
        called_ae="EDGEPACS",
        host=host,
        reason="why",
        times=1,
        first_ms=now,
        last_ms=now,
    )
    with store.db.write() as tx:
        peers.note_refused(tx, [caller])


def test_who_was_refused_is_listed_until_let_in(store: Store) -> None:
    for title in ("A", "B", "A"):
        refuse(store, title)
    refuse(store, "A", "192.0.2.10")
    found = {(one.calling_ae, one.host): one.times for one in peers.refused(store.db)}
    assert found == {("A", "192.0.2.9"): 2, ("B", "192.0.2.9"): 1, ("A", "192.0.2.10"): 1}
    add(store, "A", "192.0.2.9")
    assert {(one.calling_ae, one.host) for one in peers.refused(store.db)} == {
        ("B", "192.0.2.9"),
        ("A", "192.0.2.10"),
    }


def test_the_list_of_refused_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_REFUSED_KEPT", 20)
    for number in range(60):
        refuse(store, f"SCAN{number}", now=number)
    kept = peers.refused(store.db)
    assert 20 <= len(kept) <= 21
    assert kept[0].calling_ae == "SCAN59"


def destination(store: Store, name: str = "pacs", title: str = "PACS") -> int:
    with store.db.write() as tx:
        return destinations.add(
            tx, name=name, title=title, host="127.0.0.1", port=104, actor="test"
        )


def test_destinations_have_one_name_each(store: Store) -> None:
    number = destination(store)
    found = destinations.named(store.db, "pacs")
    assert (found.id, found.ae_title, found.port, found.link) == (
        number,
        "PACS",
        104,
        LinkState.UNKNOWN,
    )
    with pytest.raises(Conflict, match="exists"):
        destination(store, " pacs ")
    for wrong in ("", " ", "x" * 65, "a\tb"):
        with pytest.raises(InvalidValue, match="destination"):
            destination(store, wrong)
    with pytest.raises(NotFound):
        destinations.named(store.db, "other")


def test_a_destination_goes_with_its_rules(store: Store) -> None:
    destination(store)
    with store.db.write() as tx:
        rules.add(tx, to="pacs", match="", hold=False, priority=0, actor="test")
        destinations.remove(tx, "pacs", actor="test")
        with pytest.raises(NotFound):
            destinations.remove(tx, "pacs", actor="test")
    assert len(rules.all_rules(store.db)) == 1
    assert store.db.problems() == []


def test_a_link_remembers_since_when(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    number = destination(store)
    now = [1000]
    monkeypatch.setattr(destinations, "wall_ms", lambda: now[0])
    for at, link, note, since in (
        (1000, LinkState.DOWN, "no answer", 1000),
        (2000, LinkState.DOWN, "no answer", 1000),
        (3000, LinkState.DOWN, "other words", 1000),
        (4000, LinkState.UP, "", 4000),
    ):
        now[0] = at
        destinations.set_link(store.db, number, link, note)
        found = destinations.named(store.db, "pacs")
        assert (found.link, found.link_note, found.link_ms) == (link, note, since)
    found_changes = [(one.at_ms, one.link, one.words) for one in usage.changes(store.db, number)]
    assert found_changes == [
        (4000, LinkState.UP, ""),
        (3000, LinkState.DOWN, "other words"),
        (1000, LinkState.DOWN, "no answer"),
    ]
    acts = [one.act for one in audit.of_subject(store.db, "destination", number)]
    assert acts == ["destination added"]


def test_errands_are_asked_and_answered_once(store: Store) -> None:
    number = errands.ask(store.db, role="forward", act="echo", subject=1, actor="eve")
    assert [one.id for one in errands.still_open(store.db, "forward")] == [number]
    assert errands.still_open(store.db, "scp") == []
    assert errands.numbered(store.db, number).done_ms is None
    errands.answer(store.db, number, succeeded=False, result="no")
    found = errands.numbered(store.db, number)
    assert (found.succeeded, found.result, found.asked_by) == (0, "no", "eve")
    assert errands.still_open(store.db, "forward") == []
    with pytest.raises(NotFound):
        errands.numbered(store.db, 99)


def test_settings_of_a_destination_are_checked_and_kept(store: Store) -> None:
    with store.db.write() as tx:
        destinations.add(tx, name="pacs", title="PACS", host="127.0.0.1", port=104, actor="me")
        said = {"kbits": "384", "hours": "22:00-06:00, 12:00-13:00", "proof": "found", "tls": "1"}
        destinations.change(tx, "pacs", {**said, "passcode": "open sesame"}, actor="me")
    found = destinations.named(store.db, "pacs")
    assert (found.kbits, found.hours, found.tls) == (384, "22:00-06:00,12:00-13:00", 1)
    assert (found.proof, found.passcode) == (ProofWanted.FOUND, "open sesame")
    assert "sesame" not in repr(found)
    with store.db.read() as tx:
        (detail,) = tx.rows("SELECT detail FROM audit WHERE act = 'destination changed'")[0]
    assert "kbits=384" in detail
    assert "sesame" not in detail


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("kbits", "-1"),
        ("kbits", "fast"),
        ("hours", "22:00"),
        ("hours", "24:00-06:00"),
        ("proof", "sent"),
        ("transport", "ftp"),
        ("url", "ftp://pacs.example/"),
        ("certificate", "not PEM"),
        ("port", "0"),
        ("colour", "red"),
    ],
)
def test_a_setting_out_of_bounds_is_refused_by_name(store: Store, setting: str, text: str) -> None:
    with store.db.write() as tx:
        destinations.add(tx, name="pacs", title="PACS", host="127.0.0.1", port=104, actor="me")
    with store.db.write() as tx, pytest.raises(InvalidValue, match=setting):
        destinations.change(tx, "pacs", {setting: text}, actor="me")


def test_a_destination_nobody_knows_has_no_settings(store: Store) -> None:
    with store.db.write() as tx, pytest.raises(NotFound):
        destinations.change(tx, "nowhere", {"kbits": "1"}, actor="me")
