"""What patients' data sets say, shown to people: BAD-INPUT 64 to 69, and plain good words."""

import pytest
from harness import made
from web_support import Looked, Person, add_destination, put, put_changed

from edgepacs.store import Store
from edgepacs.web import wording

_HOSTILE = {
    "script": "<script>alert(1)</script>",
    "handler": "<img src=x onerror=alert(1)>",
    "attribute": '" onmouseover="alert(1)" x="',
    "template": "{{ 7 * 7 }}{% raw %}${7*7}",
    "formula": "=cmd|' /C calc'!A0",
    "bidi": "DOE\u202egpj.exe\u202c",
    "isolate": "A\u2066B\u2069C",
    "zero width": "DO\u200bE\ufeff",
    "line": "DOE\r\nSet-Cookie: x=y",
    "bell": "DOE\x07\x1b[31m",
}


@pytest.mark.parametrize("text", _HOSTILE.values(), ids=_HOSTILE.keys())
def test_hostile_text_is_shown_as_text(store: Store, admin: Person, text: str):
    add_destination(store)
    put_changed(
        store,
        "CT_small.dcm",
        PatientName=f"{text}^Jane",
        PatientID=text[:60],
        StudyDescription=text[:60],
        SeriesDescription=text[:60],
        AccessionNumber=text[:16],
        InstitutionName=text[:60],
    )
    paths = ("/studies", "/studies/1", "/instances/1/attributes", "/queue")
    for path in paths:
        page = admin.get(path).text
        assert Looked(page).inline == [], path
        for raw in ("<script>alert", "\u202e", "\u2066", "\u200b", "\ufeff", "\x07", "\x1b"):
            assert raw not in page, (path, raw)
        assert "Jane" in page, path


def test_hidden_characters_become_visible(store: Store, admin: Person):
    put_changed(store, "CT_small.dcm", PatientName="Do\u202ee\u200b^Jane")
    page = admin.get("/studies").text
    assert "<bdi>Do⟨U+202E⟩e⟨U+200B⟩, Jane</bdi>" in page


def test_template_syntax_is_not_evaluated(store: Store, admin: Person):
    put_changed(store, "CT_small.dcm", StudyDescription="{{ 7 * 7 }}")
    page = admin.get("/studies").text
    assert "{{ 7 * 7 }}" in page
    assert ">49<" not in page


@pytest.mark.parametrize("text", ["%", "_", "!", "'", '"', "\\", "a OR 1=1", "*", "NEAR("])
def test_search_takes_every_character_for_itself(store: Store, admin: Person, text: str):
    put(store, made.ct(patient_name="Plain^Patient"))
    rows = admin.client.post("/studies", data={"csrf": admin.csrf, "text": text})
    assert rows.status_code == 200
    assert "No study matches" in rows.text


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("DOE^JANE", "Doe, Jane"),
        ("Doe^Jane^Mary", "Doe, Jane Mary"),
        ("O'BRIEN-SMITH^SEAN", "O'Brien-Smith, Sean"),
        ("Nkosi^Thabo^^Dr^Jr", "Nkosi, Dr Thabo, Jr"),
        ("McDonald^Ronald", "McDonald, Ronald"),
        ("ANON123", "ANON123"),
        ("^JANE", "Jane"),
    ],
)
def test_names_read_as_people_write_them(stored: str, shown: str):
    assert f"<bdi>{shown}</bdi>" in str(wording.person(stored)).replace("&#39;", "'")


def test_ideographic_names_are_kept():
    name = str(wording.person("Yamada^Tarou=山田^太郎=やまだ^たろう"))
    assert "<bdi>Yamada, Tarou</bdi>" in name
    assert "<bdi>山田 太郎 · やまだ たろう</bdi>" in name
    assert "<bdi>山田 太郎</bdi>" in str(wording.person("=山田^太郎"))
    assert wording.person("^^^^") == ""


def test_joiners_stay_where_scripts_need_them():
    persian = "\u0639\u0644\u06cc\u200c\u0631\u0636\u0627"
    assert wording.visible(persian) == persian
    assert wording.visible("Do\u200ce") == "Do⟨U+200C⟩e"


def test_what_was_recorded_stands_in_the_tooltip():
    assert 'title="DOE^JANE"' in str(wording.person("DOE^JANE"))


@pytest.mark.parametrize(
    ("born", "then", "age"),
    [
        ("19670423", "20261123", "59 y"),
        ("20250101", "20261123", "22 mo"),
        ("20261101", "20261123", "22 d"),
        ("", "20261123", ""),
        ("19.02.1967", "20261123", ""),
        ("20270101", "20261123", ""),
    ],
)
def test_ages(born: str, then: str, age: str):
    assert wording.age(born, then) == age


def test_dates_times_and_sizes():
    assert wording.dicom_date("20261123") == "2026-11-23"
    assert wording.dicom_date("20261323") == "20261323"
    assert wording.dicom_time("101530.25") == "10:15"
    assert wording.dicom_time("9999") == "9999"
    assert [wording.size(n) for n in (0, 999, 1500, 123_456_789)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "123 MB",
    ]
