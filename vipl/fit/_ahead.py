"""What the steps of a fit need that does not depend on the parameters, for many steps at once.

A step is split by what depends on its key and number alone:

    step(ahead, state, args, i) = late(early(ahead), state, args, i).

`early` is the numbers of the batch's rows, the random bits that the objective draws, and keys that are used otherwise.
Law: that of many steps is bit for bit that of each. It has integers and keys alone, so that it does not matter how
they are computed; but other generators than JAX's default draw other bits under a `vmap`, so that with them the steps
are gone through one by one. Many numbers at once are computed by a few long loops in place of many short ones, which on
a CPU cost more to start than to run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vipl import _jax
from vipl._types import Array, PRNGKeyArray, PyTree
from vipl.fit._order import order_of, rows_at
from vipl.ir.dataflow import backward, evaluate, plain, read
from vipl.ir.keys import fold_tag
from vipl.ir.levels import FIXED, KEY, OTHER, by_level, read_by
from vipl.ir.stage import stage
from vipl.ir.traits import HASHES

MOST = 128
"""For how many steps, at most, `early` is computed at once."""

_NUMBERS = 1 << 15
"""How many numbers that makes, at most, where one step has fewer: a call for one step makes them all the same."""


class Ahead(NamedTuple):
    """What a step needs that its key and number alone decide; with several starts each has an axis of them.

    Attributes:
      key: of the step.
      rows: i32[batch_size], the numbers of the batch's rows; None without batches.
    """

    key: PRNGKeyArray
    rows: Array | None


def ahead_of(key: PRNGKeyArray, i: Array, data: PyTree, batch_size: int | None) -> Ahead:
    """What step i needs; of all starts, where the key is that of each."""
    if key.ndim:
        return jax.vmap(lambda key: ahead_of(key, i, data, batch_size))(key)
    step_key = jax.random.fold_in(fold_tag(key, "step"), i.astype(jnp.uint32))
    if batch_size is None:
        return Ahead(step_key, None)
    n = jax.tree.leaves(data)[0].shape[0]
    epoch, place = jnp.divmod(i, n // batch_size)
    return Ahead(step_key, rows_at(order_of(key, epoch, n), place * batch_size, batch_size, n))


def of_many(fn: Callable[[Array], PyTree], key: PRNGKeyArray, numbers: Array) -> PyTree:
    """`fn` of many numbers, where it draws with keys that are made of `key`."""
    is_default = str(jax.random.key_impl(key)) == "threefry2x32"
    return jax.vmap(fn)(numbers) if is_default else jax.lax.map(fn, numbers)


class Split(NamedTuple):
    """A step in two parts.

    Attributes:
      early: `Ahead` -> arrays.
      late: (arrays, *operands) -> what the step returns.
      several: for how many steps `early` is best computed at once.
      kinds: shapes and dtypes of what the step returns.
    """

    early: Callable[[Ahead], list[Array]]
    late: Callable[..., PyTree]
    several: int
    kinds: PyTree


def split(step: Callable[..., PyTree], ahead: Ahead, *operands: PyTree) -> Split:
    """Splits `step(ahead, *operands)`."""
    jaxpr, kinds = stage(step, ahead, *operands)
    constvars, consts, invars, eqns, outvars = _jax.parts(jaxpr)
    base, given = dict(zip(constvars, consts, strict=True)), invars[: len(jax.tree.leaves(ahead))]
    parts = by_level(eqns, dict.fromkeys(invars, OTHER) | {given[0]: KEY} | dict.fromkeys(constvars, FIXED))
    hashes = [v for eqn in parts.made if eqn.primitive.name in HASHES for v in eqn.outvars]
    first = backward(of_key := [*parts.constant, *parts.made], hashes).eqns(of_key)
    made = {v for eqn in first for v in eqn.outvars if parts.levels[v] != FIXED}
    cheap = [eqn for eqn in parts.made if made.isdisjoint(eqn.outvars)]
    rest = [*parts.constant, *cheap, *parts.drawn, *parts.other]
    ends = [v for v in read_by(rest, outvars) if v in made or v in given]

    def early(ahead: Ahead) -> list[Array]:
        env = base | dict(zip(given, jax.tree.leaves(ahead), strict=True))
        return read(evaluate(first, env, plain), ends)

    def late(arrays: list[Array], *operands: PyTree) -> PyTree:
        env = base | dict(zip(ends, arrays, strict=True))
        env |= dict(zip(invars[len(given) :], jax.tree.leaves(operands), strict=True))
        return jax.tree.unflatten(jax.tree.structure(kinds), read(evaluate(rest, env, plain), outvars))

    size = sum(x.size for x in jax.eval_shape(early, ahead))
    return Split(early, late, max(1, min(MOST, _NUMBERS // max(1, size))), kinds)
