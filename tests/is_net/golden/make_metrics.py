"""Make tests/is_net/golden/metrics.json: the values of pysodmetrics 1.6.2 for the pairs below.

It pins older versions than the project uses, so it needs its own environment:

    python -m venv /tmp/sod
    /tmp/sod/bin/pip install pysodmetrics==1.6.2 numpy==2.3.4 opencv-python-headless==4.14.0.94 scipy==1.17.1 \\
        scikit-image==0.25.2
    /tmp/sod/bin/python tests/is_net/golden/make_metrics.py

The file also holds these versions: HCE depends on the version of OpenCV (4.13 and later), skeletons and distances on
the others.

The pairs are drawn with integers and numpy only, so both environments produce the same ones; the file holds their
checksums. The real pairs are not part of the project. They are in the folder ``shared/real`` beside it; without that
folder, their values in the file are kept.

The reference is called without its stretching (map / 255, ground truth > 128), and HCE with the map binarized at > 128.
Its E is divided by the number of pixels minus 1, so that of a perfect map is above 1; the file has 1 instead. Where the
reference divides by zero (S if the whole object is in the last row or column, E of a single pixel), the file has null.
"""

from __future__ import annotations

import json
import math
import warnings
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("metrics.json")
REAL = Path(__file__).resolve().parents[4] / "shared" / "real"
PACKAGES = ("pysodmetrics", "numpy", "opencv-python-headless", "scipy", "scikit-image")
THRESHOLDS = [0, 1, 32, 64, 96, 127, 128, 129, 160, 192, 224, 254, 255]
"""The thresholds at which the curves are compared, in addition to their maximum and mean."""

Plane = np.ndarray


def blur(plane: Plane, radius: int) -> Plane:
    """Return the mean over a square, rounded down, with a repeated border: (H, W) uint8."""
    size, summed = 2 * radius + 1, plane.astype(np.int64)
    for axis in (0, 1):
        width = [(0, 0), (0, 0)]
        width[axis] = (radius + 1, radius)
        summed = np.moveaxis(np.pad(summed, width, mode="edge").cumsum(axis), axis, 0)
        summed = np.moveaxis(summed[size:] - summed[:-size], 0, axis)
    return (summed // size**2).astype(np.uint8)


def shapes() -> Iterator[tuple[str, Plane]]:
    """Yield ground truths by name, (H, W) bool."""
    rng = np.random.default_rng(4)

    def grid(height: int, width: int) -> Plane:
        return np.mgrid[:height, :width]

    y, x = grid(97, 131)
    yield "disc", (y - 40) ** 2 + (x - 60) ** 2 < 30**2
    yield "thin ring", abs((y - 50) ** 2 + (x - 70) ** 2 - 40**2) < 60
    y, x = grid(160, 121)
    yield "comb", ((x % 8 < 1) & (y > 30)) | ((y > 24) & (y < 34))
    yield "net", ((x + y) % 19 < 2) | ((x - y) % 23 < 1)
    y, x = grid(128, 128)
    yield "chessboard", (y // 8 + x // 8) % 2 == 0
    yield "sieve", ((y - 64) ** 2 + (x - 64) ** 2 < 55**2) & ((y % 12 - 6) ** 2 + (x % 12 - 6) ** 2 > 9)
    yield "two bars", ((x > 20) & (x < 29)) | ((x > 80) & (x < 110) & (y > 50))
    yield "touching the border", (x < 40) | (y > 120) | ((x > 100) & (y < 30))
    y, x = grid(201, 257)
    yield "blobs", blur(rng.integers(0, 256, y.shape, dtype=np.uint8), 4) > 127
    walks = np.zeros(y.shape, bool)
    for _ in range(14):  # hairs, one pixel wide
        row = 100 + np.cumsum(rng.integers(-1, 2, 200))
        walks[np.clip(row, 0, 200), 20 + np.arange(200)] = True
    yield "hair", walks
    yield "hairy disc", walks | ((y - 100) ** 2 + (x - 120) ** 2 < 40**2)
    yield "noise", rng.integers(0, 10, (75, 93)) == 0
    y, x = grid(17, 301)
    yield "flat", (x % 50 < 31) & (y > 4) & (y < 12)
    y, x = grid(257, 5)
    yield "narrow", (y > 60) & (y < 200) & (x != 2)
    y, x = grid(333, 333)
    yield "spiral", (y - 166) ** 2 + (x - 166) ** 2 < (40 + 9 * ((3 * y + 5 * x) // 200)) ** 2
    y, x = grid(480, 641)
    yield "frame", (abs(y - 240) < 180) & (abs(x - 320) < 250) & ~((abs(y - 240) < 172) & (abs(x - 320) < 239))


def predictions(gt: Plane) -> Iterator[tuple[str, Plane]]:
    """Yield maps for a ground truth by name, (H, W) uint8."""
    rng = np.random.default_rng(gt.size)
    full = gt.astype(np.uint8) * np.uint8(255)
    noise = rng.integers(0, 256, gt.shape, dtype=np.uint8)
    soft = blur(full, 3)
    yield "soft", soft
    yield "noisy", (0.7 * full + 0.3 * noise).astype(np.uint8)
    yield "coarse", (blur(full, 6) > 100).astype(np.uint8) * np.uint8(255)
    yield "shifted", np.roll(full, (2, -3), (0, 1))
    yield "broken", np.where(blur(noise, 5) > 127, full, soft // 2)


def procedural() -> Iterator[tuple[str, Plane, Plane]]:
    """Yield all pairs that need no files: name, map and ground truth, (H, W) uint8."""
    rng = np.random.default_rng(7)
    for name, gt in shapes():
        for how, pred in predictions(gt):
            yield f"{name}, {how}", pred, gt.astype(np.uint8) * np.uint8(255)
    for height, width in ((1, 1), (1, 9), (8, 1), (2, 2), (3, 5), (31, 64)):
        pred, gt = (rng.integers(0, 256, (height, width), dtype=np.uint8) for _ in range(2))
        yield f"random {height} x {width}", pred, gt
    disc = dict(shapes())["disc"].astype(np.uint8) * np.uint8(255)
    other = next(predictions(disc > 0))[1]
    yield "perfect", disc, disc
    yield "inverted", 255 - disc, disc
    yield "empty map", np.zeros_like(disc), disc
    yield "full map", np.full_like(disc, 255), disc
    yield "constant map", np.full_like(disc, 51), disc
    yield "empty gt", other, np.zeros_like(disc)
    yield "full gt", other, np.full_like(disc, 255)
    yield "both empty", np.zeros_like(disc), np.zeros_like(disc)
    yield "both full", np.full_like(disc, 255), np.full_like(disc, 255)
    yield "empty map, full gt", np.zeros_like(disc), np.full_like(disc, 255)
    yield "full map, empty gt", np.full_like(disc, 255), np.zeros_like(disc)
    yield "single pixel missed", np.zeros((1, 1), np.uint8), np.full((1, 1), 255, np.uint8)
    yield "single pixel found", np.full((1, 1), 255, np.uint8), np.full((1, 1), 255, np.uint8)
    corner = np.zeros_like(disc)
    corner[-1, 10:50] = 255
    yield "gt in the last row", blur(corner, 3), corner
    gray = np.clip(disc, 128, 129)
    yield "gt 128 and 129", other, gray


def real() -> Iterator[tuple[str, Plane, Plane]]:
    """Yield the real pairs, if their folder exists, by names of the form set/name/kind of map."""
    from PIL import Image

    def read(path: Path) -> Plane:
        with Image.open(path) as image:
            return np.array(image.convert("L"))

    for index, path in enumerate(sorted(REAL.glob("*/gt/*.png"))):
        folder, gt = path.parents[1], read(path)
        kind = ("sim", "grabcut", "soft")[index % 3]
        if kind == "soft":
            pred = blur(read(folder / "sim" / path.name) // 3 * 2 + gt // 3, 2)
        else:
            pred = read(folder / kind / path.name)
        yield f"{folder.name}/{path.stem}/{kind}", pred, gt


def checksum(pred: Plane, gt: Plane) -> int:
    """Return a checksum of a pair, which identifies the pair of the golden values."""
    return zlib.crc32(pred.tobytes() + gt.tobytes() + repr(gt.shape).encode())


def f_of(precision: Plane, recall: Plane) -> Plane:
    """Return the F-measure, beta squared 0.3."""
    return 1.3 * precision * recall / np.maximum(0.3 * precision + recall, 1e-300)


def curve_values(name: str, curve: Plane) -> dict[str, float | list[float]]:
    """Return a curve's maximum and mean, and its values at some thresholds."""
    return {f"max_{name}": curve.max(), f"mean_{name}": curve.mean(), f"{name}_at": curve[THRESHOLDS].tolist()}


def reference(pairs: list[tuple[Plane, Plane]]) -> dict[str, float | list[float] | None]:
    """Return the values of pysodmetrics: means over pairs."""
    import py_sod_metrics as sod

    f, e, s, mae = sod.Fmeasure(), sod.Emeasure(), sod.Smeasure(), sod.MAE()
    weighted, hce = sod.WeightedFmeasure(), sod.HumanCorrectionEffortMeasure()
    for pred, gt in pairs:
        for metric in (f, e, s, mae, weighted):
            metric.step(pred / 255, gt > 128, normalize=False)
        hce.step((pred > 128) * 255 / 255, gt > 128, normalize=False)
    fm = f.get_results()
    # its curves run from threshold 255 down to 0
    precision, recall, f_curve = (curve[::-1] for curve in (fm["pr"]["p"], fm["pr"]["r"], fm["fm"]["curve"]))
    e_curve = np.minimum(np.array(e.changeable_ems), 1).mean(axis=0)[::-1]
    values = {
        "mae": mae.get_results()["mae"],
        "s_measure": s.get_results()["sm"],
        "weighted_f": weighted.get_results()["wfm"],
        "hce": hce.get_results()["hce"],
        "adaptive_f_mean_curve": fm["fm"]["adp"],
        "adaptive_e": np.minimum(np.array(e.adaptive_ems), 1).mean(),
        **curve_values("f_mean_curve", f_curve),
        **curve_values("f_mean_pr", f_of(precision, recall)),
        **curve_values("e", e_curve),
        "precision_at": precision[THRESHOLDS].tolist(),
        "recall_at": recall[THRESHOLDS].tolist(),
    }
    return {name: tidy(value) for name, value in values.items()}


def tidy(value: float | list[float]) -> float | list[float] | None:
    """Return a value for JSON with 12 digits; null if it is not finite."""
    if isinstance(value, list):
        return [tidy(one) for one in value]
    return float(f"{value:.12g}") if math.isfinite(value) else None


def main() -> None:
    """Write the file."""
    warnings.simplefilter("ignore")
    golden = json.loads(FILE.read_text()) if FILE.exists() else {"real": {}}
    pairs = list(procedural())
    golden["versions"] = {name: version(name) for name in PACKAGES}
    golden["procedural"] = {
        name: {"checksum": checksum(pred, gt), **reference([(pred, gt)])} for name, pred, gt in pairs
    }
    golden["all procedural"] = reference([(pred, gt) for _, pred, gt in pairs if gt.size > 1])
    if REAL.is_dir():
        golden["real"] = {
            name: {"checksum": checksum(pred, gt), **reference([(pred, gt)])} for name, pred, gt in real()
        }
    lines = [
        f' "{part}": {{\n' + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in golden[part].items()) + "\n }"
        for part in ("versions", "procedural", "all procedural", "real")
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{FILE}: {len(golden['procedural'])} procedural and {len(golden['real'])} real pairs")


if __name__ == "__main__":
    main()
