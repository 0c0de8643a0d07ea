"""Scikit-learn's 8x8 handwritten digits, binarised and cut into whole batches, and pictures of them."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from sklearn.datasets import load_digits
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_TEST_SIZE = 256


def load(batch_size: int) -> tuple[Tensor, Tensor]:
    """Binary digits as two tensors ``[batches, batch_size, 64]``: 1541 to train on and 256 to test on, less what
    does not fill a batch. All batches have one shape, so that one compiled step serves them all."""
    pixels = torch.tensor(load_digits().data, dtype=torch.get_default_dtype())
    shuffled = (pixels >= 8)[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))].to(pixels.dtype)
    return in_batches(shuffled[_TEST_SIZE:], batch_size), in_batches(shuffled[:_TEST_SIZE], batch_size)


def in_batches(rows: Tensor, batch_size: int) -> Tensor:
    """Whole batches only: the ragged last one is dropped."""
    count = len(rows) // batch_size
    if count == 0:
        raise ValueError(f"{len(rows)} rows do not fill one batch of {batch_size}")
    return rows[: count * batch_size].reshape(count, batch_size, rows.shape[-1])


def shuffled(batches: Tensor) -> Tensor:
    """The same rows in another order, in batches of the same shape."""
    rows = batches.flatten(0, 1)
    return rows[torch.randperm(len(rows))].reshape(batches.shape)


def save_pictures(path: Path, panels: dict[str, Tensor], columns: int = 16) -> None:
    """Each panel's images, as many in a row as ``columns``, under the panel's title."""
    grids = [_tile(images, columns) for images in panels.values()]
    figure, axes = plt.subplots(
        len(grids), 1, figsize=(8, sum(8 * len(grid) / len(grid[0]) + 0.35 for grid in grids)), layout="constrained"
    )
    for axis, title, grid in zip(axes, panels, grids, strict=True):
        axis.imshow(grid, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_axis_off()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _tile(images: Tensor, columns: int) -> Tensor:
    """Images ``[count, 64]`` side by side with a white line of a pixel between them (NaN, which is drawn white)."""
    rows = len(images) // columns
    cells = images[: rows * columns].detach().reshape(rows, columns, 8, 8)
    framed = torch.nn.functional.pad(cells, (1, 0, 1, 0), value=float("nan"))
    return framed.permute(0, 2, 1, 3).reshape(rows * 9, columns * 9)[1:, 1:]


def save_curve(path: Path, train: list[float], test: list[float], title: str) -> None:
    """The ELBO in nats an image, after each epoch."""
    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    axis.plot(range(1, len(train) + 1), train, label="training", color="tab:blue", linewidth=1)
    axis.plot(range(1, len(test) + 1), test, label="test", color="tab:orange", linewidth=1.5)
    axis.set(title=title, xlabel="epoch", ylabel="ELBO (nats an image)")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)
