"""The short names of the metrics, for the command line and the settings. This module imports nothing heavy."""

from __future__ import annotations

from IS_Net.errors import did_you_mean

METRIC_NAMES = ("f", "wf", "mae", "s", "e", "hce", "iou", "biou", "mba")
"""In the order of the published tables; :data:`IS_Net.metrics.suite.FAMILIES` holds the implementations."""

ALL = "all"
"""The choice of all metrics."""


def choose(names: str) -> tuple[str, ...]:
    """Parse a choice of metrics.

    Args:
        names: Names from :data:`METRIC_NAMES`, separated by commas, or ``all``.

    Returns:
        The names without duplicates, in the order of :data:`METRIC_NAMES`.

    Raises:
        ValueError: If a name is unknown, or no name is given.
    """
    given = [name.strip() for name in names.split(",") if name.strip()]
    for name in given:
        if name not in (*METRIC_NAMES, ALL):
            hint = did_you_mean(name, METRIC_NAMES)
            raise ValueError(f"unknown metric {name!r}; expected {', '.join(METRIC_NAMES)}, or {ALL}{hint}")
    if not given:
        raise ValueError(f"no metric was given; expected {', '.join(METRIC_NAMES)}, or {ALL}")
    return tuple(name for name in METRIC_NAMES if name in given or ALL in given)
