"""The rows of a posterior's summary."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vipl._types import Float
from vipl.gen import Program
from vipl.gen._choices import Choices, flatten
from vipl.posterior._made import Made, known_passes
from vipl.posterior._table import label, number

COLUMNS = ("", "mean", "sd", "5.5%", "50%", "94.5%", "moved")


def rows_of(
    model: Program, draws: Choices, weights: Float[np.ndarray, " draws"] | None, made: Made
) -> Iterator[tuple[str, ...]]:
    """A row for each latent number, of the draws that have it.

    Args:
      model: the model.
      draws: with a leading axis.
      weights: of the draws, which sum to 1; None where there are none.
      made: which draws make the choices that stand in branches.
    """
    there = known_passes(model)
    for address, x in flatten(draws, "draws").items():
        flat = np.asarray(x, np.float64).reshape(len(x), -1)
        present, own = there.get(address), made.get(address)
        for k, index in enumerate(np.ndindex(x.shape[1:])):
            if present is not None and not present[index[: present.ndim]]:
                continue
            has = slice(None) if own is None else own[(slice(None), *index[: own.ndim - 1])]
            yield (label(address, index), *_said(flat[has, k], None if weights is None else weights[has]))


def _said(column: np.ndarray, weights: np.ndarray | None) -> list[str]:
    """Mean, deviation, quantiles, and how far weights move the mean, in deviations."""
    if not column.size:
        return ["-"] * 6
    mean, sd = column.mean(), column.std()
    moved = "-"
    if weights is not None:
        total = weights.sum()
        moved = f"{(weights @ column / total - mean) / sd if sd > 0 and total > 0 else 0.0:+.2f}"
    return [*map(number, (mean, sd, *np.quantile(column, [0.055, 0.5, 0.945]))), moved]
