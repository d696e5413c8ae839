"""Two encodings of one data set, compared byte by byte, and explained where they differ."""

from collections.abc import Iterator

from custody.outcome import attributes_of, frames_of
from harness.part10 import Part10, decode
from harness.recorder import Received
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset


def differences(sent: bytes, got: bytes, transfer_syntax: str) -> list[str]:
    """Nothing when the bytes are equal; else each attribute that differs, never its value.

    Where every attribute is equal and the bytes are not, one line says so: EdgePACS promises the
    data set byte for byte.
    """
    if sent == got:
        return []
    try:
        found = list(_attributes(decode(sent, transfer_syntax), decode(got, transfer_syntax)))
    except Exception as error:  # noqa: BLE001 - what cannot be decoded can still be reported
        found = [f"not decodable: {type(error).__name__}"]
    sizes = f"{len(sent)} bytes sent, {len(got)} got, first difference at {_first(sent, got)}"
    return [*found, sizes] if found else [f"attributes equal, encoding not: {sizes}"]


def arrived(sent: Part10, got: Received) -> list[str]:
    """What is wrong with an instance as a destination got it; nothing where all is well.

    In the transfer syntax it was sent in, every byte is the same. In another one, because it has
    been compressed at rest, every attribute and every bit of every frame.
    """
    if got.transfer_syntax == sent.transfer_syntax:
        return differences(sent.data, got.data, sent.transfer_syntax)
    was, now = (sent.data, sent.transfer_syntax), (got.data, got.transfer_syntax)
    found = [] if attributes_of(*was) == attributes_of(*now) else ["attributes differ"]
    return found if frames_of(*was) == frames_of(*now) else [*found, "pixels differ"]


def _first(one: bytes, other: bytes) -> int:
    for at, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return at
    return min(len(one), len(other))


def _attributes(sent: Dataset, got: Dataset, path: str = "") -> Iterator[str]:
    for tag in sorted({*sent.keys(), *got.keys()}):
        where = f"{path}{tag}"
        if tag not in got:
            yield f"{where} is missing"
        elif tag not in sent:
            yield f"{where} was added"
        else:
            yield from _values(sent[tag], got[tag], where)


def _values(
    sent: DataElement | RawDataElement, got: DataElement | RawDataElement, where: str
) -> Iterator[str]:
    if sent.VR != got.VR:
        yield f"{where} changed VR {sent.VR} to {got.VR}"
    elif sent.VR == "SQ":
        if len(sent.value) != len(got.value):
            yield f"{where} has {len(got.value)} items instead of {len(sent.value)}"
        for number, (left, right) in enumerate(zip(sent.value, got.value, strict=False)):
            yield from _attributes(left, right, f"{where}[{number}].")
    elif sent.value != got.value:
        yield f"{where} differs"
