"""Compare methods on photographs: find maps, make the others, score them, and draw the figure.

A method is a model of stage 1, the weights of a network, or a folder of maps; see :func:`find_methods`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from dis_sam.figure import COLUMN, PHOTOGRAPH, TRUTH, FigureError, Row, draw
from dis_sam.inputs import Request, Task, by_name, find_photographs, plan_cut, plan_refine
from dis_sam.model_choice import needs_of
from IS_Net.errors import BoxError, DatasetError, ImageError, PromptError, UserError, did_you_mean
from IS_Net.images import list_images, read_image, read_mask, size_mismatch
from IS_Net.metrics import GroundTruth, Pair
from IS_Net.metrics.suite import Suite
from IS_Net.paths import starter_weights
from IS_Net.predictor import Detail, DISPredictor
from IS_Net.preprocess import MASK_CHANNEL, Size, alpha_to_uint8, box_from_mask, check_box
from sam.backends import BACKENDS, BOX, NEEDS_SAM, available_model, find_checkpoint, load_predictor, split_model
from sam.backends.base import StageOnePredictor
from sam.prompts import Prompt, check_points

COARSE, STARTER = "coarse", "starter"
"""Methods: the coarse masks that the weights are given, and the starter weights."""
METRICS = "mae,iou,biou"
"""The metrics whose figures stand below the maps."""


class Method(NamedTuple):
    """A column of the figure."""

    name: str
    kind: Literal["coarse", "stage 1", "weights", "maps"]
    source: str | Path = ""
    """A model of stage 1, ``NAME`` or ``NAME=PATH``, or the path of the weights or of the folder of maps."""


@dataclass(frozen=True)
class Settings:
    """How maps are made and shown; the fields are options of ``dis-sam compare``."""

    sam: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    runtime: str = "auto"
    detail: Detail = "auto"
    metrics: str = METRICS
    """Names of metrics; the format is that of :func:`IS_Net.metric_names.choose`."""
    column: int = COLUMN
    """Width of a column in pixels."""


@dataclass
class Comparison:
    """What :func:`compare` returns.

    Attributes:
        figure: (H, W, 3) uint8 RGB.
        rows: Number of objects in it.
        failed: One message for each photograph, map or ground truth that is missing or cannot be used.
    """

    figure: np.ndarray
    rows: int
    failed: list[str] = field(default_factory=list)


# --- what is compared -------------------------------------------------------------------------------------------------


def find_methods(texts: Sequence[str]) -> list[Method]:
    """Find the methods that are compared.

    Args:
        texts: For each method, ``coarse``: the coarse masks that the weights are given; a model of
            :data:`sam.backends.BACKENDS`, or ``MODEL=PATH`` if its weights lie elsewhere; ``starter`` or the path of
            a checkpoint of IS-Net or DIS-SAM, which refines the coarse masks (with 3 input channels, it sees the
            photograph alone); or a folder of maps. ``NAME=`` in front gives the method a name.

    Raises:
        FigureError: If there is no such model, file or folder, or two methods have the same name.
    """
    methods: dict[str, Method] = {}
    for text in texts:
        name, source = "", text
        if "=" in text and not Path(text).exists() and split_model(text)[0] not in BACKENDS:
            name, _, source = text.partition("=")
            if not name or not source:
                raise FigureError(f"--methods {text}: expected a method, or NAME=METHOD")
        method = _find_method(source)
        method = method._replace(name=name) if name else method
        if method.name in methods:
            raise FigureError(f"two methods are named {method.name!r}; give them names: --methods NAME=METHOD")
        if method.name in (PHOTOGRAPH, TRUTH):
            raise FigureError(f"--methods {text}: {method.name!r} is a column of its own; choose another name")
        methods[method.name] = method
    if not methods:
        raise FigureError("found no method to compare; name at least one with --methods")
    return list(methods.values())


def _find_method(source: str) -> Method:
    path = Path(source)
    if source == COARSE:
        return Method("coarse mask", "coarse")
    if source == STARTER:
        return Method("starter weights", "weights", starter_weights())
    model = split_model(source)[0]
    if model in BACKENDS:
        find_checkpoint(source)
        names = {BOX: "filled box"}
        return Method(names.get(model, f"SAM {model}" if model.startswith("vit_") else model), "stage 1", source)
    if path.is_dir():
        return Method(path.resolve().name, "maps", path)
    if path.is_file():
        return Method(path.stem, "weights", path)
    raise FigureError(
        f"--methods {source}: found no such file or folder; expected weights, a folder of maps, {COARSE}, {STARTER}, "
        f"or a model of stage 1{did_you_mean(source, BACKENDS)}"
    )


def plan(
    photos: Sequence[Path],
    *,
    objects: Sequence[Request] = (),
    prompts: Path | None = None,
    masks: Path | None = None,
    truths: Path | None = None,
    recursive: bool = False,
) -> tuple[list[Task], list[str]]:
    """Say which objects of which photographs are compared.

    Args:
        photos: Photographs, and folders of them.
        objects: The prompts of every photograph; see :func:`dis_sam.inputs.plan_cut`.
        prompts: Instead, a prompt file.
        masks: Instead, the coarse mask of a photograph, or a folder of them; see :func:`dis_sam.inputs.plan_refine`.
        truths: A folder of ground truths. If there is no prompt, their tight boxes are the prompts.
        recursive: Whether to search the subfolders of folders.

    Returns:
        A task for each photograph, and a message for each photograph without a mask or ground truth.

    Raises:
        MissingFileError: If a file or folder does not exist.
        DatasetError: If photographs and masks do not belong together.
        PromptError: If prompts of the file are faulty.
    """
    photographs = find_photographs(photos, recursive)
    if truths is not None:
        if truths.is_file():
            raise DatasetError(f"{truths}: is a file; expected a folder of ground truths, NAME.png")
        by_name(photographs, truths)
    if masks is not None:
        return plan_refine(photographs, masks, recursive)
    if objects or prompts or truths is None:
        return plan_cut(photographs, objects, prompts), []
    tasks, failed = plan_refine(photographs, truths, recursive, TRUTH)
    prompted = []
    for task in tasks:
        requests = []
        for request in task.requests:
            try:
                box = box_from_mask(read_mask(request.mask))
            except (UserError, OSError) as error:
                failed.append(str(error))
                continue
            if box is None:
                failed.append(f"{request.mask}: the ground truth is empty, so it has no box; give prompts")
            else:
                requests.append(Request(request.name, tuple(map(float, box))))
        if requests:
            prompted.append(replace(task, requests=tuple(requests)))
    if not prompted:
        raise DatasetError("\n".join(failed))
    return prompted, failed


def default_methods(tasks: Sequence[Task]) -> list[str]:
    """Return what is compared by default: the coarse masks, if there are prompts, and the starter weights."""
    prompted = any(request.uses_stage_1 or request.mask is not None for task in tasks for request in task.requests)
    return [COARSE, STARTER] if prompted else [STARTER]


# --- the run ----------------------------------------------------------------------------------------------------------


def compare(
    tasks: Sequence[Task], methods: Sequence[Method], settings: Settings, truths: Path | None = None
) -> Comparison:
    """Make, find and score the maps of all methods, and draw the figure.

    Args:
        tasks: The photographs with their objects; see :func:`plan`.
        methods: See :func:`find_methods`.
        settings: How maps are made and shown.
        truths: The folder of ground truths, ``NAME.png`` or ``NAME_OBJECT.png``; None if there are none.

    Raises:
        CheckpointError: If weights are damaged, or belong to another network.
        DeviceError: If the device, the precision or the runtime is not available.
        MissingFileError: If a folder, or the checkpoint of a model of stage 1, does not exist.
        PromptError: If there are points without a box, and the model of stage 1 is not SAM.
        MissingExtraError: If the package of a model of stage 1 is not installed.
        FigureError: If the figure would be too large, or no photograph can be used.
    """
    failed: list[str] = []
    models = _Models(tasks, methods, settings)
    files = {method.name: list_images(method.source, True) for method in methods if method.kind == "maps"}
    known_truths = None if truths is None else list_images(truths, True)
    rows = []
    for task in tqdm(tasks, "photographs", unit="photo", disable=len(tasks) == 1):
        try:
            photograph = read_image(task.image)
        except (UserError, OSError) as error:
            failed.append(_with_name(error, task.where))
            continue
        requests = []
        for request in task.requests:
            try:
                requests.append(_checked(request, photograph.shape[:2]))
            except (BoxError, PromptError) as error:
                failed.append(f"{request.name}: {error}")
        for request, maps in zip(requests, models.maps(photograph, requests), strict=True):
            truth = None
            if known_truths is not None:
                truth = _stored(known_truths, request.name, photograph, "ground truth", truths)
                truth = _note(truth, failed)
            for method, own in files.items():
                folder = next(m.source for m in methods if m.name == method)
                maps[method] = _stored(own, request.name, photograph, "map", folder)
            failed += [levels.message for levels in maps.values() if isinstance(levels, _Problem)]
            rows.append(_row(request, photograph, maps, truth, models.coarse.get(request.name), settings.metrics))
    if not rows:
        raise FigureError("\n".join([*failed, "no photograph could be used; no figure was made"]))
    figure = draw(rows, [method.name for method in methods], settings.column)
    return Comparison(figure, len(rows), list(dict.fromkeys(failed)))


def _checked(request: Request, size: Size) -> Request:
    """Return a request with its box clipped to its photograph, (height, width).

    Raises:
        BoxError: If the box has no area and no mask comes with it, or lies outside the photograph.
        PromptError: If a point lies outside the photograph.
    """
    check_points(request.points, request.labels, size, request.box is not None)
    if request.box is None:
        return request
    return replace(request, box=check_box(request.box, *size, with_mask=request.mask is not None))


class _Problem(NamedTuple):
    """Why there is no map."""

    message: str
    short: str
    """For the cell of the figure."""


def _stored(
    files: Mapping[str, Path], name: str, photograph: np.ndarray, what: str, folder: Path
) -> np.ndarray | _Problem:
    """Read the map of an object from a folder."""
    if name not in files:
        return _Problem(f"{folder}: found no {what} named {name}", f"no {what}")
    try:
        levels = read_mask(files[name])
    except (UserError, OSError) as error:
        return _Problem(_with_name(error, str(files[name])), f"{what} cannot be read")
    size = photograph.shape[:2]
    if levels.shape != size:
        return _Problem(size_mismatch(files[name], levels.shape, "its photograph", size), f"{what} of another size")
    return levels


def _note(found: np.ndarray | _Problem, failed: list[str]) -> np.ndarray | None:
    if isinstance(found, _Problem):
        failed.append(found.message)
        return None
    return found


def _with_name(error: Exception, where: str) -> str:
    return str(error) if where in str(error) else f"{where}: {error}"


def _row(
    request: Request,
    photograph: np.ndarray,
    maps: Mapping[str, np.ndarray | _Problem],
    truth: np.ndarray | None,
    coarse: np.ndarray | None,
    metrics: str,
) -> Row:
    scores = {}
    if truth is not None:
        gt = GroundTruth(truth)
        for method, levels in maps.items():
            if not isinstance(levels, _Problem):
                suite = Suite(metrics)
                suite.add(suite.measure(Pair(levels, gt)))
                scores[method] = suite.compute()
    shown = {method: levels.short if isinstance(levels, _Problem) else levels for method, levels in maps.items()}
    given = None if request.mask is None else coarse
    return Row(request.name, photograph, shown, truth, scores, request.box, request.points, request.labels, given)


class _Models:
    """The models of all methods, loaded once, and the maps that they make.

    Args:
        tasks: All photographs with their objects.
        methods: All methods.
        settings: How maps are made.
    """

    def __init__(self, tasks: Sequence[Task], methods: Sequence[Method], settings: Settings) -> None:
        self.methods, self.settings = methods, settings
        self.coarse: dict[str, np.ndarray] = {}
        """By object: (H, W) uint8, the coarse masks of the photograph that was last worked on."""
        self.networks = {
            method.name: DISPredictor.from_checkpoint(
                method.source, settings.device, settings.precision, runtime=settings.runtime
            )
            for method in methods
            if method.kind == "weights"
        }
        refines = any(network.in_ch > MASK_CHANNEL for network in self.networks.values())
        needs = needs_of(tasks)
        names = {str(method.source) for method in methods if method.kind == "stage 1"}
        self.stage_1: str | None = None
        if needs["uses_stage_1"] and (refines or any(method.kind == "coarse" for method in methods)):
            self.stage_1 = available_model() if settings.sam == "auto" else settings.sam
            names.add(self.stage_1)
        if needs["needs_sam"] and BOX in names:
            raise PromptError(NEEDS_SAM)
        self.predictors: dict[str, StageOnePredictor] = {
            name: load_predictor(name, device=settings.device) for name in sorted(names)
        }

    def maps(self, photograph: np.ndarray, requests: Sequence[Request]) -> Iterator[dict[str, np.ndarray | _Problem]]:
        """Yield the maps of each object of a photograph by method, (H, W) uint8; without those of folders.

        Args:
            photograph: (H, W, 3) uint8 RGB.
            requests: The objects.
        """
        self.coarse = {}
        known: dict[str, dict[str, np.ndarray]] = {}
        prepared = {name: network.prepare(photograph) for name, network in self.networks.items()}
        for request in requests:
            coarse = self._coarse(photograph, request, known)
            if not isinstance(coarse, _Problem | None):
                self.coarse[request.name] = coarse
            made: dict[str, np.ndarray | _Problem] = {}
            for method in self.methods:
                if method.kind == "coarse":
                    without = _Problem(f"{request.name}: has no prompt, so there is no coarse mask", "no prompt")
                    made[method.name] = without if coarse is None else coarse
                elif method.kind == "stage 1":
                    asked = request
                    if request.box is None and request.mask is not None and isinstance(coarse, np.ndarray):
                        asked = replace(request, box=box_from_mask(coarse))  # the mask says no more to stage 1
                    made[method.name] = self._segment(str(method.source), photograph, asked, known)
                elif method.kind == "weights":
                    network = self.networks[method.name]
                    if isinstance(coarse, _Problem) and network.in_ch > MASK_CHANNEL:
                        made[method.name] = coarse
                        continue
                    mask = None if coarse is None or isinstance(coarse, _Problem) else coarse
                    if request.mask is None and self.stage_1 and self.predictors[self.stage_1].box_only:
                        mask = None  # the box says all that the filled box does
                    alpha = network.predict(prepared[method.name], mask, request.box, detail=self.settings.detail)
                    made[method.name] = alpha_to_uint8(alpha)
            yield made

    def _coarse(
        self, photograph: np.ndarray, request: Request, known: dict[str, dict[str, np.ndarray]]
    ) -> np.ndarray | _Problem | None:
        """Return the coarse mask of an object; None if it has no prompt, or no method uses it."""
        if request.mask is not None:
            path = Path(request.mask)
            return _stored({request.name: path}, request.name, photograph, "mask", path.parent)
        if self.stage_1 is None or not request.uses_stage_1:
            return None
        return self._segment(self.stage_1, photograph, request, known)

    def _segment(
        self, model: str, photograph: np.ndarray, request: Request, known: dict[str, dict[str, np.ndarray]]
    ) -> np.ndarray | _Problem:
        """Return the mask of a model of stage 1 for an object; ``known`` are those of the photograph."""
        box = request.box
        if box is None and request.points is None:
            return _Problem(f"{request.name}: has no box and no points, which stage 1 needs", "no prompt")
        predictor = self.predictors[model]
        if model not in known:
            try:
                predictor.set_image(photograph)
            except ImageError as error:
                return _Problem(f"{request.name}: {error}", "not for this model")
            known[model] = {}
        if request.name in known[model]:
            return known[model][request.name]
        [(mask, _)] = predictor.predict_prompts([Prompt(request.name, None, box, request.points, request.labels)])
        known[model][request.name] = mask.astype(np.uint8) * np.uint8(255)
        return known[model][request.name]
