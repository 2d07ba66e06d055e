"""Show scores: as text tables, CSV, JSON, a self-contained HTML page, and a contact sheet."""

from __future__ import annotations

import base64
import csv
import io
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import cv2
import numpy as np

from IS_Net.files import spreadsheet_text
from IS_Net.images import contact_sheet, encode_image
from IS_Net.metrics.suite import FIGURES, Suite, mean_figures
from IS_Net.robustness import BOTH, MASK, Change

MEAN = "mean"
"""Name of the row of means over the data sets."""

NOT_WORSE = 0.005
"""A refined mask counts as not worse than its coarse mask if the IoU fell by no more than this."""

MAX_COLUMNS, MAX_WIDTH = 7, 100
"""Largest number of columns, and of characters in a line, of a text table."""

SCREEN = ("max_f_mean_pr", "mae", "s_measure", "iou", "boundary_iou", "weighted_f")
"""The figures of the text table by default, the most important first: as many as there are columns."""

_NUMBERS_WIDTH = 60  # characters of a line for figures; the rest is for names
_COLORS = ("#0b62c4", "#d1495b", "#2e8b57", "#e08e0b", "#7b4fa6", "#4d5a66", "#1b9aaa", "#8c5a2b")
_THUMBNAIL = 240  # longer side in pixels


class Prompt(NamedTuple):
    """What a prediction was made from, if prompts are changed step by step."""

    network: str
    coarse: str | None
    """The kind of the coarse masks; None for boxes alone."""
    change: Change


class Scores:
    """The results of a method on a data set, for each image and over all images.

    Args:
        data_set: Name of the data set.
        method: Name of the method.
        metrics: Names of metrics; the format is that of :func:`IS_Net.metric_names.choose`.
        baseline: The scores that IoU is compared with: those of the coarse masks that the method refines, or of exact
            prompts if this method's are changed.

    Attributes:
        prompt: What the predictions were made from, if prompts are changed step by step; else None.
    """

    def __init__(self, data_set: str, method: str, metrics: str, baseline: Scores | None = None) -> None:
        self.data_set, self.method, self.baseline = data_set, method, baseline
        self.prompt: Prompt | None = None
        self.suite = Suite(metrics)
        self.images: dict[str, dict[str, float]] = {}
        """By name: the figures of a data set that consists of this image."""
        self.seconds: dict[str, float] = {}
        """By name: the time of the prediction, if it was made in this run."""

    def add(self, name: str, measured: Mapping[str, Any]) -> None:
        """Add an image by the result of :meth:`IS_Net.metrics.suite.Suite.measure`."""
        self.suite.add(measured)
        alone = Suite(self.suite.metrics)
        alone.add(measured)
        self.images[name] = alone.compute()

    def figures(self) -> dict[str, float]:
        """Return the figures over all images, by the keys of ``FIGURES``."""
        return self.suite.compute()

    def worst(self, number: int) -> tuple[str, list[str]]:
        """Return the key of a figure, IoU if it was measured, and the names of the worst images, the worst first."""
        keys = list(self.figures())
        key = "iou" if "iou" in keys else keys[0]
        sign = 1 if FIGURES[key].higher_is_better else -1
        return key, sorted(self.images, key=lambda name: sign * self.images[name][key])[:number]

    def iou_changes(self) -> dict[str, float]:
        """Return the difference of IoU to the baseline by image; empty without a baseline or without IoU."""
        if self.baseline is None or "iou" not in self.suite.metrics:
            return {}
        before = self.baseline.images
        return {name: figures["iou"] - before[name]["iou"] for name, figures in self.images.items()}


class Refinement(NamedTuple):
    """What predictions changed, over some pairs of image and coarse mask."""

    pairs: int
    seconds: float
    """Median time of a prediction."""
    iou_change: float | None
    """Mean difference of IoU to the coarse masks; None if there are none, or IoU was not measured."""
    not_worse: float | None
    """Share of the pairs whose IoU fell by no more than ``NOT_WORSE``."""

    @classmethod
    def of(cls, results: Sequence[Scores]) -> Refinement:
        """Summarize one or more results of a method."""
        seconds = [value for scores in results for value in scores.seconds.values()]
        changes = [value for scores in results for value in scores.iou_changes().values()]
        if not changes:
            return cls(len(seconds), statistics.median(seconds), None, None)
        share = statistics.fmean(change >= -NOT_WORSE for change in changes)
        return cls(len(seconds), statistics.median(seconds), statistics.fmean(changes), share)

    def cells(self) -> list[str]:
        """Return the values as the cells of a table."""
        change = "-" if self.iou_change is None else f"{self.iou_change:+.4f}"
        share = "-" if self.not_worse is None else f"{self.not_worse:.1%}"
        return [str(self.pairs), change, share, f"{self.seconds:.2f}"]


_REFINEMENT_HEAD = ("pairs", "IoU change", "not worse", "s/image")
REFINEMENT_NOTE = (
    "IoU change: mean difference to the coarse masks; not worse: share of pairs whose IoU fell by\nno more than "
    f"{NOT_WORSE}; s/image: median seconds of a prediction"
)
"""Explains the columns of the table of refinements."""


class _Row(NamedTuple):
    data_set: str
    method: str
    images: int
    figures: dict[str, float]


def _rows(results: Sequence[Scores]) -> list[_Row]:
    """Return a row for each method on each data set, and its mean if there are several data sets."""
    rows = [_Row(scores.data_set, scores.method, len(scores.images), scores.figures()) for scores in results]
    if len({row.data_set for row in rows}) > 1:
        for method in dict.fromkeys(row.method for row in rows):
            own = [row for row in rows if row.method == method]
            figures = mean_figures([row.figures for row in own])
            rows.append(_Row(MEAN, method, sum(row.images for row in own), figures))
    return rows


def _refinements(results: Sequence[Scores]) -> list[tuple[str, str, Refinement]]:
    """Return data set, method and summary of each predicted method, and of all pairs if there are several data sets."""
    predicted = [scores for scores in results if scores.seconds]
    rows = [(scores.data_set, scores.method, Refinement.of([scores])) for scores in predicted]
    if len({scores.data_set for scores in predicted}) > 1:
        for method in dict.fromkeys(scores.method for scores in predicted):
            rows.append(("all", method, Refinement.of([scores for scores in predicted if scores.method == method])))
    return rows


def _format(key: str, value: float) -> str:
    return f"{value:.{FIGURES[key].digits}f}"


def _heading_of_one(key: str) -> str:
    figure = FIGURES[key]
    return figure.heading if figure.of_one is None else figure.of_one


# --- text, CSV, JSON ------------------------------------------------------------------------------------------------


def text_table(results: Sequence[Scores], every: bool = False) -> str:
    """Return the figures of each method on each data set, and their means, as a table for the screen.

    A table has at most ``MAX_COLUMNS`` columns and ``MAX_WIDTH`` characters in a line; names that are too long are
    shortened.

    Args:
        results: The scores of one or more methods on one or more data sets.
        every: Show all figures, in several tables if needed, instead of those of ``SCREEN``.
    """
    rows = _rows(results)
    names = ["data set", "method"] if len({row.method for row in rows}) > 1 else ["data set"]
    keys = list(rows[0].figures)
    if not every:
        chosen = [key for key in SCREEN if key in keys][: MAX_COLUMNS - len(names)]
        keys = [key for key in keys if key in chosen] or keys
    tables = []
    for group in _groups(keys, rows, MAX_COLUMNS - len(names)):
        cells = [[row.data_set, row.method][: len(names)] + [_format(k, row.figures[k]) for k in group] for row in rows]
        tables.append(_aligned([[*names, *(FIGURES[key].heading for key in group)], *cells], len(names)))
    return "\n\n".join(tables)


def _groups(keys: Sequence[str], rows: Sequence[_Row], columns: int) -> list[list[str]]:
    """Distribute figures over tables of a limited number of columns and a limited width."""
    groups: list[list[str]] = []
    width = 0
    for key in keys:
        own = 2 + max(len(FIGURES[key].heading), *(len(_format(key, row.figures[key])) for row in rows))
        if not groups or len(groups[-1]) == columns or width + own > _NUMBERS_WIDTH:
            groups.append([])
            width = 0
        groups[-1].append(key)
        width += own
    return groups


def _aligned(table: Sequence[Sequence[str]], names: int) -> str:
    """Align the columns of a table: the first ``names`` to the left, shortened to fit the line; others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    room = MAX_WIDTH - sum(width + 2 for width in widths[names:]) - 2 * (names - 1)
    for left, place in enumerate(sorted(range(names), key=lambda place: widths[place])):
        widths[place] = min(widths[place], room // (names - left))  # narrow columns leave room to the others
        room -= widths[place]
    lines = []
    for row in table:
        cells = [_shortened(cell, width).ljust(width) for cell, width in zip(row[:names], widths[:names], strict=True)]
        cells += [cell.rjust(width) for cell, width in zip(row[names:], widths[names:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _shortened(name: str, width: int) -> str:
    """Return a name of at most ``width`` characters; a longer one loses its middle."""
    if len(name) <= width:
        return name
    return name[: (width - 2) // 2] + "..." + name[len(name) - (width - 3 - (width - 2) // 2) :]


def refinement_table(results: Sequence[Scores]) -> str:
    """Return what the predictions changed, as a table for the screen; empty if no method was predicted in this run."""
    rows = _refinements(results)
    if not rows:
        return ""
    table = [["data set", "method", *_REFINEMENT_HEAD], *([*names, *summary.cells()] for *names, summary in rows)]
    return _aligned(table, 2)


def csv_text(results: Sequence[Scores]) -> str:
    """Return the figures of every image with full precision; if methods were predicted, also IoU change and seconds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    predicted = any(scores.seconds for scores in results)
    writer.writerow(["method", "data_set", "name", *results[0].figures(), *(["iou_change", "seconds"] * predicted)])
    for scores in results:
        changes = scores.iou_changes()
        for name, figures in scores.images.items():
            more = [changes.get(name, ""), scores.seconds.get(name, "")] * predicted
            names = map(spreadsheet_text, (scores.method, scores.data_set, name))
            writer.writerow([*names, *figures.values(), *more])
    return text.getvalue()


def json_text(results: Sequence[Scores]) -> str:
    """Return everything with full precision: ``{"results": [...], "mean": {method: figures}}``.

    A result has ``data_set``, ``method``, ``figures``, ``curves`` (means over the images at the thresholds 0..255) and
    ``images`` (the figures of each image by its name). Results of changed prompts also have ``prompt``: ``network``,
    ``coarse``, and the fields of :class:`IS_Net.robustness.Change`. Results of predictions also have ``refinement``:
    ``baseline`` (the method that IoU is compared with, or null), ``pairs``, ``seconds`` (median), ``iou_change`` and
    ``not_worse`` (null without a baseline). ``mean`` is missing for a single data set.
    """
    content: dict[str, Any] = {"results": [_as_dict(scores) for scores in results]}
    if means := {row.method: row.figures for row in _rows(results)[len(results) :]}:
        content["mean"] = means
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _as_dict(scores: Scores) -> dict[str, Any]:
    content = {
        "data_set": scores.data_set,
        "method": scores.method,
        "figures": scores.figures(),
        "curves": {name: curve.tolist() for name, curve in scores.suite.curves().items()},
        "images": scores.images,
    }
    if scores.prompt:
        network, coarse, change = scores.prompt
        content["prompt"] = {"network": network, "coarse": coarse, **change._asdict()}
    if scores.seconds:
        baseline = scores.baseline.method if scores.baseline else None
        content["refinement"] = {"baseline": baseline, **Refinement.of([scores])._asdict()}
    return content


# --- HTML -----------------------------------------------------------------------------------------------------------

Picture = tuple[str, np.ndarray]
"""A caption, and an array (H, W, 3) RGB or (H, W) gray, uint8."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d232a; background: #fff; margin: 2rem auto; max-width: 1200px;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; } p { margin: .3rem 0; max-width: 75ch; } .note { color: #5a6570; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e2e6ea; text-align: right; }
th { font-weight: 600; vertical-align: bottom; white-space: nowrap; border-bottom: 2px solid #9aa5b1; }
.name { text-align: left; overflow-wrap: anywhere; min-width: 6em; } .best { font-weight: 700; }
.mean td { border-top: 1px solid #9aa5b1; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0; color: #5a6570; }
dt { font-weight: 600; } dd { margin: 0; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem; } svg text { font: 11px system-ui, sans-serif; fill: #5a6570; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: .3rem 0; }
.key i { display: inline-block; width: 1.6em; height: 3px; margin-right: .5em; vertical-align: middle; }
.case { border-top: 1px solid #e2e6ea; padding: .7rem 0; }
.case p { max-width: none; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: .3rem; } figure { margin: 0; }
figure img { display: block; border: 1px solid #d5dae0; } figcaption { color: #5a6570; font-size: 13px; }
summary { cursor: pointer; font-weight: 600; margin: 1rem 0 .3rem; }
"""


def html_page(results: Sequence[Scores], pictures: Callable[[Scores, str], Iterable[Picture]], worst: int = 8) -> str:
    """Return a page that needs no other file: tables, curves, and the worst images of each method.

    Args:
        results: The scores of one or more methods on one or more data sets.
        pictures: Returns the pictures of an image of the given scores by its name.
        worst: Number of images that are shown for each method and data set.
    """
    rows = _rows(results)
    data_sets = list(dict.fromkeys(scores.data_set for scores in results))
    title = f"Evaluation on {', '.join(data_sets)}"
    published = [key for key in rows[0].figures if FIGURES[key].published]
    further = [key for key in rows[0].figures if not FIGURES[key].published]
    body = [f"<h1>{escape(title)}</h1>"]
    body.append(
        '<p class="note">Maps are not stretched; ground truths are binarized at &gt; 128. All images have the same '
        "weight, and in means all data sets. The best of several methods is bold.</p>"
    )
    body += [_table(rows, published), _legend(published)]
    if further:
        body += ["<details><summary>Further figures</summary>", _table(rows, further), _legend(further), "</details>"]
    body += _refinement(results)
    for data_set in data_sets:
        own = [scores for scores in results if scores.data_set == data_set]
        body += [f"<h2>{escape(data_set)}</h2>", _charts(own)]
        for scores in own if worst else []:
            body += _worst(scores, pictures, worst)
    return _page(title, body)


def _page(title: str, body: Sequence[str]) -> str:
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n</head>\n'
        "<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _table(rows: Sequence[_Row], keys: Sequence[str]) -> str:
    heads = "".join(f"<th>{escape(FIGURES[key].heading).replace(' (', '<br>(')}</th>" for key in keys)
    lines = [
        '<div class="wide"><table>',
        f'<tr><th class="name">data set</th><th class="name">method</th><th>images</th>{heads}</tr>',
    ]
    for row in rows:
        competing = [other.figures for other in rows if other.data_set == row.data_set]
        cells = []
        for key in keys:
            text = _format(key, row.figures[key])
            best = (max if FIGURES[key].higher_is_better else min)(other[key] for other in competing)
            mark = ' class="best"' if len(competing) > 1 and text == _format(key, best) else ""
            cells.append(f"<td{mark}>{text}</td>")
        names = "".join(f'<td class="name">{escape(name)}</td>' for name in (row.data_set, row.method))
        kind = ' class="mean"' if row.data_set == MEAN else ""
        lines.append(f"<tr{kind}>{names}<td>{row.images}</td>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table></div>"])


def _refinement(results: Sequence[Scores]) -> list[str]:
    rows = _refinements(results)
    if not rows:
        return []
    heads = "".join(f"<th>{head}</th>" for head in _REFINEMENT_HEAD)
    lines = [f'<tr><th class="name">data set</th><th class="name">method</th>{heads}</tr>']
    for data_set, method, summary in rows:
        names = "".join(f'<td class="name">{escape(name)}</td>' for name in (data_set, method))
        lines.append(f"<tr>{names}{''.join(f'<td>{cell}</td>' for cell in summary.cells())}</tr>")
    table = "\n".join(lines)
    return [
        "<h2>Refinement of the coarse masks</h2>",
        f'<div class="wide"><table>{table}</table></div>',
        f'<p class="note">{escape(REFINEMENT_NOTE)}</p>',
    ]


def _legend(keys: Sequence[str]) -> str:
    entries = []
    for key in keys:
        figure = FIGURES[key]
        better = "" if figure.higher_is_better else "; lower is better"
        entries.append(f"<dt>{escape(figure.heading)}</dt><dd>{escape(figure.meaning + better)}</dd>")
    return f"<dl>{''.join(entries)}</dl>"


def _charts(results: Sequence[Scores]) -> str:
    curves = {scores.method: scores.suite.curves() for scores in results}
    levels = np.arange(256)
    charts = []
    if all("f" in curve for curve in curves.values()):
        charts.append(_chart("precision over recall", 1, [(c["recall"], c["precision"]) for c in curves.values()]))
        charts.append(_chart("F over threshold (mean curve)", 255, [(levels, c["f"]) for c in curves.values()]))
    if all("e" in curve for curve in curves.values()):
        charts.append(_chart("E over threshold", 255, [(levels, c["e"]) for c in curves.values()]))
    if not charts:
        return ""
    return _with_key(curves, charts)


def _with_key(names: Iterable[str], charts: Sequence[str]) -> str:
    """Put charts side by side, with the names of their lines above."""
    key = "".join(
        f'<span><i style="background:{_color(place)}"></i>{escape(name)}</span>' for place, name in enumerate(names)
    )
    return f'<div class="key">{key}</div><div class="charts">{"".join(charts)}</div>'


def _color(place: int) -> str:
    return _COLORS[place % len(_COLORS)]


def _chart(
    title: str,
    x_end: float,
    lines: Sequence[tuple[Sequence[float], Sequence[float]]],
    y_start: float = 0.0,
    x_ticks: Mapping[float, str] | None = None,
) -> str:
    """Draw curves with x in 0..x_end and y in y_start..1; ``x_ticks`` are places on the x axis and their texts."""
    left, top, size = 36, 22, 300
    if x_ticks is None:
        ends = [tick * x_end / 5 for tick in range(6)]
        x_ticks = {end: f"{end:.1f}" if x_end <= 1 else f"{end:.0f}" for end in ends}
    parts = [
        f'<svg width="{left + size + 15}" height="{top + size + 22}" role="img" aria-label="{escape(title)}">',
        f'<text x="{left}" y="13">{escape(title)}</text>',
    ]
    for tick in range(6):
        y, value = top + size - tick * size / 5, y_start + tick * (1 - y_start) / 5
        parts.append(f'<path d="M{left} {y:g}h{size}" stroke="#e2e6ea"/>')
        digits = 1 if y_start == 0 else 2
        parts.append(f'<text x="{left - 5}" y="{y + 4:g}" text-anchor="end">{value:.{digits}f}</text>')
    for x_value, x_text in x_ticks.items():
        x = left + x_value / x_end * size
        parts.append(f'<path d="M{x:g} {top}v{size}" stroke="#e2e6ea"/>')
        parts.append(f'<text x="{x:g}" y="{top + size + 15}" text-anchor="middle">{x_text}</text>')
    for place, (xs, ys) in enumerate(lines):
        across, up = np.asarray(xs) / x_end, (np.asarray(ys) - y_start) / (1 - y_start)
        points = zip(left + across * size, top + (1 - up) * size, strict=True)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_color(place)}" stroke-width="1.8"/>')
    return "".join([*parts, "</svg>"])


def _worst(scores: Scores, pictures: Callable[[Scores, str], Iterable[Picture]], number: int) -> list[str]:
    key, names = scores.worst(number)
    which = "lowest" if FIGURES[key].higher_is_better else "highest"
    heading = escape(_heading_of_one(key))
    parts = [f"<h3>{escape(scores.method)}: the {len(names)} images with the {which} {heading}</h3>"]
    for name in names:
        figures = " &middot; ".join(
            f"{escape(_heading_of_one(key))} {_format(key, value)}"
            for key, value in scores.images[name].items()
            if FIGURES[key].published and _heading_of_one(key)
        )
        shown = "".join(
            f'<figure><img alt="{escape(caption)} of {escape(name)}" src="{_data_uri(picture)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for caption, picture in pictures(scores, name)
        )
        parts.append(
            f'<div class="case"><p><b>{escape(name)}</b></p><p class="note">{figures}</p>'
            f'<div class="pictures">{shown}</div></div>'
        )
    return parts


def _data_uri(picture: np.ndarray) -> str:
    height, width = picture.shape[:2]
    scale = min(1, _THUMBNAIL / max(height, width))
    if scale < 1:  # averaged, so that thin structures stay visible
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return f"data:image/jpeg;base64,{base64.b64encode(encode_image(picture, '.jpg', quality=80)).decode()}"


# --- changed prompts ------------------------------------------------------------------------------------------------

_ROBUSTNESS_FIGURES = ("iou", "boundary_iou", "max_f_mean_curve", "mae")
ROBUSTNESS_NOTE = (
    "Amounts are shares of the box's sides, or of the mask's area. IoU change: difference to the exact prompt;\n"
    f"not worse: share of images whose IoU fell by no more than {NOT_WORSE} against it"
)
"""Explains the table of changed prompts."""


class _Changed(NamedTuple):
    """The results of a network with one change, over all data sets."""

    network: str
    prompt: str
    """For example ``sim + box``: the kind of the coarse masks stands in place of ``mask``."""
    change: Change
    figures: dict[str, float]
    """Of all data sets with the same weight."""
    not_worse: float | None

    @property
    def reference(self) -> tuple[str, str, Change]:
        """Network, prompt and change of the results of the exact prompt."""
        prompt = self.prompt.removesuffix(BOTH.removeprefix(MASK)) if self.change.prompt == BOTH else self.prompt
        return self.network, prompt, self.change.reference


def _changes(results: Sequence[Scores]) -> list[_Changed]:
    """Return the results of each change, in the order of the results."""
    by_prompt: dict[Prompt, list[Scores]] = {}
    for scores in results:
        if scores.prompt:
            by_prompt.setdefault(scores.prompt, []).append(scores)
    rows = []
    for (network, coarse, change), own in by_prompt.items():
        prompt = change.prompt if coarse is None else change.prompt.replace(MASK, coarse, 1)
        figures = mean_figures([scores.figures() for scores in own])
        rows.append(_Changed(network, prompt, change, figures, Refinement.of(own).not_worse))
    return rows


def _robustness_rows(results: Sequence[Scores]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table of changed prompts, as texts."""
    rows = _changes(results)
    keys = [key for key in _ROBUSTNESS_FIGURES if key in rows[0].figures] or list(rows[0].figures)[:4]
    several = len({row.network for row in rows}) > 1
    with_change = "iou" in rows[0].figures
    exact = {(row.network, row.prompt, row.change): row.figures for row in rows}
    table = []
    for row in rows:
        cells = [row.network] * several + [row.prompt, row.change.name, *(_format(k, row.figures[k]) for k in keys)]
        if with_change:
            fell = row.figures["iou"] - exact[row.reference]["iou"]
            cells += [f"{fell:+.4f}", f"{row.not_worse:.0%}"] if row.change.kind else ["-", "-"]
        table.append(cells)
    heads = ["network"] * several + ["prompt", "change", *(_heading_of_one(k) or FIGURES[k].heading for k in keys)]
    return heads + ["IoU change", "not worse"] * with_change, table


def robustness_table(results: Sequence[Scores]) -> str:
    """Return the figures of all changed prompts as a table for the screen; of several data sets, their means."""
    heads, rows = _robustness_rows(results)
    return _aligned([heads, *rows], heads.index("change") + 1)


def robustness_page(results: Sequence[Scores]) -> str:
    """Return a page that needs no other file: for each network, figures over the amounts of changes, and the table.

    Args:
        results: The scores of one or more networks with changed prompts, on one or more data sets. Figures are means
            over the data sets.
    """
    data_sets = list(dict.fromkeys(scores.data_set for scores in results))
    title = f"Changed prompts on {', '.join(data_sets)}"
    images = sum({scores.data_set: len(scores.images) for scores in results}.values())
    body = [f"<h1>{escape(title)}</h1>", f'<p class="note">{images} images. {escape(ROBUSTNESS_NOTE)}.</p>']
    rows = _changes(results)
    for network in dict.fromkeys(row.network for row in rows):
        own = [row for row in rows if row.network == network]
        body += [f"<h2>{escape(network)}</h2>", *_robustness_charts(own)]
    heads, table = _robustness_rows(results)
    names = heads.index("change") + 1
    lines = [_html_row(heads, names, "th"), *(_html_row(cells, names, "td") for cells in table)]
    body += ["<h2>All figures</h2>", f'<div class="wide"><table>{"".join(lines)}</table></div>']
    return _page(title, body)


def _html_row(cells: Sequence[str], names: int, tag: str) -> str:
    kinds = [' class="name"'] * names + [""] * (len(cells) - names)
    return (
        f"<tr>{''.join(f'<{tag}{kind}>{escape(cell)}</{tag}>' for cell, kind in zip(cells, kinds, strict=True))}</tr>"
    )


def _robustness_charts(rows: Sequence[_Changed]) -> list[str]:
    """Draw the figures of a network over the amounts, for each prompt."""
    keys = [key for key in ("iou", "boundary_iou") if key in rows[0].figures]
    body = []
    for prompt in dict.fromkeys(row.prompt for row in rows):
        own = [row for row in rows if row.prompt == prompt and row.change.amount]
        kinds = list(dict.fromkeys(row.change.kind for row in own))
        exact = next(row.figures for row in rows if (row.network, row.prompt, row.change) == own[0].reference)
        charts = []
        for key in keys:
            lines = []
            for kind in kinds:
                steps = [(row.change.amount, row.figures[key]) for row in own if row.change.kind == kind]
                amounts, values = zip((0.0, exact[key]), *steps, strict=True)
                lines.append((amounts, values))
            lowest = min(min(values) for _, values in lines)
            ends = sorted({amount for amounts, _ in lines for amount in amounts})
            ticks = {end: f"{end:.0%}" for end in ends}
            start = next(start for start in (0.95, 0.9, 0.8, 0.5, 0.0) if start <= lowest)
            charts.append(_chart(_heading_of_one(key), ends[-1], lines, start, ticks))
        body += [f"<h3>{escape(prompt)}</h3>", _with_key(kinds, charts)] if charts else []
    return body


# --- contact sheet --------------------------------------------------------------------------------------------------

_SHEET_HEIGHT, _SHEET_ROWS = 280, 100  # pixels of a picture; rows below each other, as a JPEG has at most 65,535 pixels


def worst_results(results: Sequence[Scores], number: int) -> list[tuple[Scores, str]]:
    """Return the worst results of all methods on all data sets, the worst first, as scores and names of images.

    If coarse masks were refined, these are the images whose IoU fell most. Otherwise, they are those with the worst
    figure of :meth:`Scores.worst`.
    """
    ranked: list[tuple[float, Scores, str]] = []
    for scores in results:
        ranked += [(change, scores, name) for name, change in scores.iou_changes().items()]
    if not ranked:
        for scores in results:
            key, names = scores.worst(number)
            sign = 1 if FIGURES[key].higher_is_better else -1
            ranked += [(sign * scores.images[name][key], scores, name) for name in names]
    return [(scores, name) for _, scores, name in sorted(ranked, key=lambda item: item[0])[:number]]


def worst_sheet(
    results: Sequence[Scores], pictures: Callable[[Scores, str], Iterable[Picture]], number: int
) -> np.ndarray:
    """Return a contact sheet of :func:`worst_results`: a row with a caption and the pictures for each.

    Args:
        results: The scores of one or more methods on one or more data sets.
        pictures: Returns the pictures of an image of the given scores by its name.
        number: Number of results that are shown, at least 1.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    worst = worst_results(results, number)
    rows = ([picture for _, picture in pictures(scores, name)] for scores, name in worst)
    captions = [_sheet_caption(scores, name).encode("ascii", "replace").decode() for scores, name in worst]
    return contact_sheet(rows, _SHEET_HEIGHT, columns=-(-len(worst) // _SHEET_ROWS), captions=captions)


def _sheet_caption(scores: Scores, name: str) -> str:
    parts = [f"{scores.data_set} / {name}", scores.method]
    before = scores.baseline.images[name] if scores.baseline else {}
    keys = [key for key in ("iou", "boundary_iou") if key in scores.images[name]] or [scores.worst(1)[0]]
    for key in keys:
        figure = f"{_heading_of_one(key)} "
        figure += f"{_format(key, before[key])} -> " if key in before else ""
        parts.append(figure + _format(key, scores.images[name][key]))
    return "    ".join(parts)
