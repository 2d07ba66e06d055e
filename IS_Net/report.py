"""Show scores: as a table of text, as CSV, JSON, and as an HTML page that stands alone."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import cv2
import numpy as np

from IS_Net.images import encode_image
from IS_Net.metrics.suite import FIGURES, Suite, mean_figures

MEAN = "mean"
_COLORS = ("#0b62c4", "#d1495b", "#2e8b57", "#e08e0b", "#7b4fa6", "#4d5a66", "#1b9aaa", "#8c5a2b")
_THUMBNAIL = 240  # pixels, of the longer side


class Scores:
    """What a method reached on a data set, image by image and over all of them.

    Args:
        data_set: Its name.
        method: Its name.
        metrics: As :func:`IS_Net.metrics.suite.choose` takes them.
    """

    def __init__(self, data_set: str, method: str, metrics: str) -> None:
        self.data_set, self.method = data_set, method
        self.suite = Suite(metrics)
        self.images: dict[str, dict[str, float]] = {}
        """By name: the figures of a data set of this image alone."""

    def add(self, name: str, measured: Mapping[str, Any]) -> None:
        """Add an image by what :meth:`IS_Net.metrics.suite.Suite.measure` gave of it."""
        self.suite.add(measured)
        alone = Suite(self.suite.metrics)
        alone.add(measured)
        self.images[name] = alone.compute()

    def figures(self) -> dict[str, float]:
        """Return the figures over all images, by the keys of ``FIGURES``."""
        return self.suite.compute()

    def worst(self, number: int) -> tuple[str, list[str]]:
        """Return a figure's key, IoU if it is there, and the names of the images that are worst by it, worst first."""
        keys = list(self.figures())
        key = "iou" if "iou" in keys else keys[0]
        sign = 1 if FIGURES[key].higher_is_better else -1
        return key, sorted(self.images, key=lambda name: sign * self.images[name][key])[:number]


class _Row(NamedTuple):
    data_set: str
    method: str
    images: int
    figures: dict[str, float]


def _rows(results: Sequence[Scores]) -> list[_Row]:
    """Return a row for each method on each data set, and its mean where there are several of these."""
    rows = [_Row(scores.data_set, scores.method, len(scores.images), scores.figures()) for scores in results]
    if len({row.data_set for row in rows}) > 1:
        for method in dict.fromkeys(row.method for row in rows):
            own = [row for row in rows if row.method == method]
            figures = mean_figures([row.figures for row in own])
            rows.append(_Row(MEAN, method, sum(row.images for row in own), figures))
    return rows


def _told(key: str, value: float) -> str:
    return f"{value:.{FIGURES[key].digits}f}"


def _heading_of_one(key: str) -> str:
    figure = FIGURES[key]
    return figure.heading if figure.of_one is None else figure.of_one


# --- text, CSV, JSON ------------------------------------------------------------------------------------------------


def text_table(results: Sequence[Scores], every: bool = False) -> str:
    """Return the figures of the published tables, or every one, for each method on each data set, and their means."""
    rows = _rows(results)
    keys = [key for key in rows[0].figures if every or FIGURES[key].published]
    several = len({row.method for row in rows}) > 1
    table = [["data set", *(["method"] if several else []), *(FIGURES[key].heading for key in keys)]]
    for row in rows:
        names = [row.data_set, *([row.method] if several else [])]
        table.append([*names, *(_told(key, row.figures[key]) for key in keys)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left = len(table[0]) - len(keys)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    )


def csv_text(results: Sequence[Scores]) -> str:
    """Return the figures of every image, in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "data_set", "name", *results[0].figures()])
    for scores in results:
        for name, figures in scores.images.items():
            writer.writerow([scores.method, scores.data_set, name, *figures.values()])
    return text.getvalue()


def json_text(results: Sequence[Scores]) -> str:
    """Return everything, in full precision: ``{"results": [...], "mean": {method: figures}}``.

    A result has ``data_set``, ``method``, ``figures``, ``curves`` (means over the images at the thresholds 0..255)
    and ``images`` (each one's figures by its name). There is no ``mean`` of a single data set.
    """
    content: dict[str, Any] = {
        "results": [
            {
                "data_set": scores.data_set,
                "method": scores.method,
                "figures": scores.figures(),
                "curves": {name: curve.tolist() for name, curve in scores.suite.curves().items()},
                "images": scores.images,
            }
            for scores in results
        ]
    }
    if means := {row.method: row.figures for row in _rows(results)[len(results) :]}:
        content["mean"] = means
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


# --- HTML -----------------------------------------------------------------------------------------------------------

Picture = tuple[str, np.ndarray]
"""A caption, and (H, W, 3) RGB or (H, W) gray, uint8."""

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
        results: Of one or more methods on one or more data sets.
        pictures: Gives the pictures of one of the results' images, by its name.
        worst: How many images are shown for each method and data set.
    """
    rows = _rows(results)
    data_sets = list(dict.fromkeys(scores.data_set for scores in results))
    title = f"Evaluation on {', '.join(data_sets)}"
    published = [key for key in rows[0].figures if FIGURES[key].published]
    further = [key for key in rows[0].figures if not FIGURES[key].published]
    body = [f"<h1>{escape(title)}</h1>"]
    body.append(
        '<p class="note">Maps are taken as they are, without stretching; ground truths are binarized at &gt; 128. '
        "Every image counts the same, and so does every data set in a mean. The best of several methods is bold.</p>"
    )
    body += [_table(rows, published), _legend(published)]
    if further:
        body += ["<details><summary>Further figures</summary>", _table(rows, further), _legend(further), "</details>"]
    for data_set in data_sets:
        own = [scores for scores in results if scores.data_set == data_set]
        body += [f"<h2>{escape(data_set)}</h2>", _charts(own)]
        for scores in own if worst else []:
            body += _worst(scores, pictures, worst)
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
        rivals = [other.figures for other in rows if other.data_set == row.data_set]
        cells = []
        for key in keys:
            told = _told(key, row.figures[key])
            best = (max if FIGURES[key].higher_is_better else min)(rival[key] for rival in rivals)
            mark = ' class="best"' if len(rivals) > 1 and told == _told(key, best) else ""
            cells.append(f"<td{mark}>{told}</td>")
        names = "".join(f'<td class="name">{escape(name)}</td>' for name in (row.data_set, row.method))
        kind = ' class="mean"' if row.data_set == MEAN else ""
        lines.append(f"<tr{kind}>{names}<td>{row.images}</td>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table></div>"])


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
    key = "".join(
        f'<span><i style="background:{_color(place)}"></i>{escape(method)}</span>'
        for place, method in enumerate(curves)
    )
    return f'<div class="key">{key}</div><div class="charts">{"".join(charts)}</div>'


def _color(place: int) -> str:
    return _COLORS[place % len(_COLORS)]


def _chart(title: str, x_end: float, lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    """Draw curves of x in 0..x_end and y in 0..1."""
    left, top, size = 30, 22, 300
    parts = [
        f'<svg width="{left + size + 15}" height="{top + size + 22}" role="img" aria-label="{escape(title)}">',
        f'<text x="{left}" y="13">{escape(title)}</text>',
    ]
    for tick in range(6):
        along, y, x_value = tick * size / 5, top + size - tick * size / 5, tick * x_end / 5
        parts.append(f'<path d="M{left} {y:g}h{size}M{left + along:g} {top}v{size}" stroke="#e2e6ea"/>')
        parts.append(f'<text x="{left - 5}" y="{y + 4:g}" text-anchor="end">{tick / 5:.1f}</text>')
        x_told = f"{x_value:.1f}" if x_end <= 1 else f"{x_value:.0f}"
        parts.append(f'<text x="{left + along:g}" y="{top + size + 15}" text-anchor="middle">{x_told}</text>')
    for place, (xs, ys) in enumerate(lines):
        points = zip(left + xs / x_end * size, top + (1 - ys) * size, strict=True)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_color(place)}" stroke-width="1.8"/>')
    return "".join([*parts, "</svg>"])


def _worst(scores: Scores, pictures: Callable[[Scores, str], Iterable[Picture]], number: int) -> list[str]:
    key, names = scores.worst(number)
    which = "lowest" if FIGURES[key].higher_is_better else "highest"
    heading = escape(_heading_of_one(key))
    parts = [f"<h3>{escape(scores.method)}: the {len(names)} images of the {which} {heading}</h3>"]
    for name in names:
        told = " &middot; ".join(
            f"{escape(_heading_of_one(key))} {_told(key, value)}"
            for key, value in scores.images[name].items()
            if FIGURES[key].published and _heading_of_one(key)
        )
        shown = "".join(
            f'<figure><img alt="{escape(caption)} of {escape(name)}" src="{_data_uri(picture)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for caption, picture in pictures(scores, name)
        )
        parts.append(
            f'<div class="case"><p><b>{escape(name)}</b></p><p class="note">{told}</p>'
            f'<div class="pictures">{shown}</div></div>'
        )
    return parts


def _data_uri(picture: np.ndarray) -> str:
    height, width = picture.shape[:2]
    scale = min(1, _THUMBNAIL / max(height, width))
    if scale < 1:  # to look at, not to measure: averaged, so that thin structures stay visible
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return f"data:image/jpeg;base64,{base64.b64encode(encode_image(picture, '.jpg', quality=80)).decode()}"
