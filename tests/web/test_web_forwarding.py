"""The console of forwarding: the queue, deliveries, destinations, rules, room; and who may what."""

import re
import time
from collections.abc import Callable

import pytest
from harness import made
from web_support import Looked, Person, add_destination, put, put_changed

from edgepacs.clock import wall_ms
from edgepacs.model import DeliveryState, Kept, LinkState, StudyId
from edgepacs.store import (
    Store,
    audit,
    claims,
    deliveries,
    destinations,
    evictions,
    ledger,
    room,
    rules,
    studies,
    usage,
)
from edgepacs.store.db import Transaction
from edgepacs.store.room import Survey

D = DeliveryState


def change(store: Store, sql: str, *values: object) -> None:
    with store.db.write() as tx:
        tx.run(sql, *values)


def states(store: Store) -> list[tuple[str, int, int]]:
    """State, priority and destination of every delivery."""
    with store.db.read() as tx:
        return tx.rows("SELECT state, priority, destination FROM delivery ORDER BY id")


def study(store: Store, name: str = "DOE^JANE") -> int:
    return int(put(store, made.ct(patient_name=name)).study_id)


# -- the queue


def test_the_queue_says_what_each_destination_waits_for(store: Store, viewer: Person):
    central = add_destination(store)
    add_destination(store, "Cardiology")
    study(store)
    destinations.set_link(store.db, central, LinkState.DOWN, "no answer within 5 s")
    page = viewer.get("/queue").text
    assert Looked(page).inline == []
    assert "Doe, Jane" in page
    for words in ("Central PACS", "Cardiology", "1 instance of 1 study", "no answer within 5 s"):
        assert words in page, words
    assert "its rate is not known" in page
    assert 'type="checkbox"' not in page
    assert "Hold all" not in page


def test_the_queue_is_narrowed_by_destination_and_state(store: Store, viewer: Person):
    central, cardio = add_destination(store), add_destination(store, "Cardiology")
    study(store, "FIRST^ONE")
    study(store, "SECOND^ONE")
    change(store, "UPDATE delivery SET state = 'held' WHERE study = 1 AND destination = ?", central)
    change(store, "UPDATE delivery SET state = 'sent' WHERE destination = ?", cardio)

    def names(query: str) -> list[str]:
        rows = viewer.client.get(f"/queue/rows?{query}").text
        return re.findall(r"<bdi>(\w+), One</bdi>", rows)

    assert names("") == ["First", "Second"]
    assert names("state=held") == ["First"]
    assert names(f"to={central}") == ["First", "Second"]
    assert names(f"to={cardio}") == []
    assert names(f"to={cardio}&state=sent") == ["First", "Second"]
    assert names("after=1") == ["Second"]
    for wrong in ("state=burnt", "to=x", "after=-1", "to=99999999999999999"):
        assert viewer.get(f"/queue?{wrong}").status_code == 400, wrong
    assert "Nothing here" in viewer.get(f"/queue?to={cardio}&state=failed").text


def test_a_long_queue_comes_in_pages(store: Store, viewer: Person):
    add_destination(store)
    for number in range(30):
        study(store, f"N{number}^X")
    first = viewer.get("/queue").text
    assert first.count("/deliveries") == 25
    following = re.search(r'rel="next" href="([^"]+)"', first)[1]
    second = viewer.get(following.replace("&amp;", "&")).text
    assert second.count("/deliveries") == 5
    assert "From the start" in second
    assert 'rel="next"' not in second


@pytest.mark.parametrize(
    ("act", "before", "after"),
    [
        ("hold", D.QUEUED, D.HELD),
        ("release", D.HELD, D.QUEUED),
        ("retry", D.FAILED, D.QUEUED),
        ("cancel", D.QUEUED, D.CANCELLED),
    ],
)
def test_acts_on_what_is_ticked(store: Store, technologist: Person, act: str, before: D, after: D):
    central = add_destination(store)
    chosen, other = study(store), study(store)
    change(
        store,
        "UPDATE delivery SET state = ?1, hold_reason = iif(?1 = 'held', 'person', '')",
        before,
    )
    answer = technologist.post("/queue/chosen", {"act": act, "way": f"{chosen}-{central}"})
    assert answer.status_code == 303
    assert [row[0] for row in states(store)] == [after, before]
    assert chosen != other
    page = technologist.get("/queue").text
    assert re.search(r'class="notice told"[^>]*>1 ', page)
    assert "told" not in technologist.get("/queue").text, "said once"


def test_several_ways_and_single_deliveries_at_once(store: Store, technologist: Person):
    central = add_destination(store)
    for _ in range(3):
        study(store)
    ticked = {"act": "hold", "way": [f"1-{central}"], "delivery": ["2"], "back": "2"}
    answer = technologist.post("/queue/chosen", ticked)
    assert answer.headers["Location"] == "/studies/2/deliveries"
    assert [row[0] for row in states(store)] == ["held", "held", "queued"]
    assert "2 held." in technologist.get("/studies/2/deliveries").text


def test_what_stays_as_it_is_is_said_with_the_reason(store: Store, technologist: Person):
    central = add_destination(store)
    study(store)
    change(store, "UPDATE delivery SET state = 'committed'")
    technologist.post("/queue/chosen", {"act": "cancel", "way": f"1-{central}"})
    page = technologist.get("/queue").text
    assert "0 cancelled. 1 stay as they are: it is committed (1)." in page


def test_a_study_goes_first(store: Store, technologist: Person):
    central = add_destination(store)
    study(store)
    technologist.post("/queue/chosen", {"act": "stat", "way": f"1-{central}"})
    assert states(store) == [("queued", deliveries.STAT, central)]


def test_priority_and_re_routing_are_the_administrators(
    store: Store, technologist: Person, admin: Person
):
    central = add_destination(store)
    study(store)
    second = add_destination(store, "Second")
    ticked = {"way": f"1-{central}", "priority": "-7", "to": str(second)}
    for act in ("priority", "reroute"):
        assert technologist.post("/queue/chosen", {"act": act, **ticked}).status_code == 403
    assert states(store) == [("queued", 0, central)]
    assert admin.post("/queue/chosen", {"act": "priority", **ticked}).status_code == 303
    assert states(store) == [("queued", -7, central)]
    assert admin.post("/queue/chosen", {"act": "reroute", **ticked}).status_code == 303
    assert states(store) == [("superseded", -7, central), ("queued", -7, second)]
    assert 'value="reroute"' not in technologist.get("/queue").text
    assert 'value="reroute"' in admin.get("/queue").text


def test_senseless_choices_are_refused(store: Store, admin: Person):
    central = add_destination(store)
    study(store)
    way = f"1-{central}"
    for wrong in (
        {"act": "hold"},
        {"act": "hold", "way": "1"},
        {"act": "hold", "way": "-"},
        {"act": "hold", "way": "1-"},
        {"act": "hold", "way": "x-1"},
        {"act": "hold", "delivery": "x"},
        {"act": "burn", "way": way},
        {"act": "priority", "way": way, "priority": "soon"},
        {"act": "priority", "way": way, "priority": "9999"},
        {"act": "reroute", "way": way},
    ):
        assert admin.post("/queue/chosen", wrong).status_code == 400, wrong
    assert (
        admin.post("/queue/chosen", {"act": "reroute", "way": way, "to": "99"}).status_code == 404
    )
    assert states(store) == [("queued", 0, central)]


@pytest.mark.parametrize("act", ["hold", "release", "retry", "cancel", "stat", "priority"])
def test_who_only_looks_changes_nothing(store: Store, viewer: Person, act: str):
    central = add_destination(store)
    study(store)
    ticked = {"act": act, "way": f"1-{central}", "priority": "1"}
    assert viewer.post("/queue/chosen", ticked).status_code == 403
    assert viewer.post("/queue", {"act": act, "study": "1"}).status_code == 403
    assert states(store) == [("queued", 0, central)]


def test_acts_need_the_token_of_the_form(store: Store, admin: Person):
    central = add_destination(store)
    study(store)
    values = {"csrf": "x", "act": "hold", "way": f"1-{central}"}
    assert admin.client.post("/queue/chosen", data=values).status_code == 403
    assert states(store) == [("queued", 0, central)]


def test_the_queue_is_polled_for_lines_as_well(store: Store, viewer: Person):
    central = add_destination(store)
    etag = viewer.client.get("/queue/rows").headers["ETag"]
    assert viewer.client.get("/queue/rows", headers={"If-None-Match": etag}).status_code == 304
    destinations.set_link(store.db, central, LinkState.DOWN, "gone")
    assert viewer.client.get("/queue/rows", headers={"If-None-Match": etag}).status_code == 200


def test_the_queue_page_with_a_hundred_thousand_queued_is_quick(store: Store, viewer: Person):
    """At most 300 ms, in processor time: the best of three, since others share the machine."""
    central = add_destination(store)
    study(store)
    _multiply(store, studies_of=200, each=500, destination=central)
    with store.db.read() as tx:
        assert tx.number("SELECT COUNT(*) FROM delivery WHERE state = 'queued'") > 100_000
    times = []
    for _ in range(3):
        began = time.process_time()
        page = viewer.get("/queue")
        times.append(time.process_time() - began)
        assert page.status_code == 200
    assert "100,001 instances of 201 studies" in page.text
    assert min(times) < 0.3, times


def _multiply(store: Store, *, studies_of: int, each: int, destination: int) -> None:
    """Rows alone: as many studies of as many instances as the first, all queued."""

    def copies(tx: Transaction, table: str, first: int, count: int, **columns: str) -> None:
        names = [row[1] for row in tx.rows(f"PRAGMA table_info({table})")]
        values = ", ".join(columns.get(name, f'"{name}"') for name in names)
        listed = ", ".join(f'"{name}"' for name in names)
        tx.run(
            "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i <= ?2) "
            f"INSERT INTO {table} ({listed}) SELECT {values} FROM {table}, n WHERE id = ?1",
            first,
            count,
        )

    with store.db.write() as tx:
        copies(tx, "study", 1, studies_of, id="i", study_instance_uid="'9.' || i")
        copies(tx, "series", 1, studies_of, id="i", study="i", series_instance_uid="'9.' || i")
        place = f"2 + (i - 2) / {each}"
        copies(
            tx,
            "instance",
            1,
            studies_of * each,
            id="i",
            study=place,
            series=place,
            sop_instance_uid="'9.' || i",
            object_id="CAST('o' || i AS BLOB)",
        )
        tx.run(
            "INSERT INTO delivery (kind, subject, study, destination, state, created_ms, "
            "changed_ms) SELECT 'instance', id, study, ?, 'queued', 0, 0 FROM instance "
            "WHERE id > 1",
            destination,
        )


# -- the ledger


def test_a_study_shows_when_it_went_how_far(store: Store, viewer: Person):
    central = add_destination(store)
    number = study(store)
    page = viewer.get(f"/studies/{number}/panel").text
    for words in ("Received", "Verified", "Queued", "Sent", "Proved", "0 of 1"):
        assert words in page, words
    (one,) = claims.claim(store.db, central, 1)
    claims.finish(store.db, one.id, D.SENT, result="stored")
    change(store, "UPDATE delivery SET state = 'committed', proof = 'committed', proved_ms = 1")
    page = viewer.get(f"/studies/{number}/panel").text
    assert page.count("step-done") == 4
    assert "0 of 1" not in page
    page = viewer.get(f"/studies/{number}/deliveries").text
    assert Looked(page).inline == []
    assert "committed by the destination" in page
    assert 'type="checkbox"' not in page


def test_a_study_nobody_sends_says_so(store: Store, viewer: Person):
    number = study(store)
    assert "Nothing is sent" in viewer.get(f"/studies/{number}/deliveries").text
    assert viewer.get("/studies/99/deliveries").status_code == 404
    assert viewer.get(f"/studies/{number}/deliveries?after=x").status_code == 400


def test_the_deliveries_of_a_study_come_in_pages(store: Store, technologist: Person):
    add_destination(store)
    stack = {"StudyInstanceUID": made.new_uid(), "SeriesInstanceUID": made.new_uid()}
    for number in range(101):
        put_changed(store, "CT_small.dcm", InstanceNumber=number, **stack)
    page = technologist.get("/studies/1/deliveries").text
    assert page.count('name="delivery"') == 100
    assert "after=100" in page
    assert technologist.get("/studies/1/deliveries?after=100").text.count('name="delivery"') == 1


def test_every_attempt_of_a_delivery_with_words(store: Store, viewer: Person):
    central = add_destination(store)
    study(store)
    for words in ("connection refused <x>", "A700: it is out of resources"):
        (one,) = claims.claim(store.db, central, 1)
        claims.finish(store.db, one.id, D.QUEUED, result=words)
    claims.claim(store.db, central, 1)
    page = viewer.get("/deliveries/1").text
    assert Looked(page).inline == []
    assert "connection refused &lt;x&gt;" in page
    assert page.index("under way") < page.index("A700") < page.rindex("connection refused")
    assert "Instance 1 to Central PACS" in page or "to Central PACS" in page
    assert viewer.get("/deliveries/99").status_code == 404


# -- destinations


def test_a_destination_shows_its_line_and_its_proofs(store: Store, admin: Person):
    number = add_destination(store)
    study(store)
    destinations.set_link(store.db, number, LinkState.DOWN, "no answer within 5 s")
    usage.set_round_trip(store.db, number, 715)
    with store.db.write() as tx:
        destinations.change(tx, "Central PACS", {"daily_mib": "10"}, actor="test")
    page = admin.get(f"/system/destinations/{number}").text
    assert Looked(page).inline == []
    for words in (
        "no answer within 5 s",
        "round trip 715 ms",
        "not known yet",
        "10.5 MB",
        "Queued",
    ):
        assert words in page, words
    assert admin.get("/system/destinations/99").status_code == 404
    assert f"/system/destinations/{number}" in admin.get("/system").text


def test_every_setting_of_a_destination_has_a_field(store: Store, admin: Person):
    number = add_destination(store)
    page = admin.get(f"/system/destinations/{number}").text
    for name in (*destinations.SETTINGS, "lossy"):
        assert re.search(rf'<(input|select|textarea)[^>]* name="{name}"', page), name


def test_settings_are_changed_and_checked(store: Store, admin: Person):
    number = add_destination(store)
    url = f"/system/destinations/{number}"
    good = {"kbits": "384", "hours": "22:00-06:00", "proof": "found", "lossy": "80"}
    assert admin.post(url, good).status_code == 303
    one = destinations.named(store.db, "Central PACS")
    assert (one.kbits, one.hours, one.proof, one.lossy) == (384, "22:00-06:00", "found", 80)
    assert one.port == 11199, "what the form does not say stays"
    for wrong in ({"kbits": "-1"}, {"hours": "noon"}, {"proof": "none"}, {"lossy": "x"}):
        assert admin.post(url, wrong).status_code == 400, wrong
    assert destinations.named(store.db, "Central PACS") == one
    last = audit.of_subject(store.db, "destination", number)
    assert any("kbits=384" in row.detail for row in last)


def test_secrets_are_written_and_never_shown(store: Store, admin: Person):
    number = add_destination(store)
    url = f"/system/destinations/{number}"
    key = "-----BEGIN PRIVATE KEY-----\nQUJD\n-----END PRIVATE KEY-----"
    said = {"token": "t0ken-of-mine", "passcode": "p4ss", "private_key": key.replace("\n", "\r\n")}
    assert admin.post(url, said).status_code == 303
    one = destinations.named(store.db, "Central PACS")
    assert (one.token, one.passcode, one.private_key) == ("t0ken-of-mine", "p4ss", key)
    page = admin.get(url).text
    for secret in ("t0ken-of-mine", "p4ss", "QUJD"):
        assert secret not in page
    assert page.count('name="forget"') == 3
    assert admin.post(url, {"token": "", "passcode": "", "private_key": ""}).status_code == 303
    assert destinations.named(store.db, "Central PACS") == one, "empty leaves them"
    assert admin.post(url, {"forget": ["token", "passcode"]}).status_code == 303
    one = destinations.named(store.db, "Central PACS")
    assert (one.token, one.passcode, one.private_key) == ("", "", key)
    assert admin.post(url, {"forget": "host"}).status_code == 400


# -- rules


def test_a_rule_is_tried_without_doing_anything(store: Store, admin: Person):
    add_destination(store)
    change(store, "DELETE FROM rule")
    study(store, "FIRST^ONE")
    before = rules.all_rules(store.db)
    page = admin.post("/system/rules/try", {"to": "*", "match": "modality=CT", "hold": "1"})
    assert page.status_code == 200
    assert Looked(page.text).inline == []
    assert "First, One" in page.text
    assert 'value="modality=CT"' in page.text
    assert re.search(r">1</span><span[^>]*>Would be held", page.text)
    none = admin.post("/system/rules/try", {"to": "*", "match": "modality=US"}).text
    assert "First, One" not in none
    assert rules.all_rules(store.db) == before
    assert states(store) == []
    for wrong in ({"match": "modality"}, {"match": "", "priority": "x"}, {"patience": "x"}):
        assert admin.post("/system/rules/try", wrong).status_code == 400, wrong
    assert admin.post("/system/rules/try", {"to": "Nowhere"}).status_code == 404


def test_a_rule_with_all_it_may_say(store: Store, admin: Person):
    add_destination(store)
    add_destination(store, "Second")
    said = {
        "to": "Central PACS",
        "then": ["Second", ""],
        "match": "modality=US",
        "hold": "1",
        "priority": "5",
        "send_as": "native",
        "patience": "30",
    }
    assert admin.post("/system/rules", said).status_code == 303
    rule = rules.all_rules(store.db)[-1]
    assert (rule.destination_name, rule.then, rule.hold) == ("Central PACS", ("Second",), 1)
    assert (rule.priority, rule.send_as, rule.patience_s) == (5, "native", 1800)
    page = admin.get("/system").text
    assert "then Second, after 30 min" in page
    assert "priority 5, native" in page
    assert admin.post("/system/rules", said | {"then": "Central PACS"}).status_code == 400
    assert admin.post("/system/rules/remove", {"rule": str(rule.id)}).status_code == 303


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("/system/destinations/1", {"kbits": "1"}),
        ("/system/rules", {"match": ""}),
        ("/system/rules/try", {"match": ""}),
        ("/system/rules/remove", {"rule": "1"}),
    ],
)
def test_settings_and_rules_are_the_administrators(
    store: Store, viewer: Person, technologist: Person, path: str, values: dict[str, object]
):
    add_destination(store)
    before = (destinations.every(store.db), rules.all_rules(store.db))
    for who in (viewer, technologist):
        assert who.post(path, values).status_code == 403
        assert who.get("/system/destinations/1").status_code == 403
    assert (destinations.every(store.db), rules.all_rules(store.db)) == before


# -- room


def _full(store: Store, alarm: Callable[[Survey], Survey] = lambda found: found) -> None:
    found = Survey(
        measured_ms=wall_ms(),
        evictable=5_000_000,
        blocked={Kept.UNPROVED: 7_000_000, Kept.HELD: 1000},
        daily=10**15,
    )
    with store.db.write() as tx:
        room.note(tx, alarm(found), "")


def test_room_says_what_may_go_and_why_the_rest_stays(store: Store, admin: Person):
    page = admin.get("/system").text
    assert "free of" in page
    assert "May go" not in page, "no survey yet"
    _full(store)
    page = admin.get("/system").text
    for words in ("May go", "5.0 MB", "7.0 MB: not proved to have arrived", "1.0 kB: held"):
        assert words in page, words


def test_everybody_sees_the_alarm(store: Store, viewer: Person, admin: Person):
    assert "alarm" not in viewer.get("/studies").text
    _full(store)
    words = "The disk will be full in less than 7 days."
    for path in ("/studies", "/queue"):
        assert words in viewer.get(path).text
        assert "Tell an administrator" in viewer.get(path).text
        assert "/system#room" in admin.get(path).text


def test_an_evicted_study_says_so_wherever_it_is_shown(store: Store, technologist: Person):
    add_destination(store)
    number = study(store)
    change(store, "UPDATE delivery SET state = 'committed', proof = 'committed'")
    assert evictions.evict(store, StudyId(number), keep_ms=0, actor="test") > 0
    assert studies.study(store.db, StudyId(number)).evicted_count == 1
    assert "1 evicted" in technologist.get("/studies").text
    page = technologist.get(f"/studies/{number}")
    assert page.status_code == 200
    assert "deleted here to make room" in page.text
    for path, status in (
        ("frames/0", 410),
        ("attributes", 410),
        ("file", 410),
        ("display.json", 200),
    ):
        answer = technologist.get(f"/instances/1/{path}")
        assert answer.status_code == status, path
        assert "has arrived at its destinations" in answer.text, path
    assert "Evicted" in technologist.get("/deliveries/1").text
    assert technologist.post(f"/studies/{number}/send", {"destination": "1"}).status_code == 410
    (row,) = ledger.of_study(store.db, StudyId(number))
    assert row.state is D.COMMITTED
