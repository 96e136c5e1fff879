"""The table of the conformance suite: families x estimators x structures, with exact answers.

Every program is a product: f = Π_v h(x_v) over all visits v of a site, so that its expected value is a product of
transfer operators, exactly computable by summation (discrete) or quadrature (continuous) of NumPyro's densities.
Gradients and Hessians of the exact value come from JAX's derivatives of that sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax

import vipl
from vipl import (
    ARM,
    CoupledAlternative,
    DisARM,
    Enumerate,
    ImplicitReparam,
    LocalEnumerate,
    MeasureValued,
    RejectionReparam,
    Relax,
    Reparam,
    Score,
    sample,
)
from vipl.estimators import Alternatives, Draw, Estimator, Points


class Scaled(Estimator):
    """The inner estimator with all derivatives at its site times `factor`: itself at 1, a broken twin otherwise.

    Also an estimator of a user's own, that has to work in every structure.
    """

    inner: Any
    factor: Any

    def points(self, law, key):
        points = self.inner.points(law, key)

        def scaled(x: Any) -> Any:
            if x is None or not jnp.issubdtype(x.dtype, jnp.floating):
                return x
            return lax.stop_gradient(x) + self.factor * (x - lax.stop_gradient(x))

        if isinstance(points, Points):
            return Points(scaled(points.values), scaled(points.log_weights))

        def others(x):
            return x if x is None else Alternatives(x.values, self.factor * x.weights)

        return Draw(
            scaled(points.value),
            scaled(points.log_weight),
            scaled(points.control),
            scaled(points.shared_control),
            others(points.alternatives),
            others(points.pruned),
        )


@dataclass(frozen=True)
class Family:
    """A distribution with parameters theta, f[2], and a context c, f[]; its nodes for summation or quadrature."""

    make: Callable[[Any, Any], Any]
    nodes: np.ndarray
    weights: np.ndarray
    estimators: tuple[Any, ...]
    theta: tuple[float, float]


def h(x):
    """The factor of one visit: bounded, neither even nor odd."""
    x = jnp.asarray(x, float)
    return 1.0 + 0.6 * jnp.sin(1.3 * x + 0.4)


def context(x):
    """How a value moves the parameters of the next visit."""
    return 0.4 * jnp.tanh(jnp.asarray(x, float) - 0.3)


def tanh(z):
    """A control variate for relaxed draws."""
    return jnp.sum(0.7 * jnp.tanh(z))


def _counts(n: int) -> dict[str, Any]:
    return {"nodes": np.arange(n), "weights": np.ones(n)}


def _line(low: float, high: float, n: int = 300) -> dict[str, Any]:
    x, w = np.polynomial.legendre.leggauss(n)
    return {"nodes": low + (high - low) * (x + 1) / 2, "weights": w * (high - low) / 2}


def _warped(low: float, high: float, warp: Callable, slope: Callable, n: int = 300) -> dict[str, Any]:
    """Quadrature in u, x = warp(u), for heavy tails."""
    line = _line(low, high, n)
    return {"nodes": warp(line["nodes"]), "weights": line["weights"] * slope(line["nodes"])}


FAMILIES: dict[str, Family] = {
    "bernoulli": Family(
        lambda t, c: dist.Bernoulli(probs=jax.nn.sigmoid(t[0] + t[1] * c)),
        **_counts(2),
        estimators=(Score(), Score(0.9), Enumerate(), MeasureValued(), CoupledAlternative(), DisARM()),
        theta=(-0.4, 1.3),
    ),
    "bernoulli_logits": Family(
        lambda t, c: dist.Bernoulli(logits=t[0] + t[1] * c),
        **_counts(2),
        estimators=(Score(), Enumerate(), MeasureValued(), ARM(), DisARM(), Relax(tanh)), theta=(0.7, 1.1),
    ),
    "categorical": Family(
        lambda t, c: dist.Categorical(logits=jnp.stack([t[0] + c, t[1] * jnp.ones_like(c), -0.2 * t[0] * c])),
        **_counts(3), estimators=(Score(), Enumerate(), MeasureValued()), theta=(0.5, -0.7),
    ),
    "categorical_probs": Family(
        lambda t, c: dist.Categorical(probs=jax.nn.softmax(jnp.stack([t[0] + c, t[1] + 0 * c, 0 * c]))),
        **_counts(3), estimators=(Score(), Enumerate(), MeasureValued()), theta=(0.5, -0.7),
    ),
    "binomial": Family(
        lambda t, c: dist.Binomial(3, probs=jax.nn.sigmoid(t[0] + t[1] * c)),
        **_counts(4), estimators=(Score(), Enumerate(), MeasureValued(), LocalEnumerate(), CoupledAlternative()),
        theta=(-0.3, 0.8),
    ),
    "poisson": Family(
        lambda t, c: dist.Poisson(jnp.exp(t[0] + t[1] * c)),
        **_counts(40), estimators=(Score(), MeasureValued()), theta=(0.3, 0.5),
    ),
    "geometric": Family(
        lambda t, c: dist.Geometric(probs=jax.nn.sigmoid(t[0] + t[1] * c)),
        **_counts(120), estimators=(Score(), MeasureValued()), theta=(0.4, 0.5),
    ),
    "geometric_logits": Family(
        lambda t, c: dist.Geometric(logits=t[0] + t[1] * c),
        **_counts(120), estimators=(MeasureValued(),), theta=(0.4, 0.5),
    ),
    "normal": Family(
        lambda t, c: dist.Normal(t[0] + c, jnp.exp(t[1])),
        **_line(-9.0, 9.5), estimators=(Reparam(), Score(), MeasureValued()), theta=(0.3, -0.2),
    ),
    "half_normal": Family(
        lambda t, c: dist.HalfNormal(jnp.exp(t[0] + t[1] * c)),
        **_line(0.0, 12.0), estimators=(Reparam(), MeasureValued()), theta=(0.2, 0.3),
    ),
    "weibull": Family(
        lambda t, c: dist.Weibull(jnp.exp(t[0] + t[1] * c), 1.7),
        **_line(0.0, 14.0), estimators=(Reparam(), ImplicitReparam(), MeasureValued()), theta=(0.2, 0.3),
    ),
    "gamma": Family(
        lambda t, c: dist.Gamma(2.5, jnp.exp(t[0] + t[1] * c)),
        **_warped(-12.0, 4.0, np.exp, np.exp), estimators=(Reparam(), Score(), MeasureValued()), theta=(0.3, 0.6),
    ),
    "gamma_shape": Family(
        lambda t, c: dist.Gamma(2.5 * jnp.exp(t[0]), jnp.exp(t[1] * c)),
        **_warped(-12.0, 4.0, np.exp, np.exp),
        estimators=(Reparam(), Score(), RejectionReparam(), RejectionReparam(2), ImplicitReparam()), theta=(0.1, 0.6),
    ),
    "exponential": Family(
        lambda t, c: dist.Exponential(jnp.exp(t[0] + t[1] * c)),
        **_warped(-12.0, 4.0, np.exp, np.exp), estimators=(Reparam(), Score(), MeasureValued()), theta=(0.2, 0.6),
    ),
    "beta": Family(
        lambda t, c: dist.Beta(2.0 * jnp.exp(t[0] + c), 3.0 * jnp.exp(t[1])),
        **_line(0.0, 1.0), estimators=(Reparam(), Score()), theta=(0.2, -0.1),
    ),
    "student": Family(
        lambda t, c: dist.StudentT(5.0, t[0] + c, jnp.exp(t[1])),
        **_warped(-6.5, 6.5, np.sinh, np.cosh), estimators=(Reparam(), Score()), theta=(0.2, -0.3),
    ),
    "truncated_normal": Family(
        lambda t, c: dist.TruncatedNormal(t[0] + c, jnp.exp(t[1]), low=-0.5),
        **_line(-0.5, 9.0), estimators=(Reparam(), Score()), theta=(0.4, -0.2),
    ),
    "lognormal": Family(
        lambda t, c: dist.LogNormal(t[0] + c, jnp.exp(t[1])),
        **_warped(-5.0, 5.0, np.exp, np.exp), estimators=(Reparam(), Score(), MeasureValued()), theta=(0.1, -0.8),
    ),
    "mixture": Family(
        lambda t, c: dist.MixtureSameFamily(
            dist.Categorical(logits=jnp.stack([t[0] + c, jnp.zeros_like(c)])),
            dist.Normal(jnp.stack([t[1], -1.0 + 0 * t[1]]), jnp.array([0.7, 0.5])),
        ),
        **_line(-8.0, 8.0), estimators=(Score(), ImplicitReparam()), theta=(0.4, 0.9),
    ),
}  # fmt: skip


# --- structures: a program `(draw_at, theta) -> f` and its exact value --------------------------------------
#
# `visit(address, c)` samples the family at context c. `kernel(c)` is the vector of probabilities (times quadrature
# weights) of the nodes; `exact` combines them.


def _plain(visit, theta):
    return h(visit("x", 0.3)) + 0.1 * theta[0]


def _plain_exact(kernel, x, theta):
    return kernel(0.3) @ h(x) + 0.1 * theta[0]


def _jit(visit, theta):
    helper = jax.jit(lambda address_c: h(visit("x", address_c)))
    return helper(0.3) + 0.1 * theta[0]


def _vmap(visit, theta):
    return jnp.prod(jax.vmap(lambda c: h(visit("x", c)))(jnp.array([0.3, -0.2])))


def _vmap_exact(kernel, x, theta):
    return jnp.prod(jnp.stack([kernel(c) @ h(x) for c in (0.3, -0.2)]))


def _chain(visit, length, **options):
    def step(carry, _):
        c, product = carry
        x = visit("x", c)
        return (context(x), product * h(x)), None

    (_, product), _ = lax.scan(step, (jnp.array(0.3), jnp.array(1.0)), None, length=length, **options)
    return product


def _chain_exact(kernel, x, length):
    matrix = jax.vmap(kernel)(context(x)) * h(x)
    return (kernel(0.3) * h(x)) @ jnp.linalg.matrix_power(matrix, length - 1) @ jnp.ones(len(x))


def _scan(visit, theta):
    return _chain(visit, 3)


def _scan_exact(kernel, x, theta):
    return _chain_exact(kernel, x, 3)


def _cond(visit, theta):
    flip = sample("flip", dist.Bernoulli(logits=theta[0]), Score())
    x = lax.cond(flip == 1, lambda: h(visit("x", 0.3)), lambda: h(visit("y", -0.4)) * 0.5)
    return x**2


def _cond_exact(kernel, x, theta):
    p = jax.nn.sigmoid(theta[0])
    return p * (kernel(0.3) @ h(x) ** 2) + (1 - p) * (kernel(-0.4) @ (0.5 * h(x)) ** 2)


def _nested(visit, theta):
    """vmap of a scan whose body has a cond."""

    def lane(c0):
        def step(carry, t):
            c, product = carry
            factor = lax.cond(t == 1, lambda: h(visit("x", c)), lambda: 0.5 * h(visit("y", -c)))
            return (c + 0.2, product * factor), None

        (_, product), _ = lax.scan(step, (c0, jnp.array(1.0)), jnp.arange(2))
        return product

    return jnp.prod(jax.vmap(lane)(jnp.array([0.3, -0.2])))


def _nested_exact(kernel, x, theta):
    lanes = [0.5 * (kernel(-c) @ h(x)) * (kernel(c + 0.2) @ h(x)) for c in (0.3, -0.2)]
    return jnp.prod(jnp.stack(lanes))


def _lane_cond(visit, theta):
    """vmap of a cond with a batched predicate."""

    def lane(c):
        return lax.cond(c > 0, lambda: h(visit("x", c)), lambda: 0.5 * h(visit("y", c)))

    return jnp.prod(jax.vmap(lane)(jnp.array([0.3, -0.2])))


def _lane_cond_exact(kernel, x, theta):
    return (kernel(0.3) @ h(x)) * 0.5 * (kernel(-0.2) @ h(x))


def _switch(visit, theta):
    i = sample("i", dist.Categorical(logits=jnp.stack([theta[0], theta[1], 0.1 * theta[0]])), Enumerate())
    branches = [
        lambda: h(visit("x", 0.3)),
        lambda: 0.5 * h(visit("y", -0.4)) + 1.1,
        lambda: h(visit("z", 0.1)) * h(visit("w", 0.0)),
    ]
    return lax.switch(i, branches)


def _switch_exact(kernel, x, theta):
    p = jax.nn.softmax(jnp.stack([theta[0], theta[1], 0.1 * theta[0]]))
    e = [kernel(c) @ h(x) for c in (0.3, -0.4, 0.1, 0.0)]
    return p[0] * e[0] + p[1] * (0.5 * e[1] + 1.1) + p[2] * e[2] * e[3]


def _checkpoint(visit, theta):
    @jax.checkpoint
    def part(c):
        return h(visit("x", c)) * jax.nn.gelu(c + theta[1])

    return part(0.3) + 0.1 * theta[0]


def _checkpoint_exact(kernel, x, theta):
    return (kernel(0.3) @ h(x)) * jax.nn.gelu(0.3 + theta[1]) + 0.1 * theta[0]


def _scan_of_vmap(visit, theta):
    """A scan, reversed and unrolled, of a vmap with nothing mapped."""

    def step(product, c):
        return product * jnp.prod(jax.vmap(lambda: h(visit("x", c)), axis_size=2)()), None

    return lax.scan(step, jnp.array(1.0), jnp.array([0.3, -0.2]), reverse=True, unroll=2)[0]


def _scan_of_vmap_exact(kernel, x, theta):
    return (kernel(0.3) @ h(x)) ** 2 * (kernel(-0.2) @ h(x)) ** 2


def _fori(visit, theta):
    def step(t, carry):
        c, product = carry
        x = visit("x", c)
        return context(x), product * h(x)

    return lax.fori_loop(0, 3, step, (jnp.array(0.3), jnp.array(1.0)))[1]


def _map(visit, theta):
    return jnp.prod(lax.map(lambda c: h(visit("x", c)), jnp.array([0.3, -0.2])))


STRUCTURES: dict[str, tuple[Callable, Callable]] = {
    "plain": (_plain, _plain_exact),
    "jit": (_jit, _plain_exact),
    "vmap": (_vmap, _vmap_exact),
    "scan": (_scan, _scan_exact),
    "cond": (_cond, _cond_exact),
    "nested": (_nested, _nested_exact),
    "lane_cond": (_lane_cond, _lane_cond_exact),
    "switch": (_switch, _switch_exact),
    "checkpoint": (_checkpoint, _checkpoint_exact),
    "scan_of_vmap": (_scan_of_vmap, _scan_of_vmap_exact),
    "fori": (_fori, _scan_exact),
    "map": (_map, _vmap_exact),
}

EVERYWHERE = ("bernoulli", "categorical", "normal")
ELSEWHERE = ("plain", "scan")
ONCE = (
    "beta",
    "student",
    "truncated_normal",
    "lognormal",
    "laplace",
    "half_normal",
    "weibull",
)  # slow to draw; their estimators are in scan with others


def table() -> list[tuple[str, str, Any]]:
    """All (structure, family, estimator) of the suite."""
    return [
        (structure, name, estimator)
        for structure in STRUCTURES
        for name, family in FAMILIES.items()
        if name in EVERYWHERE or structure == "plain" or (structure in ELSEWHERE and name not in ONCE)
        for estimator in family.estimators
    ]


def program(structure: str, family: Family, estimator: Any) -> vipl.Expectation:
    """The objective of one entry: arguments theta, f[2], and the twin's factor."""
    body, _ = STRUCTURES[structure]

    @vipl.expectation
    def objective(theta, factor):
        def visit(address, c):
            return sample(address, family.make(theta, jnp.asarray(c, float)), Scaled(estimator, factor))

        return body(visit, theta)

    return objective


def exact_value(structure: str, family: Family) -> Callable[[Any], Any]:
    """theta -> E[f], by summation or quadrature."""
    _, exact = STRUCTURES[structure]
    x = jnp.asarray(family.nodes)

    def value(theta):
        def kernel(c):
            d = family.make(theta, jnp.asarray(c, float))
            return jnp.exp(jax.vmap(d.log_prob)(x)) * family.weights

        return exact(kernel, x, theta)

    return value
