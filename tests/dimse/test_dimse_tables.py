"""Presentation context policy and status tables."""

import itertools
from typing import Any

import pytest
from pynetdicom import sop_class

from edgepacs.dimse import ContextResult, ProposedContext, contexts, status
from edgepacs.dimse.contexts import (
    DEFLATED_EXPLICIT_VR_LE,
    EXPLICIT_VR_BE,
    EXPLICIT_VR_LE,
    HTJ2K_LOSSLESS,
    IMPLICIT_VR_LE,
    JPEG_BASELINE,
    JPEG_LOSSLESS_SV1,
    VERIFICATION,
    choose,
    is_storage,
    preference,
    storage_answer,
)
from edgepacs.dimse.status import Category

CT = "1.2.840.10008.5.1.4.1.1.2"
MPEG4 = "1.2.840.10008.1.2.4.102"
PRIVATE = "1.2.276.0.7230010.99.1"


def proposed(abstract: str, *transfer: str, **more: Any) -> ProposedContext:
    return ProposedContext(id=1, abstract_syntax=abstract, transfer_syntaxes=transfer, **more)


def test_what_loses_least_is_chosen_in_whatever_order_it_is_offered():
    ranked = (
        EXPLICIT_VR_LE,
        IMPLICIT_VR_LE,
        DEFLATED_EXPLICIT_VR_LE,
        JPEG_LOSSLESS_SV1,
        JPEG_BASELINE,
        PRIVATE,
    )
    for better, worse in itertools.combinations(ranked, 2):
        assert choose((worse, better)) == better
        assert choose((better, worse)) == better


def test_among_equals_the_first_offered_is_chosen():
    assert choose((HTJ2K_LOSSLESS, JPEG_LOSSLESS_SV1)) == HTJ2K_LOSSLESS
    assert choose((DEFLATED_EXPLICIT_VR_LE, EXPLICIT_VR_BE)) == DEFLATED_EXPLICIT_VR_LE
    assert choose((MPEG4, JPEG_BASELINE)) == MPEG4


def test_registered_compressed_syntaxes_are_ranked_by_loss():
    assert preference("1.2.840.10008.1.2.4.91") == contexts.Preference.LOSSY
    assert preference("1.2.840.10008.1.2.4.112") == contexts.Preference.LOSSY
    assert preference("1.2.840.10008.1.2.4.110") == contexts.Preference.REVERSIBLE


def test_a_syntax_whose_pixels_stay_with_the_sender_is_not_accepted():
    jpip = "1.2.840.10008.1.2.4.94"
    refused = storage_answer(proposed(CT, jpip))
    assert refused.result == ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED
    assert storage_answer(proposed(CT, jpip, JPEG_BASELINE)).transfer_syntax == JPEG_BASELINE


def test_every_storage_class_pynetdicom_knows_is_storage():
    known = set(sop_class._STORAGE_CLASSES.values())
    assert len(known) > 150
    assert {uid for uid in known if not is_storage(uid)} == set()


def test_no_other_service_pynetdicom_knows_is_storage():
    groups = [
        group
        for name, group in vars(sop_class).items()
        if name.endswith("_CLASSES") and name not in ("_STORAGE_CLASSES", "_SERVICE_CLASSES")
    ]
    others = {uid for group in groups for uid in group.values()}
    assert len(others) > 80
    assert {uid for uid in others if is_storage(uid)} == set()


@pytest.mark.parametrize(
    ("uid", "service", "storage"),
    [
        (PRIVATE, "", True),
        (PRIVATE, "1.2.840.10008.4.2", True),
        (PRIVATE, "1.2.840.10008.4.99", False),
        ("1.2.840.10008.5.1.4.1.1.6", "", True),  # retired ultrasound
        (VERIFICATION, "", False),
        (EXPLICIT_VR_LE, "", False),  # a transfer syntax is no service
        ("1.2.840.10008.1.20.1", "", False),
        ("1.2.840.10008.5.1.4.31", "", False),
        ("1.2.840.10008.5.1.4.38.1", "", False),  # hanging protocols have no study
    ],
)
def test_what_counts_as_storage(uid, service, storage):
    assert is_storage(uid, service) is storage


def test_answers():
    accepted = storage_answer(proposed(CT, JPEG_BASELINE, IMPLICIT_VR_LE))
    assert (accepted.result, accepted.transfer_syntax) == (ContextResult.ACCEPTED, IMPLICIT_VR_LE)
    assert storage_answer(proposed(CT, PRIVATE)).transfer_syntax == PRIVATE
    echo = storage_answer(proposed(VERIFICATION, JPEG_BASELINE))
    assert echo.result == ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED
    worklist = storage_answer(proposed("1.2.840.10008.5.1.4.31", IMPLICIT_VR_LE))
    assert worklist.result == ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED
    asked = storage_answer(proposed(CT, IMPLICIT_VR_LE, application_information=b"\3\0\0\0\0"))
    assert asked.application_information == bytes((2, 0, 3, 0, 0))


@pytest.mark.parametrize(
    ("code", "category", "passing"),
    [
        (0x0000, Category.SUCCESS, False),
        (0xB000, Category.WARNING, False),
        (0xB006, Category.WARNING, False),
        (0xB007, Category.WARNING, False),
        (0xFF00, Category.PENDING, False),
        (0xFF01, Category.PENDING, False),
        (0xFE00, Category.CANCEL, False),
        (0xA700, Category.FAILURE, True),
        (0xA7FF, Category.FAILURE, True),
        (0xA900, Category.FAILURE, False),
        (0xA9FE, Category.FAILURE, False),
        (0xC000, Category.FAILURE, False),
        (0xCFFF, Category.FAILURE, False),
        (0x0110, Category.FAILURE, True),
        (0x0122, Category.FAILURE, False),
        (0x0124, Category.FAILURE, False),
        (0x0211, Category.FAILURE, False),
        (0x1234, Category.FAILURE, True),
    ],
)
def test_statuses(code, category, passing):
    found = status.lookup(code)
    assert (found.category, found.passing) == (category, passing)
    assert found.stored is (category in (Category.SUCCESS, Category.WARNING))
