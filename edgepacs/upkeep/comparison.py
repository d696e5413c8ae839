"""Sameness: whether another data set under a known SOP Instance UID is the same once more.

The same means equal attributes, whatever their encoding, and equal native pixels, whatever the
transfer syntax. What is the same is given up; what differs is quarantined and never forwarded or
deleted before a person decides.
"""

import hashlib
from collections.abc import Iterator

from pydicom import Dataset
from pydicom.dataelem import DataElement

from edgepacs.custody import readout
from edgepacs.errors import EdgePacsError, NotFound, Tampered, Undecodable
from edgepacs.model import InstanceState
from edgepacs.store import Store, disposal, instances
from edgepacs.store.instances import Instance
from edgepacs.telemetry import log

# How pixels are encoded is no part of what they show (PS3.3 C.7.6.3).
_ENCODING = frozenset({0x00280006, 0x7FE00001, 0x7FE00002, 0x7FE00008, 0x7FE00009, 0x7FE00010})


def compare_waiting(store: Store) -> int:
    """Decide on every instance that waits for comparison; how many there were."""
    waiting = instances.waiting(store.db, InstanceState.COMPARING)
    for one in waiting:
        try:
            _decide(store, one)
        except Tampered as error:  # the others must not wait for it
            log.error("instance %d: not compared: %s", one.id, error)
    return len(waiting)


def _decide(store: Store, waiting: Instance) -> None:
    stored = instances.stored_version(store.db, waiting.sop_instance_uid)
    if stored is not None and stored.corrects is not None:  # it may be what was corrected, again
        stored = instances.instance(store.db, stored.corrects)
    if stored is None or not _same(store, stored, waiting):
        instances.quarantine(store.db, waiting.id)
        log.warning("instance %d: other content under a known UID, quarantined", waiting.id)
        return
    disposal.discard(store, waiting.id, actor="upkeep")


def _same(store: Store, a: Instance, b: Instance) -> bool:
    """Whether two versions are one instance; what cannot be told is not the same."""
    try:
        left, right = readout.content(store, a), readout.content(store, b)
        return _attributes(left) == _attributes(right) and _pixels(store, a) == _pixels(store, b)
    except Tampered:
        raise
    except EdgePacsError:
        return False


def _attributes(dataset: Dataset) -> list[tuple[int, object]]:
    try:
        return list(_normalised(dataset))
    except Exception as error:  # a broken element raises nearly anything when it is read
        raise Undecodable("An attribute cannot be read") from error


def _normalised(dataset: Dataset) -> Iterator[tuple[int, object]]:
    """(tag, value) in order, without group lengths, file meta, padding and pixel encoding."""
    for tag in sorted(dataset.keys()):
        if tag.element == 0 or tag.group in (0x0002, 0xFFFC) or int(tag) in _ENCODING:
            continue
        yield int(tag), _value(dataset[tag])


def _value(element: DataElement) -> object:
    if element.VR == "SQ":
        return [list(_normalised(item)) for item in element.value]
    if isinstance(element.value, bytes):
        return element.value.rstrip(b"\0 ")
    return str(element.value)


def _pixels(store: Store, instance: Instance) -> bytes:
    """Digest of the native pixels of all frames; of nothing where there are none."""
    digest = hashlib.sha256()
    try:
        for frame in readout.native_frames(store, instance):
            digest.update(frame)
    except NotFound:
        return b""
    return digest.digest()
