"""The one table of transfer syntaxes (PS3.5 10 and Annex A, PS3.6 Annex A).

Whoever needs to know anything about a transfer syntax asks this table by UID. A row without a
decoder is stored and forwarded like any other, but not shown. A row with an encoder says under
which conditions it encodes a native frame; what it writes stands in `encode`.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from edgepacs.pixels import codecs, encoders
from edgepacs.pixels.codecs import Decoder
from edgepacs.pixels.conditions import INDEXED, WHOLE_BYTES, Conditions
from edgepacs.pixels.encoders import Encoder


class Loss(StrEnum):
    """Whether pixels may have lost something on the way into a transfer syntax."""

    NEVER = "never"  # the syntax is reversible by definition
    POSSIBLE = "possible"  # it admits both reversible and irreversible codestreams
    ALWAYS = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSyntax:
    """One row.

    `encapsulated` tells how frames lie: as items of a sequence (PS3.5 A.4) or one after the
    other. `deflated` means the whole data set (PS3.5 A.5), never a single frame. `encoder` is
    there where frames can be written, without loss, if `conditions` are met; RGB then goes
    through the reversible transform where `transforms` says so, and comes by pixel unless
    `keeps_planes`.
    """

    uid: str
    name: str
    decoder: Decoder | None
    loss: Loss = Loss.NEVER
    encapsulated: bool = True
    explicit_vr: bool = True
    big_endian: bool = False
    deflated: bool = False
    video: bool = False
    encoder: Encoder | None = None
    conditions: Conditions = field(default_factory=Conditions)
    transforms: bool = False
    keeps_planes: bool = False


_ROOT = "1.2.840.10008.1.2"
DEFLATED_DATA_SET = _ROOT + ".1.99"
JPEG_LOSSLESS = _ROOT + ".4.70"
JPEG_LS = _ROOT + ".4.80"
JPEG_2000 = _ROOT + ".4.90"
HTJ2K = _ROOT + ".4.201"
JPEG_XL = _ROOT + ".4.110"
RLE = _ROOT + ".5"
DEFLATED_FRAME = _ROOT + ".8.1"


def _native(suffix: str, name: str, **traits: bool) -> TransferSyntax:
    return TransferSyntax(
        uid=_ROOT + suffix,
        name=name,
        decoder=codecs.decode_native,
        encapsulated=False,
        explicit_vr=traits.get("explicit_vr", True),
        big_endian=traits.get("big_endian", False),
        deflated=traits.get("deflated", False),
    )


def _frames(
    suffix: str, name: str, decoder: Decoder | None, loss: Loss = Loss.NEVER
) -> TransferSyntax:
    return TransferSyntax(uid=_ROOT + suffix, name=name, decoder=decoder, loss=loss)


def _video(suffix: str, name: str) -> TransferSyntax:
    return TransferSyntax(uid=_ROOT + suffix, name=name, decoder=None, loss=Loss.ALWAYS, video=True)


_JPEG, _LS, _J2K = codecs.decode_jpeg, codecs.decode_jpeg_ls, codecs.decode_jpeg_2000
_XL = codecs.decode_jpeg_xl
_ALWAYS, _POSSIBLE = Loss.ALWAYS, Loss.POSSIBLE

TABLE: dict[str, TransferSyntax] = {
    row.uid: row
    for row in (
        _native("", "Implicit VR Little Endian", explicit_vr=False),
        _native(".1", "Explicit VR Little Endian"),
        _native(".1.99", "Deflated Explicit VR Little Endian", deflated=True),
        _native(".2", "Explicit VR Big Endian", big_endian=True),
        _frames(
            ".1.98", "Encapsulated Uncompressed Explicit VR Little Endian", codecs.decode_native
        ),
        _frames(".4.50", "JPEG Baseline (Process 1)", _JPEG, _ALWAYS),
        _frames(".4.51", "JPEG Extended (Process 2 and 4)", _JPEG, _ALWAYS),
        _frames(".4.53", "JPEG Spectral Selection (Process 6 and 8)", _JPEG, _ALWAYS),
        _frames(".4.55", "JPEG Full Progression (Process 10 and 12)", _JPEG, _ALWAYS),
        _frames(".4.57", "JPEG Lossless (Process 14)", _JPEG),
        replace(
            _frames(".4.70", "JPEG Lossless (Process 14, Selection Value 1)", _JPEG),
            encoder=encoders.encode_jpeg_lossless,
            # libjpeg-turbo 3.1 loses YCbCr of more than 8 bits.
            conditions=Conditions(meanings=INDEXED | {"RGB"}),
        ),
        # Other readers and writers fail below 6 pixels, ours included in none.
        replace(
            _frames(".4.80", "JPEG-LS Lossless", _LS),
            encoder=encoders.encode_jpeg_ls,
            conditions=Conditions(min_side=6),
        ),
        _frames(".4.81", "JPEG-LS Near-Lossless", _LS, _POSSIBLE),
        # Five decompositions need 32 pixels; of 32-bit cells the codec keeps 26 bits.
        replace(
            _frames(".4.90", "JPEG 2000 Lossless", _J2K),
            encoder=encoders.encode_jpeg_2000,
            conditions=Conditions(min_side=32),
            transforms=True,
        ),
        _frames(".4.91", "JPEG 2000", _J2K, _POSSIBLE),
        # Part 2 with a single component collection is plain Part 1; others fail to decode.
        _frames(".4.92", "JPEG 2000 Part 2 Multi-component Lossless", _J2K),
        _frames(".4.93", "JPEG 2000 Part 2 Multi-component", _J2K, _POSSIBLE),
        replace(
            _frames(".4.201", "High-Throughput JPEG 2000 Lossless", _J2K),
            encoder=encoders.encode_htj2k,
            # Browsers' decoder garbles colour that has not been through the transform.
            conditions=Conditions(min_side=32, meanings=INDEXED | {"RGB"}),
            transforms=True,
        ),
        _frames(".4.202", "High-Throughput JPEG 2000 with RPCL Lossless", _J2K),
        _frames(".4.203", "High-Throughput JPEG 2000", _J2K, _POSSIBLE),
        replace(
            _frames(".4.110", "JPEG XL Lossless", _XL),
            encoder=encoders.encode_jpeg_xl,
            # Its codestream names a colour space of its own.
            conditions=Conditions(meanings=INDEXED | {"RGB"}),
        ),
        _frames(".4.111", "JPEG XL JPEG Recompression", _XL, _ALWAYS),
        _frames(".4.112", "JPEG XL", _XL, _POSSIBLE),
        replace(
            _frames(".5", "RLE Lossless", codecs.decode_rle),
            encoder=encoders.encode_rle,
            # Its header has room for 15 segments (PS3.5 G.5).
            conditions=Conditions(allocated=WHOLE_BYTES, max_planes=15),
            keeps_planes=True,
        ),
        replace(
            _frames(".8.1", "Deflated Image Frame Compression", codecs.decode_deflated),
            encoder=encoders.encode_deflated,
            conditions=Conditions(any_samples=True),
            keeps_planes=True,
        ),
        _video(".4.100", "MPEG2 Main Profile / Main Level"),
        _video(".4.100.1", "Fragmentable MPEG2 Main Profile / Main Level"),
        _video(".4.101", "MPEG2 Main Profile / High Level"),
        _video(".4.101.1", "Fragmentable MPEG2 Main Profile / High Level"),
        _video(".4.102", "MPEG-4 AVC/H.264 High Profile / Level 4.1"),
        _video(".4.102.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.1"),
        _video(".4.103", "MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1"),
        _video(".4.103.1", "Fragmentable MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1"),
        _video(".4.104", "MPEG-4 AVC/H.264 High Profile / Level 4.2 for 2D Video"),
        _video(".4.104.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 for 2D Video"),
        _video(".4.105", "MPEG-4 AVC/H.264 High Profile / Level 4.2 for 3D Video"),
        _video(".4.105.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 for 3D Video"),
        _video(".4.106", "MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2"),
        _video(".4.106.1", "Fragmentable MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2"),
        _video(".4.107", "HEVC/H.265 Main Profile / Level 5.1"),
        _video(".4.108", "HEVC/H.265 Main 10 Profile / Level 5.1"),
    )
}


def syntax(uid: str) -> TransferSyntax | None:
    """Return the row of a transfer syntax, or None for one this node does not know."""
    return TABLE.get(uid)
