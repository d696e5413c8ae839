"""Answers in a character set that their reader knows, read back by pydicom (PS3.3 C.12.1.1.2)."""

import subprocess
import sys
from io import BytesIO

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from edgepacs.custody import text
from edgepacs.dimse import identifier
from edgepacs.dimse.contexts import EXPLICIT_VR_LE, IMPLICIT_VR_LE
from edgepacs.dimse.identifier import Values

NAME, SEQUENCE, MEANING, CODE = 0x00100010, 0x00321064, 0x00080104, 0x00080100


def values(name: str) -> Values:
    """Text at two levels, and what no character set changes."""
    return {NAME: name, SEQUENCE: [{MEANING: name.replace("^", " "), CODE: "A1"}]}


def by_pydicom(raw: bytes, syntax: str) -> Dataset:
    one = read_dataset(BytesIO(raw), syntax == IMPLICIT_VR_LE, True)
    one.decode()
    return one


@pytest.mark.parametrize("syntax", [EXPLICIT_VR_LE, IMPLICIT_VR_LE])
@pytest.mark.parametrize(
    ("asked", "name", "answered"),
    [
        ("", "Doe^Jane", ""),
        ("ISO_IR 100", "Doe^Jane", ""),
        ("ISO_IR 100", "Äneas^Rüdiger", "ISO_IR 100"),
        ("", "Äneas^Rüdiger", "ISO_IR 192"),
        ("ISO_IR 6", "Äneas^Rüdiger", "ISO_IR 192"),
        ("ISO_IR 100", "Люксембург", "ISO_IR 192"),
        ("ISO_IR 144", "Люксембург", "ISO_IR 144"),
        ("ISO_IR 127", "قباني^لنزار", "ISO_IR 127"),
        ("ISO_IR 126", "Διονυσιος", "ISO_IR 126"),
        ("ISO_IR 138", "שרון^דבורה", "ISO_IR 138"),
        ("ISO_IR 166", "สมชาย", "ISO_IR 166"),
        ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ", "ISO_IR 13"),
        ("\\ISO 2022 IR 87", "Yamada^Tarou=山田^太郎=やまだ^たろう", "\\ISO 2022 IR 87"),
        (
            "ISO 2022 IR 13\\ISO 2022 IR 87",
            "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
            "ISO 2022 IR 13\\ISO 2022 IR 87",
        ),
        ("\\ISO 2022 IR 149", "Hong^Gildong=洪^吉洞=홍^길동", "\\ISO 2022 IR 149"),
        ("\\ISO 2022 IR 149", "Hong=홍a길b", "\\ISO 2022 IR 149"),
        ("ISO 2022 IR 100\\ISO 2022 IR 144", "Éa^Люкa", "ISO 2022 IR 100\\ISO 2022 IR 144"),
        ("ISO 2022 IR 100\\ISO 2022 IR 87", "É山aÉb", "ISO 2022 IR 100\\ISO 2022 IR 87"),
        ("GB18030", "Wang^XiaoDong=王^小东", "GB18030"),
        ("GBK", "王^小东", "GBK"),
        ("ISO_IR 192", "王^小东=か", "ISO_IR 192"),
        ("\\ISO 2022 IR 87", "é山", "ISO_IR 192"),
        ("no such set", "é", "ISO_IR 192"),
    ],
)
def test_what_is_written_is_read(asked: str, name: str, answered: str, syntax: str) -> None:
    raw = identifier.encode(text.encoded(values(name), asked), syntax)
    mine = identifier.decode(raw, syntax)
    said = identifier.text(mine, identifier.SPECIFIC_CHARACTER_SET)
    assert said == answered
    assert text.value(mine, NAME, said) == name
    (item,) = identifier.items(mine, SEQUENCE)
    assert text.value(item, MEANING, said) == name.replace("^", " ")
    assert text.value(item, CODE, said) == "A1"
    theirs = by_pydicom(raw, syntax)
    assert str(theirs.PatientName) == name
    assert theirs.RequestedProcedureCodeSequence[0].CodeMeaning == name.replace("^", " ")


def test_chinese_with_escapes_is_written_and_read() -> None:
    """PS3.5 K.2; pydicom leaves the escape sequences in."""
    name, asked = "Zhang^XiaoDong=张^小东", "\\ISO 2022 IR 58"
    raw = identifier.encode(text.encoded({NAME: name}, asked))
    mine = identifier.decode(raw, IMPLICIT_VR_LE)
    assert mine[NAME] == b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab"
    assert text.value(mine, NAME, asked) == name


SETS = st.sampled_from(
    [
        "ISO_IR 100",
        "ISO_IR 144",
        "\\ISO 2022 IR 87",
        "\\ISO 2022 IR 87\\ISO 2022 IR 159",
        "ISO 2022 IR 13\\ISO 2022 IR 87",
        "ISO 2022 IR 6\\ISO 2022 IR 149",
        "ISO 2022 IR 100\\ISO 2022 IR 144\\ISO 2022 IR 87",
        "GB18030",
        "",
    ]
)


@settings(max_examples=300, deadline=None)
@example(asked="ISO 2022 IR 100\\ISO 2022 IR 144\\ISO 2022 IR 87", mixed="Л=É")
@given(SETS, st.text(st.sampled_from("aB ÉüЛя山丂やガｶ홍ش^=,"), max_size=8))
def test_any_mixture_comes_back(asked: str, mixed: str) -> None:
    name = mixed.strip(" ")
    mine = identifier.decode(identifier.encode(text.encoded({NAME: name}, asked)), IMPLICIT_VR_LE)
    said = identifier.text(mine, identifier.SPECIFIC_CHARACTER_SET)
    assert said in (asked, "ISO_IR 192", "")
    assert text.value(mine, NAME, said) == name


def test_binary_numbers_are_decimal_text() -> None:
    values = identifier.decode(identifier.encode({0x00280010: 512}), IMPLICIT_VR_LE)
    assert text.value(values, 0x00280010, "") == "512"
    assert text.value(values, 0x00280011, "") == ""


def test_a_query_in_ascii_loads_neither_pydicom_nor_numpy() -> None:
    """A receiver is 20 MB smaller without; only the table of VRs is read."""
    program = """
import sys
import edgepacs.scp.listener
from edgepacs.custody import text
from edgepacs.dimse import identifier
raw = identifier.encode(text.encoded({0x00100010: "Doe^J*", 0x00280010: 5}, "ISO_IR 100"))
values = identifier.decode(raw, identifier.IMPLICIT_VR_LE)
assert text.value(values, 0x00100010, "ISO_IR 100") == "Doe^J*"
print(*({"pydicom", "numpy", "pynetdicom"} & sys.modules.keys()), end="")
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
