"""A few studies of many kinds, and what a query should find of them, said by an oracle."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from store.making import arrival, element, fresh_uid
from store.oracle import asks_for_moments, matches, moment_matches

from edgepacs.custody import ingest
from edgepacs.model import InstanceState, Origin, StudyState
from edgepacs.store import Store, instances, studies

CT, SR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.11"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
LEVELS = ("PATIENT", "STUDY", "SERIES", "IMAGE")

# VR and level of what is kept of each, and what is counted.
KEPT: Mapping[int, tuple[str, str]] = {
    0x00100010: ("PN", "PATIENT"),
    0x00100020: ("LO", "PATIENT"),
    0x00100021: ("LO", "PATIENT"),
    0x00100030: ("DA", "PATIENT"),
    0x00100040: ("CS", "PATIENT"),
    0x00201200: ("IS", "PATIENT"),
    0x00201202: ("IS", "PATIENT"),
    0x00201204: ("IS", "PATIENT"),
    0x00080020: ("DA", "STUDY"),
    0x00080030: ("TM", "STUDY"),
    0x00080050: ("SH", "STUDY"),
    0x00080080: ("LO", "STUDY"),
    0x00080090: ("PN", "STUDY"),
    0x00081030: ("LO", "STUDY"),
    0x0020000D: ("UI", "STUDY"),
    0x00200010: ("SH", "STUDY"),
    0x00080061: ("CS", "STUDY"),
    0x00080062: ("UI", "STUDY"),
    0x00201206: ("IS", "STUDY"),
    0x00201208: ("IS", "STUDY"),
    0x00080060: ("CS", "SERIES"),
    0x00081010: ("SH", "SERIES"),
    0x0008103E: ("LO", "SERIES"),
    0x00180015: ("CS", "SERIES"),
    0x0020000E: ("UI", "SERIES"),
    0x00200011: ("IS", "SERIES"),
    0x00200060: ("CS", "SERIES"),
    0x00201209: ("IS", "SERIES"),
    0x00080016: ("UI", "IMAGE"),
    0x00080018: ("UI", "IMAGE"),
    0x00083002: ("UI", "IMAGE"),
    0x00200013: ("IS", "IMAGE"),
    0x00280010: ("US", "IMAGE"),
    0x00280011: ("US", "IMAGE"),
}
_NAMES = (
    "Müller^Jürgen",
    "MULLER^Jurgen^^Dr.",
    "Müllerin^Eva",
    "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "Yamada^Hanako=山田^花子",
    "Hong^Gildong=洪^吉洞=홍^길동",
    "Люксембург^Роза",
    "O'Neil^[x]_%",
    "Smith^John",
    "Smithers^J*",
    "",
)
Row = dict[int, str]

STUDY_DATE, STUDY_TIME = 0x00080020, 0x00080030


@dataclass(frozen=True, slots=True)
class Population:
    """Every instance a query may show, as the text of its attributes."""

    rows: list[Row] = field(repr=False)  # in order of arrival

    def entities(self, level: str) -> list[Row]:
        """What there is at one level, with its counts; a patient as its last study has it."""
        found: dict[tuple[str, ...], Row] = {}
        for row in self.rows:
            patient = (row[0x00100020], row[0x00100021])
            alone = "" if row[0x00100020] else row[0x0020000D]
            whole = (*patient, alone, row[0x0020000D], row[0x0020000E], row[0x00080018])
            key = whole[: {"PATIENT": 3, "STUDY": 4, "SERIES": 5, "IMAGE": 6}[level]]
            found[key] = {**row, **self._counted(row)}
        return list(found.values())

    def _counted(self, row: Row) -> Row:
        def distinct(tag: int, among: Iterable[Row]) -> list[str]:
            return sorted({one[tag] for one in among})

        series = [one for one in self.rows if one[0x0020000E] == row[0x0020000E]]
        study = [one for one in self.rows if one[0x0020000D] == row[0x0020000D]]
        patient = [
            one
            for one in self.rows
            if (one[0x00100020], one[0x00100021]) == (row[0x00100020], row[0x00100021])
            and (row[0x00100020] or one[0x0020000D] == row[0x0020000D])
        ]
        return {
            0x00201200: str(len(distinct(0x0020000D, patient))),
            0x00201202: str(len(distinct(0x0020000E, patient))),
            0x00201204: str(len(patient)),
            0x00080061: "\\".join(one for one in distinct(0x00080060, study) if one),
            0x00080062: "\\".join(distinct(0x00080016, study)),
            0x00201206: str(len(distinct(0x0020000E, study))),
            0x00201208: str(len(study)),
            0x00201209: str(len(series)),
        }

    def expected(self, level: str, keys: Mapping[int, str]) -> list[tuple[str, ...]]:
        """The values of `keys` of all that match, sorted."""
        return sorted(
            tuple(row[tag] for tag in sorted(keys))
            for row in self.entities(level)
            if all(matches(KEPT[tag][0], key, row[tag]) for tag, key in keys.items())
        )

    def expected_of_moments(self, level: str, keys: Mapping[int, str]) -> list[tuple[str, ...]]:
        """As `expected`, where combined dates and times were negotiated (PS3.4 C.5.1.1)."""
        ends = keys.get(STUDY_DATE, ""), keys.get(STUDY_TIME, "")
        if not asks_for_moments(*ends):
            return self.expected(level, keys)
        others = {tag: key for tag, key in keys.items() if tag not in (STUDY_DATE, STUDY_TIME)}
        return sorted(
            tuple(row[tag] for tag in sorted(keys))
            for row in self.entities(level)
            if moment_matches(ends, row[STUDY_DATE], row[STUDY_TIME])
            and all(matches(KEPT[tag][0], key, row[tag]) for tag, key in others.items())
        )


def populate(store: Store, *, studies_made: int = 40) -> Population:
    """Fill `store`; some of it is then held, evicted, quarantined or replaced."""
    chance = random.Random(7)
    rows: list[Row] = []
    for number in range(studies_made):
        rows += _study(store, chance, number)
    return Population(rows)


def _study(store: Store, chance: random.Random, number: int) -> list[Row]:
    name = chance.choice(_NAMES)
    patient = f"P{_NAMES.index(name)}" if number % 9 else ""
    of_study = {
        0x00080020: chance.choice(("20200101", "20200115", "2021.03.04", "20211231", "", "2020")),
        0x00080030: chance.choice(("101112", "1011", "223000.5", "09:30:00", "")),
        0x00080050: chance.choice((f"A{number}", f"a{number}", "")),
        0x00080080: chance.choice(("Klinik Süd", "Nord")),
        0x00080090: chance.choice(_NAMES),
        0x00081030: chance.choice(("CT Schädel", "MR [Knie]", "100%_?", "")),
        0x00100010: name,
        0x00100020: patient,
        0x00100021: chance.choice(("", "HOSP")),
        0x00100030: chance.choice(("19700101", "19991231", "")),
        0x00100040: chance.choice(("M", "F", "O", "")),
        0x0020000D: fresh_uid(),
        0x00200010: str(number),
    }
    rows = []
    for serial in range(chance.randint(1, 3)):
        modality = chance.choice(("CT", "MR", "SR", "US"))
        of_series = {
            0x00080060: modality,
            0x00081010: chance.choice(("ROOM1", "ROOM2")),
            0x0008103E: chance.choice(("axial", "Übersicht", "")),
            0x00180015: chance.choice(("HEAD", "KNEE", "")),
            0x0020000E: fresh_uid(),
            0x00200011: str(serial + 1),
            0x00200060: chance.choice(("L", "R", "")),
        }
        for instance in range(chance.randint(1, 2)):
            of_instance = {
                0x00080016: SR if modality == "SR" else CT,
                0x00080018: fresh_uid(),
                0x00083002: EXPLICIT_LE,
                0x00200013: str(instance + 1),
                0x00280010: str(chance.choice((256, 512))),
                0x00280011: "512",
            }
            rows.append({**of_study, **of_series, **of_instance})
    return _dealt_with(store, number, rows)


def _dealt_with(store: Store, number: int, rows: list[Row]) -> list[Row]:
    """What is left to be shown of a study once this and that has become of it."""
    receipts = [take(store, row) for row in rows]
    study, first = receipts[0].study_id, receipts[0].instance_id
    if number % 10 == 3:
        state = chance_state(number)
        with store.db.write() as tx:
            studies.set_state(tx, study, state, actor="test")
        return []
    if number % 10 == 4:  # another version of it is kept aside
        other = take(store, {**rows[0], 0x00081030: "another"})
        instances.quarantine(store.db, other.instance_id)
    if number % 10 == 5:
        with store.db.write() as tx:
            instances.move(tx, first, InstanceState.EVICTED, actor="test")
        return rows[1:]
    return rows


def chance_state(number: int) -> StudyState:
    return StudyState.HELD if number % 20 == 3 else StudyState.REJECTED


def take(store: Store, row: Row):
    """Ingest an instance with these attributes."""
    kinds = {tag: vr for tag, (vr, _) in KEPT.items()}
    parts = [element(0x00080005, "CS", "ISO_IR 192")]
    for tag in sorted(row):
        if tag == 0x00083002:
            continue
        vr = kinds[tag]
        value = int(row[tag]).to_bytes(2, "little") if vr == "US" else row[tag]
        parts.append(element(tag, vr, value))
    come = arrival(
        sop=row[0x00080018],
        syntax=EXPLICIT_LE,
        sop_class=row[0x00080016],
        origin=Origin.MODALITY,
    )
    return ingest.receive(store, come, [b"".join(parts)])
