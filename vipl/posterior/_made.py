"""Which draws make a choice: those of a branch that is not taken, and elements that are no data, have no value.

Draws are arrays, and have zeros there; what is said of draws leaves these out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vipl._types import Array, Bool
from vipl.errors import show_addresses
from vipl.gen import Program, Trace
from vipl.gen._choices import Address, Choices, flatten, nest
from vipl.gen._visits import visits
from vipl.posterior._arviz import variable
from vipl.posterior._draws import addresses_of, at_draws

Made = Mapping[Address, Bool[np.ndarray, "..."]]
"""By address bool[draws, *loops], which draws make a choice in which passes of the loops; of others all do."""


def known_passes(model: Program) -> dict[Address, np.ndarray]:
    """By address bool[*loops], which passes make a choice, where that is known without a draw."""
    return {info.site.address: info.present for info in model.staged()[1] if info.present is not None}


def made_at(model: Program, data: Choices, draws: Choices) -> Made:
    """Which of the draws make the choices that stand in branches, data included.

    Nothing where no site stands in a branch that only some passes take, or a choice of the model has no value.
    """
    values, given, known = flatten(draws, "draws"), flatten(data, "data"), known_passes(model)
    unknown = any(info.in_branch and info.site.address not in known for info in model.staged()[1])
    if not unknown or not all(a in values or a in given for a in addresses_of(model)):
        return {}
    key, number = jax.random.key(0), len(next(iter(values.values())))
    made = at_draws("which choices are made", _visits, model, data, key, values, number)
    return {a: np.asarray(x) for a, x in made.items() if a not in known}


def _visits(program: Program, trace: Trace) -> dict[Address, Array]:
    return visits(program, flatten(trace.choices, program.name))


def without_unmade(model: Program, choices: Choices, made: Made, axes: int) -> Choices:
    """Choices, NaN where none is made; where it is known which passes make one, these alone, as a vector.

    Args:
      model: the model.
      choices: with some leading axes.
      made: which draws make a choice.
      axes: how many leading axes there are; without one, choices are data, and stay what they are.
    """
    present = known_passes(model)

    def of(address: Address, x: Any) -> Any:
        if address in present:
            return np.asarray(x)[(*[slice(None)] * axes, present[address])]
        if axes and address in made and not made[address].all():
            here = made[address].reshape(*made[address].shape, *[1] * (np.ndim(x) - made[address].ndim))
            return np.where(here, np.asarray(x), np.nan)
        return x

    return nest({a: of(a, x) for a, x in flatten(choices, "choices").items()})


def dimensions(
    model: Program, dims: Mapping[str, Any], coords: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Names and coordinates of dimensions, for choices of which it is known which passes make one.

    These are vectors in place of the axes of loops; a vector has a dimension of its own, with the positions of its
    elements, or their coordinates, along it.
    """
    dims, coords = dict(dims), dict(coords)
    for address, present in known_passes(model).items():
        name = variable(address)
        given, own = list(dims.get(name) or ()), f"{name}_dim_0"
        along = given[: present.ndim]
        places = [tuple(map(int, i)) for i in np.argwhere(present)]
        if len(along) == present.ndim == 1 and len(coords.get(along[0], ())) == present.size:
            labels: list[Any] = [np.asarray(coords[along[0]])[i].item() for (i,) in places]
        else:
            labels = [i[0] if len(i) == 1 else ", ".join(map(str, i)) for i in places]
        dims[name] = [own, *given[present.ndim :]]
        coords.setdefault(own, labels)
    return dims, coords


def said_of(made: Made, draws: Choices) -> tuple[str, ...]:
    """A sentence on the latent choices that only some draws make, and one on those that none does."""
    latent = flatten(draws, "draws")
    share = {a: float(x.mean()) for a, x in made.items() if a in latent}
    some = [f"{show_addresses([a])} in {100 * p:.3g} %" for a, p in share.items() if 0 < p < 1]
    none = [a for a, p in share.items() if p == 0]
    out = [f"A row is of the draws that make its choice: {', '.join(some)} of them."] if some else []
    if none:
        out.append(
            f"No draw takes the branch of {show_addresses(none)}: what the posterior has there is not known from them. "
            "Fit again from a start in that branch, start={...}, or with other probabilities of it."
        )
    return tuple(out)
