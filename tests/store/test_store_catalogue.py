"""What the catalogue finds, against an oracle that looks at every instance."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store.making import opened_store
from store.population import KEPT, LEVELS, Population, populate

from edgepacs.store import Store, catalogue
from edgepacs.store.catalogue import Level
from edgepacs.store.matching import combined, criterion


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Population]]:
    folder: Path = tmp_path_factory.mktemp("catalogue")
    with opened_store(folder / "node") as store:
        yield store, populate(store)


def found(store: Store, level: str, keys: Mapping[int, str]) -> list[tuple[str, ...]]:
    """The values of the keys of all that was found."""
    criteria = {tag: criterion(KEPT[tag][0], key) for tag, key in keys.items()}
    met = {tag: one for tag, one in criteria.items() if one is not None}
    rows = catalogue.find(store.db, catalogue.Query(level=Level[level], criteria=met), 1000)
    assert len(set(rows)) == len(rows)
    return sorted(catalogue.answers(store.db, Level[level], rows, sorted(keys)))


def keys_of(level: str) -> list[int]:
    """The attributes of a level and of those above."""
    upto = LEVELS[: LEVELS.index(level) + 1]
    return [tag for tag, (_, at) in KEPT.items() if at in upto]


def asked(data: st.DataObject, vr: str, values: list[str]) -> str:
    """A key of one of the kinds of matching, near what is there."""
    value = data.draw(st.sampled_from(values))
    plain = value.replace("\\", "")
    kinds = ["", "*", value]
    if vr in ("LO", "SH", "CS", "PN") and plain:
        at = data.draw(st.integers(0, len(plain) - 1))
        kinds += [plain[:at] + "*", "*" + plain[at:], plain[:at] + "?" + plain[at + 1 :]]
        kinds += [plain.upper(), plain.split("=")[-1], "=" + plain.split("=")[-1], '""']
    if vr == "UI":
        kinds += ["\\".join(values[:3]), "1.2.3"]
    if vr == "DA":
        kinds = ["", "*", "20200101", "20200102-20210304", "-20200115", "20210304-"]
    if vr == "TM":
        kinds = ["", "1011", "10-1012", "2230-", "-093000"]
    return data.draw(st.sampled_from(kinds))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_is_found_is_what_matches(
    filled: tuple[Store, Population], data: st.DataObject
) -> None:
    store, population = filled
    level = data.draw(st.sampled_from(LEVELS))
    tags = data.draw(st.lists(st.sampled_from(keys_of(level)), unique=True, max_size=4))
    every = population.entities(level)
    keys = {tag: asked(data, KEPT[tag][0], sorted({row[tag] for row in every})) for tag in tags}
    assert found(store, level, keys) == population.expected(level, keys)


@pytest.mark.parametrize("level", LEVELS)
def test_everything_is_found_with_all_that_is_kept_of_it(
    filled: tuple[Store, Population], level: str
) -> None:
    store, population = filled
    keys = dict.fromkeys(keys_of(level), "")
    assert found(store, level, keys) == population.expected(level, keys)


def test_date_and_time_as_one(filled: tuple[Store, Population]) -> None:
    store, population = filled
    period = combined("20200101-20200115", "1030-0930")
    rows = catalogue.find(
        store.db, catalogue.Query(level=Level.STUDY, criteria={}, period=period), 1000
    )
    tags = [0x00080020, 0x00080030, 0x0020000D]
    expected = [
        tuple(row[tag] for tag in tags)
        for row in population.entities("STUDY")
        if (row[0x00080020], row[0x00080030])
        in {("20200101", "223000.5"), ("20200115", "09:30:00")}
    ]
    assert expected
    assert sorted(catalogue.answers(store.db, Level.STUDY, rows, tags)) == sorted(expected)


def test_no_more_is_found_than_wanted(filled: tuple[Store, Population]) -> None:
    store, _ = filled
    one = criterion("PN", "*^*")
    assert one is not None
    for criteria in ({}, {0x00100010: one}):
        query = catalogue.Query(level=Level.IMAGE, criteria=criteria)
        assert len(catalogue.find(store.db, query, 3)) == 3


@pytest.mark.parametrize(
    ("tag", "key", "index"),
    [
        (0x00100020, "P1", "study_of_patient_id"),
        (0x00080050, "A1", "study_accession"),
        (0x00080020, "20200101-20200102", "study_date"),
        (0x00100010, "smi*", "study_name"),
        (0x00100010, "山*", "study_names"),
        (0x0020000D, "1.2\\1.3", "study_instance_uid"),
    ],
)
def test_an_index_serves_what_is_often_asked(
    filled: tuple[Store, Population], tag: int, key: str, index: str
) -> None:
    store, _ = filled
    one = criterion(KEPT[tag][0], key)
    assert one is not None
    sql, values = catalogue.statement(catalogue.Query(level=Level.STUDY, criteria={tag: one}), 10)
    with store.db.read() as tx:
        plan = [str(row[3]) for row in tx.rows(f"EXPLAIN QUERY PLAN {sql}", *values)]
    assert not any(line.startswith("SCAN study") for line in plan), plan
    assert any(index in line for line in plan), plan
