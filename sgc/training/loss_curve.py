"""The curve of a run's losses, as a small picture for notebooks."""

from __future__ import annotations

from torch import Tensor

_POINTS, _WIDTH, _HEIGHT = 200, 400, 100


def loss_curve(losses: Tensor) -> str:
    """An SVG of losses over steps, of shape ``[steps]``; empty where fewer than two means are finite.

    Long runs are drawn by the means of consecutive steps. What is not finite is left out.
    """
    size = max(1, -(-len(losses) // _POINTS))
    means = [float(part.mean()) for part in losses.double().split(size)] if len(losses) else []
    points = [(place, mean) for place, mean in enumerate(means) if abs(mean) < float("inf")]
    if len(points) < 2:
        return ""
    low, high = min(mean for _, mean in points), max(mean for _, mean in points)
    across, up = _WIDTH / points[-1][0], _HEIGHT / ((high - low) or 1.0)
    line = " ".join(f"{place * across:.1f},{(high - mean) * up:.1f}" for place, mean in points)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="-4 -4 {_WIDTH + 8} {_HEIGHT + 8}"><title>loss, from {high:.4g} to {low:.4g}</title>'
        f'<polyline points="{line}" fill="none" stroke="#0072b2" stroke-width="1.5"/></svg>'
    )
