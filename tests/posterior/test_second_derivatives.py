"""Fits of log densities whose gradients have no derivative in forward mode, or none at all."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.experimental.ode import odeint

import vipl
from vipl import guides, sample

TIMES = jnp.linspace(0.0, 2.0, 6)
Y = {"y": 3 * jnp.exp(-0.5 * TIMES) + jnp.array([0.1, -0.1, 0.05, 0.0, -0.05, 0.1])}


@jax.custom_vjp
def from_outside(rate):
    """3 exp(-rate t) by a callback, as is its derivative."""
    return jax.pure_callback(lambda r: 3 * np.exp(-r * np.asarray(TIMES)), TIMES, rate, vmap_method="sequential")


def _backward(rate, cotangent):
    of_rate = lambda r: -3 * np.asarray(TIMES) * np.exp(-r * np.asarray(TIMES))  # noqa: E731
    return (cotangent @ jax.pure_callback(of_rate, TIMES, rate, vmap_method="sequential"),)


from_outside.defvjp(lambda rate: (from_outside(rate), rate), _backward)

CURVES = {
    "written out": lambda rate: 3 * jnp.exp(-rate * TIMES),
    "an equation": lambda rate: odeint(lambda z, t, k: -k * z, 3.0, TIMES, rate, rtol=1e-8, atol=1e-8),
    "a callback": from_outside,
}


@vipl.gen
def decay(curve):
    rate = sample("rate", dist.LogNormal(0.0, 1.0))
    start = sample("shift", dist.Normal(0.0, 0.2))
    sample("y", dist.Normal(CURVES[curve](rate) + start, 0.1))


def moments(found, key):
    draws = found.sample(key, 4000)
    return np.array([(np.mean(x), np.std(x)) for x in (draws["rate"], draws["shift"])])


@pytest.fixture(scope="module")
def exact():
    """Sums over a grid."""
    rate, shift = np.meshgrid(np.linspace(0.3, 0.8, 500), np.linspace(-0.5, 0.5, 400), indexing="ij")
    values = 3 * np.exp(-rate[..., None] * np.asarray(TIMES)) + shift[..., None]
    log_p = dist.LogNormal(0.0, 1.0).log_prob(rate) + dist.Normal(0.0, 0.2).log_prob(shift)
    log_p = np.asarray(log_p + dist.Normal(values, 0.1).log_prob(Y["y"]).sum(-1))
    weights = np.exp(log_p - log_p.max())
    mean = lambda x: np.sum(weights * x) / weights.sum()  # noqa: E731
    return np.array([(mean(x), np.sqrt(mean(x**2) - mean(x) ** 2)) for x in (rate, shift)])


@pytest.mark.parametrize(
    ("curve", "guide"),
    [
        ("an equation", guides.FullRank),
        ("an equation", guides.Laplace),
        ("a callback", guides.FullRank),
        ("a callback", guides.Structured),
    ],
)
def test_a_fit_needs_no_derivative_of_the_gradient(curve, guide, exact, key):
    found = moments(vipl.infer(decay(curve), Y, guide=guide, key=key, progress=False), key)
    assert np.all(np.abs(found[:, 0] - exact[:, 0]) < 0.15 * exact[:, 1])
    np.testing.assert_allclose(found[:, 1], exact[:, 1], rtol=0.1)


def test_natural_gradients_are_those_of_the_curve_written_out(key):
    """Reverse over reverse mode gives the same Hessians; the draws are the same."""
    equation, written = (vipl.infer(decay(c), Y, key=key, progress=False) for c in ("an equation", "written out"))
    assert equation.report is not None
    assert written.report is not None
    assert equation.report.steps == written.report.steps
    np.testing.assert_allclose(equation.params["loc"], written.params["loc"], atol=1e-4)
    np.testing.assert_allclose(equation.params["lower"], written.params["lower"], atol=1e-4)


def test_a_mode_needs_them(key):
    with pytest.raises(vipl.errors.ProgramError, match=r"(?s)no second derivatives.*FullRank"):
        vipl.infer(decay("a callback"), Y, guide=guides.Laplace, key=key)
