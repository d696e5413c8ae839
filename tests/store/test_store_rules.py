import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepacs.errors import InvalidValue, NotFound
from edgepacs.store import Store, audit, rules
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


def test_every_field_can_be_asked_for() -> None:
    for name in FIELDS:
        assert compile_match(f"{name}=x")({name: "X"})
        assert not compile_match(f"{name}=x")({name: "y"})
