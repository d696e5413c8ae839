"""When a frame may be encoded in a transfer syntax, as data: the limits of one row of the table."""

from dataclasses import dataclass

from edgepacs.pixels.codecs import native_frame_bits
from edgepacs.pixels.description import PixelDescription, SampleKind

MONOCHROME = frozenset({"MONOCHROME1", "MONOCHROME2"})
INDEXED = MONOCHROME | {"PALETTE COLOR"}
COLOUR = frozenset({"RGB", "YBR_FULL"})
WHOLE_BYTES = frozenset(range(8, 65, 8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a native frame must be like for one encoder; each limit has been somebody's loss.

    `allocated` are the Bits Allocated it keeps to the last bit, `meanings` the Photometric
    Interpretations whose samples it takes as they are. `min_side` is the least of Rows and
    Columns. `max_planes` bounds the bytes of one composite pixel (RLE, PS3.5 G.5).
    """

    allocated: frozenset[int] = frozenset({8, 16})
    meanings: frozenset[str] = INDEXED | COLOUR
    min_side: int = 1
    max_planes: int = 24
    any_samples: bool = False

    def obstacle(self, description: PixelDescription) -> str:
        """Why a frame of `description` cannot be encoded, naming the attribute; "" if it can."""
        return next((problem for is_so, problem in self._tests(description) if is_so), "")

    def _tests(self, description: PixelDescription) -> tuple[tuple[bool, str], ...]:
        if self.any_samples:
            return ((_has_gaps(description), "Pixel data: frames do not begin at whole bytes"),)
        allocated = description.bits_allocated
        octets = description.samples_per_pixel * allocated // 8
        smallest = min(description.rows, description.columns)
        return (
            (
                description.sample_kind is not SampleKind.INTEGER,
                "Pixel data: floating point samples",
            ),
            (allocated not in self.allocated, f"Bits Allocated: {allocated} would not all be kept"),
            (
                description.photometric_interpretation not in self.meanings,
                "Photometric Interpretation: not one this encoder takes",
            ),
            (smallest < self.min_side, f"Rows, Columns: below {self.min_side}"),
            (octets > self.max_planes, f"Bits Allocated: over {self.max_planes} bytes a pixel"),
        )


def _has_gaps(description: PixelDescription) -> bool:
    """Whether frames begin within a byte: taken one by one they would not fit together again."""
    return description.number_of_frames > 1 and native_frame_bits(description) % 8 != 0
