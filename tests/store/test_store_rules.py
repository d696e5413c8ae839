import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom._uid_dict import UID_dictionary
from store.making import add_destination

from edgepacs.dimse.contexts import STORAGE_SOP_CLASSES
from edgepacs.errors import InvalidValue, NotFound
from edgepacs.store import Store, audit, destinations, rules
from edgepacs.store.rules import FIELDS, compile_match

US = {"modality": "US", "station": "ROOM 1", "description": "Cardiac, follow-up", "laterality": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("   ", True),
        ("modality=US", True),
        ("modality=us", True),
        ("modality=CT", False),
        ("modality=CT,US", True),
        ("modality=U*", True),
        ("modality=?S", True),
        ("modality=[TU]S", True),
        ("modality=U", False),
        ('station="ROOM 1"', True),
        ('station="room *"', True),
        ('description="*c, f*"', True),
        ('description="knee, x","Cardiac, follow-up"', True),
        ("laterality=", True),
        ("body_part=", True),
        ("body_part=*", True),
        ("modality=US and station=ROOM*", True),
        ("modality=US station=NONE*", False),
        ("modality=CT or station=ROOM*", True),
        ("not modality=CT", True),
        ("not not modality=US", True),
        ("not modality=US or modality=US", True),  # not binds tightest
        ("modality=CT and modality=CT or modality=US", True),  # and before or
        ("modality=US or modality=CT and modality=CT", True),
        ("(modality=US or modality=CT) and modality=CT", False),
        ("not (modality=US or modality=CT)", False),
        ("modality=CT or (station=ROOM* and not description=knee*)", True),
        ("MODALITY=US", None),
        ("modality", None),
        ("modality US", None),
        ("shoe_size=9", None),
        ("(modality=US", None),
        ("modality=US)", None),
        ("()", None),
        ("and modality=US", None),
        ("modality=US and", None),
        ("modality=US or", None),
        ("not", None),
        ('station="ROOM 1', None),
        ("=US", None),
        ("; DROP TABLE rule", None),
    ],
)
def test_the_language(text: str, *, expected: bool | None) -> None:
    if expected is None:
        with pytest.raises(InvalidValue, match=r"^rule: "):
            compile_match(text)
    else:
        assert compile_match(text)(US) is expected


_term = st.builds(
    lambda name, values: f"{name}={','.join(values)}",
    st.sampled_from(["modality", "station"]),
    st.lists(st.sampled_from(["US", "CT", "R*"]), min_size=1, max_size=3),
)
_tree = st.recursive(
    _term,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(inner, st.sampled_from(["and", "or"]), inner),
    ),
    max_leaves=8,
)


def _written(tree: object) -> str:
    if isinstance(tree, str):
        return tree
    assert isinstance(tree, tuple)
    if len(tree) == 2:
        return f"not ({_written(tree[1])})"
    return f"({_written(tree[0])} {tree[1]} {_written(tree[2])})"


def _meant(tree: object, facts: dict[str, str]) -> bool:
    if isinstance(tree, str):
        name, _, values = tree.partition("=")
        return any(
            facts[name].startswith("R") if value == "R*" else facts[name] == value
            for value in values.split(",")
        )
    assert isinstance(tree, tuple)
    if len(tree) == 2:
        return not _meant(tree[1], facts)
    left, right = _meant(tree[0], facts), _meant(tree[2], facts)
    return (left and right) if tree[1] == "and" else (left or right)


@settings(max_examples=150)
@given(
    tree=_tree,
    facts=st.fixed_dictionaries(
        {name: st.sampled_from(["US", "CT", "ROOM", ""]) for name in ("modality", "station")}
    ),
)
def test_a_rule_means_what_its_tree_means(tree: object, facts: dict[str, str]) -> None:
    assert compile_match(_written(tree))(facts) is _meant(tree, facts)


@settings(max_examples=200)
@given(
    st.one_of(
        st.text(max_size=60),
        st.text('()"=,* notandrmodliy', max_size=80),
        st.lists(
            st.sampled_from(["(", ")", "not", "and", "or", "modality=US", '"', "=", "a=b"])
        ).map(" ".join),
    )
)
def test_any_text_is_a_rule_or_said_to_be_none(text: str) -> None:
    try:
        answer: object = compile_match(text)(US)
    except InvalidValue as error:
        answer = error.field == "rule"
    assert isinstance(answer, bool)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 400 + "modality=US" + ")" * 400,
        " or ".join(["modality=US"] * 2000),
        "not " * 5000 + "modality=US",
        "modality=" + "*a" * 4000,
    ],
)
def test_a_rule_too_large_to_be_followed_is_refused_when_it_is_made(text: str) -> None:
    with pytest.raises(InvalidValue, match="rule"):
        compile_match(text)


def test_the_largest_rules_can_be_followed() -> None:
    for text in (
        "not " * 240 + "modality=US",
        "(" * 50 + "modality=US" + ")" * 50,
        " or ".join(["origin=x"] * 80),
    ):
        assert isinstance(compile_match(text)(US), bool)


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("sop_class=CTImageStorage", "1.2.840.10008.5.1.4.1.1.2", True),
        ('sop_class="CT Image Storage"', "1.2.840.10008.5.1.4.1.1.2", True),
        ("sop_class=ctimagestorage,MRImageStorage", "1.2.840.10008.5.1.4.1.1.4", True),
        ("sop_class=*Waveform*", "1.2.840.10008.5.1.4.1.1.9.1.1", True),
        ("sop_class=*Waveform*", "1.2.840.10008.5.1.4.1.1.2", False),
        ("sop_class=1.2.840.10008.5.1.4.1.1.2*", "1.2.840.10008.5.1.4.1.1.2.1", True),
        ("sop_class=[0-9]*", "1.2.3", True),
        ("sop_class=", "", True),
        ("time=00:00-00:00", "12:00", True),
        ("time=23:00-01:00", "00:30", True),
        ("time=23:00-01:00", "01:00", False),
        ("time=08:00-09:00,10:00-11:00", "10:59", True),
        ("time=08:00-09:00", "", False),
        ("day=s*", "sun", True),
        ("day=mon,tue", "wed", False),
        ("not state=verified", "received", True),
        ("state=VERIFIED", "verified", True),
        ("worklist=*matched", "unmatched", True),
    ],
)
def test_terms_of_their_own_kind(text: str, value: str, *, expected: bool) -> None:
    name = text.removeprefix("not ").partition("=")[0]
    assert compile_match(text)({name: value}) is expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sop_class=CTImageStorages", "names no storage SOP class"),
        ("time=25:00-26:00", "22:00-06:00"),
        ("time=8:00-9:00", "22:00-06:00"),
        ("time=*", "22:00-06:00"),
        ("day=monday", "mon, tue"),
        ("state=done", "received, verified"),
        ("worklist=yes", "matched, mismatched, kept, unmatched, none"),
    ],
)
def test_a_term_that_can_never_match_is_refused_with_what_could(text: str, words: str) -> None:
    with pytest.raises(InvalidValue, match=r"^rule: ") as refused:
        compile_match(text)
    assert words in str(refused.value)


def test_the_names_of_sop_classes_are_those_of_the_registry() -> None:
    assert dict(rules.sop_classes()) == {uid: UID_dictionary[uid][4] for uid in STORAGE_SOP_CLASSES}


def test_a_rule_has_destinations_in_order(store: Store) -> None:
    for name in ("a", "b", "c"):
        add_destination(store, name, name.upper())
    with store.db.write() as tx:
        number = rules.add(
            tx,
            to=("c", "a", "b"),
            match="",
            hold=False,
            priority=-5,
            actor="eve",
            send_as="lossy:80",
            patience_s=60,
        )
    one = rules.numbered(store.db, number)
    assert (one.destination_name, one.then, one.send_as, one.patience_s) == (
        "c",
        ("a", "b"),
        "lossy:80",
        60,
    )
    with store.db.write() as tx:
        destinations.remove(tx, "c", actor="eve")
    one = rules.numbered(store.db, number)
    assert (one.destination_name, one.then) == ("a", ("b",))
    with store.db.write() as tx:
        destinations.remove(tx, "a", actor="eve")
        destinations.remove(tx, "b", actor="eve")
    with pytest.raises(NotFound, match=f"rule {number}"):
        rules.numbered(store.db, number)
    assert [one.destination for one in rules.all_rules(store.db)] == [None]
    with store.db.write() as tx:
        assert rules.add(tx, to="*", match="", hold=False, priority=0, actor="x") > number


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"to": ("a", "*")}, "destination: [*] stands"),
        ({"to": ("*", "a")}, "destination: [*] stands"),
        ({"to": ("a", "a")}, "destination: named twice"),
        ({"to": ()}, "destination: none is named"),
        ({"to": ("a",) * 9}, "destination: more than 8"),
        ({"send_as": "lossy"}, "send_as: not lossless"),
        ({"send_as": "lossy:0"}, "send_as: not lossless"),
        ({"send_as": "lossy:101"}, "send_as: not lossless"),
        ({"send_as": "jpeg"}, "send_as: not lossless"),
        ({"priority": 1001}, "priority: not between -1000 and 1000"),
        ({"patience_s": -1}, "patience: not between 0"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(
    store: Store, wanted: dict[str, object], words: str
) -> None:
    add_destination(store, "a", "A")
    values = {"to": "a", "match": "", "hold": False, "priority": 0, "actor": "eve", **wanted}
    with pytest.raises(InvalidValue, match=words), store.db.write() as tx:
        rules.add(tx, **values)  # type: ignore[arg-type]
    assert len(rules.all_rules(store.db)) == 1


def test_rules_are_kept_and_removed(store: Store) -> None:
    with store.db.write() as tx:
        number = rules.add(tx, to="*", match="modality=US", hold=True, priority=4, actor="eve")
        with pytest.raises(InvalidValue):
            rules.add(tx, to="*", match="modality", hold=False, priority=0, actor="eve")
        with pytest.raises(NotFound, match="destination"):
            rules.add(tx, to="nowhere", match="", hold=False, priority=0, actor="eve")
    first, second = rules.all_rules(store.db)
    assert (first.match, first.destination) == ("", None)
    assert (second.id, second.match, second.hold, second.priority) == (number, "modality=US", 1, 4)
    with store.db.write() as tx:
        rules.remove(tx, number, actor="eve")
        with pytest.raises(NotFound):
            rules.remove(tx, number, actor="eve")
    assert len(rules.all_rules(store.db)) == 1
    assert [r.act for r in audit.of_subject(store.db, "rule", number)] == [
        "rule added",
        "rule removed",
    ]


_VALUES = {
    "sop_class": ("CTImageStorage", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"),
    "day": ("sat", "sat", "sun"),
    "time": ("22:00-06:00", "23:59", "06:00"),
    "state": ("verified", "verified", "received"),
    "worklist": ("none", "none", "matched"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_can_be_asked_for(name: str) -> None:
    asked, yes, no = _VALUES.get(name, ("x", "X", "y"))
    matcher = compile_match(f"{name}={asked}")
    assert matcher({name: yes})
    assert not matcher({name: no})
    assert matcher.fields == {name}
