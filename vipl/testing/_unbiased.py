"""The one statistical test: does an estimator have the expected value that it claims?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np

from vipl._types import PRNGKeyArray, PyTree
from vipl.cache.programs import keep

Numbers = np.ndarray | np.floating


class Check(NamedTuple):
    """What `assert_unbiased` measured, number by number.

    Attributes:
      mean: f[...], the mean of the draws, as the pytree of one draw.
      se: f[...], its standard error.
      z: f[...], |mean - exact| in standard errors.
    """

    mean: PyTree
    se: PyTree
    z: PyTree


def assert_unbiased(
    draw: Callable[..., PyTree],
    exact: PyTree,
    *,
    key: PRNGKeyArray,
    resolution: PyTree,
    args: tuple[PyTree, ...] = (),
    num: int | None = None,
    batch: int = 8192,
    z_max: float = 5.0,
) -> Check:
    """Fails if E[draw(key)] differs from `exact`, or if a bias of `resolution` could have gone unseen.

    Two error rates are stated. A right estimator fails with probability at most 6e-7 per number (z_max = 5). A bias
    of at least `resolution` is missed with probability at most 0.13 % per number, because the test also fails when
    z_max + 3 standard errors exceed `resolution`: then it is blind, and `num` has to grow.

    A test of an estimator calls this twice: once for the estimator, once for a deliberately broken twin, which must
    fail with "z = ".

    Args:
      draw: `(key, *args) -> pytree of floats`, one draw; a pure JAX function.
      exact: a pytree of the same structure: the expected value.
      key: PRNG key; fix it, so that the test is repeatable.
      resolution: the least bias that must be seen; one number, or a pytree like `exact`.
      args: further arguments of `draw`; the compiled function is shared between calls whose `draw` reads the same.
      num: how many draws; None: as many as a pilot batch says that the power needs, at most 2e7. Where the variance of
        these draws themselves says that more are needed, all are drawn anew, once.
      batch: how many draws are made at once.
      z_max: how many standard errors are allowed.

    Returns:
      A `Check`.

    Raises:
      AssertionError: "z = ..." for a bias, "blind below ..." for too little power, or if a draw is not finite.
    """
    leaves, treedef = jax.tree.flatten(exact)
    exacts = [np.asarray(x, np.float64) for x in leaves]
    resolutions = [float(np.min(r)) for r in jax.tree.leaves(resolution)]
    resolutions = resolutions * len(exacts) if len(resolutions) == 1 else resolutions
    many = keep("draws", (draw,), None, lambda keys, *args: jax.vmap(lambda key: draw(key, *args))(keys))

    def draws(key: PRNGKeyArray, num: int) -> list[_Moments]:
        batches = jax.random.split(key, (math.ceil(num / batch), min(batch, num)))
        return _moments((many(keys, *args) for keys in batches), exacts, treedef)

    def needed(drawn: list[_Moments], margin: float) -> int:
        return _needed(drawn, resolutions, margin * (z_max + 3.0), batch)

    if num is None:
        pilot_key, key, again = jax.random.split(key, 3)
        num = _whole(needed(draws(pilot_key, batch), 1.15), batch)
        drawn = draws(key, num)
        if needed(drawn, 1.0) > num:  # the pilot missed a tail
            num = _whole(needed(drawn, 1.15), batch)
            drawn = draws(again, num)
    else:
        num = _whole(num, batch)
        drawn = draws(key, num)
    results = [_check(m, num, x, z_max, r) for m, x, r in zip(drawn, exacts, resolutions, strict=True)]
    return Check(*(jax.tree.unflatten(treedef, list(column)) for column in zip(*results, strict=True)))


class _Moments(NamedTuple):
    """Mean and variance of draw - exact, number by number: both f[...]."""

    bias: Numbers
    variance: Numbers


def _moments(batches: Iterable[PyTree], exacts: list[np.ndarray], treedef: object) -> list[_Moments]:
    """The moments of each leaf over batches of draws, whose leaves have a leading axis over the draws."""
    sums, num = [(np.zeros_like(x), np.zeros_like(x)) for x in exacts], 0
    for drawn in batches:
        flat, structure = jax.tree.flatten(drawn)
        if structure != treedef or [x.shape[1:] for x in flat] != [x.shape for x in exacts]:
            raise AssertionError(f"draw returns {structure}, exact is {treedef}, or shapes differ")
        centered = [np.asarray(x, np.float64) - e for x, e in zip(flat, exacts, strict=True)]
        sums = [(s + c.sum(0), q + (c**2).sum(0)) for (s, q), c in zip(sums, centered, strict=True)]
        num += flat[0].shape[0] if flat else 0
    means = [(s / num, q / num) for s, q in sums]
    return [_Moments(s, np.maximum(q - s**2, 0.0)) for s, q in means]


def _needed(drawn: list[_Moments], resolutions: list[float], margin: float, batch: int) -> int:
    """How many draws of these variances make `margin` standard errors as small as the resolutions."""
    pairs = zip(drawn, resolutions, strict=True)
    wanted = [(margin / r) ** 2 * np.max(m.variance, initial=0.0) for m, r in pairs]
    return int(min(max(batch, *wanted), 2e7))


def _whole(num: int, batch: int) -> int:
    """The next number of draws that whole batches make."""
    size = min(batch, num)
    return math.ceil(num / size) * size


def _check(
    moments: _Moments, num: int, exact: np.ndarray, z_max: float, resolution: float
) -> tuple[Numbers, Numbers, Numbers]:
    """Mean, standard error and z; raises where z is too large, or the standard error."""
    bias, variance = moments
    if not (np.isfinite(bias).all() and np.isfinite(variance).all()):
        raise AssertionError(f"a draw is not finite: mean {bias + exact}")
    se = np.sqrt(variance / num)
    floor = 1e-9 * (1.0 + np.abs(exact))  # exact estimators have se = 0
    z = np.abs(bias) / np.maximum(se, floor)
    if z.size and z.max() > z_max:
        raise AssertionError(f"z = {z.max():.1f}: mean {bias + exact}, exact {exact}, se {se}")
    blind = (z_max + 3.0) * (se.max() if se.size else 0.0)
    if blind > resolution:
        raise AssertionError(f"blind below {blind:.2g}, must see {resolution:.2g}: raise num")
    return bias + exact, se, z
