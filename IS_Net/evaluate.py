"""Score maps against ground truths, as the DIS papers do: ``python -m IS_Net.evaluate --help``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from IS_Net import datalist
from IS_Net.data_loader import available_cores
from IS_Net.hypar import resolve
from IS_Net.images import ImageError, atomic_file, image_size, list_images, read_image, read_map, read_mask
from IS_Net.metrics.suite import ALL, FAMILIES, choose
from IS_Net.report import Picture, Scores, csv_text, html_page, json_text, text_table
from IS_Net.scoring import Job, Scorer, ScoringError

logger = logging.getLogger(__name__)

COARSE = "coarse"


class EvaluationError(ValueError):
    """Folders or files that do not belong together; the message names all of them."""


@dataclass
class DataSet:
    """Ground truths, and what a report shows beside them; files by their stems.

    Attributes:
        name: In tables, and of the folder that holds its maps where a method has several data sets'.
        folder: Holds the ground truths, or is the split that does; maps may be in a folder of its name too.
        gts: The ground truths.
        images: The images, where they were found.
        masks: The coarse masks, where they were found.
        maps: By method, the maps to score.
    """

    name: str
    folder: Path
    gts: dict[str, Path]
    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    maps: dict[str, dict[str, Path]] = field(default_factory=dict)


def find_data_set(text: str, images: Path | None = None, masks: Path | None = None) -> DataSet:
    """Find a data set's files.

    Args:
        text: A name from datalist.py, a split that holds ``gt`` (and ``im``, ``mask``), or a folder of ground truths.
        images: Folder of its images, if not the split's.
        masks: Folder of its coarse masks, if not the split's.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a folder holds no image file, or two of one stem.
    """
    known = datalist.named()
    if text in known:
        gt, im, mid = (resolve(known[text][key]) for key in ("gt_dir", "im_dir", "mid_dir"))
        folder = im.parent
    else:
        gt = Path(text).resolve()
        gt = gt / "gt" if (gt / "gt").is_dir() else gt
        folder = gt.parent if gt.name == "gt" else gt
        im, mid = folder / "im", folder / "mask"
    names = [entry["name"] for entry in known.values() if entry["gt_dir"] and resolve(entry["gt_dir"]) == gt]
    return DataSet(
        name=names[0] if names else folder.name,
        folder=folder,
        gts=list_images(gt),
        images=list_images(images) if images else _beside(im),
        masks=list_images(masks) if masks else _beside(mid),
    )


def _beside(folder: Path) -> dict[str, Path]:
    """Return the files of a folder that nobody named; without them, nothing but the report lacks anything."""
    try:
        return list_images(folder) if folder.is_dir() else {}
    except ValueError as error:
        logger.warning("left out of the report: %s", error)
        return {}


def find_maps(data_set: DataSet, folder: Path, alone: bool) -> Path:
    """Return where a method's maps of a data set are: in a folder of its name, or right in the method's folder.

    Args:
        data_set: The data set.
        folder: The method's.
        alone: Whether this is the only data set; the maps of several ones lie apart.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    names = dict.fromkeys((data_set.name, data_set.folder.name))
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    if alone:
        return folder
    raise FileNotFoundError(
        f"{folder}: found no folder {' or '.join(names)} in it; the maps of several data sets are looked for in "
        "DIR/<data set>/NAME.png"
    )


def pair_up(data_set: DataSet, method: str, maps: dict[str, Path]) -> list[str]:
    """Give a data set the maps of a method, and return what is wrong with them: missing, mis-sized, no images.

    Maps without a ground truth are told and left out.
    """
    if extra := [str(path) for name, path in maps.items() if name not in data_set.gts]:
        listed = "".join(f"\n  {path}" for path in extra)
        logger.warning("%s: %d maps have no ground truth and are left out:%s", data_set.name, len(extra), listed)
    data_set.maps[method] = {name: maps[name] for name in data_set.gts if name in maps}

    def problem(name: str) -> str | None:
        if name not in maps:
            return f"{data_set.name}, {method}: there is no map of {name}"
        try:
            (height, width), wanted = image_size(maps[name]), image_size(data_set.gts[name])
        except ImageError as error:
            return str(error)
        if (height, width) != wanted:
            return f"{maps[name]}: is {width} x {height} pixels, its ground truth {wanted[1]} x {wanted[0]}"
        return None

    with ThreadPoolExecutor() as pool:  # headers only, but of thousands of files that may lie on a network
        return [found for found in pool.map(problem, data_set.gts) if found]


def score(data_sets: Sequence[DataSet], scorer: Scorer, metrics: str) -> list[Scores]:
    """Score all maps of all data sets.

    Args:
        data_sets: With their maps.
        scorer: Measures them.
        metrics: What it measures.

    Returns:
        One for each method on each data set.

    Raises:
        EvaluationError: If files cannot be read; all are named.
        ScoringError: If a worker process died.
    """
    results = {
        (data_set.name, method): Scores(data_set.name, method, metrics)
        for data_set in data_sets
        for method in data_set.maps
    }
    jobs = [
        (data_set.name, Job(name, gt, {method: maps[name] for method, maps in data_set.maps.items()}))
        for data_set in data_sets
        for name, gt in data_set.gts.items()
    ]
    problems: list[str] = []
    outcomes = scorer.measure(job for _, job in jobs)
    for (data_set, job), outcome in zip(jobs, tqdm(outcomes, "score", len(jobs), unit="image"), strict=True):
        problems += outcome.problems
        for method, measured in outcome.measured.items():
            results[data_set, method].add(job.name, measured)
    if problems:
        raise EvaluationError(_listed(problems))
    return list(results.values())


def _listed(problems: Sequence[str]) -> str:
    unique = list(dict.fromkeys(problems))  # a ground truth is looked at once for each method
    return f"{len(unique)} files cannot be scored:" + "".join(f"\n  {problem}" for problem in unique)


def _pictures(data_set: DataSet, method: str, name: str) -> Iterator[Picture]:
    readers = [
        ("image", data_set.images, read_image),
        ("ground truth", data_set.gts, read_mask),
        ("coarse mask", data_set.masks if method != COARSE else {}, read_mask),
        (method, data_set.maps[method], read_map),
    ]
    for caption, paths, read in readers:
        if name in paths:
            try:
                yield caption, read(paths[name])
            except ImageError as error:  # of an image or a coarse mask: the others were scored
                logger.warning("left out of the report: %s", error)


def _methods(options: argparse.Namespace) -> dict[str, Path]:
    """Return the methods' folders by their names."""
    methods: dict[str, Path] = {}
    for text in options.pred:
        name, _, folder = text.partition("=")
        if not folder or Path(text).is_dir():
            name, folder = Path(text).resolve().name, text
        path = Path(folder)
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: the folder does not exist; expected one of maps")
        if name in methods or (name == COARSE and options.coarse):
            raise EvaluationError(f"two methods are named {name!r}; name them with --pred NAME=DIR")
        methods[name] = path
    return methods


def _run(options: argparse.Namespace) -> str:
    """Do what was asked for; return the table."""
    beside = [options.images or [None] * len(options.gt), options.masks or [None] * len(options.gt)]
    data_sets = [find_data_set(*given) for given in zip(options.gt, *beside, strict=True)]
    names = [data_set.name for data_set in data_sets]
    if len(set(names)) < len(names):
        raise EvaluationError(f"two data sets share a name: {', '.join(names)}; rename the folder of one")
    methods, problems = _methods(options), []
    for data_set in data_sets:
        if options.coarse:
            if not data_set.masks:
                raise EvaluationError(f"--coarse: {data_set.name} has no coarse masks; name their folder with --masks")
            problems += pair_up(data_set, COARSE, data_set.masks)
        for method, folder in methods.items():
            problems += pair_up(data_set, method, list_images(find_maps(data_set, folder, len(data_sets) == 1)))
    if problems:
        raise EvaluationError(_listed(problems))

    cache_dir = "" if options.no_cache else None
    with Scorer(options.metrics, options.workers, cache_dir) as scorer:
        results = score(data_sets, scorer, options.metrics)
    of_name = {data_set.name: data_set for data_set in data_sets}
    writers = {
        options.csv: csv_text,
        options.json: json_text,
        options.html: lambda results: html_page(
            results, lambda scores, name: _pictures(of_name[scores.data_set], scores.method, name), options.worst
        ),
    }
    for path, write in writers.items():
        if path:
            text = write(results)
            with atomic_file(path, "w") as file:
                file.write(text)
    return text_table(results)


def _names(text: str) -> str:
    try:
        return ",".join(choose(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _whole_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m IS_Net.evaluate",
        description="Score maps against ground truths, at the ground truths' own size, with all metrics of the DIS "
        "tables. Maps are 8-bit gray files, 0..255, paired with the ground truths by name.",
    )
    parser.add_argument(
        "--gt",
        nargs="+",
        required=True,
        metavar="DIR",
        help="data sets: folders of ground truths, or splits that hold gt/ (and im/, mask/), such as "
        "data/DIS5K/DIS-VD, or names from datalist.py",
    )
    parser.add_argument(
        "--pred",
        nargs="+",
        default=[],
        metavar="DIR",
        help="methods: folders of maps, DIR/<data set>/NAME.png, or DIR/NAME.png where there is one data set; NAME=DIR "
        "names a method otherwise than its folder",
    )
    parser.add_argument("--coarse", action="store_true", help="the data sets' coarse masks, as one more method")
    parser.add_argument(
        "--metrics", type=_names, default=ALL, metavar="M,M", help=f"any of {', '.join(FAMILIES)}; default: all"
    )
    parser.add_argument(
        "--workers",
        type=_whole_number,
        default=available_cores(),
        metavar="N",
        help="processes that score; 0: this one does; default: one for each core, %(default)s",
    )
    parser.add_argument("--no-cache", action="store_true", help="keep nothing of the ground truths in data/cache/gt")
    out = parser.add_argument_group("results, beside the table that is printed")
    out.add_argument("--json", type=Path, metavar="FILE", help="everything: figures, curves, each image's figures")
    out.add_argument("--csv", type=Path, metavar="FILE", help="each image's figures")
    out.add_argument("--html", type=Path, metavar="FILE", help="a page with tables, curves and the worst cases")
    out.add_argument(
        "--images", nargs="+", type=Path, metavar="DIR", help="for the page: images, a folder for each of --gt"
    )
    out.add_argument("--masks", nargs="+", type=Path, metavar="DIR", help="likewise: coarse masks")
    out.add_argument("--worst", type=_whole_number, default=8, metavar="N", help="cases shown; default: %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 if files are missing or faulty, 2 for a wrong call, 130 if interrupted."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not options.pred and not options.coarse:
        parser.error("expected --pred, folders of maps, or --coarse")
    for key in ("images", "masks"):
        given = getattr(options, key)
        if given and len(given) != len(options.gt):
            parser.error(f"--{key} takes a folder for each of --gt: {len(options.gt)}, found {len(given)}")
    outputs = [path for path in (options.json, options.csv, options.html) if path]
    if len({path.resolve() for path in outputs}) < len(outputs) or any(path.is_dir() for path in outputs):
        parser.error("--json, --csv and --html take a file each, and not a folder")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        print(_run(options))
    except (ValueError, OSError, ScoringError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    for path in outputs:
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
