"""What results are written as: kinds, bits, crops, and the object's own colors at soft edges."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import ImageCms

from dis_sam import outputs
from dis_sam.outputs import (
    KINDS,
    OutputError,
    bounds,
    check_kind,
    encode,
    file_label,
    object_colors,
    render,
    render_all,
)
from IS_Net.compositing import estimate_foreground
from IS_Net.images import decode_photograph


class Segmented(NamedTuple):
    image: np.ndarray
    alpha: np.ndarray


OBJECT, BACKGROUND = (200, 30, 60), (20, 180, 40)


def soft_disc(height: int = 90, width: int = 121, radius: int = 30) -> Segmented:
    """Return a disc of one color with a soft edge on a background of another."""
    disc = cv2.circle(np.zeros((height, width), np.float32), (width // 2, height // 2), radius, 1, -1)
    alpha = cv2.GaussianBlur(disc, (9, 9), 2)
    mixed = alpha[..., None] * np.float32(OBJECT) + (1 - alpha[..., None]) * np.float32(BACKGROUND)
    return Segmented(np.rint(mixed).astype(np.uint8), alpha)


DISC = soft_disc()


@st.composite
def results(draw: st.DrawFn) -> Segmented:
    size = draw(arrays.array_shapes(min_dims=2, max_dims=2, max_side=23))
    levels = st.sampled_from([0.0, 1.0, 0.5, 0.25, 0.9990234375, 0.0009765625])
    alpha = draw(arrays.arrays(np.float32, size, elements=levels))
    return Segmented(draw(arrays.arrays(np.uint8, (*size, 3))), alpha)


# --- kinds ---


def test_kinds_have_one_form():
    assert [check_kind(kind) for kind in ("RGBA", "Mask", "#ff8800")] == ["rgba", "mask", "#FF8800"]
    assert [file_label(kind) for kind in ("rgba", "alpha", "#ff8800")] == ["cutout", "alpha", "FF8800"]


@pytest.mark.parametrize(
    ("kind", "hint"),
    [("rbga", "did you mean 'rgba'"), ("#ff88", "six hex digits"), ("", "known names"), ("#gg0000", "six hex digits")],
)
def test_unknown_kinds_are_named(kind: str, hint: str):
    with pytest.raises(OutputError, match=rf"unknown kind of output '{kind}'.*{hint}"):
        render(DISC, kind)


@pytest.mark.parametrize("options", [{"bits": 12}, {"threshold": 1.0}, {"threshold": -0.1}, {"threshold": np.nan}])
def test_options_out_of_range(options: dict):
    with pytest.raises(OutputError, match=r"^expected (8 or 16 bits|a threshold)"):
        render(DISC, "alpha", **options)


# --- pixels ---


@settings(max_examples=60, deadline=None)
@given(result=results(), bits=st.sampled_from([8, 16]))
def test_all_kinds_at_any_size(result: Segmented, bits: int):
    rendered = render_all(result, [*KINDS, "#123456"], bits=bits)
    height, width = result.alpha.shape
    top, dtype = (255, np.uint8) if bits == 8 else (65535, np.uint16)
    assert rendered["rgba"].shape == (height, width, 4)
    assert {kind: array.dtype for kind, array in rendered.items() if kind != "overlay"} == dict.fromkeys(
        ["rgba", "alpha", "mask", "white", "#123456"], dtype
    )
    levels = np.rint(result.alpha.astype(np.float64) * top)
    np.testing.assert_array_equal(rendered["alpha"], levels)
    np.testing.assert_array_equal(rendered["rgba"][..., 3], levels)
    np.testing.assert_array_equal(rendered["mask"], np.where(result.alpha > 0.5, top, 0))
    opaque, clear, scale = result.alpha == 1, result.alpha == 0, top // 255
    for kind, color in (("white", (255, 255, 255)), ("#123456", (0x12, 0x34, 0x56))):
        np.testing.assert_array_equal(rendered[kind][opaque], result.image[opaque] * dtype(1) * dtype(scale))
        np.testing.assert_array_equal(rendered[kind][clear], np.broadcast_to(color, (clear.sum(), 3)) * scale)
    np.testing.assert_array_equal(rendered["rgba"][opaque][:, :3], result.image[opaque] * dtype(1) * dtype(scale))
    assert rendered["overlay"].shape == (height, width, 3) and rendered["overlay"].dtype == np.uint8
    for kind, array in rendered.items():
        np.testing.assert_array_equal(render(result, kind, bits=bits), array)
        decoded = cv2.imdecode(np.frombuffer(encode(array), np.uint8), cv2.IMREAD_UNCHANGED)
        order = {2: ..., 3: (..., [2, 1, 0]), 4: (..., [2, 1, 0, 3])}[array.shape[2] if array.ndim == 3 else 2]
        np.testing.assert_array_equal(decoded[order], array)


def test_soft_edges_have_the_objects_colors():
    rgba = render(DISC, "rgba")
    soft = (DISC.alpha > 0.1) & (DISC.alpha < 0.9)
    assert soft.sum() > 300
    before = np.abs(DISC.image[soft].astype(int) - OBJECT).mean()
    assert np.abs(rgba[soft][:, :3].astype(int) - OBJECT).mean() < 0.1 * before
    white = render(DISC, "white")[soft].astype(float)
    ideal = DISC.alpha[soft][:, None] * np.float32(OBJECT) + (1 - DISC.alpha[soft][:, None]) * 255
    assert np.abs(white - ideal).mean() < 3


def test_nothing_of_the_background_stays_in_a_cutout():
    rgba = render(DISC, "rgba")
    near = cv2.dilate((rgba[..., 3] > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert (~near).sum() > 3000
    assert not rgba[~near].any()
    fringe = near & (rgba[..., 3] == 0)
    assert np.abs(rgba[fringe][:, :3].astype(int) - OBJECT).max() < 40  # viewers that scale a picture mix them in


@pytest.mark.parametrize("size", [(400, 612), (300, 129)])
def test_colors_in_tiles_are_those_of_the_whole(size: tuple[int, int]):
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
    alpha = cv2.circle(np.zeros(size, np.float32), (size[1] // 2, 200), 90, 1, -1)
    cv2.line(alpha, (0, 10), (size[1], 280), 1, 1)
    alpha = cv2.blur(alpha, (7, 7))
    soft = (np.rint(alpha * 255) > 0) & (np.rint(alpha * 255) < 255)
    whole, tiled = estimate_foreground(image, alpha)[soft], object_colors(image, alpha)[soft]
    if size[1] % 4 == 0:
        np.testing.assert_array_equal(tiled, whole)
    else:  # the quarter-size version of the whole is scaled a little differently
        assert np.abs(tiled.astype(int) - whole).mean() < 1


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_tiles_cover_what_is_wanted_once(data: st.DataObject):
    height, width = data.draw(st.integers(1, 1500)), data.draw(st.integers(1, 1500))
    wanted = np.zeros((height, width), bool)
    for _ in range(data.draw(st.integers(0, 4))):
        y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        wanted[y : y + data.draw(st.integers(1, 400)), x : x + data.draw(st.integers(1, 400))] = True
    covered = np.zeros((height, width), int)
    for y, x, side in outputs._tiles(wanted):
        assert wanted[y : y + side, x : x + side].any() and side % 4 == y % 4 == x % 4 == 0
        covered[y : y + side, x : x + side] += 1
    assert covered.max(initial=0) <= 1 and (covered[wanted] == 1).all()


def test_a_threshold_makes_all_kinds_binary():
    for threshold in (0.0, 0.3, 0.8):
        rendered = render_all(DISC, ["rgba", "alpha", "mask", "white"], threshold=threshold)
        expected = np.where(DISC.alpha > threshold, 255, 0)
        for array in (rendered["alpha"], rendered["mask"], rendered["rgba"][..., 3]):
            np.testing.assert_array_equal(array, expected)
        np.testing.assert_array_equal(rendered["white"], np.where(expected[..., None] > 0, DISC.image, 255))


def test_overlay_leaves_the_surroundings_alone():
    overlay = render(DISC, "overlay", bits=16)
    away = cv2.dilate((DISC.alpha > 0.001).astype(np.uint8), np.ones((7, 7), np.uint8)) == 0
    np.testing.assert_array_equal(overlay[away], DISC.image[away])
    assert np.abs(overlay[45, 60].astype(int) - OBJECT).max() > 30


# --- crops ---


def test_crops_are_bounded_by_the_object():
    rows, columns = bounds(DISC.alpha)
    for kind in (*KINDS, "#000000"):
        np.testing.assert_array_equal(render(DISC, kind, crop=True), render(DISC, kind)[rows, columns])
    inside = np.zeros(DISC.alpha.shape, bool)
    inside[rows, columns] = True
    assert not (DISC.alpha[~inside] > 0.02).any()
    for edge in (DISC.alpha[rows.start], DISC.alpha[rows.stop - 1]):
        assert (edge > 0.02).any()
    assert (DISC.alpha[:, [columns.start, columns.stop - 1]] > 0.02).any(axis=0).all()


def test_haze_does_not_widen_a_crop():
    alpha = np.full((20, 30), 0.015, np.float32)
    alpha[5:8, 7:20] = 0.03
    assert bounds(alpha) == (slice(5, 8), slice(7, 20))
    alpha[-1, -1] = 1
    assert bounds(alpha) == (slice(5, 20), slice(7, 30))


def test_a_crop_follows_the_threshold():
    assert render(DISC, "mask", threshold=0.9, crop=True).shape < render(DISC, "mask", crop=True).shape


def test_an_empty_result_keeps_the_frame():
    empty = DISC._replace(alpha=np.zeros_like(DISC.alpha))
    rgba = render(empty, "rgba", crop=True)
    assert rgba.shape == (90, 121, 4) and not rgba.any()


# --- files ---


def test_profiles_are_for_colors_only():
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind in (*KINDS, "#123456"):
        photograph = decode_photograph(encode(render(DISC, kind), icc, (300, 300)))
        assert photograph.icc == (None if kind in ("alpha", "mask") else icc)
        assert photograph.dpi == pytest.approx((300, 300), rel=1e-3)
    damaged = bytes(16) + b"RGB " + bytes(108)
    assert decode_photograph(encode(render(DISC, "rgba"), damaged)).icc is None


def test_colors_are_estimated_once_for_several_kinds(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(outputs, "object_colors", lambda *images: calls.append(1) or object_colors(*images))
    assert list(render_all(DISC, ["rgba", "white", "#FF0000", "alpha", "RGBA"])) == [
        "rgba",
        "white",
        "#FF0000",
        "alpha",
    ]
    render_all(DISC, ["alpha", "mask", "overlay"])
    assert len(calls) == 1
