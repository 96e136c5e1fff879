"""Densities of NumPyro's families at a site, against the same written down in numbers of 60 digits.

Invariant: value and derivatives, in single and in double precision, are those of the numbers that are given, up to
the error that a rounding of these numbers would make. One bound for all.
"""

import inspect

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipl
from tests.helpers.families import FAMILIES, LEFT_OUT, TRUNCATED, array
from vipl import sample

ROUNDINGS = 128  # the bound, in roundings of what is given


def at_a_site(make):
    """`(x, *parameters) -> log density`, of a program with one site."""

    @vipl.gen
    def program(*parameters):
        sample("x", make(*parameters))

    return lambda x, *parameters: program(*parameters).assess({"x": x}).log_prob


def nested(like, numbers):
    """The numbers of an iterator, in the form of an array."""
    return [nested(row, numbers) for row in like] if np.ndim(like) else next(numbers)


def exact_at(exact, arrays):
    """The log density as a function of all numbers, and those of the arrays."""
    numbers = [mp.mpf(float(v)) for a in arrays for v in np.ravel(a)]

    def f(changed):
        it = iter(changed)
        return mp.re(exact(*(nested(a, it) for a in map(np.asarray, arrays))))

    return f, numbers


def slope(f, numbers, i):
    """df/dt_i, by a difference quotient whose error is below 1e-30 of it."""
    step = mp.mpf(10) ** -20 * (abs(numbers[i]) or 1)
    up, down = list(numbers), list(numbers)
    up[i], down[i] = numbers[i] + step, numbers[i] - step
    return (f(up) - f(down)) / (2 * step)


def check(name, point, dtype):
    """Compares value and derivatives in all floats of a point."""
    make, exact, _ = FAMILIES[name]
    arrays = [array(a, dtype) for a in point]
    floats = [i for i, a in enumerate(arrays) if jnp.issubdtype(a.dtype, jnp.floating)]
    value, slopes = jax.value_and_grad(at_a_site(make), argnums=tuple(floats))(*arrays)
    got = np.concatenate([np.ravel(s).astype(np.float64) for s in slopes])
    starts = np.cumsum([0, *(a.size for a in arrays)])
    moved = [k for i in floats for k in range(starts[i], starts[i + 1])]
    f, numbers = exact_at(exact, arrays)
    moving = [k for k in moved if numbers[k] != 0]  # an exact zero (of a triangle, say) is no rounded number
    eps = float(jnp.finfo(dtype).eps)

    def bound(g):
        return ROUNDINGS * eps * (1 + abs(g(numbers)) + sum(abs(numbers[k] * slope(g, numbers, k)) for k in moving))

    wrong = {}
    if not abs(mp.mpf(float(value)) - f(numbers)) <= bound(f):
        wrong["log density"] = (float(value), float(f(numbers)))
    for k, s in zip(moved, got, strict=True):
        if k in moving:
            g = lambda t, k=k: slope(f, t, k)  # noqa: E731
            if not abs(mp.mpf(float(s)) - g(numbers)) <= bound(g):
                wrong[f"derivative in number {k}"] = (float(s), float(g(numbers)))
    return wrong


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", FAMILIES)
def test_densities_and_derivatives(name, dtype):
    with mp.workdps(60):
        points = FAMILIES[name][2]
        assert {str(point): wrong for point in points if (wrong := check(name, point, dtype))} == {}


def test_a_density_that_is_not_exact_is_caught():
    """The tail of an ordered logistic distribution whose probabilities are subtracted, as NumPyro's are."""
    make, exact, _ = FAMILIES["OrderedLogistic"]
    FAMILIES["plain"] = (lambda eta, cuts: dist.Categorical(probs=make(eta, cuts).probs), exact, ())
    try:
        with mp.workdps(60):
            assert set(check("plain", (2, -25.0, [-1.0, 2.0]), np.float64)) >= {"log density"}
            assert not check("plain", (1, 0.3, [-1.0, 2.0]), np.float64)
    finally:
        del FAMILIES["plain"]


def test_every_family_has_a_row_or_a_reason():
    classes = {
        name
        for name in dist.__all__
        if inspect.isclass(getattr(dist, name)) and issubclass(getattr(dist, name), dist.Distribution)
    }
    assert classes == {*classes & FAMILIES.keys(), *LEFT_OUT, *TRUNCATED}
    assert not LEFT_OUT.keys() & FAMILIES.keys()
