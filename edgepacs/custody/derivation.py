"""Lossy instances: what the standard wants to be said of an image that lost something.

PS3.3 C.7.6.1.1.5 (Lossy Image Compression), C.7.6.1.1.2 (Image Type), C.12.4 (Derivation, Source
Image Sequence). It is an instance of its own; the one it was made of is never replaced.
"""

import uuid
from functools import partial
from typing import Any, NamedTuple

from pydicom import Dataset

from edgepacs.custody.original import Original
from edgepacs.custody.rewriting import Coding, Edits, spliced
from edgepacs.model import UID
from edgepacs.pixels.lossy import Method, encode_lossy, lossy_as, method
from edgepacs.pixels.syntaxes import Loss
from edgepacs.store.instances import Instance

# Images for the eye. Others hold numbers, or their IOD forbids loss.
_FOR_THE_EYE = frozenset(
    "1.2.840.10008.5.1.4.1.1." + one
    for one in (
        "1",  # Computed Radiography
        "1.1",  # Digital X-Ray, for presentation
        "2",  # CT
        "3.1",  # Ultrasound Multi-frame
        "4",  # MR
        "6.1",  # Ultrasound
        "7",  # Secondary Capture
        "7.2",
        "7.3",
        "7.4",
        "12.1",  # X-Ray Angiographic
        "12.2",  # X-Ray Radiofluoroscopic
        "77.1.1",  # VL Endoscopic
        "77.1.2",  # VL Microscopic
        "77.1.4",  # VL Photographic
        "77.1.5.1",  # Ophthalmic Photography 8 Bit
    )
)
# With these, loss would show or lie: padding next to pixels, functional groups that call frames
# original.
_HINDRANCES = ("PixelPaddingValue", "SharedFunctionalGroupsSequence")
# Extremes no longer true, and signatures over what is no longer there.
_UNTRUE = frozenset({0x00280106, 0x00280107, 0x00280108, 0x00280109, 0x4FFE0001})
_SIGNATURES = 0xFFFAFFFA
_MOST_TEXT = 1024  # characters of an ST (PS3.5 6.2)


class Derived(NamedTuple):
    """A lossy instance to be: how its frames are encoded, and who it is."""

    transfer_syntax_uid: UID
    sop_instance_uid: UID
    coding: Coding


def lossy(opened: Original, instance: Instance, quality: int) -> Derived | None:
    """How `instance` becomes a lossy one; None where it had better not."""
    native = opened.native
    way = method(native) if native is not None else None
    if native is None or way is None or not _may_lose(opened, instance):
        return None
    sop = _name(instance.sop_instance_uid, way, quality)
    tail = opened.tail
    opened.tail = lambda: spliced(tail(), opened.encoding, Edits(dropped={_SIGNATURES}))
    coding = Coding(
        lossy_as(native, way),
        lambda frame: encode_lossy(frame, native, way, quality),
        partial(_edits, opened.dataset, instance, sop, way, quality),
    )
    return Derived(UID(way.transfer_syntax_uid), sop, coding)


def _may_lose(opened: Original, instance: Instance) -> bool:
    dataset = opened.dataset
    if instance.sop_class_uid not in _FOR_THE_EYE or any(one in dataset for one in _HINDRANCES):
        return False
    has_lost = opened.row.encapsulated and opened.row.loss is not Loss.NEVER
    return not has_lost and _text(dataset, "LossyImageCompression") != "01"


def _name(source: UID, way: Method, quality: int) -> UID:
    """The UID of what comes of `source`: the same each time, so that a repeat is no other one.

    A UUID by name, as a UID (PS3.5 B.2).
    """
    name = f"{source} {way.transfer_syntax_uid} {quality}"
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}")


def _edits(
    dataset: Dataset, instance: Instance, sop: UID, way: Method, quality: int, ratio: float
) -> Edits:
    said = f"Lossy compression: {way.name}, quality {quality}, about {ratio:.1f} to 1"
    put = Dataset()
    put.SOPInstanceUID = sop
    put.ImageType = ["DERIVED", *(_values(dataset, "ImageType")[1:] or ["PRIMARY"])]
    put.LossyImageCompression = "01"
    put.LossyImageCompressionRatio = [
        *_values(dataset, "LossyImageCompressionRatio"),
        f"{ratio:.2f}",
    ]
    put.LossyImageCompressionMethod = [
        *_values(dataset, "LossyImageCompressionMethod"),
        way.defined_term,
    ]
    before = _text(dataset, "DerivationDescription")
    put.DerivationDescription = (
        f"{before}; {said}"[-_MOST_TEXT:] if before.isascii() and before else said
    )
    put.DerivationCodeSequence = [
        *_items(dataset, "DerivationCodeSequence"),
        _code("113040", "Lossy Compression"),
    ]
    put.SourceImageSequence = [*_items(dataset, "SourceImageSequence"), _source(instance)]
    return Edits(put=put, dropped=set(_UNTRUE))


def _source(instance: Instance) -> Dataset:
    source = Dataset()
    source.ReferencedSOPClassUID = instance.sop_class_uid
    source.ReferencedSOPInstanceUID = instance.sop_instance_uid
    source.PurposeOfReferenceCodeSequence = [_code("121320", "Uncompressed predecessor")]
    return source


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _values(dataset: Dataset, keyword: str) -> list[Any]:
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | float | int) else list(value)


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    return list(dataset.get(keyword) or [])


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()
