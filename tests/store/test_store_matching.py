"""Attribute matching against an oracle written from PS3.4 C.2.2.2 alone, in memory and in SQL."""

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store.oracle import EMPTY, day, fits, groups_of, microsecond, name_matches

from edgepacs.errors import InvalidValue
from edgepacs.store.matching import Criterion, combined, criterion, folded_name

# Letters that differ in case, accent, script and encoding, the wild cards, and what SQL, GLOB and
# JSON would take for something else.
LETTERS = "aAbBéÉñßяЯйИ山田やヤがか홍호ｱ"
SIGNS = "[]^-\"'%_{}$,:.!@#()/"
TEXT = st.text(st.sampled_from(LETTERS + SIGNS + " 0123"), max_size=6)
KEY = st.text(st.sampled_from("aAbBé山[]\"'%_ 01*?"), min_size=1, max_size=5)
SETTINGS = settings(max_examples=400, deadline=None)

connection = apsw.Connection(":memory:")


def in_sql(sql: str, bound: tuple[str, ...], *columns: str) -> bool:
    names = ("x", "y")[: len(columns)]
    row = ", ".join(f"? AS {name}" for name in names)
    found = list(connection.execute(f"SELECT {sql} FROM (SELECT {row})", (*bound, *columns)))
    return bool(found[0][0])


def agree(one: Criterion | None, value: str, *, wanted: bool, name: bool = False) -> None:
    """In memory, and in SQL of a column of one value and of one of several."""
    assert (one is None or one.admits(value)) is wanted
    if one is None:
        return
    column = folded_name(value) if name else value
    if "\\" not in value:
        assert in_sql(*one.clause("x"), column) is wanted
    if not name:
        assert in_sql(*one.clause_of_any("x"), value) is wanted


# --- the proof -------------------------------------------------------------------------------


@SETTINGS
@given(st.sampled_from(["AE", "CS", "LO", "SH", "UC"]), KEY, st.lists(TEXT, max_size=3))
def test_text_and_wild_cards(vr: str, key: str, several: list[str]) -> None:
    value = "\\".join(one.strip() for one in several)
    values = [one.strip() for one in several] or [""]
    bare = key.strip()
    wanted = not bare.strip("*") or any(fits(bare, one) for one in values)
    if bare == EMPTY:
        wanted = not value
    agree(criterion(vr, key), value, wanted=wanted)


@SETTINGS
@given(st.lists(KEY, min_size=2, max_size=3), st.lists(TEXT, max_size=3))
def test_several_values_match_where_any_does(keys: list[str], several: list[str]) -> None:
    value = "\\".join(one.strip() for one in several)
    values = [one.strip() for one in several] or [""]
    bare = [one.strip() for one in keys if one.strip()]
    wanted = not bare or any(
        not one.strip("*") or fits(one, value) for one in bare for value in values
    )
    agree(criterion("LO", "\\".join(keys)), value, wanted=wanted)


@SETTINGS
@given(st.sampled_from(["LT", "ST", "UT"]), KEY, TEXT, TEXT)
def test_a_backslash_in_long_text_is_text(vr: str, key: str, one: str, other: str) -> None:
    """PS3.5 6.4."""
    value = f"{one}\\{other}".strip()
    bare = f"{key}\\{other}".strip()
    agree(criterion(vr, bare), value, wanted=fits(bare, value))


@SETTINGS
@given(st.sampled_from(["IS", "DS", "AS"]), st.sampled_from(["1", "12", "1?", "0*1"]), TEXT)
def test_numbers_have_no_wild_cards(vr: str, key: str, value: str) -> None:
    agree(criterion(vr, key), value.strip(), wanted=key == value.strip())


@SETTINGS
@given(
    st.lists(st.sampled_from(["1.2", "1.2.3", "1.20", ""]), max_size=4),
    st.sampled_from(["1.2", "1.2.3", "1", ""]),
)
def test_lists_of_uids(wanted: list[str], value: str) -> None:
    """PS3.4 C.2.2.2.2."""
    listed = [one for one in wanted if one]
    agree(criterion("UI", "\\".join(wanted)), value, wanted=not listed or value in listed)


NAMES = st.lists(
    st.lists(st.text(st.sampled_from(LETTERS + "[\"' "), max_size=4), max_size=3).map("^".join),
    max_size=3,
).map("=".join)
NAME_KEYS = st.lists(
    st.text(st.sampled_from('aAéÉßяЙ山やヤが홍^^**?["'), max_size=5), min_size=1, max_size=3
).map("=".join)


@SETTINGS
@given(NAME_KEYS, NAMES)
def test_names(key: str, name: str) -> None:
    value = name.strip()
    wanted = name_matches(key, value) if key.strip() != EMPTY else not value
    agree(criterion("PN", key), value, wanted=wanted, name=True)


@SETTINGS
@given(NAMES, st.data())
def test_a_name_is_found_by_any_of_its_groups(name: str, data: st.DataObject) -> None:
    """However it is written, and by what it begins with."""
    groups = [one for one in groups_of(name.strip()) if one.strip("^* ")]
    if not groups:
        return
    group = data.draw(st.sampled_from(groups))
    begun = group[: data.draw(st.integers(1, len(group)))]
    for key in (group, group.upper(), begun + "*", "*" + group[-1] + "*"):
        if key == EMPTY:
            continue
        found = criterion("PN", key)
        agree(found, name.strip(), wanted=name_matches(key, name.strip()), name=True)
        if len(key.upper()) == len(key):
            assert found is None or found.admits(name.strip())


DAYS = st.one_of(
    st.dates().map(lambda one: one.strftime("%Y%m%d").zfill(8)),
    st.dates().map(lambda one: f"{one.year:04}.{one.month:02}.{one.day:02}"),
    st.sampled_from(["", "2020", "202001", "x", "20200101x", "2020010", "20200101"]),
)
VALID_DAYS = st.dates().map(lambda one: f"{one.year:04}{one.month:02}{one.day:02}")
TIMES = st.one_of(
    st.times().map(lambda one: one.strftime("%H%M%S.%f")),
    st.times().map(lambda one: one.strftime("%H:%M:%S")),
    st.times().map(lambda one: one.strftime("%H%M")),
    st.sampled_from(
        ["", "10", "1", "10304", "103000.", "103000.1234567", "103000.5", "noon", "2230"]
    ),
)
VALID_TIMES = st.sampled_from(
    ["00", "10", "1030", "103000", "103000.5", "10:30", "223000", "2230", "235959.999999"]
)


@SETTINGS
@given(st.sampled_from(["DA", "TM"]), st.data())
def test_dates_and_times_and_their_ranges(vr: str, data: st.DataObject) -> None:
    """PS3.4 C.2.2.2.1, C.2.2.2.5."""
    ends, values, meant = (
        (VALID_DAYS, DAYS, day) if vr == "DA" else (VALID_TIMES, TIMES, microsecond)
    )
    value, first, last = data.draw(values), data.draw(ends), data.draw(ends)
    low, high, there = meant(first), meant(last), meant(value)
    assert low is not None
    assert high is not None
    known = there is not None
    agree(criterion(vr, first), value, wanted=known and there == low)
    agree(criterion(vr, f"{first}-"), value, wanted=known and low <= there)
    agree(criterion(vr, f" - {last} "), value, wanted=known and there <= high)
    if low > high:
        with pytest.raises(InvalidValue, match="before it begins"):
            criterion(vr, f"{first}-{last}")
    else:
        agree(criterion(vr, f"{first}-{last}"), value, wanted=known and low <= there <= high)


@SETTINGS
@given(VALID_DAYS, VALID_DAYS, VALID_TIMES, VALID_TIMES, DAYS, TIMES)
def test_date_and_time_as_one(
    first: str, last: str, begin: str, end: str, date: str, time: str
) -> None:
    """PS3.4 C.2.2.2.5, combined datetime matching."""

    def moment(days: str, hours: str) -> tuple[int, int] | None:
        one, other = day(days), microsecond(hours)
        return None if one is None or other is None else (one, other)

    low, high, there = moment(first, begin), moment(last, end), moment(date, time)
    assert low is not None
    assert high is not None
    if low > high:
        with pytest.raises(InvalidValue):
            combined(f"{first}-{last}", f"{begin}-{end}")
        return
    for keys, wanted in (
        ((f"{first}-{last}", f"{begin}-{end}"), there is not None and low <= there <= high),
        ((f"{first}-", f"{begin}-"), there is not None and low <= there),
        ((f"-{last}", f"-{end}"), there is not None and there <= high),
    ):
        period = combined(*keys)
        assert period is not None
        assert period.admits(date, time) is wanted
        assert in_sql(*period.clause("x", "y"), date, time) is wanted


def test_what_is_not_the_same_form_of_range_is_not_one() -> None:
    assert combined("20200101", "10-11") is None
    assert combined("20200101-", "10-11") is None
    assert combined("20200101-", "-11") is None
    assert combined("20200101-20200102", "") is None


@pytest.mark.parametrize("vr", ["LO", "PN", "DA", "TM", "UI", "IS"])
@pytest.mark.parametrize("key", ["", " ", "*", "**", "\0"])
def test_nothing_asked_is_anything(vr: str, key: str) -> None:
    """PS3.4 C.2.2.2.3, C.2.2.2.4."""
    assert criterion(vr, key) is None


@pytest.mark.parametrize("vr", ["LO", "PN", "DA", "TM", "UI"])
def test_two_quotation_marks_ask_for_no_value(vr: str) -> None:
    one = criterion(vr, EMPTY)
    agree(one, "", wanted=True, name=vr == "PN")
    agree(one, "20200101", wanted=False, name=vr == "PN")


@pytest.mark.parametrize(
    ("vr", "key"),
    [
        ("DA", "2020"),
        ("DA", "202001*"),
        ("DA", "-"),
        ("DA", "20200102-20200101"),
        ("TM", "2200-0600"),  # across midnight is two ranges
        ("TM", "noon"),
        ("UI", "1.2*"),
        ("UI", "1.2x"),
        ("OB", "1"),
        ("SQ", "1"),
    ],
)
def test_what_cannot_be_matched_is_refused(vr: str, key: str) -> None:
    with pytest.raises(InvalidValue) as error:
        criterion(vr, key)
    assert key not in error.value.problem or vr in ("OB", "SQ") or key == "-"


@pytest.mark.parametrize("vr", ["PN", "LO"])
def test_a_key_of_many_wild_cards_takes_no_longer_than_another(vr: str) -> None:
    """Were every place of each tried, this would not end."""
    found = criterion(vr, "*a" * 60 + "*b?c*d")
    assert found is not None
    assert not found.admits("a" * 120 + "bbc")
    assert found.admits("a" * 120 + "bbcbxcd")


@pytest.mark.parametrize("vr", ["PN", "LO", "DA"])
def test_what_makes_a_condition_of_its_own_is_bounded(vr: str) -> None:
    one = "20200101-" if vr == "DA" else "A*"
    assert criterion(vr, "\\".join([one] * 100)) is not None
    with pytest.raises(InvalidValue, match="more than 100 values"):
        criterion(vr, "\\".join([one] * 101))


def test_an_index_serves_a_prefix_and_a_date() -> None:
    held = apsw.Connection(":memory:")
    held.execute("CREATE TABLE t (name TEXT, day TEXT)")
    held.execute("CREATE INDEX by_name ON t (name)")
    held.execute("CREATE INDEX by_day ON t (REPLACE(day, '.', ''))")
    for vr, key, column, index in (
        ("LO", "abc*", "name", "by_name"),
        ("LO", "abc", "name", "by_name"),
        ("DA", "20200101-", "day", "by_day"),
    ):
        found = criterion(vr, key)
        assert found is not None
        sql, values = found.clause(column)
        plan = list(held.execute(f"EXPLAIN QUERY PLAN SELECT 1 FROM t WHERE {sql}", values))
        assert any("SEARCH t USING" in row[3] and index in row[3] for row in plan), plan
