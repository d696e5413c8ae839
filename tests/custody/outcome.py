"""What has come out of a conversion: pixels decoded, attributes as pydicom writes them."""

import warnings
from array import array
from typing import Any

from harness.part10 import EXPLICIT_LE, IMPLICIT_LE, decode, encode
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from edgepacs.custody import compress
from edgepacs.custody.outgoing import outgoing
from edgepacs.errors import Undecodable
from edgepacs.model import UID
from edgepacs.pixels.decode import decode_frame
from edgepacs.pixels.description import SampleKind, describe
from edgepacs.pixels.frames import FrameIndex
from edgepacs.store import Store, compressions, disposal
from edgepacs.store.instances import Instance
from edgepacs.store.vault import new_object_id

ROOT = "1.2.840.10008.1.2"
BIG_ENDIAN, DEFLATED = f"{ROOT}.2", f"{ROOT}.1.99"
JPEG_2000, JPEG_LS, HTJ2K = f"{ROOT}.4.90", f"{ROOT}.4.80", f"{ROOT}.4.201"
JPEG_LOSSLESS, RLE, JPEG_BASELINE = f"{ROOT}.4.70", f"{ROOT}.5", f"{ROOT}.4.50"
NATIVE = (IMPLICIT_LE, EXPLICIT_LE)
CODED = (JPEG_2000, JPEG_LS, HTJ2K, JPEG_LOSSLESS, RLE)

# How pixels are encoded is no part of what they show (PS3.3 C.7.6.3).
_ENCODING = {0x00280004, 0x00280006, 0x7FE00001, 0x7FE00002, 0x7FE00003}
_PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}

Frames = list[tuple[bytes, tuple[int, ...], str]]


def written(store: Store, instance: Instance, *accepted: str, lossy: int = 0) -> tuple[str, bytes]:
    """Transfer syntax and bytes of an instance on its way out."""
    going = outgoing(store, instance, {UID(one) for one in accepted}, lossy=lossy)
    data = b"".join(going.chunks)
    assert going.length in (None, len(data))
    return going.transfer_syntax_uid, data


def frames_of(data: bytes, transfer_syntax: str) -> Frames:
    """Every frame: all its bits, its shape, what its samples mean; nothing where there is none."""
    dataset = decode(data, transfer_syntax)
    if not dataset:
        raise Undecodable("pydicom makes nothing of it")
    kind = next((one for one in SampleKind if one.value in dataset), None)
    if kind is None:
        return []
    element = dataset[kind.value]
    said = describe(dataset, transfer_syntax, vr=element.VR, sample_kind=kind)
    value = element.value or b""
    index = FrameIndex(lambda at, length: value[at : at + length], len(value), said)
    found = []
    for number in range(len(index)):
        encoded = index.read(number)
        frame = decode_frame(encoded.data, said, first_bit=encoded.first_bit)
        found.append((frame.array.tobytes(), frame.array.shape, frame.photometric_interpretation))
    return found


def attributes_of(data: bytes, transfer_syntax: str, as_if: str = "") -> list[tuple[int, Any]]:
    """Tag and value of everything but the pixels and how they are encoded.

    `as_if` is a native transfer syntax which pydicom writes the data set in first.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = decode(data, transfer_syntax)
        for tag in _PIXELS:
            dataset.pop(tag, None)
        if transfer_syntax == BIG_ENDIAN:
            dataset.walk(_swap)  # pydicom's writer leaves words as they are
        if as_if:
            dataset = decode(encode(dataset, as_if), as_if)
        return _plain(dataset)


def _swap(_dataset: Dataset, one: DataElement) -> None:
    if one.VR == "OW" and one.value:
        words = array("H", one.value)
        words.byteswap()
        one.value = words.tobytes()


def _plain(dataset: Dataset) -> list[tuple[int, Any]]:
    found = []
    for tag in sorted(dataset.keys()):
        if tag.element == 0 or tag.group == 2 or int(tag) in _ENCODING:
            continue
        element = dataset[tag]
        value: Any = element.value
        if element.VR == "SQ":
            value = [_plain(item) for item in value]
        elif isinstance(value, bytes):
            value = value.rstrip(b"\0 ")
        else:
            value = "" if element.is_empty else str(value)
        found.append((int(tag), value))
    return found


def compress_all(store: Store) -> None:
    """Compress at rest what can be."""
    with store.db.write() as tx:
        compressions.plan(tx)
    while True:
        with store.db.write() as tx:
            claims = compressions.claim(tx, 100)
        if not claims:
            return
        for claimed in claims:
            made = compress.compress(store, claimed, new_object_id())
            with store.db.write() as tx:
                if isinstance(made, compress.Kept):
                    compressions.keep(tx, claimed, made.reason)
                else:
                    compressions.swap(tx, claimed, made)
            if not isinstance(made, compress.Kept):
                disposal.clear_swapped(store, claimed.object_id)
