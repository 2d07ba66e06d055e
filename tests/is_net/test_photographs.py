"""Photographs in every form are read to upright sRGB, or refused with a message; what is decoded is bounded."""

from __future__ import annotations

import io
import logging
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from IS_Net import decoding
from IS_Net.errors import ImageError
from IS_Net.images import (
    decode_photograph,
    image_size,
    list_images,
    read_header,
    read_image,
    read_mask,
    read_photograph,
    write_image,
)

RAMP = np.linspace(0, 255, 40 * 30 * 3).reshape(40, 30, 3).astype(np.uint8)
SRGB = ImageCms.createProfile("sRGB")


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def matrix_profile(gamma: float, primaries: tuple[tuple[float, float, float], ...]) -> bytes:
    """Return a small RGB profile: one gamma for all channels, and the XYZ (D50) of the primaries."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    text = b"a profile\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + b"".join(map(fixed, (0.9642, 1.0, 0.8249))),
        b"cprt": b"text" + bytes(4) + b"none\0",
    }
    for name, primary in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True):
        tags[name] = b"XYZ " + bytes(4) + b"".join(map(fixed, primary))
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    tags |= {name: curve for name in (b"rTRC", b"gTRC", b"bTRC")}
    table, body, place = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", place + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", place + len(body), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


WIDE = matrix_profile(1.8, ((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249)))
"""ProPhoto RGB, in which nearly all colors differ from sRGB's."""


# --- color profiles ---


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
def test_rgb_profiles_are_converted_to_srgb(tmp_path: Path, extension: str):
    options = {"quality": 100, "subsampling": 0} if extension == "jpg" else {}
    options |= {"lossless": True} if extension == "webp" else {}
    path = saved(tmp_path / f"a.{extension}", Image.fromarray(RAMP), icc_profile=WIDE, **options)
    with Image.open(path) as image:
        wanted = ImageCms.profileToProfile(image.convert("RGB"), io.BytesIO(WIDE), SRGB)
    np.testing.assert_array_equal(read_image(path), np.asarray(wanted))
    assert np.abs(read_image(path).astype(int) - RAMP).max() > 10
    photograph = read_photograph(path)
    np.testing.assert_array_equal(photograph.pixels, read_image(path))
    assert photograph.icc is None  # it no longer describes the pixels


def test_srgb_profiles_change_nothing(tmp_path: Path):
    profile = ImageCms.ImageCmsProfile(SRGB).tobytes()
    path = saved(tmp_path / "a.png", Image.fromarray(RAMP), icc_profile=profile)
    np.testing.assert_array_equal(read_image(path), RAMP)
    assert read_photograph(path).icc == profile


def test_profiles_of_transparent_and_palette_files_count(tmp_path: Path):
    alpha = np.full((40, 30), 255, np.uint8)
    alpha[:10] = 0
    path = saved(tmp_path / "a.png", Image.fromarray(np.dstack([RAMP, alpha])), icc_profile=WIDE)
    wanted = np.asarray(ImageCms.profileToProfile(Image.fromarray(RAMP), io.BytesIO(WIDE), SRGB)).copy()
    wanted[:10] = 255
    np.testing.assert_array_equal(read_image(path), wanted)
    palette = Image.fromarray(RAMP).quantize(20)
    path = saved(tmp_path / "b.png", palette, icc_profile=WIDE)
    wanted = ImageCms.profileToProfile(palette.convert("RGB"), io.BytesIO(WIDE), SRGB)
    np.testing.assert_array_equal(read_image(path), np.asarray(wanted))


def test_a_damaged_profile_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = saved(tmp_path / "a.png", Image.fromarray(RAMP), icc_profile=WIDE[:20] + bytes(300))
    np.testing.assert_array_equal(read_image(path), RAMP)
    assert "color profile is damaged" in caplog.text
    photograph = read_photograph(path)
    np.testing.assert_array_equal(photograph.pixels, RAMP)
    assert photograph.icc is None


def test_cmyk_and_lab(tmp_path: Path):
    """Without a profile, CMYK is converted as Pillow does; Lab always has one meaning."""
    cmyk = Image.fromarray(RAMP).convert("CMYK")
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.tif", cmyk)), np.asarray(cmyk.convert("RGB")))
    to_lab = ImageCms.buildTransform(SRGB, ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.fromarray(RAMP), to_lab)
    np.testing.assert_allclose(read_image(saved(tmp_path / "b.tif", lab)), RAMP, atol=4)


# --- more than 8 bits ---


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_row_9_photographs_use_fewer_bits(tmp_path: Path, bits: int, extension: str, channels: int, caplog):
    """Fault 9: 12-bit samples in a 16-bit file were nearly black."""
    full = (1 << bits) - 1
    samples = np.rint(RAMP.astype(float) * full / 255).astype(np.uint16)
    stored = np.dstack([samples[..., ::-1], np.full((40, 30), full)]).astype(np.uint16)
    stored = stored[..., 0] if channels == 1 else stored[..., :channels]
    cv2.imwrite(str(tmp_path / f"a.{extension}"), stored)
    wanted = np.repeat(RAMP[..., 2:], 3, axis=2) if channels == 1 else RAMP
    np.testing.assert_allclose(read_image(tmp_path / f"a.{extension}"), wanted, atol=1)
    assert (f"uses {bits} bits of 16-bit samples" in caplog.text) == (bits < 16)


def test_row_9_turned_files_of_12_bits(tmp_path: Path):
    """The samples are read by another decoder, which does not turn them."""
    samples = np.rint(RAMP.astype(float) * 4095 / 255).astype(np.uint16)
    content = cv2.imencode(".png", samples[..., ::-1])[1].tobytes()
    for orientation in range(1, 9):
        exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + bytes(6)
        chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
        (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
        plain = saved(tmp_path / "b.png", Image.fromarray(RAMP), exif=b"Exif\0\0" + exif)
        np.testing.assert_allclose(read_image(tmp_path / "a.png"), read_image(plain), atol=1)


def test_float_photographs(tmp_path: Path):
    gray = RAMP[..., 0]
    for scale in (1, 1 / 255):
        path = saved(tmp_path / "a.tif", Image.fromarray(gray * np.float32(scale)))
        np.testing.assert_array_equal(read_image(path)[..., 1], gray)
    path = saved(tmp_path / "a.tif", Image.fromarray(np.full((4, 4), np.nan, np.float32)))
    with pytest.raises(ImageError, match="not finite"):
        read_image(path)


# --- EXIF ---


def odd_exif(kind: str) -> bytes:
    """Return an EXIF block with orientation 6 and one tag that EXIF writers do not expect."""
    odd = {
        "unit": struct.pack(">HHII", 0x0128, 4, 1, 70000),  # ResolutionUnit as LONG
        "description": struct.pack(">HHII", 0x010E, 5, 1, 38),  # ImageDescription as RATIONAL
        "type": struct.pack(">HHII", 0x010F, 99, 1, 1),
        "far": struct.pack(">HHII", 0x010F, 2, 50, 90000),
    }[kind]
    entries = sorted([struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0), odd])
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + b"".join(entries) + bytes(4) + struct.pack(">II", 7, 2)


@pytest.mark.parametrize("kind", ["unit", "description", "type", "far"])
@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
def test_row_17_odd_exif_tags(tmp_path: Path, kind: str, extension: str):
    """Fault 17: struct.error or AttributeError ended the run; the orientation still counts."""
    if extension == "tif":
        path = saved(tmp_path / "a.tif", Image.fromarray(RAMP), tiffinfo={0x0112: 6})
        content = path.read_bytes()
        tag = {"unit": 0x0128, "description": 0x010E, "type": 0x010F, "far": 0x0131}[kind]
        # the tag of the strip's rows, which a reader of one strip does without, becomes the odd one
        place = re.search(rb"\x16\x01[\x03\x04]\x00\x01\x00\x00\x00", content).start()
        kinds = {"unit": (4, 1, 70000), "description": (5, 1, 8), "type": (99, 1, 1), "far": (2, 50, 90000)}
        path.write_bytes(content[:place] + struct.pack("<HHII", tag, *kinds[kind]) + content[place + 12 :])
    else:
        path = saved(tmp_path / f"a.{extension}", Image.fromarray(RAMP), exif=odd_exif(kind))
    assert image_size(path) == (30, 40)
    assert read_image(path).shape == (30, 40, 3)
    assert read_photograph(path).pixels.shape == (30, 40, 3)
    np.testing.assert_allclose(read_image(path), np.rot90(RAMP, -1), atol=30)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_orientations(tmp_path: Path, orientation: int, compression: str):
    path = saved(tmp_path / "a.tif", Image.fromarray(RAMP), tiffinfo={0x0112: orientation}, compression=compression)
    plain = saved(tmp_path / "a.png", Image.fromarray(RAMP), exif=Image.open(path).getexif())
    np.testing.assert_array_equal(read_image(path), read_image(plain))
    assert image_size(path) == read_image(path).shape[:2]


def test_row_11_headers_tell_what_sizes_do_not(tmp_path: Path):
    for size, orientation, in_place in (
        ((30, 40), 1, False),
        ((30, 40), 3, True),
        ((30, 40), 6, False),
        ((30, 30), 6, True),
    ):
        exif = Image.Exif()
        exif[0x0112] = orientation
        header = read_header(saved(tmp_path / "a.jpg", Image.new("RGB", size), exif=exif))
        assert (header.orientation, header.turned_in_place) == (orientation, in_place)


# --- formats ---


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a.gif", "a.avif", "a.bmp", "a.webp"])
def test_row_13_further_formats(tmp_path: Path, name: str):
    """Fault 13: files that Pillow reads were passed over."""
    image = Image.fromarray(np.full((24, 32, 3), 120, np.uint8))
    try:
        saved(tmp_path / name, image, format={"jfif": "JPEG", "jpe": "JPEG"}.get(name[2:]))
    except (KeyError, OSError):
        pytest.skip("this build of Pillow does not have the format")
    assert list(list_images(tmp_path)) == ["a"]
    np.testing.assert_allclose(read_image(tmp_path / name), 120, atol=3)


@pytest.mark.parametrize("extension", ["gif", "webp", "png", "tif"])
def test_row_13_the_first_frame_is_read_and_told(tmp_path: Path, extension: str, caplog: pytest.LogCaptureFixture):
    frames = [Image.new("RGB", (32, 24), color) for color in ("red", "blue", "green")]
    options = {"lossless": True} if extension == "webp" else {}
    path = saved(tmp_path / f"a.{extension}", frames[0], save_all=True, append_images=frames[1:], **options)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(read_image(path), np.asarray(frames[0]))
        read_image(path)
    [message] = caplog.messages
    assert message.startswith(f"{path}: holds several frames or pages; the first one is read")


def test_row_13_heic_needs_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    assert list(list_images(tmp_path)) == ["a"]
    with pytest.raises(ImageError, match=r"a\.heic: is a HEIC photograph; .*pip install 'dis-sam\[heif\]'"):
        read_image(tmp_path / "a.heic")


def test_row_13_heic(tmp_path: Path):
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    heif.from_pillow(Image.fromarray(RAMP)).save(tmp_path / "a.heic", quality=95, exif=exif.tobytes())
    assert image_size(tmp_path / "a.heic") == read_image(tmp_path / "a.heic").shape[:2] == (30, 40)
    np.testing.assert_allclose(read_image(tmp_path / "a.heic"), np.rot90(RAMP, -1), atol=12)


def other_formats() -> dict[str, bytes]:
    """Return files of formats that Pillow reads and the project does not name."""
    files = {
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "ppm": b"P6 #" + b"x" * 100 + b"\n1 1 255 abc",
    }
    for kind in ("PPM", "TGA", "PCX", "DDS", "BLP", "SGI", "ICO", "JPEG2000", "QOI"):
        buffer = io.BytesIO()
        image = Image.fromarray(RAMP)
        try:
            (image.quantize(16) if kind == "BLP" else image).save(buffer, kind)
        except (KeyError, OSError, ValueError):
            continue
        files[kind.lower()] = buffer.getvalue()
    return files


@pytest.mark.parametrize("name", other_formats())
def test_only_named_formats_are_opened(tmp_path: Path, name: str):
    """Issue item 4: decoders that the project does not name never start, whatever the file is called."""
    path = tmp_path / "a.png"
    path.write_bytes(other_formats()[name])
    for reader in (read_image, read_mask, image_size):
        with pytest.raises(ImageError, match=r"a\.png: cannot be read as an image .*expected JPEG, PNG"):
            reader(path)


def test_row_50_damaged_avif(tmp_path: Path):
    """Fault 50: a RuntimeError ended the mask run."""
    buffer = io.BytesIO()
    try:
        Image.fromarray(RAMP).save(buffer, "AVIF")
    except (KeyError, OSError):
        pytest.skip("this build of Pillow does not read AVIF")
    content = bytearray(buffer.getvalue())
    for place in range(40, len(content), 7):
        damaged = bytes(content[:place]) + b"\xff\x00\xff" + bytes(content[place + 3 :])
        (tmp_path / "a.avif").write_bytes(damaged)
        for reader in (read_image, image_size):
            try:
                reader(tmp_path / "a.avif")
            except ImageError as error:
                assert "a.avif" in str(error)


# --- limits ---


def test_row_24_the_limit_of_pixels_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fault 24: a photograph above the limit was refused without a word of a setting."""
    path = saved(tmp_path / "a.png", Image.new("L", (1500, 1000)))
    monkeypatch.setenv("DIS_SAM_MAX_MEGAPIXELS", "1.2")
    for reader in (read_image, read_mask, image_size):
        with pytest.raises(
            ImageError, match=r"too large.*found 1\.5 megapixels, expected at most 1\.2; .*DIS_SAM_MAX_MEGAPIXELS=2"
        ):
            reader(path)
    monkeypatch.setenv("DIS_SAM_MAX_MEGAPIXELS", "2")
    assert read_image(path).shape == (1000, 1500, 3)
    monkeypatch.setenv("DIS_SAM_MAX_MEGAPIXELS", "many")
    with pytest.raises(ImageError, match="DIS_SAM_MAX_MEGAPIXELS: expected megapixels, such as 200, found 'many'"):
        read_image(path)


def test_row_24_a_larger_limit_than_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    path = saved(tmp_path / "a.png", Image.new("L", (1500, 1000)))
    with pytest.raises(ImageError, match=r"found 1\.5 megapixels, expected at most 0\.2"):
        read_image(path)
    monkeypatch.setenv("DIS_SAM_MAX_MEGAPIXELS", "2")
    assert read_image(path).shape == (1000, 1500, 3)


def test_a_tiff_that_claims_more_than_it_holds(tmp_path: Path):
    """Rows that the file does not have were read as black: 160 million of them, from a file of 1 KB."""
    path = saved(tmp_path / "a.tif", Image.fromarray(RAMP), compression="raw")
    content = path.read_bytes()
    place = re.search(rb"\x01\x01[\x03\x04]\x00\x01\x00\x00\x00", content).start()  # the height
    path.write_bytes(content[: place + 2] + struct.pack("<HII", 4, 1, 4_000_000) + content[place + 12 :])
    with pytest.raises(ImageError, match=r"a\.tif: cannot be read as an image .*its data hold 30 x 40 pixels"):
        read_image(path)


def many_scans(count: int, side: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side), 99, np.uint8)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + b"\xff\xd9"


def test_jpeg_of_many_scans_is_refused_at_once(tmp_path: Path):
    """A JPEG of 2,000 scans took minutes."""
    path = tmp_path / "a.jpg"
    path.write_bytes(many_scans(2000, 2048))
    for reader in (read_image, read_mask):
        with pytest.raises(ImageError, match=r"a\.jpg: the JPEG file has 20\d\d scans.*expected at most 100"):
            reader(path)
    with pytest.raises(ImageError, match="scans"):
        decode_photograph(path.read_bytes(), path)
    path.write_bytes(many_scans(1, 64))
    np.testing.assert_allclose(read_image(path), 99, atol=1)


def test_what_follows_the_image_in_a_jpeg_is_not_counted(tmp_path: Path):
    """Phones append a video of some seconds, in which the bytes of a scan's marker occur by chance."""
    path = tmp_path / "a.jpg"
    path.write_bytes(many_scans(1, 64) + b"\x00\x18ftypmp42" + b"\xff\xda" * 5000)
    np.testing.assert_allclose(read_image(path), 99, atol=1)


def test_a_thumbnail_in_a_jpeg_is_not_counted(tmp_path: Path):
    exif = Image.Exif()
    exif[0x927C] = b"\xff\xda" * 500
    path = saved(tmp_path / "a.jpg", Image.fromarray(np.full((16, 24), 99, np.uint8)), exif=exif)
    assert path.read_bytes().count(b"\xff\xda") > 500
    np.testing.assert_allclose(read_image(path), 99, atol=1)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures memory by Linux's means")
@pytest.mark.slow
def test_row_24_memory_of_a_large_photograph(tmp_path: Path):
    """Fault 24: one large file never takes 5 GB. 150 megapixels, at most 9 bytes a pixel."""
    Image.new("RGB", (15000, 10000), (9, 99, 199)).save(tmp_path / "a.png", compress_level=1)
    code = (
        "import resource, sys; from IS_Net.images import read_image; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; image = read_image(sys.argv[1]); "
        "assert image[0, 0].tolist() == [9, 99, 199]; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    root = Path(__file__).resolve().parents[2]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env=os.environ)
    assert int(output.stdout) * 1024 < 9 * 150e6


def test_readers_do_not_share_state_by_accident(tmp_path: Path):
    """Whatever order, a file is read to the same pixels."""
    write_image(tmp_path / "a.tif", RAMP)
    first = read_image(tmp_path / "a.tif")
    read_header(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), first)
    assert decoding.max_pixels() >= 10**8
