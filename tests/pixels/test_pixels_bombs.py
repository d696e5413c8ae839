"""What a lying header may cost: time and resident memory of a refusal, measured in bytes."""

import time
from collections.abc import Callable
from pathlib import Path
from struct import pack

import imagecodecs
import numpy as np
import pytest
from pixel_support import DEFLATED_FRAME, JPEG, RLE, grey

from edgepacs.errors import Undecodable
from edgepacs.pixels.decode import decode_frame
from edgepacs.pixels.deflated import deflate, inflate
from edgepacs.pixels.description import MAX_FRAME_BYTES

SECONDS, MEBIBYTES = 2.0, 64  # of any refusal
LARGE_ROWS, LARGE_COLUMNS = 2048, 65535  # as large as a frame may be: its cap is MAX_FRAME_BYTES
CELLS = MAX_FRAME_BYTES // 2 >> 20  # mebibytes of a frame of 8-bit samples at the cap


def jpeg_ls(rows: int, columns: int) -> bytes:
    """A JPEG-LS bit stream of next to nothing (ITU-T T.87 C.1)."""
    frame = pack(">BBHBHHBBBB", 0xFF, 0xF7, 11, 8, rows, columns, 1, 1, 0x11, 0)
    scan = pack(">BBHBBBBBB", 0xFF, 0xDA, 8, 1, 1, 0, 0, 0, 0)
    return b"\xff\xd8" + frame + scan + bytes(40) + b"\xff\xd9"


def jpeg(rows: int, columns: int) -> bytes:
    """A lossless JPEG whose header has been changed."""
    data = bytearray(imagecodecs.jpeg8_encode(np.zeros((16, 16), np.uint8), lossless=True))
    at = data.index(b"\xff\xc3") + 5
    data[at : at + 4] = pack(">HH", rows, columns)
    return bytes(data)


def jpeg_2000(rows: int, columns: int) -> bytes:
    """A codestream of one empty tile-part (T.800 A.5.1, A.6.1, A.4.2)."""
    sizes = (columns, rows, 0, 0, columns, rows, 0, 0)
    size = pack(">HHHH8IHBBB", 0xFF4F, 0xFF51, 41, 0, *sizes, 1, 7, 1, 1)
    style = pack(">HHBBHBBBBBB", 0xFF52, 12, 0, 0, 1, 0, 5, 4, 4, 0, 1)
    quantisation = pack(">HHB16B", 0xFF5C, 19, 0x40, *[0x48] * 16)
    part = pack(">HHHIBBH", 0xFF90, 10, 0, 0, 0, 1, 0xFF93)
    return size + style + quantisation + part + b"\xff\xd9"


def rle(rows: int, columns: int) -> bytes:
    """Runs of 128 equal bytes, half of what is announced."""
    return pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * (rows * columns // 256)


def deflated(rows: int, columns: int) -> bytes:
    return deflate(bytes(2 * rows * columns))


def jpeg_xl(rows: int, columns: int) -> bytes:
    """The head of a real one, of a few kilobytes; nothing behind it."""
    empty = np.zeros((rows, columns), np.uint8)
    whole = imagecodecs.jpegxl_encode(empty, lossless=True, effort=1)
    return bytes(whole[: len(whole) // 2])


BOMBS: dict[str, Callable[[int, int], bytes]] = {
    JPEG + "80": jpeg_ls,
    JPEG + "70": jpeg,
    JPEG + "90": jpeg_2000,
    JPEG + "201": jpeg_2000,
    JPEG + "110": jpeg_xl,
    RLE: rle,
    DEFLATED_FRAME: deflated,
}


def cost_of(act: Callable[[], object]) -> tuple[float, int]:
    """Seconds, and mebibytes of resident memory at the peak beyond those before."""
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew

    def kibibytes(name: str) -> int:
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    before, begin = kibibytes("VmRSS"), time.monotonic()
    act()
    return time.monotonic() - begin, (kibibytes("VmHWM") - before) >> 10


@pytest.mark.parametrize("uid", BOMBS)
def test_a_frame_larger_than_its_data_set_is_refused_before_anything_is_made(uid: str) -> None:
    data, small = BOMBS[uid](LARGE_ROWS, LARGE_COLUMNS), grey(64, 64, 8, uid)

    def refused() -> None:
        with pytest.raises(Undecodable):
            decode_frame(data, small)

    seconds, mebibytes = cost_of(refused)
    assert seconds < SECONDS
    assert mebibytes < MEBIBYTES


@pytest.mark.parametrize("uid", BOMBS)
def test_a_frame_of_the_greatest_size_with_nothing_in_it(uid: str) -> None:
    """Here the data set lies as well: no more is made than the cap allows, and not for long."""
    data, large = BOMBS[uid](LARGE_ROWS, LARGE_COLUMNS), grey(LARGE_ROWS, LARGE_COLUMNS, 8, uid)

    def ended() -> None:
        try:
            assert decode_frame(data, large).array.shape == (LARGE_ROWS, LARGE_COLUMNS)
        except Undecodable:
            return

    seconds, mebibytes = cost_of(ended)
    assert seconds < 10 * SECONDS
    assert mebibytes < 10 * CELLS


def test_a_data_set_that_inflates_a_thousandfold() -> None:
    bomb = deflate(bytes(256 << 20))

    def refused() -> None:
        with pytest.raises(Undecodable, match="more than"):
            sum(map(len, inflate([bomb], 64 << 20)))

    seconds, mebibytes = cost_of(refused)
    assert seconds < SECONDS
    assert mebibytes < MEBIBYTES
