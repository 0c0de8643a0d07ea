"""The colours of pictures, which the colour-blind tell apart (Okabe and Ito 2008), made lighter to be read upon."""

from __future__ import annotations

from collections.abc import Sequence

OBSERVED = "#d4d4d4"
COST = "#fff3b0"
BASELINE = "#e9d8f4"
PLAIN = "#ffffff"
INK = "#333333"
FAINT = "#c4c4c4"
PLATE = "#8a8a8a"
LOOP = "#eef2f6"
_ESTIMATORS = ("#a9d4f0", "#a8dcc4", "#f7c06d", "#f3b3d0", "#d9c3a5")
_STRONG = ("#0072b2", "#00805f", "#c26a00", "#a8487f", "#7a5a2a")


def of_estimator(estimator: str | None, estimators: Sequence[str], *, strong: bool = False) -> str:
    """The colour of an estimator, as a ground or, ``strong``, as a line; without one that of what has none."""
    if estimator is None:
        return INK if strong else PLAIN
    colours = _STRONG if strong else _ESTIMATORS
    return colours[estimators.index(estimator) % len(colours)]
