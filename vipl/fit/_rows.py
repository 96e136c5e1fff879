"""Whether the rows of a batch count as many times as they stand for rows of the data.

With b of n rows in a batch, log p(global) + Σ_batch log p(row | global) is no estimate of that of all rows; the rows
have to count n / b times. What each site counts is measured, as the derivative of the objective in a number that is
added to the site's log density: it is the same for rows and for what all rows share exactly where n / b is forgotten.

A site is one of rows if its value grows with the batch. Nothing is said where that cannot be found out: of sites under
`vipl.scaled`, of programs that are called once for each row, of an objective that takes no other number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import jax
import jax.numpy as jnp

from vipl._types import PRNGKeyArray, PyTree
from vipl.cache.programs import compiled, remembered
from vipl.ir.probe import Counted, Key, Tally, tallying

_SAME = 1e-4
"""Coefficients whose ratio differs from one by less are the same."""


def unscaled_rows(
    value: Callable[[PRNGKeyArray, PyTree, PyTree], jax.Array],
    key: PRNGKeyArray,
    params: PyTree,
    data: PyTree,
    batch_size: int,
    roots: tuple[object, ...],
    static: Hashable,
) -> tuple[str, str] | None:
    """A site of rows that count once, and one of what all rows share; None where there is none, or nothing is known.

    Args:
      value: (key, params, batch) -> the objective's estimate; traced anew at each call.
      key: PRNG key.
      params: …, where the fit begins.
      data: …, all rows.
      batch_size: how many rows a batch has.
      roots: what `value` is made of; nothing is traced or compiled twice for what reads the same.
      static: what else it depends on.
    """
    args = key, params, jax.tree.map(lambda x: x[:batch_size], data)
    here, rows, shared = remembered("sites of rows", roots, static, lambda *args: _sites(value, *args), args)
    if not rows or not shared:
        return None
    found = [*rows, *shared]

    def slopes(*args: PyTree) -> list[jax.Array]:
        def bumped(bumps: list[jax.Array]) -> jax.Array:
            with tallying(Tally(dict(zip(found, bumps, strict=True)))):
                return value(*args)

        return jax.grad(bumped)([jnp.zeros(())] * len(here))

    each = compiled("slopes of rows", roots, (static, tuple(found)), slopes, args)
    counts = {k: abs(float(s)) / here[k].count for s, k in zip(each, found, strict=True)}
    same = ((a, b) for a in rows for b in shared if counts[a] > 0 and abs(counts[b] / counts[a] - 1) < _SAME)
    pair = next(same, None)
    return None if pair is None else (here[pair[0]].at, here[pair[1]].at)


def _sites(
    value: Callable, key: PRNGKeyArray, params: PyTree, batch: PyTree
) -> tuple[dict[Key, Counted], list[Key], list[Key]]:
    """The sites of an objective; those that grow with the batch, and the others.

    None where the batch decides which sites there are, or where a site has a weight.
    """
    larger = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] + 1, *x.shape[1:]), x.dtype), batch)
    tallies = []
    for rows in (batch, larger):
        with tallying(Tally()) as tally:
            jax.eval_shape(value, key, params, rows)
        tallies.append(tally.sites)
    here, there = tallies
    if here.keys() != there.keys() or any(site.scaled for site in here.values()):
        return {}, [], []
    rows = [k for k in here if here[k].size != there[k].size]
    return here, rows, [k for k in here if k not in rows]
