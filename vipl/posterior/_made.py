"""Which draws make a choice: those of a branch that is not taken, and elements that are no data, have no value.

Draws are arrays, and have zeros there; what is said of draws leaves these out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vipl._types import Array, Bool, Int, PRNGKeyArray
from vipl.errors import show_addresses
from vipl.gen import Program
from vipl.gen._choices import Address, Choices, flatten, nest
from vipl.gen._visits import visits
from vipl.posterior._draws import at_draws

Made = Mapping[Address, Bool[np.ndarray, "..."]]
"""By address bool[draws, *loops], which draws make a choice in which passes of the loops; of others all do."""


def made_at(model: Program, data: Choices, key: PRNGKeyArray, draws: Choices) -> Made:
    """Which of the draws make the choices that stand in branches; nothing where a choice of the model has no value."""
    found = model.staged()[1]
    values, given = flatten(draws, "draws"), flatten(data, "data")
    known = all(a in values or a in given for a in (info.site.address for info in model.unknown({})))
    if not known or not any(i.in_branch and i.present is None and i.site.address in values for i in found):
        return {}
    number = len(next(iter(values.values())))
    made = at_draws("which choices are made", _visited, model, data, key, values, number)
    return {a: np.asarray(x) for a, x in made.items() if a in values}


def _visited(
    model: Program,
    data: Choices,
    key: PRNGKeyArray,
    numbers: Int[Array, " n"],
    values: list[Array],
    *,
    names: tuple[Address, ...],
) -> dict[Address, Array]:
    del key, numbers
    given = flatten(data, "data")
    return jax.vmap(lambda values: visits(model, given | dict(zip(names, values, strict=True))))(values)


def without_unmade(model: Program, choices: Choices, made: Made, axes: int) -> Choices:
    """Choices, NaN where none is made; where it is known which passes make one, these alone, as a vector.

    Args:
      model: the model.
      choices: with some leading axes.
      made: which draws make a choice.
      axes: how many leading axes there are.
    """
    present = {i.site.address: i.present for i in model.staged()[1] if i.present is not None}

    def of(address: Address, x: Any) -> Any:
        if address in present:
            return np.asarray(x)[(*[slice(None)] * axes, present[address])]
        if address in made and not made[address].all():
            here = made[address].reshape(*made[address].shape, *[1] * (np.ndim(x) - made[address].ndim))
            return np.where(here, np.asarray(x), np.nan)
        return x

    return nest({a: of(a, x) for a, x in flatten(choices, "choices").items()})


def said_of(made: Made) -> tuple[str, ...]:
    """A sentence on the choices that only some draws make, and one on those that none does."""
    share = {a: float(x.mean()) for a, x in made.items()}
    some = [f"{show_addresses([a])} in {100 * p:.3g} %" for a, p in share.items() if 0 < p < 1]
    none = [a for a, p in share.items() if p == 0]
    out = [f"A row is of the draws that make its choice: {', '.join(some)} of them."] if some else []
    if none:
        out.append(
            f"No draw takes the branch of {show_addresses(none)}: what the posterior has there is not known from them. "
            "Fit again from a start in that branch, start={...}, or with other probabilities of it."
        )
    return tuple(out)
