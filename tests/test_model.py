import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepacs import errors
from edgepacs.errors import EdgePacsError, InvalidValue
from edgepacs.model import (
    DELIVERY_TRANSITIONS,
    INSTANCE_TRANSITIONS,
    STUDY_TRANSITIONS,
    InstanceState,
    Origin,
    Role,
    State,
    StudyState,
    ae_title,
    uid,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.2.840.10008.1.1", "1.2.840.10008.1.1"),
        ("1.2\0", "1.2"),
        (" 1.2 ", "1.2"),
        ("1.002.3", "1.002.3"),  # BAD-INPUT: leading zeros are kept
        ("1" * 64, "1" * 64),
        ("1" * 65, None),
        ("", None),
        ("\0", None),
        ("1.2\0.3", None),
        ("../../etc/passwd", None),
        ("/etc/passwd", None),
        ("1.2.3/4", None),
        ("1.2\n", None),
        ("1.2a", None),
        ("\u0661.\u0662", None),  # digits of another script
        ("1" * 65536, None),
    ],
)
def test_uids(text: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(InvalidValue, match=r"^Some UID: not a UID of 1 to 64"):
            uid(text, "Some UID")
    else:
        assert uid(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("EDGEPACS", "EDGEPACS"),
        ("  CT 1  ", "CT 1"),
        ("x" * 16, "x" * 16),
        ("x" * 16 + "  ", "x" * 16),
        ("x" * 17, None),
        ("", None),
        ("   ", None),
        ("A\\B", None),
        ("Ä", None),
        ("A\n", None),
        ("A\0", None),
        ("A\x7f", None),
    ],
)
def test_ae_titles(text: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(InvalidValue, match=r"^AE title: "):
            ae_title(text)
    else:
        assert ae_title(text) == expected


@given(st.text(max_size=100))
def test_no_text_becomes_a_uid_with_anything_but_digits_and_dots(text: str) -> None:
    try:
        made = uid(text)
    except InvalidValue as error:
        words = str(error)
    else:
        words = ""
        assert set(made) <= set("0123456789.")
        assert 1 <= len(made) <= 64
        assert uid(made) == made
    assert words in ("", "UID: not a UID of 1 to 64 digits and dots")  # never the value


def test_every_state_means_something_and_stands_in_its_table() -> None:
    for kind in State.__subclasses__():
        for member in kind:
            assert member.meaning
            assert kind(str(member)) is member
    assert set(INSTANCE_TRANSITIONS) == set(InstanceState)
    assert set(STUDY_TRANSITIONS) == set(StudyState)
    for table in (INSTANCE_TRANSITIONS, STUDY_TRANSITIONS, *DELIVERY_TRANSITIONS.values()):
        for old, targets in table.items():
            assert old not in targets


def test_roles_cover_those_before_them() -> None:
    order = [Role.VIEWER, Role.TECHNOLOGIST, Role.ADMIN]
    for i, mine in enumerate(order):
        assert [mine.covers(needed) for needed in order] == [j <= i for j in range(3)]


def test_what_came_from_elsewhere_is_not_routed() -> None:
    assert [o for o in Origin if o.routed] == [Origin.MODALITY, Origin.IMPORT, Origin.LOCAL]


def _errors() -> list[type[EdgePacsError]]:
    found = [EdgePacsError]
    for kind in found:
        found += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == errors.__name__]


def test_every_error_has_an_answer_for_every_interface() -> None:
    assert len(_errors()) > 15
    for kind in _errors():
        assert 0 < kind.dimse_status <= 0xFFFF
        assert 400 <= kind.http_status < 600
        assert 64 <= kind.exit_code <= 78
        assert kind.__doc__
        assert not (kind.transient and kind.http_status < 500)
    assert (errors.NoRoom.dimse_status, errors.DatasetMismatch.dimse_status) == (0xA700, 0xA900)
