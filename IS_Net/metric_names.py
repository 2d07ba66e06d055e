"""The short names of the metrics, for command lines and settings. This module imports nothing heavy."""

from __future__ import annotations

from IS_Net.errors import did_you_mean

METRIC_NAMES = ("f", "wf", "mae", "s", "e", "hce", "iou", "biou")
"""In the order of the published tables; :data:`IS_Net.metrics.suite.FAMILIES` says what each computes."""

ALL = "all"


def choose(names: str) -> tuple[str, ...]:
    """Read a choice of metrics.

    Args:
        names: Names of :data:`METRIC_NAMES`, separated by commas, or ``all``.

    Returns:
        The names, each once, in the order of :data:`METRIC_NAMES`.

    Raises:
        ValueError: If a name is unknown, or there is none.
    """
    given = [name.strip() for name in names.split(",") if name.strip()]
    for name in given:
        if name not in (*METRIC_NAMES, ALL):
            hint = did_you_mean(name, METRIC_NAMES)
            raise ValueError(f"unknown metric {name!r}; expected {', '.join(METRIC_NAMES)}, or {ALL}{hint}")
    if not given:
        raise ValueError(f"no metric was given; expected {', '.join(METRIC_NAMES)}, or {ALL}")
    return tuple(name for name in METRIC_NAMES if name in given or ALL in given)
