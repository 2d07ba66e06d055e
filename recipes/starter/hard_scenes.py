"""Draw scenes on which a refinement network tends to erase what is not salient, to choose between trained weights.

    python -m recipes.starter.hard_scenes            # writes data/sample/hard

`many_parts` has targets made of many small parts, `low_salience` targets that look like what surrounds them, and
`touching` pairs of similar objects, of which one is the target and the other a distractor. They are drawn with the
primitives of `data/sample_scenes`, which has other kinds of objects. A scene is one model in a frame whose shorter side
is about one meter; parts whose `target` is -1 belong to the surroundings.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "data"))

from sample_scenes import compose
from sample_scenes.materials import Array, Color, Material, Range, Rng, linear, random_color, scaled
from sample_scenes.mesh import OUT, UP, Model, curve, rotation, unit
from sample_scenes.render import Camera, render
from sample_scenes.surroundings import make_scene as make_surroundings

from IS_Net.command_line import DONE, non_negative_int, positive_int, run_command
from IS_Net.errors import DatasetError
from IS_Net.files import content_hash
from IS_Net.images import contact_sheet, read_image, read_mask, write_image, write_mask
from IS_Net.preprocess import box_from_mask
from IS_Net.synthesis.simulate_masks import sam_like

VERSION = 4
"""Increase it when the same seed gives other pictures."""


@dataclass(frozen=True)
class Palette:
    """Linear RGB colors: the empty scene's mean and its darkest quarter's, where the target will be; and a hue."""

    ground: Color
    dark: Color
    hue: float

    def ground_like(self, brightness: float = 1.0, **look: object) -> Material:
        """Return a material that resembles the ground."""
        look = {"stained": 0.3, "contrast": 0.2, "gloss": 0.05, "stretch": (3.0, 3.0), **look}
        return Material(scaled(self.ground, brightness), scaled(self.dark, brightness), **look)


@dataclass(frozen=True)
class Kind:
    """A kind of scene."""

    draw: Callable[[Model, Palette], None]  # adds its objects on y = 0; of `touching` one, and is called twice
    surfaces: tuple[str, ...]  # what the floor, and a wall behind, may be made of (see `surroundings.surface`)
    view: str = "above"  # or "front"
    apart: tuple[float, float, float] | None = None  # meters between the objects of `touching`: across, up, nearer

    @property
    def name(self) -> str:
        """The name of its function."""
        return self.draw.__name__


def _varied(rng: Rng, color: Color, spread: float = 0.25, **look: object) -> Callable[[], Material]:
    """Return a function that draws one of a few materials of about one color."""
    look = {"stained": 0.3, "gloss": 0.5, **look}
    shades = [scaled(color, rng.uniform(1 - spread, 1 + spread)) for _ in range(5)]
    materials = [Material(shade, scaled(shade, rng.uniform(0.4, 1.5)), **look) for shade in shades]
    return lambda: materials[rng.integers(5)]


def _spots(rng: Rng, count: int, gap: float, wide: float = 0.4) -> Array:
    """Return up to `count` points (n, 3) on the ground, at least `gap` meters apart."""
    found = np.zeros((0, 3))
    for spot in rng.uniform(-1, 1, (20 * count, 3)) * (1.15 * wide, 0, wide):
        if len(found) < count and (np.linalg.norm(found - spot, axis=1) > gap).all():
            found = np.vstack([found, spot])
    return found


def _blades(m: Model, roots: Array, tall: float, skin: Callable[[], Material], lean: float = 0.35) -> None:
    """Add blades of grass."""
    for root in roots:
        height, bend = tall * m.rng.uniform(0.5, 1), m.rng.normal(0, lean, 3) * (tall, 0, tall)
        path = curve(root, root + bend * 0.2 + UP * height * 0.7, root + bend + UP * height, count=8)
        m.sweep(path, np.linspace(0.005, 0.001, 8), skin(), sides=5)


def _stone(m: Model, spot: Array, r: float, material: Material) -> None:
    radii, since = r * np.array([1, m.rng.uniform(0.5, 0.7), m.rng.uniform(0.7, 0.95)]), len(m.parts)
    m.ball((0, 0, 0), radii, material, dents=0.3, detail=25 if r > 0.06 else 11)
    m.move(since, rotation("y", m.rng.uniform(0, 6)), spot + UP * 0.6 * radii[1])


def _cup(m: Model, r: float, tall: float, material: Material) -> None:
    foot, side = m.rng.uniform(0.65, 0.95), m.rng.choice([-1, 1])
    radii = np.array([0.01, foot, foot + 0.04, 1, 1, 0.93, 0.92, foot - 0.05, 0.01]) * r
    m.turned((0, 0, 0), radii, np.array([0, 0, 0.04, 0.97, 1, 1, 0.97, 0.1, 0.08]) * tall, material, sides=72)
    grip = curve((0.9, 0.8, 0.1), (1.8, 0.95, 0.5), (1.7, 0.15, 0.5), (0.85, 0.25, 0.1), count=24)
    m.sweep(grip * (side * r, tall, r), 0.09 * r, material)


def _sheet(m: Model, half: Array | Range, ripple: float, material: Material) -> None:
    """Add a sheet of (2 half[0], 2 half[1]) meters that lies on the ground with ripples and bent edges."""
    u, v = np.meshgrid(np.linspace(-1, 1, 61), np.linspace(-1, 1, 61))
    waves = np.array([np.sin(a * u + b * v + c) for a, b, c in m.rng.uniform(-5, 5, (5, 3))])
    x, z = u * half[0] * (1 + ripple * waves[3]), v * half[1] * (1 + ripple * waves[4])
    m.grid(np.stack([x, 0.004 + ripple * (1 + waves.mean(0)), z], -1), None, np.stack([x, z], -1), material)
    m.move(0, rotation("y", m.rng.uniform(0, 3)))


def berries(m: Model, palette: Palette) -> None:
    """Draw a heap of berries, and some beside it."""
    rng, r = m.rng, m.rng.uniform(0.03, 0.045)
    skin = _varied(rng, linear(palette.hue, rng.uniform(0.5, 0.9), rng.uniform(0.3, 0.8)))
    for layer, wide in enumerate((0.5, 0.27, 0.27 - 1.8 * r, 0.27 - 3.6 * r)):
        for spot in _spots(rng, 200 if layer else 8, 1.6 * r if layer else 0.12, 0.4):
            if np.linalg.norm(spot) < wide:
                m.ball(spot + UP * r * (1 + 1.4 * max(layer - 1, 0)), r * rng.uniform(0.85, 1.1), skin(), 0.1, 15)


def fallen(m: Model, palette: Palette) -> None:
    """Draw leaves scattered on the ground."""
    rng, color = m.rng, random_color(m.rng, (15, 55), (0.5, 0.85), (0.4, 0.8))
    skin = _varied(rng, color, 0.45, thin=True, contrast=0.3, gloss=0.1)
    for spot in _spots(rng, int(rng.integers(14, 30)), 0.15):
        way = rotation("y", rng.uniform(0, 6.3)) @ (1, rng.uniform(0, 0.1), 0)
        m.leaf(spot + UP * 0.03, way, rng.uniform(0.1, 0.16), skin(), rng.uniform(0.4, 0.7), 13)


def seedlings(m: Model, palette: Palette) -> None:
    """Draw young plants on soil."""
    rng = m.rng
    green = _varied(rng, random_color(rng, (80, 110), (0.5, 0.75), (0.45, 0.7)), thin=True, gloss=0.2)
    for spot in _spots(rng, int(rng.integers(14, 40)), 0.12):
        stem = curve(spot, spot + rng.normal(0, 0.02, 3), spot + rng.normal(0, 0.03, 3) * (1, 0, 1) + UP * 0.12)
        m.sweep(stem, np.linspace(0.004, 0.002, 16), green(), sides=6)
        for k in range(2 * int(rng.integers(1, 3))):
            way = unit(rotation("y", spot[0] * 50 + k * 2.9) @ (1, 0.3, 0))
            m.leaf(stem[-1 - 3 * (k // 2)], way, rng.uniform(0.04, 0.07), green(), 0.6)


def beads(m: Model, palette: Palette) -> None:
    """Draw a string of beads."""
    rng, r = m.rng, m.rng.uniform(0.018, 0.026)
    ends = np.array([(-0.4, -0.2), (-0.2, -0.7), (0.6, -0.4), (0.5, 0.7), (-0.5, 0.7), (-0.4, 0.0), (0.15, 0.0)])
    path = curve(*[(x, r, z) for x, z in ends + rng.normal(0, 0.06, ends.shape)], count=300)
    skin = _varied(rng, linear(palette.hue, rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.8)), 0.4, gloss=0.9)
    m.sweep(path[::6], 0.003, skin(), up=UP, sides=6)
    walked = np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))
    for at in np.arange(r, walked[-1], 2.5 * r):
        m.ball(path[np.searchsorted(walked, at)], r * rng.uniform(0.9, 1.1), skin(), detail=13)


def tuft(m: Model, palette: Palette) -> None:
    """Draw a tuft of grass."""
    roots = m.rng.normal(0, 0.04, (int(m.rng.integers(60, 130)), 3)) * (1, 0, 1)
    green = random_color(m.rng, (50, 100), (0.4, 0.6), (0.4, 0.7))
    _blades(m, roots, 0.75, _varied(m.rng, green, 0.4, gloss=0.1), 0.3)


def plain_cup(m: Model, palette: Palette) -> None:
    """Draw a cup in the color of its table and wall."""
    r = m.rng.uniform(0.14, 0.2)
    _cup(m, r, r * m.rng.uniform(1.2, 1.8), palette.ground_like(1.05, contrast=0.03, gloss=0.3))


def one_pebble(m: Model, palette: Palette) -> None:
    """Draw one pebble on others."""
    rng, stones = m.rng, [palette.ground_like(b) for b in m.rng.uniform(0.7, 1.3, 6)]
    m.target = -1
    for x, z in np.mgrid[-0.9:0.9:26j, -0.7:0.7:20j].reshape(2, -1).T + rng.normal(0, 0.02, (520, 2)):
        _stone(m, np.array([x, -0.02, z]), rng.uniform(0.03, 0.06), stones[rng.integers(6)])
    m.target = 0
    _stone(m, np.array([0, 0.02, 0]) + rng.normal(0, 0.05, 3) * (1, 0, 1), rng.uniform(0.1, 0.14), stones[0])


def towel(m: Model, palette: Palette) -> None:
    """Draw a towel in the color of the ground."""
    _sheet(m, m.rng.uniform((0.25, 0.15), (0.33, 0.2)), 0.014, palette.ground_like(1.05, contrast=0.25))


def paper(m: Model, palette: Palette) -> None:
    """Draw a sheet of paper in the color of the table."""
    _sheet(m, (0.3, m.rng.uniform(0.18, 0.24)), 0.004, palette.ground_like(1.08, contrast=0.02, stained=0.0))


def hare(m: Model, palette: Palette) -> None:
    """Draw a hare in grass, with blades before it."""
    rng, straw = m.rng, [palette.ground_like(b) for b in m.rng.uniform(0.6, 1.2, 5)]
    fur, side = palette.ground_like(0.9, contrast=0.6, stretch=(6.0, 2.0)), rng.choice([-1, 1])
    m.target = -1
    for count, low, high, tall in ((900, -1.0, -0.15, 0.25), (300, 0.14, 0.4, 0.16)):
        roots = rng.uniform((-0.8, 0, low), (0.8, 0, high), (count, 3))
        _blades(m, roots, tall, lambda: straw[rng.integers(5)])
    m.target = 0
    for x, y, lean, *radii in (
        (0, 0.15, -0.15, 0.24, 0.15, 0.13),
        (-0.12, 0.14, 0, 0.14, 0.14, 0.13),
        (0.24, 0.29, 0.3, 0.1, 0.075, 0.07),
        (0.18, 0.42, -0.3, 0.024, 0.11, 0.02),
        (0.22, 0.43, -0.1, 0.024, 0.11, 0.02),
    ):
        since = len(m.parts)
        m.ball((0, 0, 0), np.array(radii), fur, 0.06, 21)
        m.move(since, rotation("z", -side * lean), (side * x, y, 0))
    m.ball((side * 0.27, 0.31, 0.065), 0.013, Material((0.01, 0.008, 0.006), gloss=1.0))


def apple(m: Model, palette: Palette) -> None:
    """Draw an apple with its stem."""
    t, r = np.linspace(-np.pi / 2, np.pi / 2, 60), 0.19
    dip = np.where(t > 0, 0.45, -0.3) * np.exp(-((np.cos(t) / 0.3) ** 2))
    skin = _varied(m.rng, linear(palette.hue % 80, 0.8, 0.7), stained=0.5, stretch=(0.3, 2.0))
    m.turned((0, 0, 0), np.cos(t) * r, (0.85 + 0.85 * np.sin(t) - dip) * r, skin(), 72)
    m.sweep(curve((0, 0.24, 0), (0, 0.3, 0), (0.04, 0.35, 0.02)), 0.008, Material(linear(25, 0.5, 0.3)))


def book(m: Model, palette: Palette) -> None:
    """Draw a closed book."""
    cover = Material(linear(palette.hue + 25 * m.target, 0.55, m.rng.uniform(0.35, 0.6)), gloss=0.15)
    pages, gold = Material(linear(45, 0.12, 0.9)), Material(linear(45, 0.4, 0.8))
    m.bar((-0.15, 0.025, 0), (0.15, 0.025, 0), (0.41, 0.04), pages, up=OUT)
    m.bar((-0.15, 0.05, 0), (0.15, 0.05, 0), (0.43, 0.01), cover, up=OUT)
    for z, wide in ((-0.12, 0.09), (-0.09, 0.07), (0.14, 0.05)):
        m.bar((-wide, 0.056, z), (wide, 0.056, z), (0.014, 0.002), gold, up=OUT)


def card(m: Model, palette: Palette) -> None:
    """Draw a playing card."""
    ink = Material(linear(355, 0.85, 0.75) if m.rng.random() < 0.5 else linear(0, 0, 0.12))
    face = Material(linear(45, 0.04, 0.92), stained=0.0, contrast=0.02)
    m.bar((-0.16, 0.004, 0), (0.16, 0.004, 0), (0.45, 0.006), face, up=OUT)
    for z in np.linspace(-0.15, 0.15, m.rng.integers(2, 5)):
        for x in (-0.08, 0.08):
            m.turned((x, 0.0078, z), [0.025, 0.001], [0, 0], ink, 4)


def cup(m: Model, palette: Palette) -> None:
    """Draw a cup."""
    _cup(m, 0.15, m.rng.uniform(0.2, 0.24), _varied(m.rng, linear(palette.hue, 0.3, 0.75), 0.1, contrast=0.03)())


def pebble(m: Model, palette: Palette) -> None:
    """Draw a pebble."""
    color = random_color(m.rng, (20, 50), (0.02, 0.12), (0.4, 0.7))
    _stone(m, np.zeros(3), m.rng.uniform(0.16, 0.19), Material(color, stretch=(3.0, 3.0)))


SOLID = ("planks", "plaster", "concrete")
KINDS: dict[str, tuple[Kind, ...]] = {
    "many_parts": (
        Kind(berries, SOLID), Kind(seedlings, ("soil",)), Kind(fallen, ("paving", "asphalt")), Kind(beads, SOLID),
        Kind(tuft, ("soil", "gravel"), "front"),
    ),
    "low_salience": (
        Kind(plain_cup, ("plaster",), "front"), Kind(one_pebble, ("gravel",)), Kind(towel, ("soil", "asphalt")),
        Kind(hare, ("grass",), "front"), Kind(paper, ("plaster", "concrete")),
    ),
    "touching": (
        Kind(apple, SOLID, apart=(0.37, 0, 0)), Kind(book, SOLID, apart=(0.31, 0.02, 0)),
        Kind(card, ("planks", "asphalt"), apart=(0.24, 0.012, 0)), Kind(pebble, ("soil", "gravel"), apart=(0.28, 0, 0)),
        Kind(cup, ("planks", "plaster"), "front", (0.26, 0, 0.16)),
    ),
}  # fmt: skip
"""The sets and their kinds of scenes."""


def _build(kind: Kind, rng: Rng, palette: Palette) -> Model:
    m = Model(rng)
    if kind.apart is None:
        kind.draw(m, palette)
        return m
    side = rng.choice([-1, 1])
    for m.target in (0, 1):
        since = len(m.parts)
        kind.draw(m, palette)
        shift = np.array(kind.apart) * ((m.target - 0.5) * side, m.target, m.target)
        m.move(since, rotation("y", rng.normal(0, 0.1)), shift)
    return m


def make_scene(kind: Kind, rng: Rng, size: tuple[int, int] | None = None) -> tuple[Array, list[Array]]:
    """Draw one scene of (height, width), by default 700 to 1400 pixels per side.

    Returns:
        (H, W, 3) uint8 RGB, and (H, W) uint8 alpha of each target: two for the kinds of `touching`, else one.
    """
    if size is None:
        size = tuple(int(n) for n in rng.permutation([rng.integers(700, 1000), rng.integers(900, 1401)]))
    (h, w), scale, distance = size, min(size), 3.0
    above = kind.view == "above"
    # seen from above, the ground is a wall, and the model two meters up on it, where no floor reduces its light
    eye = 2.0 if above else rng.uniform(0.6, 0.9)
    camera = Camera(distance * scale, eye, (w / 2, h / 2 if above else h / 2 + scale * (0.3 - eye)))
    ground, light, _ = make_surroundings(camera, distance, size, rng, "DIS-VD", str(rng.choice(kind.surfaces)), above)
    middle = ground[h // 3 : -h // 4, w // 4 : -w // 4].reshape(-1, 3)
    dark = middle[np.argsort(middle.sum(1))[: len(middle) // 4]]
    colors = (tuple(pixels.mean(0).tolist()) for pixels in (middle, dark))
    model = _build(kind, rng, Palette(*colors, rng.uniform(0, 360)))
    if above:
        model.move(0, rotation("x", np.pi / 2))
    cutout = render(model, camera, light, np.array([0, 2 * above, -distance]), size, rng)
    image, gts = compose(ground, [cutout], rng)
    return image, list(gts)


def coarse_mask(image: Array, gt: Array, rng: Rng) -> Array:
    """Simulate a SAM mask, (H, W) uint8 of 0 and 255, of an image (H, W, 3) uint8 and an alpha (H, W) uint8.

    Where the mask holds next to nothing, the target's tight box replaces it.
    """
    x0, y0, x1, y1 = box_from_mask(gt)
    planes = np.ascontiguousarray(np.moveaxis(image, 2, 0))
    mask = sam_like(torch.from_numpy(gt), torch.from_numpy(planes), rng).numpy() * np.uint8(255)
    if np.count_nonzero(mask) < 0.01 * (x1 + 1 - x0) * (y1 + 1 - y0):
        mask[y0 : y1 + 1, x0 : x1 + 1] = 255
    return mask


def jobs(per_set: int) -> list[tuple[str, Kind, int]]:
    """Return all scenes as (set, kind, number in the set); a scene of `touching` serves two prompts."""
    counts = {name: (per_set + 1) // 2 if name == "touching" else per_set for name in KINDS}
    return [(name, KINDS[name][k % len(KINDS[name])], k) for name, n in counts.items() for k in range(n)]


def _write_scene(out: Path, job: tuple[str, Kind, int], seed: int, size: tuple[int, int] | None) -> None:
    folder, kind, number = job
    rng = np.random.default_rng([seed, list(KINDS).index(folder), number])
    image, gts = make_scene(kind, rng, size)
    for gt, letter in zip(gts, ("_a", "_b") if len(gts) > 1 else ("",), strict=True):
        name = f"{kind.name}_{number:02d}{letter}"
        path = out / folder / "im" / f"{name}.jpg"
        write_image(path, image)
        write_mask(out / folder / "gt" / f"{name}.png", gt)
        write_mask(out / folder / "sim" / f"{name}.png", coarse_mask(read_image(path), gt, rng))


def overview(out: Path, height: int = 200, columns: int = 3) -> Array:
    """Return a contact sheet, (h, w, 3) uint8 RGB: of each prompt the image, ground truth and coarse mask."""
    paths = sorted(out.glob("*/im/*.jpg"))
    masks = ([read_mask(path.parents[1] / folder / f"{path.stem}.png") for folder in ("gt", "sim")] for path in paths)
    rows = ([read_image(path), *pair] for path, pair in zip(paths, masks, strict=True))
    return contact_sheet(rows, height, columns, captions=[f"{path.parents[1].name} {path.stem}" for path in paths])


def _is_own(out: Path, path: Path, hashes: Mapping[str, str] | None) -> bool:
    """Return whether a file is as this program, or box_prompts, wrote it; earlier versions recorded no hashes."""
    name = path.relative_to(out)
    in_set = len(name.parts) == 3 and name.parts[0] in KINDS
    if in_set and name.parts[1] == "box":
        return True
    if hashes is None:
        return name.name == "contact_sheet.jpg" or (in_set and name.parts[1] in ("im", "gt", "sim"))
    return hashes.get(name.as_posix()) == content_hash(path)


def make_hard_scenes(out: Path, seed: int = 0, per_set: int = 16, size: tuple[int, int] | None = None) -> bool:
    """Make all sets, of `per_set` prompts each, unless they are complete; sets of other settings are replaced.

    Returns True if they were made. Raises DatasetError if the folder holds something else, or files that were changed.
    """
    settings = {"version": VERSION, "seed": seed, "per_set": per_set, "size": list(size) if size else None}
    record = out / "hard.json"
    if record.is_file():
        found: dict[str, Any] = {}
        with suppress(ValueError):
            found = json.loads(record.read_text(encoding="utf-8"))
        if all(found.get(key) == value for key, value in settings.items()):
            return False
        files = (path for path in sorted(out.rglob("*")) if path.is_file() and path != record)
        if other := next((path for path in files if not _is_own(out, path, found.get("files"))), None):
            raise DatasetError(
                f"{other}: was not made by this program, or was changed since, and making other scenes would remove "
                "it; choose another folder with --out, or move the file"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out}: found something that this program did not make; choose another folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for job in tqdm(jobs(per_set), desc=f"hard scenes in {out}", unit="scene", disable=None):
            _write_scene(temporary, job, seed, size)
        write_image(temporary / "contact_sheet.jpg", overview(temporary))
        made = (path for path in sorted(temporary.rglob("*")) if path.is_file())
        hashes = {path.relative_to(temporary).as_posix(): content_hash(path) for path in made}
        (temporary / record.name).write_text(json.dumps({**settings, "files": hashes}), encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp's folders are private
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw scenes that a refinement network tends to fail on.")
    out = Path(__file__).resolve().parents[2] / "data" / "sample" / "hard"
    parser.add_argument("--out", type=Path, default=out, help="default: %(default)s")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="another seed gives other scenes")
    parser.add_argument("--per-set", type=positive_int, default=16, help="prompts in a set (default: %(default)s)")
    args = parser.parse_args(argv)

    def command() -> int:
        made = make_hard_scenes(args.out, args.seed, args.per_set)
        print(f"{args.out}: {'made' if made else 'already complete'}, {len(jobs(args.per_set))} scenes")
        return DONE

    return run_command(command, f"interrupted; {args.out} is unchanged")


if __name__ == "__main__":
    sys.exit(main())
