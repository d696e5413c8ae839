"""On the way out: an instance in a transfer syntax that is accepted where it goes.

One way for C-STORE, C-GET, DICOMweb and download. Best is what stands at rest, as it is; then
the smallest lossless transfer syntax; then native, and of the native ones the one received,
which comes back bit for bit. What was received lossy stays what it is or is decoded, and says so
(PS3.3 C.7.6.1.1.5). Loss is added only where it is asked for, to an instance of its own.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from pydicom import uid as pydicom_uid
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info

from edgepacs.custody import derivation, original, restore, rewriting, standing
from edgepacs.custody.original import Original
from edgepacs.custody.standing import GROUP_2, as_it_leaves
from edgepacs.dimse.implementation import CLASS_UID, VERSION
from edgepacs.errors import NotOffered, Undecodable
from edgepacs.model import UID
from edgepacs.pixels.choice import out_choices
from edgepacs.pixels.description import EXPLICIT_LITTLE, IMPLICIT_LITTLE
from edgepacs.pixels.encode import Unencodable
from edgepacs.pixels.syntaxes import (
    DEFLATED_DATA_SET,
    HTJ2K,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    RLE,
    syntax,
)
from edgepacs.store import Store
from edgepacs.store.instances import Instance

DEFLATED = UID(DEFLATED_DATA_SET)
_NATIVE = (UID(EXPLICIT_LITTLE), UID(IMPLICIT_LITTLE))
_IMAGES = tuple(UID(one) for one in (JPEG_2000, JPEG_LS, HTJ2K, JPEG_LOSSLESS, RLE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A data set on its way out: `chunks` are its bytes, once, `length` how many if known.

    `sop_instance_uid` is another than the instance's where pixels were given up on the way.
    """

    transfer_syntax_uid: UID
    sop_instance_uid: UID
    chunks: Iterator[bytes]
    length: int | None = None


def writable(*, images: bool) -> tuple[UID, ...]:
    """The transfer syntaxes written here without loss, for objects with pixels or without."""
    return (*(_IMAGES if images else ()), DEFLATED, *_NATIVE)


def offers(store: Store, instance: Instance) -> tuple[UID, ...]:
    """The transfer syntaxes in which an instance can go out, best first.

    Whether one really can is known when it has been written: an encoder may yet refuse a frame.
    Raises NotFound, Tampered.
    """
    now = standing.opened(store, instance).instance
    every = {*writable(images=True), now.received_syntax_uid}
    return (now.transfer_syntax_uid, *_Ways.of(store, now, every).uids)


def outgoing(
    store: Store, instance: Instance, accepted: Collection[UID], *, lossy: int = 0
) -> Outgoing:
    """An instance in the best transfer syntax of those `accepted`.

    `lossy` is a quality from 1 to 100 by which pixels may be given up, 0 for never; what cannot
    well be lossy goes without loss all the same. Raises NotOffered, NotFound, Tampered;
    iterating `chunks` raises Unencodable, Undecodable where a late frame turns out to be broken,
    and Tampered.
    """
    now, stored = standing.opened(store, instance)
    if lossy and (derived := _derived(store, now, accepted, lossy)):
        return derived
    if now.transfer_syntax_uid in accepted:
        return Outgoing(
            transfer_syntax_uid=now.transfer_syntax_uid,
            sop_instance_uid=now.sop_instance_uid,
            chunks=iter(as_it_leaves(stored.chunks(), now, now.transfer_syntax_uid)),
            length=None if GROUP_2 in now.flags.split() else now.byte_length,
        )
    ways = _Ways.of(store, now, accepted)
    why, opened = ways.why_not, ways.opened
    for uid in ways.uids:
        try:
            pieces = _pieces(store, now, uid, opened)
            return _begun(now, uid, pieces)
        except (Unencodable, Undecodable) as error:
            why, opened = f"it cannot be converted: {error}", None
    raise NotOffered(why)


def _why_not(now: Instance) -> str:
    row = syntax(now.transfer_syntax_uid)
    if row is None:
        return "its transfer syntax is not known here, so it goes only as it is"
    if row.video:
        return f"video ({row.name}) goes only as it is"
    return f"it cannot be converted from {row.name} into anything that is accepted"


class _Ways(NamedTuple):
    """The transfer syntaxes other than the stored one that may be tried, best first.

    `opened` is the instance opened for the first of them, `why_not` what to say where none does.
    """

    uids: tuple[UID, ...]
    opened: Original | None
    why_not: str

    @classmethod
    def of(cls, store: Store, now: Instance, accepted: Collection[UID]) -> "_Ways":
        possible = {*writable(images=True), now.received_syntax_uid} - {now.transfer_syntax_uid}
        wanted = possible & set(accepted)
        row = syntax(now.transfer_syntax_uid)
        if not wanted or row is None or row.decoder is None:
            return cls((), None, _why_not(now))
        received = (now.received_syntax_uid,) if now.received_syntax_uid in wanted else ()
        try:
            opened = original.opened(store, now)
        except Undecodable as error:
            return cls(received, None, f"it cannot be converted: {error}")
        native = [one for one in _NATIVE if one in wanted and one not in received]
        smaller, why_not = _smaller(opened, now, wanted)
        return cls((*smaller, *received, *native), opened, why_not)


def _smaller(opened: Original, now: Instance, wanted: Collection[UID]) -> tuple[list[UID], str]:
    """Those of `wanted` that make it smaller, the smallest first; why not, where none does."""
    deflated = [DEFLATED] if DEFLATED in wanted else []
    if opened.pixels is None or opened.native is None:
        return deflated, _why_not(now)
    try:
        opened.pixels.require_frames()
    except Unencodable as error:
        return deflated, f"it cannot be converted: {error}"
    found = out_choices(wanted, now.transfer_syntax_uid, opened.native)
    best = [UID(one) for one in found if one not in (*_NATIVE, now.received_syntax_uid)]
    return best, _why_not(now)


def _pieces(store: Store, now: Instance, uid: UID, opened: Original | None) -> Iterator[bytes]:
    if uid == now.received_syntax_uid:
        return iter(as_it_leaves(restore.received_chunks(store, now), now, uid))
    return rewriting.written(opened or original.opened(store, now), uid)


def _begun(now: Instance, uid: UID, pieces: Iterator[bytes], sop: UID | None = None) -> Outgoing:
    """What is wrong with the first frames shows before anything has been given out."""
    first = next(pieces, b"")
    return Outgoing(
        transfer_syntax_uid=uid,
        sop_instance_uid=sop or now.sop_instance_uid,
        chunks=chain((first,), pieces),
    )


def _derived(
    store: Store, now: Instance, accepted: Collection[UID], quality: int
) -> Outgoing | None:
    """A lossy instance derived from this one, or None where it is not to be had."""
    try:
        opened = original.opened(store, now)
        found = derivation.lossy(opened, now, quality)
        if found is None or found.transfer_syntax_uid not in accepted:
            return None
        pieces = rewriting.coded(opened, found.coding)
        return _begun(now, found.transfer_syntax_uid, pieces, found.sop_instance_uid)
    except (Undecodable, Unencodable):
        return None


def part10(
    store: Store, instance: Instance, accepted: Collection[UID] = (), *, lossy: int = 0
) -> Iterator[bytes]:
    """An instance as a DICOM file (PS3.10 7.1), its preamble zeroed; raises as `outgoing`.

    Without `accepted` it comes as it was received.
    """
    going = outgoing(store, instance, accepted or {instance.received_syntax_uid}, lossy=lossy)
    yield file_head(instance.sop_class_uid, going.sop_instance_uid, going.transfer_syntax_uid)
    yield from going.chunks


def file_head(sop_class_uid: UID, sop_instance_uid: UID, transfer_syntax_uid: UID) -> bytes:
    """What stands before a data set in a DICOM file: preamble and meta information (PS3.10 7.1)."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = pydicom_uid.UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = pydicom_uid.UID(sop_instance_uid)
    meta.TransferSyntaxUID = pydicom_uid.UID(transfer_syntax_uid)
    meta.ImplementationClassUID = pydicom_uid.UID(CLASS_UID)
    meta.ImplementationVersionName = VERSION
    head = DicomBytesIO()
    head.write(bytes(128) + b"DICM")
    write_file_meta_info(head, meta)
    return head.getvalue()
