"""Resizing 8-bit pictures: averages over areas going down, straight lines going up."""

import numpy as np

from edgepacs.pixels.description import Pixels


def display_size(
    rows: int, columns: int, pixel_aspect: float, max_edge: int | None
) -> tuple[int, int]:
    """Height and width of a picture with square pixels, at most `max_edge` long.

    `pixel_aspect` is a pixel's height by its width; the coarser direction is stretched.
    """
    height, width = rows * max(pixel_aspect, 1.0), columns * max(1.0 / pixel_aspect, 1.0)
    scale = 1.0 if max_edge is None else min(1.0, max_edge / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(picture: Pixels, height: int, width: int) -> Pixels:
    """Resize `picture`, uint8 of shape (rows, columns) or (rows, columns, 3)."""
    rows, columns = picture.shape[:2]
    if rows % height == 0 and columns % width == 0:
        return _block_means(picture, rows // height, columns // width)
    if rows != height:
        picture = _along_first(picture, height)
    if columns != width:
        picture = _along_first(np.ascontiguousarray(picture.swapaxes(0, 1)), width).swapaxes(0, 1)
    return np.ascontiguousarray(picture)


def _block_means(picture: Pixels, down: int, across: int) -> Pixels:
    """Average whole blocks: the common case of half, third, quarter, several times faster."""
    if down == across == 1:
        return picture
    total = picture[::down, ::across].astype(np.uint32)
    for y in range(down):
        for x in range(across):
            if x or y:
                total += picture[y::down, x::across]
    means: Pixels = ((total + down * across // 2) // (down * across)).astype(np.uint8)
    return means


def _along_first(picture: Pixels, length: int) -> Pixels:
    size = picture.shape[0]
    indices, weights = _area(size, length) if length < size else _line(size, length)
    total = np.zeros((length, *picture.shape[1:]), np.float32)
    for index, weight in zip(indices, weights, strict=True):
        total += picture[index] * weight.reshape(-1, *[1] * (picture.ndim - 1))
    means: Pixels = np.rint(total).astype(np.uint8)
    return means


def _area(size: int, length: int) -> tuple[Pixels, Pixels]:
    """Which samples make up each of `length` intervals, and the part each has in it."""
    ratio = size / length
    starts = np.arange(length) * ratio
    indices = starts.astype(np.intp) + np.arange(int(ratio) + 2)[:, None]
    left, right = np.maximum(indices, starts), np.minimum(indices + 1, starts + ratio)
    weights = (np.maximum(right - left, 0.0) / ratio).astype(np.float32)
    return np.minimum(indices, size - 1), weights


def _line(size: int, length: int) -> tuple[Pixels, Pixels]:
    """The two neighbours of each of `length` points and their weights."""
    positions = ((np.arange(length) + 0.5) * (size / length) - 0.5).clip(0, size - 1)
    below = positions.astype(np.intp)
    part = (positions - below).astype(np.float32)
    return np.stack((below, np.minimum(below + 1, size - 1))), np.stack((1 - part, part))
