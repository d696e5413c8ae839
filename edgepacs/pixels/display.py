"""How a data set wants its frames shown: rescale, windows, tables, padding, pixel aspect."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from edgepacs.pixels.description import PixelDescription, Values
from edgepacs.pixels.luts import Lut, Palette, lut, palette

MAX_WINDOWS = 64
MAX_PIXEL_ASPECT = 20.0  # beyond this a spacing is a slip, not a shape


class VoiFunction(StrEnum):
    """VOI LUT Function (0028,1056), PS3.3 C.11.2.1.3."""

    LINEAR = "LINEAR"
    LINEAR_EXACT = "LINEAR_EXACT"
    SIGMOID = "SIGMOID"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A window in units of the modality output; `name` is its explanation, empty where none."""

    centre: float
    width: float
    function: VoiFunction = VoiFunction.LINEAR
    name: str = ""

    @property
    def usable(self) -> bool:
        """Whether the width fits the function (PS3.3 C.11.2.1.2.1, C.11.2.1.3) and is finite."""
        least = 1.0 if self.function is VoiFunction.LINEAR else math.ulp(0.0)
        return math.isfinite(self.centre) and math.isfinite(self.width) and self.width >= least


@dataclass(frozen=True, slots=True, kw_only=True)
class DisplayParameters:
    """What one frame needs besides its pixels.

    `padding` is the closed range of stored values that are no image (PS3.3 C.7.5.1.1.2).
    `pixel_aspect` is the height of a pixel divided by its width.
    """

    slope: float = 1.0
    intercept: float = 0.0
    modality_lut: Lut | None = None
    windows: tuple[Window, ...] = ()
    voi_lut: Lut | None = None
    padding: tuple[int, int] | None = None
    palette: Palette | None = None
    pixel_aspect: float = 1.0


def display_parameters(
    values: Values, description: PixelDescription, frame: int = 0
) -> DisplayParameters:
    """Read the display parameters of `frame`, counted from 0.

    Multi-frame functional groups, the frame's own before the shared ones, come before the
    attributes of the data set (PS3.3 C.7.6.16). What is broken is left out, so that a default
    stands in; only a palette cannot be done without.

    Raises Undecodable when the pixels are palette indices and the palette is missing or broken.
    """
    signed = description.pixel_representation == 1
    rescale = _first(values, frame, "PixelValueTransformationSequence", "RescaleSlope")
    voi = _first(values, frame, "FrameVOILUTSequence", "WindowCenter")
    measures = _first(values, frame, "PixelMeasuresSequence", "PixelSpacing")
    slope = _number(rescale, "RescaleSlope") or _number(values, "DoseGridScaling") or 1.0
    intercept = _number(rescale, "RescaleIntercept") or 0.0
    modality_item = _item(values, "ModalityLUTSequence", 0)
    voi_item = _item(values, "VOILUTSequence", 0)
    coloured = description.photometric_interpretation == "PALETTE COLOR"
    return DisplayParameters(
        slope=slope,
        intercept=intercept,
        modality_lut=lut(modality_item, signed=signed) if modality_item is not None else None,
        windows=_windows(voi),
        voi_lut=lut(voi_item, signed=signed or intercept < 0) if voi_item is not None else None,
        padding=_padding(values),
        palette=palette(values, signed=signed) if coloured else None,
        pixel_aspect=_aspect(values, measures),
    )


def _get(values: Values, keyword: str) -> Any:
    try:
        return values.get(keyword)
    except Exception:  # noqa: BLE001 - pydicom converts late and raises whatever that does
        return None


def _list(values: Values, keyword: str) -> list[Any]:
    value = _get(values, keyword)
    if value is None or value == "":
        return []
    if isinstance(value, str | bytes | int | float):
        return [value]
    try:
        return list(value)
    except TypeError:
        return [value]


def _numbers(values: Values, keyword: str) -> list[float]:
    """Finite numbers of a multi-valued attribute; empty when one of them is none."""
    try:
        numbers = [float(value) for value in _list(values, keyword)]
    except (TypeError, ValueError, OverflowError):
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def _number(values: Values, keyword: str) -> float | None:
    numbers = _numbers(values, keyword)
    return numbers[0] if numbers else None


def _item(values: Values, keyword: str, index: int) -> Values | None:
    items = _get(values, keyword)
    try:
        return items[index] if items is not None and index < len(items) else None
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return None


def _first(values: Values, frame: int, macro: str, keyword: str) -> Values:
    """Whatever holds `keyword` for `frame`: its own group, the shared one, or the data set."""
    for group, index in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        groups = _item(values, group, index)
        found = _item(groups, macro, 0) if groups is not None else None
        if found is not None and _list(found, keyword):
            return found
    return values


def _windows(values: Values) -> tuple[Window, ...]:
    centres, widths = _numbers(values, "WindowCenter"), _numbers(values, "WindowWidth")
    names = [str(name) for name in _list(values, "WindowCenterWidthExplanation")]
    names += [""] * (len(centres) - len(names))
    try:
        function = VoiFunction(str(_get(values, "VOILUTFunction") or "LINEAR").strip())
    except ValueError:
        function = VoiFunction.LINEAR
    windows = (
        Window(centre=centre, width=width, function=function, name=name)
        for centre, width, name in zip(
            centres[:MAX_WINDOWS], widths[:MAX_WINDOWS], names, strict=False
        )
    )
    return tuple(window for window in windows if window.usable)


def _padding(values: Values) -> tuple[int, int] | None:
    value = _number(values, "PixelPaddingValue")
    if value is None:
        return None
    limit = _number(values, "PixelPaddingRangeLimit")
    ends = sorted((int(value), int(value if limit is None else limit)))
    return ends[0], ends[1]


def _aspect(values: Values, measures: Values) -> float:
    """Height by width of a pixel from spacings or Pixel Aspect Ratio (PS3.3 C.7.6.3.1.7)."""
    for source, keyword in (
        (measures, "PixelSpacing"),
        (values, "ImagerPixelSpacing"),
        (values, "NominalScannedPixelSpacing"),
        (values, "PixelAspectRatio"),
    ):
        numbers = _numbers(source, keyword)
        if len(numbers) == 2 and numbers[0] > 0 and numbers[1] > 0:
            aspect = numbers[0] / numbers[1]
            within = 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT
            return aspect if within else 1.0
    return 1.0
