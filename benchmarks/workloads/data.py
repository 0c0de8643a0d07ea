"""Data that comes with scikit-learn, as numpy arrays."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_diabetes, load_digits

PIXELS = 64


def counts(number: int) -> np.ndarray:
    """Digits as pixel intensities 0 to 16, float32 [number, 64]; images are repeated where there are too few."""
    images = load_digits().data
    return images[np.arange(number) % len(images)].astype(np.float32)


def binary(number: int) -> np.ndarray:
    """Digits as black and white, float32 [number, 64]."""
    return (counts(number) >= 8).astype(np.float32)


def words(documents: int, length: int) -> np.ndarray:
    """Digits as bags of words, int64 [length, documents]: pixels drawn in proportion to their intensity."""
    rng = np.random.default_rng(0)
    intensities = counts(documents).astype(np.float64)
    shares = intensities / intensities.sum(-1, keepdims=True)
    return np.stack([rng.choice(PIXELS, size=length, p=share) for share in shares], axis=-1)


def scenes(number: int, side: int, most: int) -> np.ndarray:
    """Up to ``most`` digits at random places of a black canvas, float32 [number, side, side] within 0 and 1."""
    rng = np.random.default_rng(0)
    digits = counts(1000).reshape(-1, 8, 8) / 16.0
    canvas = np.zeros((number, side, side), np.float32)
    for scene in canvas:
        for _ in range(rng.integers(most + 1)):
            top, left = rng.integers(side - 7, size=2)
            scene[top : top + 8, left : left + 8] += digits[rng.integers(len(digits))]
    return canvas.clip(0.0, 1.0)


def patients(groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The diabetes study, standardised: 8 features [442, 8], body mass [442], age group [442] int64, progress [442]."""
    study = load_diabetes()
    table = study.data / study.data.std(0)
    age, mass = table[:, 0], table[:, 2]
    edges = np.quantile(age, np.linspace(0, 1, groups + 1)[1:-1])
    progress = (study.target - study.target.mean()) / study.target.std()
    features = np.delete(table, [0, 2], axis=1)
    floats = [column.astype(np.float32) for column in (features, mass, progress)]
    return floats[0], floats[1], np.searchsorted(edges, age).astype(np.int64), floats[2]
