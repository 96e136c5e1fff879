"""Draws of programs, many at once, and what is computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipl._checks import whole_number
from vipl._types import Array, PRNGKeyArray
from vipl.errors import AddressError, ChoiceError, show_address, show_addresses, show_aval
from vipl.gen import Program
from vipl.gen._check_arguments import check_source
from vipl.gen._choices import Address, flatten, nest
from vipl.gen._without_choice import valued
from vipl.ir.keys import as_key
from vipl.ir.partition import as_array


def addresses_of(program: Program) -> list[Address]:
    """The addresses of a program, in its order."""
    return list(dict.fromkeys(info.site.address for info in valued(program.staged()[1])))


def predict(
    key: PRNGKeyArray, program: Program, num_samples: int = 1000, *, choices: Mapping[str, Any] | None = None
) -> Any:
    """Draws from a program, with some choices given.

    x_i ~ p(· | given_i),  i = 1 ... n:  each run takes the i-th of the given choices, and draws the rest in order.
    Without any, these are draws from the prior and the prior predictive.

    Args:
      key: PRNG key.
      program: a generative function with its arguments.
      num_samples: n.
      choices: given choices with a leading axis of n, by address, such as a posterior's draws. Addresses that the
        program does not have are passed over.

    Returns:
      The choices that were drawn, nested dicts of arrays with a leading axis of n.

    Raises:
      AddressError: none of the given choices is the program's.
      ChoiceError: a given choice does not have the shape of the program's, with a leading axis of n.

    Example:
      >>> import jax, numpyro.distributions as dist, vipl
      >>> @vipl.gen
      ... def model():
      ...     vipl.sample("x", dist.Normal(vipl.sample("m", dist.Normal(0.0, 1.0)), 1.0))
      >>> {name: x.shape for name, x in vipl.predict(jax.random.key(0), model(), 5).items()}
      {'m': (5,), 'x': (5,)}
    """
    check_source(program, "program", "predict", program=True)
    num_samples = whole_number(num_samples, "num_samples", "predict")
    has = addresses_of(program)
    flat = flatten({} if choices is None else choices, "the choices of predict")
    _check_choices(flat, has, num_samples, program.name)
    given = {a: jnp.asarray(x) for a, x in flat.items() if a in has}

    def one(key: PRNGKeyArray, given: dict[Address, Array]) -> list[Array]:
        trace, _ = program.generate(nest(given), key=key)
        drawn = flatten(trace.choices, program.name)
        return [drawn[a] for a in has if a not in given]

    keys = jax.random.split(as_key(key), num_samples)
    names = list(given)
    out = jax.vmap(lambda k, xs: one(k, dict(zip(names, xs, strict=True))))(keys, list(given.values()))
    return nest(dict(zip([a for a in has if a not in given], out, strict=True)))


def _check_choices(flat: Mapping[Address, Any], has: list[Address], num_samples: int, program: str) -> None:
    """Raises where given choices are none of the program's, or not as many as the draws."""
    if flat and not any(a in has for a in flat):
        raise AddressError(
            "none of the given choices is the program's.",
            at=f"predict of {program}",
            got=f"choices at {show_addresses(flat)}",
            expected=f"some of {show_addresses(has)}",
            fix="name them as the program does; leave choices out for draws from the prior",
        )
    for address, x in flat.items():
        array = as_array(x)
        if address in has and (array is None or np.shape(array)[:1] != (num_samples,)):
            raise ChoiceError(
                "given choices are not as many as the draws.",
                at=f"{show_address(address)} of predict of {program}",
                got=show_aval(x if array is None else jnp.asarray(array)),
                expected=f"a leading axis of {num_samples}, one choice for each draw",
                fix="pass num_samples as many as there are choices; repeat one choice by jnp.broadcast_to",
            )


def log_likelihoods(
    key: PRNGKeyArray, program: Program, choices: dict[Address, Array], observed: list[Address]
) -> dict[Address, Array]:
    """The log densities of observed choices given all others, elementwise where elements are independent.

    Args:
      key: of what the program draws without a choice, such as dropout.
      program: over all choices.
      choices: a value for each address.
      observed: the addresses that are wanted.
    """
    by_site = flatten(program.assess(nest(choices), key=key).log_probs, program.name)
    return {a: x for a, x in by_site.items() if a in observed}
