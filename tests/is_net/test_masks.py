"""Every stored form of a mask is read to the same levels, or refused with the values found."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from IS_Net.errors import ImageError
from IS_Net.images import decode_mask, encode_png, read_mask, write_map
from IS_Net.masks import read_stored_mask

OBJECT = cv2.circle(np.zeros((60, 80), np.uint8), (30, 30), 20, 1, -1)
"""0/1, (60, 80)."""
SOFT = cv2.GaussianBlur(OBJECT * 255, (0, 0), 3)
"""A soft matte, 0..255."""
COLORS = [(128, 0, 0), (255, 0, 0), (0, 0, 255), (250, 179, 36), (64, 0, 0), (1, 0, 0), (0, 128, 0), (0, 7, 3)]


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def paint(*colors: tuple[int, int, int]) -> np.ndarray:
    """Return the object in one color, or cut into columns of several."""
    image = np.zeros((*OBJECT.shape, 3), np.uint8)
    for number, color in enumerate(colors):
        part = (np.arange(OBJECT.shape[1]) // 8 % len(colors)) == number
        image[(OBJECT > 0) & part] = color
    return image


def assert_object(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(mask, OBJECT * 255)


# --- class indices ---


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("value", [1, 2, 3, 20, 100, 128])
def test_row_6_class_indices_are_the_object(tmp_path: Path, dtype: type, value: int):
    """Fault 6: a ground truth stored as 0/2, 0/3 or 0/20 was empty."""
    path = save(tmp_path / "gt.tif", OBJECT.astype(dtype) * dtype(value))
    assert_object(read_mask(path))
    assert read_stored_mask(path).note or (dtype is np.float32 and value == 1)


@pytest.mark.parametrize("classes", [(1, 2), (1, 15), (2, 3, 7), (3, 20, 40)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_row_6_several_classes_are_the_object(tmp_path: Path, classes: tuple[int, ...], dtype: type):
    values = np.zeros_like(OBJECT, dtype)
    for number, value in enumerate(classes):
        values[4:40, 4 + 20 * number : 18 + 20 * number] = value
    path = save(tmp_path / "gt.png", values)
    np.testing.assert_array_equal(read_mask(path), np.where(values > 0, 255, 0))
    assert f"{classes[-2]} and {classes[-1]}" in read_stored_mask(path).note


def test_row_6_trimaps_of_0_1_and_2_are_objects(tmp_path: Path):
    """Nested classes, whose values rise in steps of 1 as those of a faint matte do."""
    values = cv2.erode(OBJECT, np.ones((9, 9), np.uint8)) + OBJECT
    assert_object(read_mask(save(tmp_path / "gt.png", values)))


@pytest.mark.parametrize("values", [(1, 2, 3), (2, 5)])
def test_row_6_classes_without_a_background_are_refused(tmp_path: Path, values: tuple[int, ...]):
    """Trimaps of 1, 2 and 3: nothing says which is the object."""
    pixels = np.full_like(OBJECT, values[0])
    for number, value in enumerate(values[1:]):
        pixels[5:50, 10 + 30 * number : 30 + 30 * number] = value
    with pytest.raises(ImageError, match=rf"gt\.png: it holds the values .*{values[-1]} and no 0"):
        read_mask(save(tmp_path / "gt.png", pixels))


def test_row_6_classes_with_a_void_of_255_are_refused(tmp_path: Path):
    values = OBJECT * np.uint8(15)
    values[:3] = 255
    with pytest.raises(ImageError, match="values 0, 15 and 255"):
        read_mask(save(tmp_path / "gt.png", values))


def test_trimaps_are_read_as_levels_and_told(tmp_path: Path):
    values = OBJECT * np.uint8(255)
    values[:, :8] = 128
    levels, note = read_stored_mask(save(tmp_path / "gt.png", values))
    np.testing.assert_array_equal(levels, values)
    assert "0, 128 and 255" in note


# --- soft mattes ---


def test_soft_mattes_are_exact(tmp_path: Path):
    assert len(np.unique(SOFT)) > 100
    for path in (save(tmp_path / "a.png", SOFT), save(tmp_path / "b.png", np.dstack([SOFT] * 3))):
        assert read_stored_mask(path).note == ""
        np.testing.assert_array_equal(read_mask(path), SOFT)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "c.png", SOFT.astype(np.uint16) * 257)), SOFT)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "d.tif", SOFT / np.float32(255))), SOFT)


@pytest.mark.parametrize("top", [3, 20, 100, 128])
def test_faint_mattes_are_not_class_indices(tmp_path: Path, top: int):
    """Many values, or neighbors that differ by one level: a matte. The log says that no pixel is the object."""
    faint = np.rint(SOFT * (top / SOFT.max())).astype(np.uint8)
    levels, note = read_stored_mask(save(tmp_path / "a.png", faint))
    np.testing.assert_array_equal(levels, faint)
    assert f"the highest is {top} of 255" in note


def test_row_10_faint_maps_of_16_bits_stay_faint(tmp_path: Path):
    faint = np.rint(SOFT * (180 / SOFT.max())).astype(np.uint16)
    assert read_mask(save(tmp_path / "a.png", faint)).max() == 1


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_noise_around_0_and_255(tmp_path: Path, mode: str, quality: int):
    """Fault 29: masks and ground truths stored as JPEG."""
    Image.fromarray(OBJECT * np.uint8(255)).convert(mode).save(tmp_path / "gt.jpg", quality=quality)
    assert ((read_mask(tmp_path / "gt.jpg") > 128) != (OBJECT > 0)).mean() < 0.002
    assert read_stored_mask(tmp_path / "gt.jpg").note == ""


@pytest.mark.parametrize("top", [1, 2, 20])
def test_maps_of_this_project_are_exact(tmp_path: Path, top: int):
    """A prediction that is nearly empty is no class map; its file says so."""
    write_map(tmp_path / "map.png", OBJECT * np.uint8(top))
    assert read_stored_mask(tmp_path / "map.png").note == ""
    np.testing.assert_array_equal(read_mask(tmp_path / "map.png"), OBJECT * top)
    for dtype, scale in ((np.uint8, 1), (np.uint16, 257)):
        stored = OBJECT.astype(dtype) * dtype(top)
        (tmp_path / "alpha.png").write_bytes(encode_png(stored, text={"dis-sam": "{}"}))
        np.testing.assert_array_equal(read_mask(tmp_path / "alpha.png"), np.rint(stored / scale))


# --- colors ---


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "webp"])
@pytest.mark.parametrize("color", COLORS)
def test_row_7_every_color_but_black_is_the_object(tmp_path: Path, color: tuple[int, int, int], extension: str):
    """Fault 7: RGB ground truths were read by their luminance."""
    options = {"lossless": True} if extension == "webp" else {}
    if extension == "webp" and max(color) < 64:
        pytest.skip("WebP files may be lossy, so that nearly black counts as black")
    assert_object(read_mask(save(tmp_path / f"gt.{extension}", paint(color), **options)))


def test_row_7_rgb_and_palette_forms_agree(tmp_path: Path):
    colors = paint(*COLORS[:4])
    rgb = save(tmp_path / "rgb.png", colors)
    Image.fromarray(colors).quantize(8).save(tmp_path / "palette.png")
    Image.fromarray(colors).quantize(8).save(tmp_path / "palette.gif")
    for path in (rgb, tmp_path / "palette.png", tmp_path / "palette.gif"):
        assert_object(read_mask(path))


def test_row_7_black_may_have_any_index(tmp_path: Path):
    """Programs that reduce colors sort the palette as they like."""
    image = Image.fromarray(1 - OBJECT).convert("P")
    image.putdata((1 - OBJECT).flatten().tolist())
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.save(tmp_path / "gt.png")
    assert_object(read_mask(tmp_path / "gt.png"))


@pytest.mark.parametrize("color", [(128, 0, 0), (0, 0, 255), (250, 179, 36)])
@pytest.mark.parametrize("form", ["jpg", "soft edges"])
def test_row_7_colors_with_soft_edges_are_cut_at_half(tmp_path: Path, color: tuple[int, int, int], form: str):
    if form == "jpg":
        path = save(tmp_path / "gt.jpg", paint(color), quality=90)
    else:
        path = save(tmp_path / "gt.png", np.rint(SOFT[..., None] / 255 * np.array(color)).astype(np.uint8))
    wrong = (read_mask(path) > 128) != (OBJECT > 0)
    edge = cv2.dilate(OBJECT, np.ones((7, 7))) != cv2.erode(OBJECT, np.ones((7, 7)))
    assert not (wrong & ~edge).any()
    assert wrong.mean() < 0.05


def test_photographs_are_no_masks(tmp_path: Path):
    """Fault 8, its kind: colors of a picture say nothing about the object."""
    photograph = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for path in (save(tmp_path / "a.png", photograph), save(tmp_path / "b.jpg", photograph)):
        with pytest.raises(ImageError, match=r"is a picture of .* colors, not a mask"):
            read_mask(path)
    Image.fromarray(photograph).quantize(256).save(tmp_path / "c.png")
    with pytest.raises(ImageError, match=r"c\.png: it is a picture of .* colors of a palette"):
        read_mask(tmp_path / "c.png")


# --- alpha ---


@pytest.mark.parametrize("alpha", [OBJECT * np.uint8(255), SOFT], ids=["binary", "soft"])
def test_row_8_the_alpha_of_a_cutout_is_the_mask(tmp_path: Path, alpha: np.ndarray):
    """Fault 8: the luminance of an RGBA cut-out became the ground truth."""
    photograph = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    gray = photograph[..., 0]
    paths = [save(tmp_path / "rgba.png", np.dstack([photograph, alpha])), tmp_path / "la.png"]
    Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha)]).save(paths[1])
    paths.append(save(tmp_path / "rgba.webp", np.dstack([photograph, alpha]), lossless=True))
    cv2.imwrite(str(tmp_path / "rgba16.png"), np.dstack([photograph, alpha]).astype(np.uint16) * 257)
    for path in (*paths, tmp_path / "rgba16.png"):
        np.testing.assert_array_equal(read_mask(path), alpha)


def test_row_8_palettes_with_transparency(tmp_path: Path):
    """Index 30 is transparent; 0 is a color of the object."""
    rng = np.random.default_rng(0)
    indices = np.where(OBJECT > 0, rng.integers(0, 30, OBJECT.shape), 30).astype(np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.flatten().tolist())
    image.putpalette(rng.integers(1, 256, 93).tolist())
    for extension in ("png", "gif"):
        image.save(tmp_path / f"gt.{extension}", transparency=30)
        assert_object(read_mask(tmp_path / f"gt.{extension}"))


def test_opaque_files_with_alpha_count_by_their_colors(tmp_path: Path):
    opaque = np.full_like(OBJECT, 255)
    opaque[0, 0] = 254
    assert_object(read_mask(save(tmp_path / "a.png", np.dstack([paint((0, 0, 255)), opaque]))))
    np.testing.assert_array_equal(read_mask(save(tmp_path / "b.png", np.dstack([SOFT, SOFT, SOFT, opaque]))), SOFT)


@pytest.mark.parametrize("color", [0, 128, 255])
def test_a_plain_color_that_is_all_transparent_is_empty(tmp_path: Path, color: int):
    path = save(tmp_path / "map.png", np.dstack([np.full((7, 5, 3), color, np.uint8), np.zeros((7, 5), np.uint8)]))
    assert not read_mask(path).any()
    save(path, np.full((7, 5, 4), 255, np.uint8))
    np.testing.assert_array_equal(read_mask(path), np.full((7, 5), 255))


def test_colors_that_are_all_transparent_are_read_and_told(tmp_path: Path):
    path = save(tmp_path / "map.png", np.dstack([paint((255, 0, 0)), np.zeros_like(OBJECT)]))
    assert_object(read_mask(path))
    assert "fully transparent" in read_stored_mask(path).note


# --- more than 8 bits ---


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_row_9_bits_in_use_of_16(tmp_path: Path, bits: int, extension: str):
    """Fault 9: a mask of 0/4095 was empty; also 10 and 14 bits, soft and binary, and 8 (fault 10: uint16 0/255)."""
    full = (1 << bits) - 1
    binary = save(tmp_path / f"a.{extension}", OBJECT.astype(np.uint16) * full)
    assert_object(read_mask(binary))
    soft = np.rint(SOFT.astype(np.float64) * full / 255 * (255 / SOFT.max())).astype(np.uint16)
    path = save(tmp_path / f"b.{extension}", soft)
    np.testing.assert_allclose(read_mask(path), SOFT.astype(float) * 255 / SOFT.max(), atol=0.51)
    assert bool(read_stored_mask(path).note) == (bits < 16)


@pytest.mark.parametrize("top", [1, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("channels", [3, 4])
def test_row_9_color_files_of_16_bits(tmp_path: Path, top: int, channels: int):
    pixels = np.dstack([OBJECT.astype(np.uint16) * top] * 3 + [np.full(OBJECT.shape, 65535, np.uint16)])[..., :channels]
    for extension in ("png", "tif"):
        cv2.imwrite(str(tmp_path / f"gt.{extension}"), pixels)
        assert_object(read_mask(tmp_path / f"gt.{extension}"))


def test_16_bit_maps_are_scaled_alike_whatever_their_peak(tmp_path: Path):
    for top in (900, 30000, 65535):
        stored = np.array([[0, 1, 130, 200, top]], np.uint16)
        np.testing.assert_array_equal(read_mask(save(tmp_path / "map.png", stored)), np.rint(stored / 257))


def test_row_10_floats(tmp_path: Path):
    """Fault 10: float TIFFs of 0..1 and of 0..255, also with a little overshoot."""
    for stored, wanted in (
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 0.5, 1.0 + 1e-6], [0, 128, 255]),
        ([-0.1, 0.5, 1.2], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 0.2, 0.1], [0, 51, 26]),
    ):
        path = save(tmp_path / "map.tif", np.array([stored], np.float32))
        np.testing.assert_array_equal(read_mask(path), [wanted])


@pytest.mark.parametrize("values", [[np.nan, 0], [np.inf, 1], [-20.5, 8.25], [0.5, 3000.5]])
def test_floats_that_are_no_levels_are_refused(tmp_path: Path, values: list[float]):
    with pytest.raises(ImageError, match=r"map\.tif: it (contains values that are not finite|holds values from)"):
        read_mask(save(tmp_path / "map.tif", np.array([values], np.float32)))


@pytest.mark.parametrize("values", [[-3, 0, 2], [0, 70000, 90000]])
def test_integers_that_are_no_levels_are_refused(tmp_path: Path, values: list[int]):
    with pytest.raises(ImageError, match="holds values from"):
        read_mask(save(tmp_path / "map.tif", np.array([values], np.int32)))


# --- warnings ---


def test_rescaling_is_told_once_for_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    paths = [save(tmp_path / f"{number}.png", OBJECT * np.uint8(2)) for number in range(3)]
    with caplog.at_level(logging.WARNING):
        for path in paths:
            read_mask(path)
    [message] = caplog.messages
    assert message.startswith(f"{paths[0]}: holds 0 and 2, not 0 and 255; 2 is read as the object")


def test_content_is_read_as_its_file_is(tmp_path: Path):
    path = save(tmp_path / "gt.png", OBJECT * np.uint8(3))
    np.testing.assert_array_equal(decode_mask(path.read_bytes()), read_mask(path))
    frames = io.BytesIO()
    first = Image.fromarray(OBJECT * np.uint8(255))
    first.save(frames, "GIF", save_all=True, append_images=[Image.new("L", first.size, 255)])
    assert_object(decode_mask(frames.getvalue()))


@pytest.mark.parametrize("form", ["gray", "colors", "palette"])
def test_a_flipped_bit_never_changes_a_mask_in_silence(tmp_path: Path, form: str):
    """Pillow reads a third of such files without an error."""
    y, x = np.mgrid[:90, :120]
    disc = Image.fromarray((np.hypot(y - 40, x - 60) < 30).astype(np.uint8) * 255)
    {"gray": disc, "colors": disc.convert("RGB"), "palette": disc.convert("P")}[form].save(tmp_path / "a.png")
    content, path = (tmp_path / "a.png").read_bytes(), tmp_path / "b.png"
    start, end = content.index(b"IDAT") + 4, content.index(b"IEND") - 8
    for place in range(start, end):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(ImageError, match=r"b\.png: cannot be read as an image"):
            read_mask(path)
    with pytest.raises(ImageError, match="cannot be read as an image"):
        decode_mask(path.read_bytes())
