"""Listing, reading and writing image files: all kinds are read to one form; errors name the damaged file."""

from __future__ import annotations

import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageCms

from IS_Net import images
from IS_Net.errors import DatasetError, ImageError
from IS_Net.images import (
    atomic_file,
    binarize,
    contact_sheet,
    decode_mask,
    decode_photograph,
    encode_image,
    encode_png,
    image_size,
    is_image,
    list_images,
    read_image,
    read_mask,
    read_photograph,
    read_png_text,
    size_mismatch,
    write_image,
    write_mask,
)

READERS = (read_image, read_mask, image_size)
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (7, 5), dtype=np.uint8)
OBJECTS = np.array([[0, 0, 7, 7], [0, 1, 1, 0], [2, 0, 0, 0]], dtype=np.uint8)

# how to rotate a stored array upright, by EXIF orientation
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}

# a test runs many inputs in one folder, each over the last
many = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def voc_palette() -> list[int]:
    """Return the palette of PASCAL VOC and DAVIS: bits of the index, spread over the colors."""

    def color(index: int, channel: int) -> int:
        return sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3))

    return [color(index, channel) for index in range(256) for channel in range(3)]


def save_palette(path: Path, indices: np.ndarray, palette: list[int]) -> Path:
    image = Image.fromarray(indices).convert("P")
    image.putpalette(palette)
    image.putdata(indices.flatten().tolist())
    image.save(path)
    return path


# --- EXIF ---


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("extension", ["png", "tif", "webp"])
def test_exif_orientation_is_applied(tmp_path: Path, extension: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if extension == "webp" else {}
    image, mask = tmp_path / f"image.{extension}", tmp_path / f"mask.{extension}"
    Image.fromarray(RGB).save(image, exif=exif, **options)
    Image.fromarray(GRAY).save(mask, exif=exif, **options)
    np.testing.assert_array_equal(read_image(image), UPRIGHT[orientation](RGB))
    np.testing.assert_array_equal(read_mask(mask), UPRIGHT[orientation](GRAY))
    assert image_size(image) == read_image(image).shape[:2]


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_of_jpeg(tmp_path: Path, orientation: int):
    """JPEG changes the values slightly, so the test image is a bright corner."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.zeros((64, 96), dtype=np.uint8)
    stored[:16, :32] = 255
    Image.fromarray(stored).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    wanted = UPRIGHT[orientation](stored)
    assert image_size(tmp_path / "photo.jpg") == wanted.shape
    np.testing.assert_array_equal(binarize(read_mask(tmp_path / "photo.jpg")), wanted > 128)
    np.testing.assert_array_equal(binarize(read_image(tmp_path / "photo.jpg")[..., 1]), wanted > 128)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # one entry: orientation 6
RAW_PROFILE = f"\nexif\n{len(EXIF) + 6:8}\n{(b'Exif' + bytes(2) + EXIF).hex()}\n".encode()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("after_pixels", [False, True], ids=["before the pixels", "after the pixels"])
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"eXIf", EXIF),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_PROFILE)),
        (b"tEXt", b"Raw profile type exif\0" + RAW_PROFILE),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    ],
    ids=["exif", "profile", "plain profile", "xmp"],
)
def test_png_may_store_its_orientation_in_several_ways(tmp_path: Path, kind: bytes, data: bytes, after_pixels: bool):
    """All are in use, ImageMagick's and Adobe's among them; the size must be the one that the pixels will have."""
    content = cv2.imencode(".png", RGB[..., ::-1])[1].tobytes()
    place = content.index(b"IEND" if after_pixels else b"IDAT") - 4
    path = tmp_path / "turned.png"
    path.write_bytes(content[:place] + png_chunk(kind, data) + content[place:])
    assert image_size(path) == read_image(path).shape[:2]
    np.testing.assert_array_equal(read_image(path), UPRIGHT[6](RGB))


# --- kinds of files ---


def test_gray_file(tmp_path: Path):
    Image.fromarray(GRAY).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "gray.png"), GRAY)
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png"), np.stack([GRAY] * 3, axis=2))


def test_gray_mask_in_a_color_file_keeps_its_levels(tmp_path: Path):
    Image.fromarray(np.dstack([GRAY] * 3)).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "rgb.png"), GRAY)


def test_gray_palette_holds_gray_values(tmp_path: Path):
    levels = np.array([250, 3, 77, 128], dtype=np.uint8)
    indices = RNG.integers(0, 4, (6, 9), dtype=np.uint8)
    path = save_palette(tmp_path / "gray.png", indices, np.repeat(levels, 3).tolist())
    np.testing.assert_array_equal(read_mask(path), levels[indices])


def test_color_palette_marks_objects_by_index(tmp_path: Path):
    path = save_palette(tmp_path / "davis.png", OBJECTS, voc_palette())
    np.testing.assert_array_equal(read_mask(path), np.where(OBJECTS > 0, 255, 0))


def test_gray_entry_of_a_color_palette_is_an_object(tmp_path: Path):
    """VOC's seventh object is drawn in (128, 128, 128): it must not be lost where it is alone."""
    indices = np.where(OBJECTS == 7, 7, 0).astype(np.uint8)
    assert voc_palette()[21:24] == [128, 128, 128]
    path = save_palette(tmp_path / "bus.png", indices, voc_palette())
    np.testing.assert_array_equal(read_mask(path), np.where(indices == 7, 255, 0))


def test_palette_image_has_its_colors(tmp_path: Path):
    path = save_palette(tmp_path / "image.png", OBJECTS, voc_palette())
    colors = np.reshape(voc_palette(), (-1, 3))
    np.testing.assert_array_equal(read_image(path), colors[OBJECTS])


def test_one_bit_file(tmp_path: Path):
    Image.fromarray(GRAY > 128).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "bits.png"), np.where(GRAY > 128, 255, 0))
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png")[..., 2], np.where(GRAY > 128, 255, 0))


def test_transparent_photographs_are_laid_on_white(tmp_path: Path):
    Image.fromarray(np.dstack([RGB, GRAY])).save(tmp_path / "rgba.png")
    weight = GRAY[..., None] / 255
    np.testing.assert_allclose(read_image(tmp_path / "rgba.png"), RGB * weight + 255 * (1 - weight), atol=0.51)


@pytest.mark.parametrize("alpha", [0, 255])
def test_photographs_of_one_alpha_keep_their_colors(tmp_path: Path, alpha: int):
    Image.fromarray(np.dstack([RGB, np.full_like(GRAY, alpha)])).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), RGB)


def test_other_forms_of_transparency_are_laid_on_white(tmp_path: Path):
    """Gray with alpha, a transparent index of a palette, a transparent color."""
    Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(np.where(GRAY > 99, 255, 0).astype(np.uint8))]).save(
        tmp_path / "la.png"
    )
    np.testing.assert_array_equal(read_image(tmp_path / "la.png")[..., 0], np.where(GRAY > 99, GRAY, 255))
    palette = [10, 20, 30, 200, 100, 50, 0, 0, 0]
    indices = np.array([[0, 1, 1], [2, 2, 0]], np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.flatten().tolist())
    image.putpalette(palette)
    image.save(tmp_path / "index.png", transparency=1)
    wanted = np.reshape(palette, (-1, 3))[indices]
    wanted[indices == 1] = 255
    np.testing.assert_array_equal(read_image(tmp_path / "index.png"), wanted)
    Image.fromarray(wanted.astype(np.uint8)).save(tmp_path / "color.png", transparency=(10, 20, 30))
    np.testing.assert_array_equal(read_image(tmp_path / "color.png")[indices == 0], 255)


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0), (200, 30, 10)])
def test_mask_in_the_alpha_of_one_color(tmp_path: Path, color: tuple[int, int, int]):
    pixels = np.dstack([np.broadcast_to(np.uint8(color), (7, 5, 3)), GRAY])
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "alpha.png"), GRAY)


def test_gray_with_opaque_alpha_counts_by_its_gray(tmp_path: Path):
    Image.merge("LA", [Image.fromarray(GRAY), Image.new("L", GRAY.shape[::-1], 255)]).save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "la.png"), GRAY)
    np.testing.assert_array_equal(read_image(tmp_path / "la.png")[..., 0], GRAY)


def test_cmyk_jpeg(tmp_path: Path):
    pixels = np.broadcast_to(np.uint8([220, 40, 90]), (16, 16, 3))
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert Image.open(tmp_path / "cmyk.jpg").mode == "CMYK"
    np.testing.assert_allclose(read_image(tmp_path / "cmyk.jpg"), pixels, atol=6)


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ([0, 257, 32768, 65535], [0, 1, 128, 255]),
        ([0, 65535, 0, 65535], [0, 255, 0, 255]),
        ([0, 100, 255, 128], [0, 100, 255, 128]),  # 8-bit values in a 16-bit file
        ([0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_16_bit_gray(tmp_path: Path, extension: str, stored: list[int], wanted: list[int]):
    path = tmp_path / f"gray.{extension}"
    Image.fromarray(np.array([stored], dtype=np.uint16)).save(path)
    np.testing.assert_array_equal(read_mask(path), [wanted])
    np.testing.assert_array_equal(read_image(path), np.repeat(np.array([wanted])[..., None], 3, axis=2))


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_color(tmp_path: Path, extension: str, channels: int):
    path, levels = tmp_path / f"color.{extension}", np.array([10, 200, 90, 255][:channels], dtype=np.uint16) * 257
    cv2.imwrite(str(path), np.broadcast_to(levels, (3, 4, channels)).copy())
    np.testing.assert_array_equal(read_image(path), np.broadcast_to(np.uint8([90, 200, 10]), (3, 4, 3)))


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [([0.0, 0.25, 0.5, 1.0], [0, 64, 128, 255]), ([0.0, 1.4, 128.6, 255.0], [0, 1, 129, 255]), ([-1.0, 1.0], [0, 255])],
)
def test_float_tiff(tmp_path: Path, stored: list[float], wanted: list[int]):
    Image.fromarray(np.array([stored], dtype=np.float32)).save(tmp_path / "float.tif")
    np.testing.assert_array_equal(read_mask(tmp_path / "float.tif"), [wanted])


def test_float_that_is_not_finite(tmp_path: Path):
    Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ImageError, match=r"nan\.tif.*not finite"):
        read_mask(tmp_path / "nan.tif")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_mask_of_0_and_1_is_scaled(tmp_path: Path, dtype: type):
    Image.fromarray((GRAY > 128).astype(dtype)).save(tmp_path / "gt.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "gt.png"), np.where(GRAY > 128, 255, 0))


def test_empty_mask_stays_empty(tmp_path: Path):
    Image.fromarray(np.zeros_like(GRAY)).save(tmp_path / "gt.png")
    assert not read_mask(tmp_path / "gt.png").any()


# --- listing ---


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_images_of_a_folder_are_listed_by_name(tmp_path: Path):
    touch(tmp_path, "b.PNG", "a.jpg", "c.v2.webp", "notes.txt", ".hidden.png", "sub/d.png", "folder.png/x.txt")
    assert list_images(tmp_path) == {
        "a": tmp_path / "a.jpg",
        "b": tmp_path / "b.PNG",
        "c.v2": tmp_path / "c.v2.webp",
    }
    assert list(list_images(str(tmp_path), recursive=True)) == ["a", "b", "c.v2", "sub/d"]


def test_only_one_extension_is_listed(tmp_path: Path):
    touch(tmp_path, "a.jpg", "a.png", "b.PNG", "c.npy")
    assert list_images(tmp_path, extension=".Png") == {"a": tmp_path / "a.png", "b": tmp_path / "b.PNG"}
    assert list(list_images(tmp_path, extension=".npy")) == ["c"]


def test_recursive_lists_leave_out_hidden_folders(tmp_path: Path):
    for name in ("a.png", "b/c.png", ".d/e.png", "b/.f/g.png", "b/.h.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(list_images(tmp_path, recursive=True)) == ["a", "b/c"]


def test_listing_errors_name_folder_and_files(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: the folder does not exist"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"found no image; expected files that end in \.jpg, .*folder is empty"):
        list_images(tmp_path)
    touch(tmp_path, "a.tif", "a.png", "sub/a.png", "b.txt")
    with pytest.raises(
        DatasetError, match=r"found no image.*end in \.jpg, but the folder contains only .png, .tif, .txt"
    ):
        list_images(tmp_path, extension=".jpg")
    with pytest.raises(DatasetError, match=r"found a\.png and a\.tif; names must differ"):
        list_images(tmp_path, recursive=True)
    (tmp_path / "a.tif").unlink()
    assert list(list_images(tmp_path, recursive=True)) == ["a", "sub/a"]  # of different folders


def test_image_names():
    assert is_image(Path("x/a.JPEG")) and not is_image(Path("x/.a.png")) and not is_image(Path("x/a.csv"))


def test_size_mismatch_shows_width_before_height():
    message = size_mismatch("a/gt.png", (3, 40), "its image a.jpg", (50, 6))
    assert message.startswith("a/gt.png is 40 x 3 pixels, but its image a.jpg is 6 x 50 pixels; both must")


# --- contact sheets ---


def test_pictures_of_a_contact_sheet_lie_side_by_side():
    red, gray = np.full((20, 30, 3), (200, 0, 0), np.uint8), np.full((5, 10), 250, np.uint8)
    sheet = contact_sheet([[red, gray], [gray]], height=10, gap=3)
    assert sheet.shape == (3 + 2 * 13, 3 + 18 + 23, 3) and sheet.dtype == np.uint8
    np.testing.assert_array_equal(sheet[3:13, 3:18], np.broadcast_to(np.uint8([200, 0, 0]), (10, 15, 3)))
    assert (sheet[3:13, 21:41] == 250).all() and (sheet[16:26, 3:23] == 250).all()
    shown = np.zeros(sheet.shape[:2], bool)
    shown[3:13, 3:18] = shown[3:13, 21:41] = shown[16:26, 3:23] = True
    assert len(np.unique(sheet[~shown])) == 1


def test_rows_of_a_contact_sheet_fill_its_columns():
    pictures = [[np.full((8, 8), level, np.uint8)] for level in (10, 20, 30)]
    sheet = contact_sheet(pictures, height=8, columns=2, gap=0)
    assert sheet.shape == (16, 16, 3)
    assert [sheet[y, x, 0] for y, x in ((0, 0), (0, 8), (8, 0))] == [10, 20, 30]


def test_captions_stand_above_the_rows():
    pictures = [[np.zeros((8, 60), np.uint8)]] * 2
    plain, captioned = contact_sheet(pictures, 8), contact_sheet(pictures, 8, captions=["IoU 0.9", "b"])
    bar = (captioned.shape[0] - plain.shape[0]) // 2
    assert bar > 8 and captioned.shape[1] == plain.shape[1]
    assert captioned[4 : 4 + bar].max() > 150  # the text is bright
    assert (captioned[4 + bar : 12 + bar, 4:64] == 0).all()
    with pytest.raises(ValueError, match="shorter"):
        contact_sheet(pictures, 8, captions=["only one"])
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([], 8)


# --- reading ---


def test_threshold_is_above_128():
    np.testing.assert_array_equal(binarize(np.uint8([0, 127, 128, 129, 255])), [False, False, False, True, True])


@pytest.mark.parametrize("name", ["Fenêtre à l'été.png", "自転車 🚲.png", "a b%20#1.png"])
def test_names_beyond_ascii(tmp_path: Path, name: str):
    write_image(tmp_path / name, RGB)
    np.testing.assert_array_equal(read_image(tmp_path / name), RGB)
    assert image_size(str(tmp_path / name)) == (7, 5)


# --- damaged files ---


def encoded(extension: str) -> bytes:
    return cv2.imencode(extension, RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8))[1].tobytes()


# Pillow warns of some damage; images.py filters these warnings, but pytest resets the filters
damage = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@damage
@pytest.mark.parametrize("reader", [read_image, read_mask])
@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_file(tmp_path: Path, reader: Callable, extension: str, share: float):
    whole, path = encoded(extension), tmp_path / f"truncated{extension}"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ImageError, match=f"truncated{extension}: cannot be read"):
        reader(path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", [b"", b"name,object,x0,y0,x1,y1\n", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_file_that_is_not_an_image(tmp_path: Path, reader: Callable, content: bytes):
    path = tmp_path / "notes.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"notes\.png: cannot be read as an image \({len(content)} bytes"):
        reader(path)


@pytest.mark.parametrize("reader", READERS)
def test_missing_file_and_folder(tmp_path: Path, reader: Callable):
    with pytest.raises(ImageError, match=r"nowhere\.png: the image file does not exist"):
        reader(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=r"folder\.png: the image file is a folder"):
        reader(tmp_path / "folder.png")


def test_image_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_image(tmp_path / "huge.png", RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match=r"huge\.png: the image is too large"):
        read_image(tmp_path / "huge.png")


@damage
@many
@given(data=st.data(), extension=st.sampled_from([".jpg", ".png", ".webp", ".tif", ".bmp", ".gif"]))
def test_any_damage_is_an_image_error(tmp_path: Path, data: st.DataObject, extension: str):
    content = bytearray(DAMAGED[extension])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"damaged{extension}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    for reader in READERS:
        try:
            reader(path)
        except ImageError as error:
            assert path.name in str(error)  # some damage goes unnoticed


DAMAGED = {extension: encoded(extension) for extension in (".jpg", ".png", ".webp", ".tif", ".bmp", ".gif")}


def test_reading_leaves_the_warning_filters_alone(tmp_path: Path):
    """Two readings that overlap, as in threads, must not restore each other's filters."""
    write_image(tmp_path / "image.png", RGB)
    before = list(warnings.filters)
    first, second = (images.open_file(tmp_path / "image.png") for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert warnings.filters == before


# --- writing ---


@many
@example(mask=np.array([[129] + 9 * [1]], np.uint8))
@given(mask=arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_mask_round_trip(tmp_path: Path, mask: np.ndarray):
    write_mask(tmp_path / "mask.png", mask)
    values = np.unique(mask)
    wanted = mask
    if values.tolist() == [1] or (len(values) == 2 and values[0] == 0 and values[1] <= 128):  # read as classes
        wanted = np.where(mask > 0, 255, 0)
    assert image_size(tmp_path / "mask.png") == mask.shape
    try:
        found = read_mask(tmp_path / "mask.png")
    except ImageError as error:  # areas of low values may be classes, and then nothing says which is the object
        low, high = np.count_nonzero((mask > 0) & (mask <= 128)), np.count_nonzero(mask > 128)
        if high:
            assert low > high and "neither levels 0..255 nor one class" in str(error)
        else:
            assert values[0] > 0 and "which is the object" in str(error)
    else:
        np.testing.assert_array_equal(found, wanted)


@many
@given(mask=arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_bool_mask_is_written_as_0_and_255(tmp_path: Path, mask: np.ndarray):
    write_mask(tmp_path / "mask.png", mask)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED), mask * 255)


@many
@given(image=arrays.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))))
def test_image_round_trip(tmp_path: Path, image: np.ndarray):
    for extension in (".png", ".bmp", ".tif"):
        write_image(tmp_path / f"image{extension}", image)
        np.testing.assert_array_equal(read_image(tmp_path / f"image{extension}"), image)


def test_rgba_and_views_are_written(tmp_path: Path):
    rgba = np.dstack([RGB, GRAY])
    write_image(tmp_path / "rgba.png", rgba)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "rgba.png")), rgba)
    write_image(tmp_path / "view.png", RGB[::-1, ::2, ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "view.png"), RGB[::-1, ::2, ::-1])
    write_mask(tmp_path / "view.png", GRAY[:, ::-1].T)
    np.testing.assert_array_equal(read_mask(tmp_path / "view.png"), GRAY[:, ::-1].T)


def test_jpeg_is_of_high_quality(tmp_path: Path):
    smooth = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (1, 64, 3))
    write_image(tmp_path / "photo.jpg", smooth)
    assert np.abs(read_image(tmp_path / "photo.jpg").astype(int) - smooth).mean() < 1


def test_encoded_images_are_what_is_written(tmp_path: Path):
    for extension in (".png", ".jpg"):
        write_image(tmp_path / f"photo{extension.upper()}", RGB)
        assert (tmp_path / f"photo{extension.upper()}").read_bytes() == encode_image(RGB, extension)
    assert len(encode_image(RGB, ".jpg", quality=30)) < len(encode_image(RGB, ".jpg"))
    with pytest.raises(ValueError, match=r"^expected uint8 of shape"):
        encode_image(RGB / 255, ".png")


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 5, 2), np.uint8), np.zeros((4, 5, 3), np.float32), np.zeros(4, np.uint8), np.zeros((0, 5), np.uint8)],
    ids=str,
)
def test_arrays_that_are_not_images(tmp_path: Path, array: np.ndarray):
    with pytest.raises(ValueError, match=r"out\.png: expected uint8 of shape"):
        write_image(tmp_path / "out.png", array)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("array", [np.zeros((4, 5, 1), np.uint8), np.zeros((1, 4, 5), bool), np.zeros((4, 5), int)])
def test_arrays_that_are_not_masks(tmp_path: Path, array: np.ndarray):
    with pytest.raises(ValueError, match=r"out\.png: expected"):
        write_mask(tmp_path / "out.png", array)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mask.jpg", "mask", "mask.tif"])
def test_masks_are_png(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match=r"masks are written as \.png"):
        write_mask(tmp_path / name, GRAY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["image.xyz", "image"])
def test_extensions_that_opencv_does_not_know(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match=f"{name}: OpenCV cannot write"):
        write_image(tmp_path / name, RGB)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("interruption", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_interrupted_file_leaves_nothing(tmp_path: Path, interruption: BaseException):
    with pytest.raises(type(interruption)), atomic_file(tmp_path / "new" / "file.bin") as file:
        file.write(b"half")
        assert not (tmp_path / "new" / "file.bin").exists()
        raise interruption
    assert not list((tmp_path / "new").iterdir())


def test_interrupted_file_leaves_the_previous_one(tmp_path: Path):
    path = tmp_path / "file.txt"
    with atomic_file(path, "w") as file:
        file.write("été")
    with pytest.raises(RuntimeError), atomic_file(path, "w") as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "été"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_rights_follow_the_umask(tmp_path: Path, umask: int, mode: int):
    former = os.umask(umask)
    try:
        write_mask(tmp_path / "mask.png", GRAY)
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / "mask.png").stat().st_mode) == mode


# --- metadata ---


def profile(space: bytes = b"RGB ") -> bytes:
    """Return what has an ICC profile's header and length; a reader that does not interpret it takes it for one."""
    return bytes(16) + space + bytes(108)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
def test_profile_and_resolution_come_with_the_pixels(tmp_path: Path, extension: str):
    path = tmp_path / f"photo.{extension}"
    Image.fromarray(RGB).save(path, icc_profile=SRGB, dpi=(300, 150))
    photograph = read_photograph(path)
    np.testing.assert_array_equal(photograph.pixels, read_image(path))
    assert photograph.icc == SRGB
    if extension == "webp":  # has no field for it
        assert photograph.dpi is None
    else:
        np.testing.assert_allclose(photograph.dpi, (300, 150), rtol=1e-3)


def test_a_file_without_profile_and_resolution(tmp_path: Path):
    write_image(tmp_path / "plain.png", RGB)
    assert read_photograph(str(tmp_path / "plain.png"))[1:] == (None, None)


@pytest.mark.parametrize(("mode", "space"), [("L", b"GRAY"), ("CMYK", b"CMYK"), ("RGB", b"Lab "), ("RGB", b"")])
def test_profiles_that_do_not_describe_rgb_are_left_out(tmp_path: Path, mode: str, space: bytes):
    path = tmp_path / "photo.tif"
    Image.fromarray(RGB).convert(mode).save(path, icc_profile=profile(space) if space else b"x")
    assert Image.open(path).info["icc_profile"]
    assert read_photograph(path).icc is None


@pytest.mark.parametrize("extension", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_resolution_is_turned_with_the_pixels(tmp_path: Path, extension: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{extension}"
    Image.fromarray(RGB).save(path, exif=exif, dpi=(300, 150))
    photograph = read_photograph(path)
    assert photograph.pixels.shape == UPRIGHT[orientation](RGB).shape
    np.testing.assert_allclose(photograph.dpi, (150, 300) if orientation > 4 else (300, 150), rtol=1e-3)


@pytest.mark.parametrize("dpi", [(0, 0), (float("nan"), 1), (-1, 72), None, 72, (1,), (float("inf"), 1)])
def test_resolutions_that_mean_nothing(dpi: object):
    assert images._resolution(dpi) is None


def test_content_is_decoded_as_the_file_is(tmp_path: Path):
    path = tmp_path / "mask.png"
    write_mask(path, GRAY > 100)
    np.testing.assert_array_equal(decode_mask(path.read_bytes()), read_mask(path))
    np.testing.assert_array_equal(decode_photograph(path.read_bytes()).pixels, read_image(path))


@pytest.mark.parametrize("decode", [decode_mask, decode_photograph])
def test_damaged_content_is_named(decode: Callable):
    with pytest.raises(ImageError, match=r"^standard input: cannot be read as an image \(5 bytes; "):
        decode(b"hello", "standard input")
    with pytest.raises(ImageError, match=r"^upload: cannot be read"):
        decode(encoded(".png")[:2000], "upload")


def test_a_missing_photograph_is_named(tmp_path: Path):
    with pytest.raises(ImageError, match=r"nowhere\.jpg: the image file does not exist"):
        read_photograph(tmp_path / "nowhere.jpg")


SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3, 4]))


@many
@given(data=st.data(), dtype=st.sampled_from([np.uint8, np.uint16]))
def test_png_round_trip(data: st.DataObject, dtype: type):
    pixels = data.draw(arrays.arrays(dtype, SHAPES))
    pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    content = encode_png(pixels, SRGB, (72, 300), {"a": "b"})
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded.dtype == dtype
    order = {2: slice(None), 3: [2, 1, 0], 4: [2, 1, 0, 3]}[2 if pixels.ndim == 2 else pixels.shape[2]]
    np.testing.assert_array_equal(decoded[..., order] if pixels.ndim == 3 else decoded, pixels)


def test_png_metadata_is_read_by_others(tmp_path: Path):
    path = tmp_path / "meta.png"
    path.write_bytes(encode_png(RGB, SRGB, (300, 72), {"dis-sam": '{"a": "é"}', "Comment": "two"}))
    with Image.open(path) as image:
        image.load()
        assert image.info["icc_profile"] == SRGB
        assert image.text == {"dis-sam": '{"a": "é"}', "Comment": "two"}
        np.testing.assert_allclose(image.info["dpi"], (300, 72), rtol=1e-3)
        np.testing.assert_array_equal(np.array(image), RGB)
    assert read_png_text(path, "dis-sam") == '{"a": "é"}'
    assert read_png_text(str(path), "Comment") == "two"
    assert read_png_text(path, "dis") is None


def test_png_without_metadata_is_what_others_write():
    assert encode_png(RGB) == encode_image(RGB, ".png")


@pytest.mark.parametrize("image", [RGB.astype(np.float32), np.zeros((2, 2, 2), np.uint16), np.zeros((0, 3), np.uint8)])
def test_arrays_that_are_no_png(image: np.ndarray):
    with pytest.raises(ValueError, match=r"^expected "):
        encode_png(image)


def test_text_is_searched_for_in_png_files_only(tmp_path: Path):
    path = tmp_path / "x.png"
    content = encode_png(GRAY, text={"dis-sam": "here"})
    for data in (b"", b"\xff\xd8\xff", content[:8], content[:40], b"GIF89a" + content, encode_image(GRAY, ".jpg")):
        path.write_bytes(data)
        assert read_png_text(path, "dis-sam") is None
    place = content.index(b"IEND") - 4  # behind the pixels, where it would cost the reading of the whole file
    path.write_bytes(encode_png(GRAY)[:-12] + png_chunk(b"tEXt", b"dis-sam\0late") + content[place:])
    assert read_png_text(path, "dis-sam") is None
    with pytest.raises(OSError):
        read_png_text(tmp_path / "nowhere.png", "dis-sam")


@many
@given(data=st.data())
def test_damage_to_the_text_is_no_error(tmp_path: Path, data: st.DataObject):
    content = bytearray(encode_png(GRAY, text={"dis-sam": "here"}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(8, 70))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.png"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    found = read_png_text(path, "dis-sam")
    assert found is None or len(found) < len(content)


def test_files_are_skipped_when_listing(tmp_path: Path):
    touch(tmp_path, "a.jpg", "a.png", "b.png")
    assert list_images(tmp_path, skip=lambda path: path.name == "a.png") == {
        "a": tmp_path / "a.jpg",
        "b": tmp_path / "b.png",
    }
