"""Render 3-D models over photographs: training pairs whose alpha is exact.

    apt-get download sweethome3d-furniture && dpkg -x sweethome3d-furniture_*.deb data/furniture
    python -m recipes.starter.render_models --models data/furniture --backgrounds data/photographs
    python -m recipes.starter.render_models --models data/furniture --backgrounds data/photographs --held-out

The models are those of Sweet Home 3D's catalogs (.sh3f): OBJ files with materials and textures. A photograph is both
the background and the light; sometimes another is laid out as the floor. `--held-out` renders 60 other models, mostly
thin structures, at three times the size. A view depends only on the seed, its number, the models and the photographs.
Complete pairs are kept, so the same command resumes, and a larger `--views` adds to them. LICENSES.csv, beside the
pairs, names the models and photographs in each picture with their authors and licenses.

The alpha is the share of a pixel in which the target is the first thing to be seen. Glass counts as the object; the
holes of a texture do not; shadows do not.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import logging
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from IS_Net.command_line import DONE, FAILED, non_negative_int, positive_int, print_error, run_command
from IS_Net.errors import import_extra
from IS_Net.images import atomic_file, encode_image, list_images, read_image, write_mask
from IS_Net.worker import prepare_worker
from recipes.starter.raytrace import (
    EXTRA,
    Array,
    Camera,
    Light,
    Mesh,
    RenderError,
    Rng,
    Scene,
    Surface,
    render,
    to_linear,
    unfold,
)

CATALOG = "PluginFurnitureCatalog.properties"
"""The file of a catalog that lists its models."""
HELD_OUT = 60
"""Models that are kept out of training."""
HELD_OUT_PHOTOGRAPHS = 8
"""One photograph in so many is a background of held-out models only."""
THIN = re.compile(
    r"railing|fence|chair|stool|lamp|light|chandelier|bicycle|bike|cycle|scooter|plant|tree|palm|ficus|bamboo|flower|"
    r"tulip|lily|orchid|pine|maple|acacia|poplar|beech|yucca|blossom|ladder|stair|rack|hanger|hammock|goal|swing|"
    r"trampoline|basket\b|fan|umbrella|antenna|stroller|crib|cage|spring|racket|trestle|scissors|glasses|mower|clothes "
    r"horse|iron bed|net\b|comb\b|trellis|barrow|parasol|spathiphyllum",
    re.IGNORECASE,
)
"""Names of models that have thin parts."""
THIN_WEIGHT = 60.0
"""How much likelier such a model is to be held out."""
SHAPELESS = re.compile(
    r"\b(plug|switch|socket|parking slot|pedestrian crossing|arrow|bill|doormat|bathmat|carpet|rug|sidewalk|newspaper|"
    r"swimming pool|smoke detector)\b",
    re.IGNORECASE,
)
"""Titles of models that are left out: plates for walls and markings for floors."""
MIN_SHARE = 0.004
"""Of the frame that a target must cover."""
TRIES = 5
"""Views that are drawn until the target covers as much."""
COLUMNS = ("picture", "role", "name", "title", "author", "license")
"""Of LICENSES.csv. The role is target, distractor, background or floor."""


class Model(NamedTuple):
    """A model of a catalog."""

    name: str
    """Unique among the models: the catalog's and the file's."""
    title: str
    author: str
    license: str
    archive: Path
    file: str
    """Of the OBJ, inside the archive."""
    rotation: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1)
    """Three rows that turn it upright."""
    height: float = 100.0
    """Centimeters."""
    elevation: float = 0.0
    """Centimeters that it hangs above the floor."""
    pane: bool = False
    """A door or a window."""


class Job(NamedTuple):
    """What all views of a run share."""

    models: Sequence[Model]
    backgrounds: Sequence[Path]
    out: Path
    size: int
    seed: int
    held_out: bool


def read_properties(data: bytes) -> dict[str, str]:
    """Parse the content of a Java properties file, which is in Latin-1 with escapes."""
    text = re.sub(r"\\\r?\n\s*", "", data.decode("latin-1"))
    entries = {}
    for line in text.splitlines():
        key, separator, value = line.strip().partition("=")
        if separator and not key.startswith(("#", "!")):
            value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), value)
            entries[key.strip()] = re.sub(r"\\(.)", r"\1", value).strip()
    return entries


def read_catalog(path: Path) -> list[Model]:
    """List the models of a catalog.

    Raises:
        RenderError: If it is not a zip archive with a catalog's list, or a value in the list is not a number.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = read_properties(archive.read(CATALOG))
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise RenderError(
            f"{path}: cannot be read as a catalog of models ({error}); expected a .sh3f, .jar or .zip archive that "
            f"contains {CATALOG}"
        ) from error
    models, names = [], set()
    for key in entries:
        if not key.startswith("model#"):
            continue
        number = key.removeprefix("model#")
        entry = {name: entries.get(f"{name}#{number}", "") for name in ("name", "creator", "license", "modelRotation")}
        file = entries[key].lstrip("/")
        name = re.sub(r"[^0-9A-Za-z-]+", "-", f"{path.stem}-{PurePosixPath(file).stem}")
        while name in names:
            name += "-"
        names.add(name)
        try:
            rotation = (
                tuple(float(value) for value in entry["modelRotation"].split()) or Model._field_defaults["rotation"]
            )
            height, elevation = (float(entries.get(f"{n}#{number}", "0")) for n in ("height", "elevation"))
            if len(rotation) != 9:
                raise ValueError(f"a rotation has 9 numbers, found {len(rotation)}")
        except ValueError as error:
            raise RenderError(f"{path}: {CATALOG}: model {number}: {error}") from error
        models.append(
            Model(
                name=name,
                title=entry["name"],
                author=entry["creator"] or entries.get("provider", ""),
                license=" ".join((entry["license"] or entries.get("license", "")).split()),
                archive=path,
                file=file,
                rotation=rotation,
                height=height or 100.0,
                elevation=elevation,
                pane=entries.get(f"doorOrWindow#{number}", "") == "true",
            )
        )
    return models


def list_models(path: Path) -> list[Model]:
    """List the models of a catalog, or of all catalogs in a folder and its subfolders, sorted by name.

    Those without a shape worth learning (:data:`SHAPELESS`) are left out.

    Raises:
        RenderError: If there is no model, or a catalog cannot be read.
    """
    catalogs = sorted(path.rglob("*.sh3f")) if path.is_dir() else [path]
    models = [model for catalog in catalogs for model in read_catalog(catalog) if not SHAPELESS.search(model.title)]
    if not models:
        raise RenderError(
            f"{path}: found no models; expected a catalog (.sh3f), or a folder with some, as in Debian's package "
            "sweethome3d-furniture"
        )
    return sorted(models, key=lambda model: model.name)


def _chance(*key: object) -> float:
    """Return a number in (0, 1) that depends only on the key."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return (int.from_bytes(digest[:7], "big") + 0.5) / 2**56


def split_models(models: Sequence[Model], count: int = HELD_OUT) -> tuple[list[Model], list[Model]]:
    """Divide models into those to train on and `count` that are held out, mostly of thin structures.

    A model's rank does not depend on the others. Source: Efraimidis and Spirakis, "Weighted Random Sampling with a
    Reservoir", IPL 2006. Windows and doors are not held out.
    """

    def rank(model: Model) -> float:
        if model.pane:
            return 0.0
        return _chance("held out", model.name) ** (1 / (THIN_WEIGHT if THIN.search(model.title) else 1.0))

    chosen = {model.name for model in sorted(models, key=rank, reverse=True)[:count]}
    parts = [[model for model in models if (model.name in chosen) == held] for held in (False, True)]
    return parts[0], parts[1]


def split_photographs(paths: Sequence[Path], held_out: bool) -> list[Path]:
    """Return the photographs that are backgrounds of training models, or those of held-out models; all if too few."""
    held = [path for path in paths if _chance("held out", path.stem) < 1 / HELD_OUT_PHOTOGRAPHS]
    if not held or len(held) == len(paths):
        return list(paths)
    return held if held_out else [path for path in paths if path not in held]


class _Files(Mapping):
    """The files that belong to a model, by name; folders and case are ignored, since authors left their own paths."""

    def __init__(self, archive: zipfile.ZipFile, file: str):
        folder = str(PurePosixPath(file).parent)
        self.archive = archive
        self.members = {
            self._key(name): name for name in archive.namelist() if str(PurePosixPath(name).parent) == folder
        }

    @staticmethod
    def _key(name: str) -> str:
        return re.split(r"[/\\]", str(name).strip())[-1].lower()

    def __getitem__(self, name: str) -> bytes:
        return self.archive.read(self.members[self._key(name)])

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)


def load_model(model: Model) -> Mesh:
    """Read a model's triangles and surfaces; it is scaled to a longest side of 1, centered, and stands on y = 0.

    Raises:
        RenderError: If it cannot be read or has no triangles.
    """
    trimesh = import_extra("trimesh", EXTRA)
    logging.getLogger("trimesh").setLevel(logging.WARNING)  # it reports each model that it reads
    try:
        with zipfile.ZipFile(model.archive) as archive:
            files, data = _Files(archive, model.file), archive.read(model.file)
            loaded = trimesh.load_scene(io.BytesIO(data), file_type="obj", resolver=files, process=False)
            parts = [part for part in loaded.geometry.values() if len(getattr(part, "faces", ()))]
            surfaces = [_read_surface(part, files) for part in parts]
    except Exception as error:  # damaged files fail in every way
        raise RenderError(f"{model.archive}: {model.file}: cannot be read ({type(error).__name__}: {error})") from error
    smooth = b"\nvn " in data
    pieces = [_read_part(part, smooth) for part in parts]
    # what cannot be seen is not there
    kept = [index for index, surface in enumerate(surfaces) if surface.opacity > 0.02 and len(pieces[index][0])]
    if not kept:
        raise RenderError(f"{model.archive}: {model.file}: has no visible triangles")
    triangles, normals, uv = (np.concatenate([pieces[index][k] for index in kept]) for k in range(3))
    material = np.repeat(np.arange(len(kept)), [len(pieces[index][0]) for index in kept])
    mesh = Mesh(triangles, normals, uv, material, [surfaces[index] for index in kept])
    mesh = mesh.moved(np.reshape(model.rotation, (3, 3)))
    low, high = mesh.bounds()
    extent = float((high - low).max())
    if not np.isfinite(extent) or extent <= 0:
        raise RenderError(f"{model.archive}: {model.file}: its size is {extent}")
    middle = (low + high) / 2
    return mesh.moved(np.eye(3) / extent, -np.array([middle[0], low[1], middle[2]]) / extent)


def _read_part(part: Any, smooth: bool) -> tuple[Array, Array, Array]:
    """Return the corners, normals and texture coordinates, (F, 3, 3), (F, 3, 3) and (F, 3, 2), of a mesh."""
    faces = np.asarray(part.faces)
    triangles = np.asarray(part.vertices, np.float32)[faces]
    flat = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    area = np.linalg.norm(flat, axis=1)
    good = area > 0
    faces, triangles = faces[good], triangles[good]
    flat = np.repeat((flat[good] / area[good, None])[:, None], 3, 1)
    normals = flat
    if smooth:
        normals = np.asarray(part.vertex_normals, np.float32)[faces]
        length = np.linalg.norm(normals, axis=2, keepdims=True)
        normals = np.where(length > 0.1, normals / np.maximum(length, 1e-9), flat)
    uv = getattr(part.visual, "uv", None)
    uv = np.zeros((*faces.shape, 2)) if uv is None or len(uv) != len(part.vertices) else np.asarray(uv)[faces]
    return triangles, normals.astype(np.float32), np.nan_to_num(uv).astype(np.float32)


def _read_surface(part: Any, files: _Files) -> Surface:
    material = getattr(part.visual, "material", None)
    values = {key.lower(): value for key, value in (getattr(material, "kwargs", None) or {}).items()}

    def number(key: str, default: float) -> float:
        value = np.ravel(values.get(key, default))
        try:
            return float(value[0])
        except (ValueError, IndexError):
            return default

    diffuse = np.float32(np.ravel(values.get("kd", (0.6, 0.6, 0.6)))[:3].astype(float))
    opacity = number("d", 1 - number("tr", 0.0)) if "d" in values or "tr" in values else 1.0
    texture, holes, image = None, None, getattr(material, "image", None)
    if image is not None:
        texture, alpha = np.array(image.convert("RGB")), None
        if image.has_transparency_data:
            alpha = np.array(image.convert("RGBA").getchannel("A"))
        if "map_d" in values:
            alpha = _read_opacity(str(values["map_d"][-1]), files, image.size)
        if alpha is not None and alpha.min() > 25:  # evenly transparent: glass
            opacity *= float(alpha.mean()) / 255
        elif alpha is not None:
            holes = alpha >= 128
        # exporters that write a texture often leave the color black or gray, where viewers expect white
        diffuse = diffuse / diffuse.max() if diffuse.max() > 0.05 else np.ones(3, np.float32)
        color = to_linear(np.clip(diffuse, 0, 1))
    else:
        color = to_linear(np.clip(diffuse, 0, 1))
    shine = min(max(number("ns", 20.0), 0.0), 1000.0)
    name = str(getattr(material, "name", "")).lower()
    metallic = bool(re.search(r"metal|chrom|steel|alu|inox|iron|gold|silver|brass|copper|acier", name))
    return Surface(
        color=tuple(float(value) for value in color),
        texture=texture,
        opacity_map=holes,
        opacity=min(max(opacity, 0.0), 1.0),
        roughness=float(np.clip(np.sqrt(2 / (shine + 2)), 0.1, 0.9)),
        metallic=metallic,
    )


def _read_opacity(name: str, files: _Files, size: tuple[int, int]) -> Array | None:
    if name not in files:
        return None
    with Image.open(io.BytesIO(files[name])) as image:
        plane = image.convert("RGBA").getchannel("A") if image.has_transparency_data else image.convert("L")
        return np.array(plane.resize(size))


def _weathered(mesh: Mesh, rng: Rng) -> Mesh:
    """Vary the surfaces: other roughness, stains, sometimes other colors."""
    gloss, mottled, tinted = rng.uniform(0.7, 1.5), abs(rng.normal(0, 0.12)), rng.random() < 0.25
    surfaces = []
    for surface in mesh.surfaces:
        color = np.float32(surface.color)
        if tinted:
            color = np.clip(color * np.exp(rng.normal(0, 0.35, 3)), 0.01, 0.9)
        roughness = float(np.clip(surface.roughness * gloss, 0.1, 0.95))
        surfaces.append(
            replace(surface, color=tuple(color.tolist()), roughness=roughness, mottled=mottled * rng.uniform(0.4, 1.0))
        )
    return replace(mesh, surfaces=surfaces)


def _turn(axis: int, angle: float) -> Array:
    """Return the matrix, (3, 3), of a turn about an axis by an angle in radians."""
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.eye(3)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
    return matrix


@dataclass(frozen=True)
class View:
    """What stands before the camera, and where it is."""

    scene: Scene
    """The target first."""
    camera: Camera
    floor: bool
    depth: float
    """From the camera to the target."""
    distractor: Model | None


def compose_view(
    target: Model, others: Sequence[Model], frame: tuple[int, int], rng: Rng, distract: bool = True, large: bool = False
) -> View:
    """Place a target, sometimes a distractor, and the camera.

    Args:
        target: The model to show.
        others: Models to choose the distractor from.
        frame: Height and width in pixels.
        rng: Decides everything.
        distract: Whether there may be a distractor.
        large: Whether the target always fills most of the frame, which never cuts it.

    Raises:
        RenderError: If the model cannot be loaded.
    """
    h, w = frame
    yaw = rng.uniform(-1, 1) * (1.1 if target.pane else np.pi)
    mesh = _weathered(load_model(target), rng).moved(_turn(1, yaw))
    low, high = mesh.bounds()
    flat = high[1] - low[1] < 0.12
    elevation = np.radians(rng.uniform(25, 60) if flat else rng.uniform(-10, 50))
    floor = bool(elevation > np.radians(3) and rng.random() < (0.4 if target.elevation > 80 else 0.92))
    meshes, distractor = [mesh], None
    if distract and others and rng.random() < 0.3:
        distractor = others[int(rng.integers(len(others)))]
        other = _weathered(load_model(distractor), rng)
        scale = float(np.clip(distractor.height / target.height * high[1] / other.bounds()[1][1], 0.5, 1.6))
        other = other.moved(scale * _turn(1, rng.uniform(0, 2 * np.pi)))
        # beside, before or behind the target, so near that it may hide a part of it
        sides = np.hypot(*(high - low)[[0, 2]]), np.hypot(*(other.bounds()[1] - other.bounds()[0])[[0, 2]])
        way, apart = rng.uniform(0, 2 * np.pi), sum(sides) / 2 * rng.uniform(0.75, 1.2)
        meshes.append(other.moved(np.eye(3), (apart * np.cos(way), 0, apart * np.sin(way))))
    # the camera looks along -z, downwards by the elevation, at the middle of the target
    middle = (low + high) / 2
    axes = _turn(2, rng.normal(0, 0.035)) @ np.diag([1.0, -1.0, -1.0]) @ _turn(0, elevation)
    depth = float(np.exp(rng.uniform(np.log(1.3), np.log(6)))) + 0.5 * float(np.linalg.norm(high - low))
    camera = Camera(middle - depth * axes[2], axes, 1.0, (0.0, 0.0))
    seen = camera.project(mesh.triangles.reshape(-1, 3))[:, :2]
    first, last = seen.min(0), seen.max(0)
    extent = np.maximum(last - first, 1e-6)
    cut = not large and rng.random() < 0.15
    fill = rng.uniform(0.9, 1.5) if cut else rng.uniform(0.7 if large else 0.38, 0.96)
    focal = float(fill * ((w, h) / extent).min())
    if cut:  # two sides or one of the box lie outside of the frame
        place = ((w, h) - focal * extent) * rng.choice([-0.25, 0.0, 0.5, 1.0, 1.25], 2) - 0.1 * focal * extent
    else:
        place = rng.uniform(0.02, 0.98, 2) * ((w, h) - focal * extent)
    left, top = place - focal * first
    return View(Scene(meshes), replace(camera, focal=focal, center=(float(left), float(top))), floor, depth, distractor)


def _crop(photograph: Array, frame: tuple[int, int], rng: Rng) -> Array:
    """Return a random part of a photograph, (h, w, 3) uint8, in the size of the frame."""
    (h, w), (rows, columns) = frame, photograph.shape[:2]
    largest = min(rows / h, columns / w)
    scale = largest * rng.uniform(min(max(0.5, 0.7 / largest), 1.0), 1.0)
    height, width = max(int(h * scale), 1), max(int(w * scale), 1)
    top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
    part = photograph[top : top + height, left : left + width]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    return cv2.resize(part, (w, h), interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC)


def _blurred(image: Array, sigma: float) -> Array:
    """Blur an image; strong blurs are made at a lower resolution."""
    h, w = image.shape[:2]
    shrink = max(int(sigma / 3), 1)
    if sigma < 0.3:
        return image
    small = cv2.resize(image, (max(w // shrink, 1), max(h // shrink, 1)), interpolation=cv2.INTER_AREA)
    return cv2.resize(cv2.GaussianBlur(small, (0, 0), sigma / shrink), (w, h), interpolation=cv2.INTER_LINEAR)


def make_light(photograph: Array, rng: Rng) -> Light:
    """Surround the scene with a photograph, (h, w, 3) uint8: it hangs behind it, and mirrored, behind the camera.

    Its bright parts are made brighter, since files keep only a part of a scene's contrast, and a sun of its color
    shines from one of them. Together they light a gray surface about as brightly as the photograph is.
    """
    small = to_linear(cv2.resize(photograph, (128, 128), interpolation=cv2.INTER_AREA))
    value = small.mean(2, keepdims=True)
    small = (0.6 * small + 0.4 * value) * (1 + 6 * value**2)  # walls and clouds scatter some light of every color
    small = cv2.GaussianBlur(small, (0, 0), 1.0)
    tables = []
    for side in (256, 64):
        way = unfold(side)
        across = np.abs(np.arctan2(way[..., 0], -way[..., 2])) / np.pi  # 0 behind the scene, 1 behind the camera
        across = 0.5 + np.copysign(np.minimum(across, 1 - across), way[..., 0])
        down = np.arccos(np.clip(way[..., 1], -1, 1)) / np.pi
        at = np.stack((across, down), -1).astype(np.float32) * np.float32(127)
        source = small if side == 256 else cv2.GaussianBlur(small, (0, 0), 6)
        tables.append(cv2.remap(source, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    mirror, sky = tables
    level = float(np.clip(value.mean() * rng.uniform(1.4, 3.0), 0.22, 1.1))
    share = rng.uniform(0.1, 0.75)  # of the sun
    gain = np.float32(level * (1 - share) / max(float(sky.mean()), 1e-4))
    way = unfold(64)
    weight = (sky.mean(2) ** 2 * (way[..., 1] > 0.2)).ravel().astype(np.float64)
    weight = weight + weight.mean() * 0.3 * (way[..., 1].ravel() > 0.2)
    weight = weight / weight.sum() if weight.sum() > 0 else None
    spot = int(rng.choice(weight.size if weight is not None else 64 * 64, p=weight))
    sun = way.reshape(-1, 3)[spot] + rng.normal(0, 0.15, 3)
    sun[1] = max(sun[1], 0.25)
    tint = sky.reshape(-1, 3)[spot]
    tint = 0.5 * tint / max(float(tint.mean()), 1e-4) + 0.5 * np.array([1.08, 1.0, 0.92])
    return Light(
        sky=sky * gain,
        mirror=mirror * gain,
        sun=(sun / np.linalg.norm(sun)).astype(np.float32),
        sun_color=(tint * level * share * np.pi * 1.4).astype(np.float32),
        sun_size=float(np.exp(rng.uniform(np.log(0.01), np.log(0.3)))),
    )


def _lay_floor(view: View, photograph: Array, backdrop: Array, rng: Rng) -> Array:
    """Return a room, (h, w, 3) float32: a photograph as its floor, before a backdrop."""
    h, w = backdrop.shape[:2]
    camera, side = view.camera, 1024
    xy = np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1).reshape(-1, 2).astype(np.float32) + np.float32(0.5)
    way = camera.directions(xy)
    far = -np.float32(camera.eye[1]) / np.minimum(way[:, 1], -1e-4)
    points = np.float32(camera.eye)[[0, 2]] + far[:, None] * way[:, ::2]
    wall = -float(np.exp(rng.uniform(np.log(0.8), np.log(8)))) - 0.3
    on_floor = (way[:, 1] < -1e-3) & (points[:, 1] > wall)
    turn = rng.uniform(0, 2 * np.pi)
    points = points @ np.float32([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    texture = to_linear(cv2.resize(_crop(photograph, (side, side), rng), (side, side)))
    scale = side / rng.uniform(1.2, 4.0)
    at = points * np.float32(scale) + rng.uniform(0, 2 * side, 2).astype(np.float32)
    at = np.abs((at % (2 * side)) - side).clip(0, side - 1).reshape(h, w, 2)  # mirrored at its borders
    # texels per pixel, along the depth: coarser copies of the texture where they are many
    steep = np.maximum(-way[:, 1], 1e-3)
    level = (np.log2(np.maximum(far * scale / (camera.focal * steep), 1)) / 2).clip(0, 3).reshape(h, w)
    room = np.zeros((h, w, 3), np.float32)
    for step in range(4):
        blurred = texture if step == 0 else _blurred(texture, 0.5 * 4**step)
        weight = np.maximum(1 - np.abs(level - step), 0)[..., None]
        room += weight * cv2.remap(blurred, at[..., 0], at[..., 1], cv2.INTER_LINEAR)
    mask = cv2.GaussianBlur(on_floor.reshape(h, w).astype(np.float32), (0, 0), max(h, w) / 1500)[..., None]
    return mask * room + (1 - mask) * to_linear(backdrop)


def make_background(
    view: View, frame: tuple[int, int], photographs: Sequence[Array], rng: Rng
) -> tuple[Array, Sequence[int]]:
    """Return what is behind the scene, (h, w, 3) float32 linear RGB, and which of two photographs it shows."""
    h, w = frame
    backdrop = _crop(photographs[0], frame, rng)
    kind = rng.choice(["photograph", "room", "plain"], p=[0.48, 0.37, 0.15])
    blur = max(h, w) * (0 if rng.random() < 0.45 else np.exp(rng.uniform(np.log(0.0006), np.log(0.02))))
    if kind == "plain":
        shades = cv2.resize(_blurred(backdrop, max(h, w) / 8), (3, 3), interpolation=cv2.INTER_AREA)
        plain = cv2.resize(to_linear(shades), (w, h), interpolation=cv2.INTER_LINEAR)
        pale = rng.uniform(0, 1)
        return plain * np.float32(1 - pale) + np.float32(pale * rng.uniform(0.3, 0.85)), [0]
    if kind == "room" and view.floor:
        return _lay_floor(view, photographs[1], _blurred(backdrop, blur), rng), [0, 1]
    return _blurred(to_linear(backdrop), blur), [0]


def expose(linear: Array, coverage: Array, rng: Rng) -> tuple[Array, Array]:
    """Photograph a scene: lens, exposure and sensor.

    Args:
        linear: (h, w, 3) float32 linear RGB.
        coverage: (h, w) float32 of the target.
        rng: Decides how sharp and how noisy the picture is.

    Returns:
        (h, w, 3) uint8 sRGB, and the alpha (h, w) uint8, which the lens blurs as much as the picture.
    """
    h, w = coverage.shape
    sigma = rng.uniform(0.3, 0.6)
    linear, coverage = (cv2.GaussianBlur(plane, (0, 0), sigma) for plane in (linear, coverage))
    linear = linear * np.float32(np.exp(rng.normal(0, 0.12)))
    linear = np.where(linear > 0.7, 1 - 0.3 * np.exp((0.7 - np.maximum(linear, 0.7)) / 0.3), linear)
    grain = cv2.GaussianBlur(rng.standard_normal((h, w, 3), np.float32), (0, 0), 0.5)
    grain *= np.float32(np.exp(rng.uniform(np.log(0.5), np.log(3))))
    linear = linear + grain * np.sqrt(np.maximum(linear, 0) * np.float32(2e-4) + np.float32(2e-6))
    shown = np.power(np.clip(linear, 0, 1), np.float32(1 / 2.2))
    return np.uint8(np.round(shown * 255)), np.uint8(np.round(np.clip(coverage, 0, 1) * 255))


def picture_name(job: Job, index: int) -> str:
    """Return the name of a view's files."""
    return f"{index:05d}_{_target(job, index).name}"


def _target(job: Job, index: int) -> Model:
    """Return the model of a view: each round shows all of them, in another order."""
    turn, place = divmod(index, len(job.models))
    return sorted(job.models, key=lambda model: _chance(job.seed, turn, model.name))[place]


def render_view(job: Job, index: int) -> tuple[Array, Array, list[dict[str, str]]]:
    """Render one view.

    Returns:
        (h, w, 3) uint8 image, (h, w) uint8 alpha, and the rows of LICENSES.csv.

    Raises:
        RenderError: If a model cannot be read, or the target is hidden or too small in all tries.
        ImageError: If a photograph cannot be read.
    """
    target = _target(job, index)
    for attempt in range(TRIES):
        rng = np.random.default_rng([job.seed, int(job.held_out), index, attempt])
        frame = int(job.size * rng.uniform(1, 1.25)), int(job.size * rng.uniform(1, 1.25))
        chosen = [job.backgrounds[int(k)] for k in rng.integers(len(job.backgrounds), size=2)]
        view = compose_view(target, job.models, frame, rng, attempt < 2, large=job.held_out)
        photographs = [read_image(path) for path in chosen]
        background, shown = make_background(view, frame, photographs, rng)
        light = make_light(photographs[0], rng)
        layers = render(view.scene, view.camera, light, frame, rng, view.floor)
        coverage = layers.coverage[0]
        if coverage.mean() >= MIN_SHARE:
            break
    else:
        raise RenderError(f"{target.archive}: {target.file}: covers too little of the frame in {TRIES} views")
    image, alpha = expose(layers.color + layers.through[..., None] * layers.shade * background, coverage, rng)
    name, rows = picture_name(job, index), []
    for role, model in (("target", target), ("distractor", view.distractor)):
        if model is not None:
            values = name, role, model.name, model.title, model.author, model.license
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    for role, which in zip(("background", "floor"), shown, strict=False):
        values = name, role, chosen[which].name, "", "", "see the source of the photograph"
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return image, alpha, rows


def _write_view(job: Job, index: int) -> list[dict[str, str]]:
    image, alpha, rows = render_view(job, index)
    name = picture_name(job, index)
    write_mask(job.out / "gt" / f"{name}.png", alpha)
    quality = int(np.random.default_rng([job.seed, index]).integers(85, 98))
    with atomic_file(job.out / "im" / f"{name}.jpg") as file:
        file.write(encode_image(image, ".jpg", quality))
    return rows


def read_licenses(out: Path) -> dict[str, list[dict[str, str]]]:
    """Return the rows of a folder's LICENSES.csv by picture; none if there is no such file.

    Raises:
        RenderError: If its columns are not those that this program writes.
    """
    path, rows = out / "LICENSES.csv", {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise RenderError(f"{path}: found the columns {reader.fieldnames}, expected {', '.join(COLUMNS)}")
            for row in reader:
                rows.setdefault(row["picture"], []).append(row)
    return rows


def _write_licenses(out: Path, rows: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    with atomic_file(out / "LICENSES.csv", "w") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name in sorted(rows):
            writer.writerows(rows[name])


def _claim(job: Job) -> None:
    """Record the settings of a folder's views; the views of other settings have the same names.

    Raises:
        RenderError: If the folder holds views of other settings.
    """
    path, settings = job.out / "settings.json", {"size": job.size, "seed": job.seed, "held_out": job.held_out}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != settings:
            raise RenderError(f"{path}: holds views of {found}, not of {settings}; choose another folder with --out")
        return
    with atomic_file(path, "w") as file:
        file.write(json.dumps(settings))


def render_views(job: Job, views: int, workers: int = 1) -> tuple[int, list[str]]:
    """Render the views 0 to `views` - 1, except those that are complete: image, alpha and rows of LICENSES.csv.

    Returns:
        The number of views rendered, and an error message for each that failed.

    Raises:
        RenderError: If the folder holds views of another size or seed.
    """
    licenses = read_licenses(job.out)
    _claim(job)

    def complete(name: str) -> bool:
        return name in licenses and all(
            (job.out / folder / f"{name}.{extension}").is_file() for folder, extension in (("im", "jpg"), ("gt", "png"))
        )

    names = {index: picture_name(job, index) for index in range(views)}
    todo = [index for index, name in names.items() if not complete(name)]
    errors, done = [], 0
    with tqdm(total=views, initial=views - len(todo), desc=f"views in {job.out}", unit="view") as bar:
        for index, result in _run(job, todo, workers):
            if isinstance(result, Exception):
                errors.append(f"{names[index]}: {result}")
            else:
                licenses[names[index]] = result
                _write_licenses(job.out, licenses)
                done += 1
            bar.update()
    return done, errors


def _run(job: Job, todo: Sequence[int], workers: int) -> Iterator[tuple[int, list[dict[str, str]] | Exception]]:
    """Yield each view with its rows, or the error that it failed with."""
    if workers == 1:
        for index in todo:
            try:
                yield index, _write_view(job, index)
            except (RenderError, ValueError) as error:
                yield index, error
        return
    pool = ProcessPoolExecutor(workers, initializer=prepare_worker, initargs=(0,))
    try:
        futures = {pool.submit(partial(_write_view, job), index): index for index in todo}
        for future in as_completed(futures):
            error = future.exception()
            if error is not None and not isinstance(error, (RenderError, ValueError)):
                raise error
            yield futures[future], error or future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.starter.render_models", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument(
        "--models",
        type=Path,
        default=Path("/usr/share/sweethome3d/furniture"),
        help="a catalog (.sh3f), or a folder with some (default: %(default)s)",
    )
    parser.add_argument(
        "--backgrounds",
        type=Path,
        nargs="+",
        default=[Path("data/sample/photos/im")],
        metavar="FOLDER",
        help="folders of photographs (default: data/sample/photos/im)",
    )
    parser.add_argument("--out", type=Path, help="folder to write to (default: data/rendered, data/rendered_held_out)")
    parser.add_argument("--views", type=positive_int, help=f"pictures (default: 2400; {HELD_OUT} with --held-out)")
    parser.add_argument(
        "--size", type=positive_int, help="shortest side in pixels (default: 1024; 3072 with --held-out)"
    )
    parser.add_argument("--held-out", action="store_true", help=f"render the {HELD_OUT} models kept out of training")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="another seed gives other views")
    parser.add_argument("--workers", type=positive_int, default=1, help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    out = args.out or Path("data/rendered_held_out" if args.held_out else "data/rendered")
    views = args.views or (HELD_OUT if args.held_out else 2400)

    def command() -> int:
        for module in ("embreex.rtcore_scene", "trimesh"):
            import_extra(module, EXTRA)
        models = split_models(list_models(args.models))[args.held_out]
        if not models:
            raise RenderError(
                f"{args.models}: all models are held out; training needs a catalog of more than {HELD_OUT}"
            )
        photographs = [path for folder in args.backgrounds for path in list_images(folder).values()]
        backgrounds = split_photographs(photographs, args.held_out)
        job = Job(models, backgrounds, out, args.size or (3072 if args.held_out else 1024), args.seed, args.held_out)
        done, errors = render_views(job, views, args.workers)
        for message in errors:
            print_error(message)
        print(f"{out}: {done} views rendered, {views - done - len(errors)} already there, {len(errors)} failed")
        return FAILED if errors else DONE

    return run_command(command, "interrupted; the same command resumes")


if __name__ == "__main__":
    sys.exit(main())
