"""Compression at rest: out of an object as received a smaller one, proved to restore to it.

What comes out is a data set of a standard transfer syntax, so that it goes over a thin line as it
stands, and in its trailer what gives the received bytes back (`restore`). Frame by frame, in
bounded memory. What cannot be compressed, or proved, stays as it is, and says why.
"""

import io
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from struct import pack

from edgepacs.clock import processor_ms
from edgepacs.custody.elements import EXPLICIT, Changes, recoded
from edgepacs.custody.restore import (
    Received,
    Recipe,
    described,
    encoding_of,
    frames_length,
    put_together,
    received,
    taken_apart,
    turned,
)
from edgepacs.errors import Conflict, InvalidValue, NotFound, Tampered, Undecodable
from edgepacs.model import UID, ObjectId
from edgepacs.pixels.choice import MAX_DEFLATED, MIN_BYTES, MIN_SIDE, choose
from edgepacs.pixels.deflated import deflate
from edgepacs.pixels.description import PixelDescription
from edgepacs.pixels.encode import (
    Unencodable,
    encode_frame,
    encoded_as,
    obstacle,
)
from edgepacs.pixels.framing import OFFSET_TABLES, PIXEL_DATA_HEADER, encapsulated, offset_tables
from edgepacs.pixels.syntaxes import DEFLATED_DATA_SET
from edgepacs.store import Store, instances, seal
from edgepacs.store.compressions import Claim, Made
from edgepacs.store.drafts import AtRest, Draft
from edgepacs.store.fingerprint import Fingerprint
from edgepacs.telemetry import failpoint

MAX_FRAME = 64 << 20  # native bytes; encoding and proving one takes five times as much memory
_KEPT_ENCODED = 32 << 20  # what is encoded beyond that is encoded a second time, not remembered
_PIXEL_DATA = 0x7FE00010
_PHOTOMETRIC_INTERPRETATION, _PLANAR_CONFIGURATION = 0x00280004, 0x00280006
_NOT_PROVED = "Proof: it does not restore to what was received"
_NOT_SMALLER = "no lossless transfer syntax makes it smaller"


@dataclass(frozen=True, slots=True)
class Kept:
    """An instance that stays as it is, and why, in plain words."""

    reason: str


@dataclass(frozen=True, slots=True)
class Pressed:
    """A data set as it is to stand: its bytes in pieces, and what its trailer says of them."""

    pieces: Iterator[bytes]
    at_rest: AtRest
    pixel_offset: int


def compress(
    store: Store, claimed: Claim, object_id: ObjectId, extra: Collection[str] = ()
) -> Made | Kept:
    """Make the object `object_id` out of what was claimed, and prove it; durable on return.

    `extra` are transfer syntaxes to be tried besides the usual (`pixels.choice`). Nothing of the
    object is left where this raises or keeps the instance as it is. Raises Conflict when the
    instance is no longer what was claimed, NoRoom, StorageFault, Tampered.
    """
    row = instances.instance(store.db, claimed.instance)
    if row.object_id != claimed.object_id or row.state.gone:
        raise Conflict("instance: it is no longer what was claimed")
    with store.vault.open(row.object_id, row.sop_instance_uid) as stored:
        before = processor_ms()
        draft = Draft.from_trailer(stored.trailer(), row.object_id, row.sealed_length)
        try:
            whole = received(stored, draft)
            syntax_uid = _chosen(whole, claimed.choice, extra)
            pressed = _pressed(whole, syntax_uid, stored.length)
            made = _sealed(store, draft, pressed, object_id)
        except (InvalidValue, NotFound, Undecodable, Unencodable) as error:
            return Kept(str(error))
    failpoint("compress.sealed")
    middle = processor_ms()
    try:
        problem = _problem(store, made, row.sealed_length)
    except BaseException:
        store.vault.remove(object_id)
        raise
    if problem:
        store.vault.remove(object_id)
        return Kept(problem)
    failpoint("compress.proved")
    return Made(
        object_id=object_id,
        transfer_syntax_uid=made.transfer_syntax_uid,
        byte_length=made.byte_length,
        sealed_length=made.sealed_length,
        pixel_offset=made.pixel_offset,
        native_digest=pressed.at_rest.native_digest,
        encode_ms=middle - before,
        verify_ms=processor_ms() - middle,
    )


def _chosen(whole: Received, choice: UID, extra: Collection[str]) -> str:
    """The transfer syntax of its series where it fits, else that of a trial of its own."""
    description = whole.description
    frame_length = frames_length(description) // description.number_of_frames
    if description.bits_allocated == 1:
        raise Unencodable("Bits Allocated: frames of single bits are kept as received")
    if frame_length > MAX_FRAME:
        raise Unencodable(f"Pixel data: a frame exceeds {MAX_FRAME >> 20} MiB")
    if choice and _fits(description, choice, frame_length):
        return choice
    middle = whole.frame(description.number_of_frames // 2)
    found = choose(description, middle, extra=extra)
    if found is None:
        raise Unencodable(_NOT_SMALLER)
    return found


def _fits(description: PixelDescription, syntax_uid: str, frame_length: int) -> bool:
    if syntax_uid == DEFLATED_DATA_SET:
        return frames_length(description) <= MAX_DEFLATED
    large = min(description.rows, description.columns) >= MIN_SIDE and frame_length >= MIN_BYTES
    return large and not obstacle(description, syntax_uid)


def _pressed(whole: Received, syntax_uid: str, most: int) -> Pressed:
    """`whole` in another transfer syntax; raises Unencodable where that takes `most` bytes."""
    if syntax_uid == DEFLATED_DATA_SET:
        return _deflated(whole)
    return _encapsulated(whole, syntax_uid, most)


def _deflated(whole: Received) -> Pressed:
    """The data set deflated as a whole (PS3.5 A.5), its pixels untouched."""
    length = frames_length(whole.description)
    padding = bytes(length % 2)
    elements = _head(whole, {})
    header = pack("<HH2sxxI", 0x7FE0, 0x0010, _vr(whole), length + len(padding))
    tail = padding + _tail(whole)
    digest = Fingerprint()
    frames = []
    for frame in whole.frames():
        digest.update(turned(frame, whole.description))
        frames.append(frame)
    data = deflate(b"".join((elements, header, *frames, tail)))
    recipe = Recipe.of(whole, elements + header, tail)
    at_rest = _at_rest(whole, DEFLATED_DATA_SET, digest, recipe)
    return Pressed(iter((data,)), at_rest, pixel_offset=-1)


def _encapsulated(whole: Received, syntax_uid: str, most: int) -> Pressed:
    """The data set with its frames encoded, a fragment each, and their offset table (PS3.5 A.4)."""
    native, encoded = whole.description, encoded_as(whole.description, syntax_uid)
    digest = Fingerprint()
    lengths, kept = _encoded(whole, syntax_uid, digest, most)
    tables = offset_tables(lengths)
    head = _head(whole, _changes(native, encoded))
    if tables.extended is not None:
        for element, value in enumerate(tables.extended, start=1):
            head += pack("<HH2sxxI", 0x7FE0, element, b"OV", len(value)) + value
    pixel_offset, head, tail = len(head), head + PIXEL_DATA_HEADER, _tail(whole)
    if described(head, EXPLICIT, syntax_uid) != encoded:
        raise Unencodable("Image Pixel Module: its new head would say other than the frames are")

    def pieces() -> Iterator[bytes]:
        yield head
        yield from encapsulated(kept(), tables.basic)
        yield tail

    recipe = Recipe.of(whole, head, tail)
    return Pressed(pieces(), _at_rest(whole, syntax_uid, digest, recipe), pixel_offset)


def _encoded(
    whole: Received, syntax_uid: str, digest: Fingerprint, most: int
) -> tuple[list[int], Callable[[], Iterator[bytes]]]:
    """The lengths of all encoded frames, and a way to have the frames themselves.

    None is decoded here: whoever calls proves the whole by restoring it. A table of offsets stands
    before the frames: those that do not fit into memory until all lengths are known are encoded a
    second time.
    """
    lengths: list[int] = []
    kept: list[bytes] = []
    total = 0
    for frame in whole.frames():
        digest.update(turned(frame, whole.description))
        data = encode_frame(frame, whole.description, syntax_uid)
        lengths.append(len(data))
        total += len(data)
        if total >= most:
            raise Unencodable(_NOT_SMALLER)
        if total <= _KEPT_ENCODED:
            kept.append(data)

    def frames() -> Iterator[bytes]:
        yield from kept
        for number in range(len(kept), len(lengths)):
            data = encode_frame(whole.frame(number), whole.description, syntax_uid)
            if len(data) != lengths[number]:
                raise Unencodable("Pixel data: a frame is not encoded twice in the same way")
            yield data

    return lengths, frames


def _head(whole: Received, changes: Changes) -> bytes:
    """The elements before the pixel data, in explicit VR little endian."""
    description = whole.description
    encoding = encoding_of(whole.head, description.transfer_syntax_uid)
    elements = whole.head[: -8 if encoding.implicit else -12]
    signed = description.pixel_representation == 1
    return recoded(elements, encoding, signed=signed, changes=changes, between=(-1, _PIXEL_DATA))


def _tail(whole: Received) -> bytes:
    """The elements behind the pixel data, in explicit VR little endian."""
    encoding = encoding_of(whole.head, whole.description.transfer_syntax_uid)
    signed = whole.description.pixel_representation == 1
    elements = whole.rest[whole.padding :]
    return recoded(elements, encoding, signed=signed, between=(_PIXEL_DATA, 1 << 32))


def _vr(whole: Received) -> bytes:
    encoding = encoding_of(whole.head, whole.description.transfer_syntax_uid)
    return b"OW" if encoding.implicit else whole.head[-8:-6]


def _changes(native: PixelDescription, encoded: PixelDescription) -> dict[int, bytes | None]:
    """What the head has to say otherwise once the frames are encoded."""
    changes: dict[int, bytes | None] = dict.fromkeys(OFFSET_TABLES)
    if encoded.photometric_interpretation != native.photometric_interpretation:
        value = encoded.photometric_interpretation.encode()
        changes[_PHOTOMETRIC_INTERPRETATION] = value + b" " * (len(value) % 2)
    if encoded.planar_configuration != native.planar_configuration:
        changes[_PLANAR_CONFIGURATION] = pack("<H", encoded.planar_configuration)
    return changes


def _at_rest(whole: Received, syntax_uid: str, digest: Fingerprint, recipe: Recipe) -> AtRest:
    return AtRest(
        transfer_syntax_uid=UID(syntax_uid),
        received_length=whole.length,
        native_digest=digest.value(),
        restore=recipe.as_json(),
    )


def _sealed(store: Store, draft: Draft, pressed: Pressed, object_id: ObjectId) -> Draft:
    """The draft of the new object, which is durable; raises Unencodable, NoRoom, StorageFault."""
    # The key is the study's as it is held: one that was dropped meanwhile must not be made again.
    key_id = store.keystore.study_key_id(draft.attributes.study_instance_uid)
    key = store.keystore.key(key_id)
    writer = store.vault.new(draft.arrival.sop_instance_uid, object_id)
    try:
        for piece in pressed.pieces:
            writer.write(piece)
        made = redrafted(draft, pressed, writer.length, object_id)
        size = writer.finish(key_id, key, made.trailer())
    except BaseException:
        writer.discard()
        raise
    return replace(made, sealed_length=size)


def redrafted(draft: Draft, pressed: Pressed, length: int, object_id: ObjectId) -> Draft:
    """The draft of a pressed data set of `length` bytes; raises Unencodable for a long trailer."""
    made = replace(
        draft,
        object_id=object_id,
        byte_length=length,
        pixel_offset=pressed.pixel_offset,
        at_rest=pressed.at_rest,
    )
    if len(json.dumps(made.trailer())) + seal.TAG_LENGTH > seal.TRAILER_LIMIT:
        raise Unencodable("Data set: what restores its head would be too long")
    return made


def _problem(store: Store, made: Draft, most: int) -> str:
    """Why an object may not take the place of a sealed one of `most` bytes, or ""."""
    if made.sealed_length >= most:
        return _NOT_SMALLER
    try:
        with store.vault.open(made.object_id, made.arrival.sop_instance_uid) as stored:
            sealed = Draft.from_trailer(stored.trailer(), made.object_id, made.sealed_length)
            same = _restores(received(stored, sealed), made.received_digest)
    except (InvalidValue, NotFound, Tampered, Undecodable) as error:
        return f"Proof: {error}"
    return "" if same else _NOT_PROVED


def _restores(whole: Received, digest: bytes) -> bool:
    fingerprint = Fingerprint.like(digest)
    for piece in whole.chunks():
        fingerprint.update(piece)
    return fingerprint.value() == digest


def compressed_early(data: bytes, draft: Draft) -> tuple[bytes, Draft] | Kept:
    """What is to be sealed in place of `data`, as received and drafted, and proved in memory."""
    syntax_uid = draft.arrival.transfer_syntax_uid
    try:
        whole = taken_apart(io.BytesIO(data), len(data), syntax_uid, draft.pixel_offset)
        pressed = _pressed(whole, _chosen(whole, UID(""), ()), len(data))
        made = b"".join(pressed.pieces)
        again = put_together(io.BytesIO(made), len(made), syntax_uid, pressed.at_rest)
        if not _restores(again, draft.received_digest):
            return Kept(_NOT_PROVED)
        new = redrafted(draft, pressed, len(made), draft.object_id)
    except (InvalidValue, NotFound, Tampered, Undecodable, Unencodable) as error:
        return Kept(str(error))
    return (made, new) if len(made) < len(data) else Kept(_NOT_SMALLER)
