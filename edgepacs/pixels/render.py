"""From a decoded frame to the 8-bit picture a browser shows, and its JPEG.

The order of the steps is that of PS3.4 N.2: modality, values of interest, presentation.
"""

import numpy as np
from imagecodecs import jpeg8_encode

from edgepacs.errors import InvalidValue, Undecodable
from edgepacs.pixels.description import Frame, PixelDescription, Pixels, stored_values
from edgepacs.pixels.display import DisplayParameters, VoiFunction, Window
from edgepacs.pixels.resample import display_size, resize

MAX_PICTURE_PIXELS = 1 << 27
_SAMPLE = 1 << 16  # pixels looked at for a default window
_PERCENTILES = (1.0, 99.0)
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")


def render(
    frame: Frame,
    description: PixelDescription,
    parameters: DisplayParameters,
    *,
    window: Window | None = None,
    max_edge: int | None = None,
) -> Pixels:
    """Render a frame: uint8 of shape (height, width), or (height, width, 3) in RGB.

    Pixels come out square; no edge is longer than `max_edge`. A `window` given here replaces
    those of the data set; it means nothing to colour.

    Raises InvalidValue for a window or edge that cannot be, Undecodable for a photometric
    interpretation this node does not know or a palette index out of bounds.
    """
    if window is not None and not window.usable:
        raise InvalidValue("window", "centre and width must be finite, the width at least 1")
    if max_edge is not None and max_edge < 1:
        raise InvalidValue("max_edge", "must be at least 1")
    height, width = display_size(
        description.rows, description.columns, parameters.pixel_aspect, max_edge
    )
    if height * width > MAX_PICTURE_PIXELS:
        height, width = description.rows, description.columns
    meaning = frame.photometric_interpretation
    if meaning in _MONOCHROME:
        grey = _grey(frame, description, parameters, window)
        return resize(grey, height, width)
    if meaning == "PALETTE COLOR":
        if parameters.palette is None:
            raise Undecodable("Palette: missing")
        indices = stored_values(frame.array, description)
        return resize(parameters.palette.look_up(indices), height, width)
    picture = resize(_eight_bits(frame.array, description), height, width)
    return _to_rgb(picture, meaning)


def encode_jpeg(picture: Pixels, quality: int = 90) -> bytes:
    """Encode a rendered picture as baseline JPEG, `quality` 1 to 100; chroma is not subsampled."""
    return bytes(jpeg8_encode(picture, level=quality, subsampling="444"))


def default_window(
    frame: Frame, description: PixelDescription, parameters: DisplayParameters
) -> Window:
    """Choose a window for a monochrome frame whose data set names none.

    Full range for up to 8 unsigned bits, which come from devices that meant them for a screen;
    else from the 1st to the 99th percentile of a sample without padding. For a cine loop take
    one frame's and give it to all.
    """
    if description.bits_stored <= 8 and not description.pixel_representation:
        low, high = _modality(np.array([0, (1 << description.bits_stored) - 1]), parameters)
        return _spanning(float(min(low, high)), float(max(low, high)))
    step = max(1, int((description.rows * description.columns / _SAMPLE) ** 0.5))
    sample = stored_values(frame.array[::step, ::step], description).ravel()
    if parameters.padding is not None:
        image = sample[(sample < parameters.padding[0]) | (sample > parameters.padding[1])]
        sample = image if image.size else sample
    values = _modality(sample, parameters)
    values = values[np.isfinite(values)]
    if not values.size:
        return Window(centre=0.0, width=1.0, function=VoiFunction.LINEAR_EXACT)
    low, high = np.percentile(values, _PERCENTILES)
    if low == high:
        low, high = values.min(), values.max()
    return _spanning(float(low), float(high))


def _spanning(low: float, high: float) -> Window:
    width = max(high - low, 1e-6)
    return Window(centre=(low + high) / 2, width=width, function=VoiFunction.LINEAR_EXACT)


def _grey(
    frame: Frame,
    description: PixelDescription,
    parameters: DisplayParameters,
    window: Window | None,
) -> Pixels:
    chosen = window or _window_of(parameters)
    if chosen is None and (parameters.voi_lut is None):
        chosen = default_window(frame, description, parameters)
    use_lut = parameters.voi_lut is not None and window is None
    inverted = frame.photometric_interpretation == "MONOCHROME1"

    def shade(cells: Pixels) -> Pixels:
        stored = stored_values(cells, description)
        values = _modality(stored, parameters)
        grey = _through_lut(values, parameters) if use_lut else _through_window(values, chosen)
        if inverted:
            grey = 255 - grey
        if parameters.padding is not None:
            low, high = parameters.padding
            grey[(stored >= low) & (stored <= high)] = 0  # padding is no image: never bright
        return grey

    if description.cell_bytes > 2:
        return shade(frame.array)
    # One shade for every possible cell, unused bits included, and a single look-up per pixel.
    unsigned = np.dtype(f"u{description.cell_bytes}")
    every_cell = np.arange(1 << (8 * description.cell_bytes), dtype=np.uint32).astype(unsigned)
    shades = shade(every_cell.view(description.dtype))
    return np.take(shades, frame.array.view(unsigned))


def _window_of(parameters: DisplayParameters) -> Window | None:
    return parameters.windows[0] if parameters.windows else None


def _modality(stored: Pixels, parameters: DisplayParameters) -> Pixels:
    """Stored values to modality values (PS3.3 C.11.1); a table excludes rescaling."""
    if parameters.modality_lut is not None:
        return parameters.modality_lut.look_up(stored).astype(np.float64)
    return stored * np.float64(parameters.slope) + parameters.intercept


def _through_lut(values: Pixels, parameters: DisplayParameters) -> Pixels:
    table = parameters.voi_lut
    assert table is not None
    inputs = np.rint(np.nan_to_num(values)).clip(-(1 << 31), 1 << 31)
    outputs = table.look_up(inputs).astype(np.float64)
    # Descriptors often claim 16 bits for tables of 10 or 12: then the bits in use decide.
    bits = table.bits if table.bits <= 8 else max(int(table.entries.max()).bit_length(), 8)
    return _bytes(outputs * (255.0 / ((1 << bits) - 1)))


def _through_window(values: Pixels, window: Window | None) -> Pixels:
    """Apply a window (PS3.3 C.11.2.1.2.1 and C.11.2.1.3) for an output of 0 to 255."""
    assert window is not None
    centre, width = window.centre, window.width
    if window.function is VoiFunction.SIGMOID:
        with np.errstate(over="ignore"):
            return _bytes(255.0 / (1.0 + np.exp(-4.0 * (values - centre) / width)))
    if window.function is VoiFunction.LINEAR_EXACT:
        return _bytes(((values - centre) / width + 0.5) * 255.0)
    if width == 1.0:
        return np.where(values > centre - 0.5, np.uint8(255), np.uint8(0))
    return _bytes(((values - (centre - 0.5)) / (width - 1.0) + 0.5) * 255.0)


def _bytes(values: Pixels) -> Pixels:
    np.clip(np.nan_to_num(values, copy=False), 0.0, 255.0, out=values)
    return np.rint(values).astype(np.uint8)


def _eight_bits(cells: Pixels, description: PixelDescription) -> Pixels:
    values = stored_values(cells, description)
    if description.bits_stored == 8 and values.dtype == np.uint8:
        return values
    top = (1 << description.bits_stored) - 1
    offset = 1 << (description.bits_stored - 1) if description.pixel_representation else 0
    return _bytes((values.astype(np.float64) + offset) * (255.0 / top))


def _to_rgb(picture: Pixels, meaning: str) -> Pixels:
    """Convert to RGB by the equations of PS3.3 C.7.6.3.1.2, inverted."""
    if meaning == "RGB":
        return picture
    if meaning not in ("YBR_FULL", "YBR_PARTIAL"):
        raise Undecodable("Photometric Interpretation: no way known to show it")
    partial = meaning == "YBR_PARTIAL"
    luma_scale, chroma_scale = (255 / 219, 255 / 224) if partial else (1.0, 1.0)
    luma = (picture[..., 0].astype(np.float32) - (16.0 if partial else 0.0)) * luma_scale
    blue = (picture[..., 1].astype(np.float32) - 128.0) * chroma_scale
    red = (picture[..., 2].astype(np.float32) - 128.0) * chroma_scale
    rgb = np.stack(
        (luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue), axis=-1
    )
    return _bytes(rgb)
