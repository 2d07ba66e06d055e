"""Paste objects onto other images by their alpha mattes; estimate the colors of an object without its background."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt


def paste(image: np.ndarray, alpha: np.ndarray, background: npt.ArrayLike) -> np.ndarray:
    """Paste an image onto a background: ``alpha * image + (1 - alpha) * background``.

    Args:
        image: (h, w, 3) of any dtype, RGB; not premultiplied by alpha.
        alpha: (h, w) float in [0, 1].
        background: (h, w, 3), or one color or gray value, on the image's scale.

    Returns:
        (h, w, 3) float on the image's scale, not rounded: float32, or float64 if an input is float64.
    """
    image, background = _as_float(image), _as_float(background)
    return background + alpha[..., None] * (image - background)


def _as_float(pixels: npt.ArrayLike) -> np.ndarray:
    """Convert integers to float32, because differences of unsigned integers wrap around."""
    pixels = np.asarray(pixels)
    return pixels if pixels.dtype.kind == "f" else pixels.astype(np.float32)


def estimate_foreground(image: np.ndarray, alpha: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Estimate the object's own colors where they mix with the background.

    Two passes of blur fusion (Forte, "Approximate Fast Foreground Color Estimation", ICIP 2021).

    Args:
        image: (h, w, 3) uint8.
        alpha: (h, w) float32 in [0, 1].
        where: (h, w) bool, the pixels whose colors are needed; it is faster if they are few. None means all.

    Returns:
        (h, w, 3) uint8; with ``where``, (n, 3) uint8 in the order of ``image[where]``.
    """
    quarter = max(alpha.shape[1] // 4, 1), max(alpha.shape[0] // 4, 1)
    pixels, small_alpha = (cv2.resize(layer, quarter, interpolation=cv2.INTER_AREA) for layer in (image, alpha))
    colors = pixels.astype(np.float32)
    layers = _blur_fusion(colors, small_alpha, colors, colors, radius=11)  # a wide blur does not need full resolution
    foreground, background = (cv2.resize(x, alpha.shape[::-1], interpolation=cv2.INTER_LINEAR) for x in layers)
    foreground, _ = _blur_fusion(image, alpha, foreground, background, 4, where)
    return foreground.astype(np.uint8)


def _blur_fusion(
    image: np.ndarray,
    alpha: np.ndarray,
    foreground: np.ndarray,
    background: np.ndarray,
    radius: int,
    where: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Improve estimates of foreground and background colors, (h, w, 3), by their means over a window.

    Returns:
        Both, (h, w, 3) float32; with ``where``, (n, 3).
    """
    size = (2 * radius + 1,) * 2
    a = cv2.merge((alpha,) * 3)  # NumPy is slow at broadcasting along an axis of three
    layers = [image, foreground, a, *(cv2.blur(x, size) for x in (foreground * a, background * (1 - a), a))]
    if where is not None:
        index = np.flatnonzero(where)
        layers = [np.take(layer.reshape(-1, 3), index, axis=0) for layer in layers]
    image, foreground, a, mean_foreground, mean_background, weight = layers
    # the terms of 1e-5 keep the color where the window holds no foreground, and avoid a division by zero
    mean_foreground = (mean_foreground + 1e-5 * foreground) / (weight + 1e-5)
    mean_background = mean_background / (1 - weight + 1e-5)
    residual = image - a * mean_foreground - (1 - a) * mean_background
    return np.clip(mean_foreground + a * residual, 0, 255), mean_background
