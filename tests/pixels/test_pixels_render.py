"""From stored values to the picture on the screen."""

from dataclasses import replace
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pixel_support import LITTLE, colour, decoded, described, gradient, grey, instance
from pydicom import Dataset, Sequence
from pydicom.pixels import apply_color_lut, apply_voi, apply_windowing, convert_color_space

from edgepacs.errors import InvalidValue, Undecodable
from edgepacs.pixels.description import Frame, PixelDescription, describe
from edgepacs.pixels.display import (
    DisplayParameters,
    VoiFunction,
    Window,
    display_parameters,
)
from edgepacs.pixels.luts import Lut, Palette, palette
from edgepacs.pixels.render import (
    default_window,
    encode_jpeg,
    render,
)
from edgepacs.pixels.resample import display_size, resize

EVERY_12_BIT = np.arange(4096, dtype=np.uint16).reshape(64, 64)
TWELVE = grey(64, 64, 16, BitsStored=12)
GREY = "MONOCHROME2"


def shown(
    cells: Any, description: PixelDescription = TWELVE, meaning: str = GREY, **others: Any
) -> Any:
    window = others.pop("window", None)
    return render(Frame(cells, meaning), description, DisplayParameters(**others), window=window)


@pytest.mark.parametrize("function", list(VoiFunction))
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (700, 1), (1000.5, 333), (-5, 40)])
def test_windows_as_pydicom_computes_them(
    function: VoiFunction, centre: float, width: float
) -> None:
    dataset = Dataset()
    dataset.PhotometricInterpretation = GREY
    dataset.BitsStored, dataset.PixelRepresentation = 12, 0
    dataset.WindowCenter, dataset.WindowWidth = centre, width
    dataset.VOILUTFunction = function.value
    expected = apply_windowing(EVERY_12_BIT, dataset) / 4095 * 255
    window = Window(centre=centre, width=width, function=function)
    assert np.abs(shown(EVERY_12_BIT, windows=(window,)) - expected).max() <= 0.51


def test_window_edges_by_the_letter() -> None:
    """PS3.3 C.11.2.1.2.1: black up to c - 0.5 - (w-1)/2, white beyond c - 0.5 + (w-1)/2."""
    out = shown(EVERY_12_BIT, windows=(Window(centre=100, width=51),)).ravel()
    assert out[:75].max() == 0
    assert out[75] > 0
    assert out[124] < 255
    assert out[125:].min() == 255
    threshold = shown(EVERY_12_BIT, windows=(Window(centre=100, width=1),)).ravel()
    assert (threshold == np.where(np.arange(4096) > 99.5, 255, 0)).all()


def test_user_window_replaces_those_of_the_data_set() -> None:
    own, users = Window(centre=100, width=10), Window(centre=3000, width=500)
    assert (
        shown(EVERY_12_BIT, windows=(own,), window=users) == shown(EVERY_12_BIT, windows=(users,))
    ).all()


@pytest.mark.parametrize(
    "window",
    [
        Window(centre=0, width=0.5),
        Window(centre=0, width=-1, function=VoiFunction.SIGMOID),
        Window(centre=0, width=0, function=VoiFunction.LINEAR_EXACT),
        Window(centre=float("nan"), width=10),
        Window(centre=0, width=float("inf")),
    ],
)
def test_windows_that_cannot_be(window: Window) -> None:
    with pytest.raises(InvalidValue, match="window"):
        shown(EVERY_12_BIT, window=window)
    with pytest.raises(InvalidValue, match="max_edge"):
        render(Frame(EVERY_12_BIT, GREY), TWELVE, DisplayParameters(), max_edge=0)


def test_rescale_comes_before_the_window() -> None:
    cells = EVERY_12_BIT.astype(np.int16) - 1024
    description = grey(64, 64, 16, PixelRepresentation=1)
    out = shown(
        cells, description, slope=2.0, intercept=-100.0, windows=(Window(centre=500, width=1000),)
    )
    direct = shown(
        (cells.astype(np.int32) * 2 - 100),
        grey(64, 64, 32, PixelRepresentation=1),
        windows=(Window(centre=500, width=1000),),
    )
    np.testing.assert_array_equal(out, direct)


def test_monochrome1_is_turned_over() -> None:
    window = Window(centre=2000, width=1000)
    upright = shown(EVERY_12_BIT, windows=(window,))
    np.testing.assert_array_equal(
        shown(EVERY_12_BIT, meaning="MONOCHROME1", windows=(window,)), 255 - upright
    )


def test_bits_above_the_stored_ones_do_not_show() -> None:
    window = Window(centre=2000, width=4000)
    with_overlay = EVERY_12_BIT | 0xF000
    np.testing.assert_array_equal(
        shown(with_overlay, windows=(window,)), shown(EVERY_12_BIT, windows=(window,))
    )


def test_padding_is_black_and_does_not_sway_the_default_window() -> None:
    cells = np.full((64, 64), 4000, np.uint16)
    cells[16:48, 16:48] = 1000 + np.arange(1024).reshape(32, 32)
    frame, parameters = Frame(cells, "MONOCHROME1"), DisplayParameters(padding=(3900, 4095))
    window = default_window(frame, TWELVE, parameters)
    assert 1000 <= window.centre - window.width / 2 < window.centre + window.width / 2 <= 2024
    out = render(frame, TWELVE, parameters)
    assert out[0, 0] == 0
    assert out[17, 17] > 200


@pytest.mark.parametrize("value", [0, 77, 4095])
def test_a_flat_picture_needs_no_special_care(value: int) -> None:
    out = shown(np.full((64, 64), value, np.uint16))
    assert (out == out[0, 0]).all()


def test_eight_bits_are_shown_as_they_are() -> None:
    cells = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(shown(cells, grey(16, 16, 8)), cells)
    one_bit = (cells & 1).astype(np.uint8)
    np.testing.assert_array_equal(shown(one_bit, grey(16, 16, 1)), one_bit * 255)


def test_floating_point_with_what_is_no_number() -> None:
    cells = np.linspace(-5, 5, 4096, dtype=np.float32).reshape(64, 64)
    cells[0, :3] = np.nan, np.inf, -np.inf
    out = shown(cells, grey(64, 64, 32, BitsStored=None))
    assert out[1, 0] < 20
    assert out[-1, -1] == 255


def lut_item(first: int, bits: int, entries: list[int]) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "US"
    item.add_new("LUTData", "US", entries)
    return item


def test_voi_lut_as_pydicom_applies_it() -> None:
    dataset = Dataset()
    dataset.PhotometricInterpretation = GREY
    dataset.Rows = dataset.Columns = 64
    dataset.BitsAllocated, dataset.BitsStored, dataset.PixelRepresentation = 16, 12, 0
    dataset.VOILUTSequence = Sequence([lut_item(100, 10, [(n * n) % 1024 for n in range(600)])])
    dataset.WindowCenter, dataset.WindowWidth = 5, 6
    parameters = display_parameters(dataset, TWELVE)
    out = render(Frame(EVERY_12_BIT, GREY), TWELVE, parameters)
    expected = apply_voi(EVERY_12_BIT, dataset) * (255 / 1023)
    np.testing.assert_array_equal(out, np.rint(expected))
    wide = replace(
        parameters, voi_lut=Lut(0, np.arange(4096, dtype=np.uint16), 16)
    )  # 12 bits in use, whatever the descriptor says
    assert render(Frame(EVERY_12_BIT, GREY), TWELVE, wide).ravel()[[0, 2048, 4095]].tolist() == [
        0,
        128,
        255,
    ]
    by_window = render(Frame(EVERY_12_BIT, GREY), TWELVE, parameters, window=parameters.windows[0])
    assert not (by_window == out).all()


def test_modality_lut_replaces_rescaling() -> None:
    dataset = Dataset()
    dataset.ModalityLUTSequence = Sequence([lut_item(0, 16, [4095 - n for n in range(4096)])])
    dataset.RescaleSlope = 7
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    out = render(Frame(EVERY_12_BIT, GREY), TWELVE, display_parameters(dataset, TWELVE)).ravel()
    assert (out[0], out[-1]) == (255, 0)


def test_broken_tables_and_windows_are_left_out() -> None:
    dataset = Dataset()
    broken = lut_item(0, 16, [1, 2, 3])
    broken.LUTDescriptor = [4096, 0, 16]
    dataset.VOILUTSequence = Sequence([broken])
    dataset.ModalityLUTSequence = Sequence([])
    dataset.WindowCenter, dataset.WindowWidth = [40, 50, 60], [0, 400]
    dataset.VOILUTFunction = "CUBIC"
    parameters = display_parameters(dataset, TWELVE)
    assert parameters.voi_lut is None
    assert parameters.modality_lut is None
    assert parameters.windows == (Window(centre=50, width=400),)
    text = {"WindowCenter": "abc", "WindowWidth": "1e999", "RescaleSlope": "x", "PixelSpacing": "1"}
    assert display_parameters(text, TWELVE) == DisplayParameters()


def group(macro: str, **values: Any) -> Dataset:
    inner, outer = Dataset(), Dataset()
    for keyword, value in values.items():
        setattr(inner, keyword, value)
    setattr(outer, macro, Sequence([inner]))
    return outer


def test_functional_groups_of_the_frame_come_first() -> None:
    dataset = Dataset()
    dataset.PixelSpacing, dataset.WindowCenter, dataset.WindowWidth = [1, 1], 1, 2
    dataset.SharedFunctionalGroupsSequence = Sequence(
        [group("PixelMeasuresSequence", PixelSpacing=[2.0, 1.0])]
    )
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        [
            group("FrameVOILUTSequence", WindowCenter=100, WindowWidth=50),
            group("PixelValueTransformationSequence", RescaleSlope=3, RescaleIntercept=-7),
        ]
    )
    first, second, beyond = (display_parameters(dataset, TWELVE, n) for n in (0, 1, 2))
    assert first.windows == (Window(centre=100, width=50),)
    assert (first.slope, first.pixel_aspect) == (1.0, 2.0)
    assert (second.slope, second.intercept) == (3.0, -7.0)
    assert second.windows == beyond.windows == (Window(centre=1, width=2),)
    assert display_parameters({"DoseGridScaling": "0.01"}, TWELVE).slope == 0.01


@pytest.mark.parametrize(
    "name", ["OBXXXX1A.dcm", "examples_palette.dcm", "gdcm-US-ALOKA-16.dcm", "OT-PAL-8-face.dcm"]
)
def test_palettes_as_pydicom_applies_them(name: str) -> None:
    dataset = instance(name)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
    description = described(dataset)
    frame = decoded(dataset)
    ours = render(frame, description, display_parameters(dataset, description))
    theirs = apply_color_lut(frame.array, dataset)
    if theirs.dtype == np.uint16 and theirs.max() > 255:
        theirs = theirs >> 8
    np.testing.assert_array_equal(ours, theirs)


def colour_table(**others: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in ("Red", "Green", "Blue"):
        values[f"{name}PaletteColorLookupTableDescriptor"] = [4, 10, 8]
        values[f"{name}PaletteColorLookupTableData"] = bytes([0, 50, 100, 200])
    return {**values, **others}


@pytest.mark.bad_input(51)
def test_palette_index_out_of_bounds() -> None:
    description = grey(1, 2, 8, PhotometricInterpretation="PALETTE COLOR")
    parameters = DisplayParameters(palette=palette(colour_table(), signed=False))
    inside = Frame(np.array([[10, 13]], np.uint8), "PALETTE COLOR")
    assert render(inside, description, parameters).tolist() == [[[0, 0, 0], [200, 200, 200]]]
    for index in (9, 14, 255):
        outside = Frame(np.array([[10, index]], np.uint8), "PALETTE COLOR")
        with pytest.raises(Undecodable, match="out of bounds"):
            render(outside, description, parameters)


@pytest.mark.parametrize(
    "wrong",
    [
        {"RedPaletteColorLookupTableDescriptor": None},
        {"RedPaletteColorLookupTableDescriptor": [4, 10]},
        {"RedPaletteColorLookupTableDescriptor": [4, 10, 99]},
        {"RedPaletteColorLookupTableDescriptor": [0, 10, 8]},
        {"RedPaletteColorLookupTableData": None},
        {"RedPaletteColorLookupTableData": b"\0\1"},
        {"RedPaletteColorLookupTableDescriptor": [2, 10, 8]},
        {"SegmentedRedPaletteColorLookupTableData": b"\1\4\7"},
        {"SegmentedRedPaletteColorLookupTableData": b"\0\xff\7"},
        {"SegmentedRedPaletteColorLookupTableData": b"\2\1\xff\xff\xff\xff"},
        {"SegmentedRedPaletteColorLookupTableData": b"\0\1\7\2\1\3\0\0\0"},
        {"SegmentedRedPaletteColorLookupTableData": b"\x09\1\7"},
        {"SegmentedRedPaletteColorLookupTableData": b"\0\1\7\2\1\x09\0\0\0\0\3\1\2\3"},
        {"SegmentedRedPaletteColorLookupTableData": b"\0\0" * 200_000},
        {"SegmentedRedPaletteColorLookupTableData": [1, 2, 3]},
    ],
)
def test_broken_palettes(wrong: dict[str, Any]) -> None:
    with pytest.raises(Undecodable):
        palette(colour_table(**wrong), signed=False)


def test_segments_of_every_kind() -> None:
    """A discrete segment, a linear one, and an indirect one that repeats both (C.7.9.2)."""
    data = b"\0\2\x0a\x14" + b"\1\2\x1e" + b"\2\1\0\0\0\0"
    values = colour_table()
    for name in ("Red", "Green", "Blue"):
        values[f"{name}PaletteColorLookupTableDescriptor"] = [6, 0, 8]
        values[f"Segmented{name}PaletteColorLookupTableData"] = data
    found = palette(values, signed=False)
    assert found.colours[:, 0].tolist() == [10, 20, 25, 30, 10, 20]


def test_sixteen_bit_palette_and_signed_first_entry() -> None:
    values = {}
    for name in ("Red", "Green", "Blue"):
        values[f"{name}PaletteColorLookupTableDescriptor"] = [2, 0xFFFF, 16]
        values[f"{name}PaletteColorLookupTableData"] = b"\x00\x10\x00\xff"
    found = palette(values, signed=True)
    assert (found.first, found.colours[:, 0].tolist()) == (-1, [0x10, 0xFF])


def test_ybr_becomes_rgb_as_pydicom_converts() -> None:
    cube = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3, indexing="ij"), axis=-1)
    ybr = cube.reshape(-1, 18, 3).astype(np.uint8)
    description = colour(*ybr.shape[:2], PhotometricInterpretation="YBR_FULL")
    ours = render(Frame(ybr, "YBR_FULL"), description, DisplayParameters())
    theirs = convert_color_space(ybr, "YBR_FULL", "RGB")
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_partial_range_and_deep_colour() -> None:
    ends = np.array([[[16, 128, 128], [235, 128, 128]]], np.uint8)
    description = colour(1, 2, PhotometricInterpretation="YBR_PARTIAL_422")
    out = render(Frame(ends, "YBR_PARTIAL"), description, DisplayParameters())
    assert out.tolist() == [[[0, 0, 0], [255, 255, 255]]]
    deep = np.array([[[0, 32768, 65535]]], np.uint16)
    sixteen = grey(1, 1, 16, SamplesPerPixel=3, PhotometricInterpretation="RGB")
    assert render(Frame(deep, "RGB"), sixteen, DisplayParameters()).tolist() == [[[0, 128, 255]]]
    with pytest.raises(Undecodable, match="Photometric"):
        render(Frame(ends, "HSV"), description, DisplayParameters())


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 60),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    level=st.integers(0, 255),
    planes=st.sampled_from(((), (3,))),
)
def test_resizing_keeps_a_flat_picture_flat(**case: Any) -> None:
    flat = np.full((case["rows"], case["columns"], *case["planes"]), case["level"], np.uint8)
    out = resize(flat, case["height"], case["width"])
    assert out.shape == (case["height"], case["width"], *case["planes"])
    assert (out == case["level"]).all()


@pytest.mark.parametrize(("height", "width"), [(24, 32), (16, 16), (31, 47), (7, 64), (48, 5)])
def test_shrinking_averages_areas(height: int, width: int) -> None:
    picture = gradient(48, 64, 8)
    ours = resize(picture, height, width).astype(float)

    def weights(size: int, length: int) -> Any:
        ratio = size / length
        edges = np.arange(size)
        starts = np.arange(length)[:, None] * ratio
        part = np.minimum(edges + 1, starts + ratio) - np.maximum(edges, starts)
        return np.maximum(part, 0) / ratio

    expected = weights(48, height) @ picture.astype(float) @ weights(64, width).T
    assert np.abs(ours - expected).max() <= 1.01


def test_display_size() -> None:
    assert display_size(2000, 1000, 1.0, None) == (2000, 1000)
    assert display_size(2000, 1000, 1.0, 500) == (500, 250)
    assert display_size(100, 100, 2.0, None) == (200, 100)
    assert display_size(100, 100, 0.5, None) == (100, 200)
    assert display_size(1, 60000, 1.0, 256) == (1, 256)


@pytest.mark.parametrize(
    ("values", "aspect"),
    [
        ({"PixelSpacing": [0.6, 0.3]}, 2.0),
        ({"ImagerPixelSpacing": ["0.1", "0.2"]}, 0.5),
        ({"PixelAspectRatio": ["3", "4"]}, 0.75),
        ({"PixelSpacing": [0.6, 0.0], "PixelAspectRatio": [2, 1]}, 2.0),
        ({"PixelSpacing": [1e9, 1e-9]}, 1.0),
        ({"PixelSpacing": [0.5]}, 1.0),
        ({}, 1.0),
    ],
)
def test_pixel_aspect(values: dict[str, Any], aspect: float) -> None:
    assert display_parameters(values, TWELVE).pixel_aspect == pytest.approx(aspect)


def test_render_squares_pixels_and_keeps_to_the_edge() -> None:
    description = describe(
        {"Rows": 64, "Columns": 64, "BitsAllocated": 16, "PhotometricInterpretation": GREY}, LITTLE
    )
    frame = Frame(EVERY_12_BIT, GREY)
    tall = DisplayParameters(pixel_aspect=2.0)
    assert render(frame, description, tall).shape == (128, 64)
    assert render(frame, description, tall, max_edge=32).shape == (32, 16)
    coloured = replace(tall, palette=Palette(0, np.zeros((4096, 3), np.uint8)))
    assert render(Frame(EVERY_12_BIT, "PALETTE COLOR"), TWELVE, coloured).shape == (128, 64, 3)


@pytest.mark.parametrize("planes", [(), (3,)])
def test_jpeg_keeps_the_picture(planes: tuple[int, ...]) -> None:
    smooth = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)
    picture = np.ascontiguousarray(
        np.broadcast_to(smooth[..., None], (40, 60, 3)) if planes else smooth
    )
    jpeg = imagecodecs.jpeg8_decode(encode_jpeg(picture, 95))
    assert jpeg.shape == picture.shape
    assert np.abs(jpeg.astype(int) - picture).max() <= 6
