"""Ingest: validate, seal, commit. Plain functions that any association, upload or import drives.

    intake = Intake(store, arrival); intake.write(...)...; receipt = intake.commit()

Nothing reaches a disk in plaintext, and nothing is acknowledged before `commit` has returned.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Protocol

from edgepacs.clock import wall_ms
from edgepacs.custody.scan import Scanner
from edgepacs.errors import (
    DatasetMismatch,
    EdgePacsError,
    InvalidValue,
    LimitExceeded,
    StorageFault,
)
from edgepacs.model import UID, Arrival, Origin, Outcome, Receipt, uid
from edgepacs.store import Store, disposal
from edgepacs.store.drafts import Draft
from edgepacs.telemetry import failpoint

_BLOCK = 1 << 17


class Intake:
    """One instance on its way in. Either `commit` returns a receipt, or nothing of it stays."""

    def __init__(self, store: Store, arrival: Arrival) -> None:
        self._store = store
        self._arrival = arrival
        self._most = store.config.dicom.max_object_mib << 20
        self._scanner = Scanner(arrival.transfer_syntax_uid)
        self._writer = store.vault.new(arrival.sop_instance_uid)

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the encoded data set.

        Raises InvalidValue, LimitExceeded, NoRoom, StorageFault.
        """
        if self._writer.length + len(data) > self._most:
            raise LimitExceeded(f"data set: longer than {self._most >> 20} MiB")
        self._scanner.feed(data)
        self._writer.write(data)

    def commit(self) -> Receipt:
        """Seal the rest, make it durable, make it known; raises DatasetMismatch and as `write`.

        This is the only way to Success (PS3.4 B.2.3): object, directory, keystore and index are
        durable when it returns.
        """
        draft = self.seal()
        failpoint("ingest.sealed")
        self._store.vault.require_sound()
        try:
            receipt = self._store.group.commit(draft)
        except StorageFault:
            raise  # whether the row is durable only the next start knows: the sweep settles it
        except EdgePacsError:
            self.discard()  # rolled back for certain: SQLite had no room for the whole commit
            raise
        failpoint("ingest.committed")
        disposal.clear_replaced(self._store, receipt)
        if receipt.outcome is Outcome.COMPARING:
            self._store.ring("upkeep")
        if receipt.due:
            self._store.ring("forward")
        return receipt

    def seal(self) -> Draft:
        """Seal the rest and make it durable, without making it known; raises as `commit`."""
        try:
            draft = self._draft()
            study = draft.attributes.study_instance_uid
            key_id, key = self._store.keystore.ensure_study_key(study)
            size = self._writer.finish(key_id, key, draft.trailer())
            return replace(draft, sealed_length=size)
        except BaseException:
            self.discard()
            raise

    def _draft(self) -> Draft:
        attributes, pixel_offset = self._scanner.finish(self._arrival)
        asked = self._arrival.study_instance_uid
        if asked and attributes.study_instance_uid != asked:
            raise DatasetMismatch("Study Instance UID (0020,000D): not of the study asked for")
        return Draft(
            arrival=self._arrival,
            attributes=attributes,
            object_id=self._writer.object_id,
            byte_length=self._writer.length,
            sealed_length=0,
            received_digest=self._writer.fingerprint,
            pixel_offset=pixel_offset,
            received_ms=wall_ms(),
        )

    def discard(self) -> None:
        """Give it up; nothing of it stays on the disk."""
        self._writer.discard()


def _intake(store: Store, arrival: Arrival) -> Intake:
    # Nobody waits for the answer to what was fetched: it is compressed behind it.
    if not store.config.compression.before_ack or arrival.origin is Origin.PREFETCH:
        return Intake(store, arrival)
    # Only who asks for it loads the codecs: a receiver without them is half as large.
    from edgepacs.custody.early import EarlyIntake  # noqa: PLC0415

    return EarlyIntake(store, arrival)


def receive(store: Store, arrival: Arrival, fragments: Iterable[bytes | memoryview]) -> Receipt:
    """Take in one instance from the fragments of its encoded data set, in order.

    The caller holds `Vault.writing`.
    """
    try:
        intake = _intake(store, arrival)
        try:
            for fragment in fragments:
                intake.write(fragment)
        except BaseException:
            intake.discard()
            raise
        return intake.commit()
    except StorageFault as fault:
        store.vault.condemn(fault)
        raise


class Readable(Protocol):
    """Anything bytes can be read from, up to `size` at a time; b"" at the end."""

    def read(self, size: int, /) -> bytes:
        """The next bytes."""
        ...


def import_part10(store: Store, stream: Readable, *, source: str) -> Receipt:
    """Take in one instance from a DICOM file (PS3.10 7.1) as a person hands it over.

    Raises InvalidValue when it is not one, and as `receive`.
    """
    arrival, fragments = opened_part10(stream, origin=Origin.IMPORT, source=source)
    with store.vault.writing():
        return receive(store, arrival, fragments)


def opened_part10(
    stream: Readable, *, origin: Origin, source: str
) -> tuple[Arrival, Iterator[bytes | memoryview]]:
    """What a DICOM file holds, as `receive` takes it; raises InvalidValue when it is none."""
    head = b""
    while len(head) < _BLOCK and (more := stream.read(_BLOCK - len(head))):
        head += more
    meta, start = file_meta(head)
    syntax = _meta_uid(meta, 0x0010, "Transfer Syntax UID (0002,0010)")
    # Tools rewrite UIDs in data sets and forget the meta information: the data set is believed.
    scanner = Scanner(syntax)
    scanner.feed(head[start:])
    arrival = Arrival(
        sop_class_uid=uid(scanner.sop_uid(0x00080016), "SOP Class UID (0008,0016)"),
        sop_instance_uid=uid(scanner.sop_uid(0x00080018), "SOP Instance UID (0008,0018)"),
        transfer_syntax_uid=syntax,
        origin=origin,
        source=source,
    )
    rest = iter(lambda: stream.read(_BLOCK), b"")
    return arrival, chain([memoryview(head)[start:]], rest)


def file_meta(head: bytes) -> tuple[dict[int, bytes], int]:
    """The values of group 0002 by element, and where the data set starts (PS3.10 7.1)."""
    if head[128:132] != b"DICM":
        raise InvalidValue("file", "not a DICOM file: no DICM after the preamble")
    found: dict[int, bytes] = {}
    position, end = 132, len(head)
    while head[position : position + 2] == b"\x02\x00" and position + 12 <= end:
        element, vr, length = struct.unpack_from("<H2sH", head, position + 2)
        position += 8
        if vr in (b"OB", b"OW", b"UN", b"UT", b"SQ"):
            length = struct.unpack_from("<I", head, position)[0]
            position += 4
        found[element] = head[position : position + length]
        position += length
        if element == 0 and len(found[0]) == 4:  # what stands behind it is data set, group 2 or not
            end = min(end, position + int(struct.unpack("<I", found[0])[0]))
    return found, position


def _meta_uid(meta: dict[int, bytes], element: int, name: str) -> UID:
    if element not in meta:
        raise InvalidValue(name, "missing from the File Meta Information")
    return uid(meta[element].decode("ascii", "replace"), name)
