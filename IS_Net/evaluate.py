"""Score maps against ground truths, as the DIS papers do: ``python -m IS_Net.evaluate --help``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from IS_Net import datalist
from IS_Net.device import available_cores
from IS_Net.errors import EvaluationError, ScoringError
from IS_Net.images import ImageError, atomic_file, image_size, list_images, read_image, read_map, read_mask
from IS_Net.metric_names import ALL, choose
from IS_Net.paths import resolve
from IS_Net.report import MEAN, Picture, Scores, csv_text, html_page, json_text, text_table
from IS_Net.scoring import Job, Scorer

logger = logging.getLogger(__name__)

COARSE = "coarse"


@dataclass
class DataSet:
    """Ground truths, and what a report shows beside them; files by their stems.

    Attributes:
        name: In tables, and of the folder that holds its maps where a method has several data sets'.
        folders: Names of the folders that its maps may be in: its own, its folder's, and that of a link to it.
        gts: The ground truths.
        images: The images, where they were found.
        masks: The coarse masks, where they were found.
        maps: By method, the maps to score.
    """

    name: str
    folders: tuple[str, ...]
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
        folder, typed = im.parent, Path(known[text]["im_dir"]).parent
    else:
        typed, gt = Path(os.path.abspath(text)), Path(text).resolve()  # noqa: PTH100 a link has a name too
        typed = typed.parent if typed.name == "gt" else typed
        gt = gt / "gt" if (gt / "gt").is_dir() else gt
        folder = gt.parent if gt.name == "gt" else gt
        im, mid = folder / "im", folder / "mask"
    names = [entry["name"] for entry in known.values() if entry["gt_dir"] and resolve(entry["gt_dir"]) == gt]
    name = names[0] if names else folder.name
    return DataSet(
        name=name,
        folders=tuple(dict.fromkeys((name, folder.name, typed.name))),
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


def find_maps(data_set: DataSet, folder: Path, alone: bool) -> dict[str, Path]:
    """Return a method's maps of a data set: from a folder of its name, or right from the method's folder.

    Args:
        data_set: The data set.
        folder: The method's.
        alone: Whether this is the only data set; the maps of several ones lie apart.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no image file, or two of one stem.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: the folder does not exist; expected one of maps")
    for name in data_set.folders:
        if (folder / name).is_dir():
            return list_images(folder / name)
    tried = " or ".join(data_set.folders)
    if not alone:
        raise FileNotFoundError(
            f"{folder}: found no folder {tried} in it; the maps of several data sets are looked for in "
            "DIR/<data set>/NAME.png"
        )
    try:
        return list_images(folder)
    except ValueError as error:
        raise EvaluationError(f"{error} (there is no folder {tried} in it either)") from error


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
    return f"{len(unique)} files or folders cannot be scored:" + "".join(f"\n  {problem}" for problem in unique)


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
        if not name:
            raise EvaluationError(f"--pred {text}: the method has no name; expected DIR or NAME=DIR")
        if name == COARSE:
            raise EvaluationError(
                f"--pred {text}: {COARSE!r} is what --coarse names the data sets' own coarse masks; choose another "
                "name with --pred NAME=DIR"
            )
        if name in methods:
            raise EvaluationError(f"two methods are named {name!r}; name them with --pred NAME=DIR")
        methods[name] = Path(folder)
    return methods


def gather(options: argparse.Namespace) -> list[DataSet]:
    """Find all data sets with all methods' maps.

    Raises:
        EvaluationError: If anything is missing or does not fit; all of it is named.
    """
    methods, data_sets, problems = _methods(options), [], []
    beside = [options.images or [None] * len(options.gt), options.masks or [None] * len(options.gt)]
    for given in zip(options.gt, *beside, strict=True):
        try:
            data_sets.append(find_data_set(*given))
        except (OSError, ValueError) as error:
            problems.append(str(error))
    names = [data_set.name for data_set in data_sets]
    if len(set(names)) < len(names):
        raise EvaluationError(f"two data sets share a name: {', '.join(names)}; rename the folder of one")
    if MEAN in names:
        raise EvaluationError(f"a data set is named {MEAN!r}, as the mean of all of them is; rename its folder")
    for data_set in data_sets:
        if options.coarse and data_set.masks:
            problems += pair_up(data_set, COARSE, data_set.masks)
        elif options.coarse:
            problems.append(f"--coarse: {data_set.name} has no coarse masks; name their folder with --masks")
        for method, folder in methods.items():
            try:
                maps = find_maps(data_set, folder, len(options.gt) == 1)
            except (OSError, ValueError) as error:
                problems.append(str(error))
            else:
                problems += pair_up(data_set, method, maps)
    if problems:
        raise EvaluationError(_listed(problems))
    return data_sets


# --- outputs --------------------------------------------------------------------------------------------------------


def _told(option: str, path: Path, error: OSError) -> str:
    return f"{option} {path}: cannot be written ({error.strerror or error})"


def _check(outputs: Mapping[str, Path]) -> None:
    """See that outputs, by their options, can be written, before hours go into what they are to hold."""
    problems = []
    for option, path in outputs.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.").close()
        except OSError as error:
            problems.append(_told(option, path, error))
    if problems:
        raise EvaluationError("\n".join(problems))


def _contents(options: argparse.Namespace, data_sets: Sequence[DataSet], results: Sequence[Scores]) -> dict[str, bytes]:
    """Return what is to be written, by the options."""
    of_name = {data_set.name: data_set for data_set in data_sets}
    texts = {}
    if options.csv:
        texts["--csv"] = csv_text(results)
    if options.json:
        texts["--json"] = json_text(results)
    if options.html:
        texts["--html"] = html_page(
            results, lambda scores, name: _pictures(of_name[scores.data_set], scores.method, name), options.worst
        )
    # a file's name may be bytes that are no text
    return {option: text.encode("utf-8", "backslashreplace") for option, text in texts.items()}


def _print(text: str) -> None:
    """Print a text, with escapes for what stdout's encoding does not have."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def _run(options: argparse.Namespace, outputs: Mapping[str, Path], written: list[Path]) -> int:
    """Do what was asked for; return the exit code, and add to ``written`` what is."""
    data_sets = gather(options)
    _check(outputs)
    with Scorer(options.metrics, options.workers, "" if options.no_cache else None) as scorer:
        results = score(data_sets, scorer, options.metrics)
    _print(text_table(results, every=options.metrics != ALL))
    code = 0
    for option, content in _contents(options, data_sets, results).items():
        path = outputs[option]
        try:
            with atomic_file(path) as file:
                file.write(content)
        except OSError as error:  # the others may well be written
            print(f"error: {_told(option, path, error)}", file=sys.stderr)
            code = 1
        else:
            written.append(path)
            _print(f"wrote {path}")
    return code


# --- command line ---------------------------------------------------------------------------------------------------


def _names(text: str) -> str:
    try:
        return ALL if text == ALL else ",".join(choose(text))
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
        "--metrics",
        type=_names,
        default=ALL,
        metavar="M,M",
        help="any of f (F-measure), wf (weighted F), mae (mean absolute error), s (S-measure), e (E-measure), hce "
        "(human correction effort), iou (intersection over union), biou (that of the boundaries), and all figures of "
        "these are printed; default: all, and the figures of the papers' tables are printed",
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
    """Run the command line.

    Returns:
        0; 1 if files are missing, faulty, or could not be written; 2 for a wrong call; 130 if interrupted.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if not options.pred and not options.coarse:
        parser.error("expected --pred, folders of maps, or --coarse")
    for key in ("images", "masks"):
        given = getattr(options, key)
        if given and len(given) != len(options.gt):
            parser.error(f"--{key} takes a folder for each of --gt: {len(options.gt)}, found {len(given)}")
    outputs = {f"--{key}": path for key in ("csv", "json", "html") if (path := getattr(options, key))}
    paths = outputs.values()
    if len({path.resolve() for path in paths}) < len(paths) or any(path.is_dir() for path in paths):
        parser.error("--json, --csv and --html take a file each, and not a folder")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    written: list[Path] = []
    try:
        return _run(options, outputs, written)
    except (EvaluationError, ScoringError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        told = f"only {', '.join(map(str, written))} was written" if written else "nothing was written"
        print(f"interrupted; {told}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
