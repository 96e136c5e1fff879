"""What the parts of the demo share: evaluation of objectives, pictures, timing."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from vipl._types import Array, ArrayLike, PRNGKeyArray, PyTree
from vipl.expectation import Expectation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, GREEN, ORANGE, PURPLE, GREY = "#1f6fb4", "#2a9d5c", "#e07b00", "#8250c4", "#555555"


def mean_and_se(
    objective: Expectation, key: PRNGKeyArray, *args: PyTree, num: int, batch: int = 1
) -> tuple[float, float]:
    """Mean and standard error of independent estimates of an objective.

    Args:
      objective: made by `vipl.expectation`.
      key: PRNG key.
      *args: the objective's arguments.
      num: how many estimates.
      batch: how many of them are computed at once.
    """
    values = np.asarray(_estimates(objective, batch, jax.random.split(key, num), args), np.float64)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(num))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _estimates(objective: Expectation, batch: int, keys: Array, args: tuple[PyTree, ...]) -> Array:
    return jax.lax.map(lambda key: objective.estimate(key, *args), keys, batch_size=batch)


@contextlib.contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Gives a function that says how many seconds have passed."""
    start = time.perf_counter()
    yield lambda: time.perf_counter() - start


def smooth(values: ArrayLike, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of consecutive stretches: steps f[n // width], values f[n // width]."""
    values = np.asarray(values)
    count = len(values) // width
    means = values[: count * width].reshape(count, width).mean(1)
    return (np.arange(count) + 0.5) * width, means


def figure(width: float, height: float) -> Figure:
    """A new figure, inches; no global state of matplotlib is touched."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def plain(axes: Axes) -> Axes:
    """Takes away the upper and right line of a plot."""
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def save(drawing: Figure, path: Path) -> None:
    """Writes a figure and says where."""
    drawing.savefig(path, dpi=130)
    print(f"  picture: {path}")


def mosaic(images: ArrayLike, columns: int, gap: int = 1) -> np.ndarray:
    """Images f[n, h, w] in rows of `columns`, NaN between them; n is a multiple of `columns`."""
    images = jnp.asarray(images, jnp.float32)
    padded = np.pad(images, ((0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    n, h, w = padded.shape
    rows = n // columns
    return padded.reshape(rows, columns, h, w).swapaxes(1, 2).reshape(rows * h, columns * w)[:-gap, :-gap]
