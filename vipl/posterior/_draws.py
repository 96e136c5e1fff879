"""Draws of programs, many at once, and what is computed from them.

Law: draw i of a key depends on the key and on i alone, so that `sample(key, 10)` is the beginning of
`sample(key, 1000)`; its own key is `jax.random.fold_in(key, i)`.

Draws are made 250 at a time by one compiled function, put together on the host, and cut: another number of draws
compiles nothing. Where the call is itself traced, all of them are made together.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from vipl._checks import is_traced, whole_number
from vipl._settings import with_own_settings
from vipl._types import Array, Float, Int, PRNGKeyArray, PyTree
from vipl.errors import AddressError, ChoiceError, show_address, show_addresses, show_aval
from vipl.gen import Program, Trace
from vipl.gen._check_arguments import check_source
from vipl.gen._choices import Address, Choices, flatten, nest
from vipl.gen._without_choice import is_record, valued
from vipl.guides._once import run_once
from vipl.interpret.seed import seed
from vipl.ir.keys import as_key
from vipl.ir.partition import as_array

CHUNK = 250
"""Draws that are made together."""


def addresses_of(program: Program) -> list[Address]:
    """The addresses of a program, in its order."""
    return list(dict.fromkeys(info.site.address for info in valued(program.staged()[1])))


def recorded_by(program: Program) -> list[Address]:
    """The addresses of the values that a program records."""
    return list(dict.fromkeys(info.site.address for info in program.staged()[1] if is_record(info.site)))


@with_own_settings
def predict(
    key: PRNGKeyArray, program: Program, num_samples: SupportsIndex = 1000, *, choices: Mapping[str, Any] | None = None
) -> Any:
    """Draws from a program, with some choices given.

    x_i ~ p(· | given_i),  i = 1 ... n:  each run takes the i-th of the given choices, and draws the rest in order.
    Without any, these are draws from the prior and the prior predictive. The i-th draw depends on the key, on i and on
    what is given to it alone.

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
    drawn = [a for a in has if a not in given]
    fn = functools.partial(_predictions, names=tuple(given), drawn=tuple(drawn))
    the_key = as_key(key)

    def some(numbers: Array, values: list[Array]) -> list[Array]:
        args = the_key, numbers, values
        return run_once("predictions", fn, (program,), args, static=(fn.keywords["names"], fn.keywords["drawn"]))

    values = in_chunks(num_samples, some, list(given.values()), (the_key, program))
    return nest(dict(zip(drawn, values, strict=True)))


def _predictions(
    program: Program,
    key: PRNGKeyArray,
    numbers: Int[Array, " n"],
    values: list[Array],
    *,
    names: tuple[Address, ...],
    drawn: tuple[Address, ...],
) -> list[Array]:
    """What a program draws, with the i-th of the values given in the i-th run."""

    def one(key: PRNGKeyArray, values: list[Array]) -> list[Array]:
        given = nest(dict(zip(names, values, strict=True)))
        choices = flatten(seed(lambda: program.generate(given)[0].choices)(key), program.name)
        return [choices[a] for a in drawn]

    return jax.vmap(one)(keys_of(key, numbers), values)


def keys_of(key: PRNGKeyArray, numbers: Int[Array, " n"]) -> PRNGKeyArray:
    """The keys of draws by their numbers."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def in_chunks(
    num_samples: SupportsIndex, run: Callable[[Any, Any], PyTree], rows: PyTree, beside: PyTree = ()
) -> PyTree:
    """`run(numbers, rows)` for the numbers 0 ... num_samples - 1, 250 at a time.

    Args:
      num_samples: how many.
      run: (i32[n], the rows of these numbers) -> a pytree of arrays with a leading axis of n.
      rows: a pytree of arrays with a leading axis of `num_samples`.
      beside: what else the runs depend on, to see whether it is traced.
    """
    num_samples = operator.index(num_samples)
    everything = np.arange(num_samples, dtype=np.int32)
    if is_traced((rows, beside)):
        return run(jnp.asarray(everything), rows)
    rows = jax.tree.map(np.asarray, rows)
    parts = []
    for first in range(0, num_samples, CHUNK):
        here = np.minimum(np.arange(first, first + CHUNK), num_samples - 1)  # the last row stands in for those after it
        parts.append(run(np.arange(first, first + CHUNK, dtype=np.int32), jax.tree.map(lambda x, i=here: x[i], rows)))
        if is_traced(parts):  # by what a function closes over
            return run(jnp.asarray(everything), rows)
    return jax.tree.map(lambda *xs: jax.device_put(np.concatenate([np.asarray(x) for x in xs])[:num_samples]), *parts)


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


def at_draws(
    kind: str,
    read: Callable[[Program, Trace], PyTree],
    program: Program,
    data: Choices,
    key: PRNGKeyArray,
    values: Mapping[Address, Array],
    num_samples: SupportsIndex,
) -> Any:
    """What is read of the traces of a program at data and the other choices, compiled, in chunks.

    Args:
      kind: of what is read; equal for equal functions `read`.
      read: `log_density`, `sizes_by_site`, `log_likelihoods` or `records`, for one.
      program: over all choices.
      data: the observed choices.
      key: of what the program draws without a choice, such as dropout.
      values: the other choices, with a leading axis of draws.
      num_samples: how many draws there are.
    """
    names, rows = tuple(values), list(values.values())

    def of_rows(
        program: Program, data: Choices, key: PRNGKeyArray, numbers: Int[Array, " n"], rows: list[Array]
    ) -> PyTree:
        given = {a: jnp.asarray(x) for a, x in flatten(data, "the data").items()}

        def one(key: PRNGKeyArray, row: list[Array]) -> PyTree:
            choices = nest(dict(zip(names, row, strict=True)) | given)
            return seed(lambda: read(program, program.assess(choices)))(key)

        return jax.vmap(one)(keys_of(key, numbers), rows)

    def some(numbers: Array, rows: list[Array]) -> PyTree:
        return run_once(kind, of_rows, (program, data), (key, numbers, rows), static=names)

    return in_chunks(num_samples, some, rows, (key, program, data))


def log_density(_: Program, trace: Trace) -> Float[Array, ""]:
    """The log joint density."""
    return trace.log_prob


def sizes_by_site(program: Program, trace: Trace) -> dict[Address, Float[Array, "2"]]:
    """The log density of each site, and the sum of its terms' absolute values."""
    terms = flatten(trace.log_probs, program.name)
    return {a: jnp.stack([jnp.sum(x), jnp.sum(jnp.abs(x))]) for a, x in terms.items()}


def log_likelihoods(program: Program, trace: Trace, *, of: Collection[Address]) -> dict[Address, Array]:
    """The log densities of observed choices given all others, elementwise where elements are independent."""
    return {a: x for a, x in flatten(trace.log_probs, program.name).items() if a in of}


def records(program: Program, trace: Trace) -> dict[Address, Array]:
    """The values that a program records."""
    return flatten(trace.deterministics, program.name)
