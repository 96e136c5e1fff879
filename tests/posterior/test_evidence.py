"""The evidence between its bounds: against that of a conjugate model, and bounds whose expectations are known."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipl
from vipl import guides, sample
from vipl.posterior._evidence import group_means
from vipl.posterior._psis import smooth
from vipl.testing import assert_unbiased

X = np.linspace(0.0, 2.0, 8)
DATA = {"y": 1.0 + 0.7 * X + 0.3 * np.sin(40 * X)}
DESIGN = np.stack([np.ones(8), X], 1)
PRECISION = np.diag([0.25, 1.0]) + DESIGN.T @ DESIGN / 0.25
COV = np.linalg.inv(PRECISION)
MEAN = COV @ DESIGN.T @ DATA["y"] / 0.25
MARGINAL = DESIGN @ np.diag([4.0, 1.0]) @ DESIGN.T + 0.25 * np.eye(8)
LOG_Z = -0.5 * (DATA["y"] @ np.linalg.solve(MARGINAL, DATA["y"]) + np.linalg.slogdet(2 * np.pi * MARGINAL)[1])


@vipl.gen
def line(x):
    b = sample("b", dist.Normal(0.0, 2.0))
    a = sample("a", dist.Normal(0.0, 1.0))
    jax.vmap(lambda x: sample("y", dist.Normal(b + a * x, 0.5)))(x)


def posterior(scale_tril):
    """Of the right mean, and some covariance."""
    guide = guides.FullRank(line(X), DATA)
    return vipl.Posterior(line(X), DATA, guide, guide.of_moments(jnp.asarray(MEAN), jnp.asarray(scale_tril)))


def moments(scale_tril):
    """The exact ELBO and ½ log E[w²] of N(MEAN, scale_tril scale_trilᵀ)."""
    s = scale_tril @ scale_tril.T
    log_dets = np.linalg.slogdet(s)[1] - np.linalg.slogdet(COV)[1]
    elbo = LOG_Z - 0.5 * (np.trace(PRECISION @ s) - 2 - log_dets)
    squares = 2 * PRECISION - np.linalg.inv(s)  # the precision of p² / q
    chi_square = LOG_Z + 0.25 * (log_dets + np.linalg.slogdet(PRECISION)[1] - np.linalg.slogdet(squares)[1])
    return elbo, chi_square


FACTOR = np.linalg.cholesky(COV)


def test_the_evidence_is_between_its_bounds(key):
    """And the two that are means of known numbers are these."""
    wide = FACTOR @ np.diag([1.15, 1.1])
    elbo, chi_square = moments(wide)
    found = posterior(wide).evidence(key, 20_000)
    assert found.method == "chi-square"
    assert abs(found.elbo - elbo) < 5 * found.elbo_error < 0.05
    assert abs(found.upper - chi_square) < 5 * found.upper_error < 0.05
    assert abs(found.estimate - LOG_Z) < 5 * found.estimate_error < 0.05
    assert found.elbo + 5 * found.elbo_error < found.lower < LOG_Z + 5 * found.lower_error
    assert found.lower < found.estimate < found.upper
    assert found.num_particles == 1000
    assert repr(found).startswith(f"log evidence {found.estimate:.3f} +- ")
    assert "(1000 particles); at most" in repr(found)
    few = posterior(wide).evidence(key, 20_000, num_particles=2)
    assert elbo + 5 * found.elbo_error < few.lower < LOG_Z - 5 * few.lower_error


def test_a_true_draw_bounds_from_above(key):
    """Where weights have too heavy a tail for the other bound."""
    z = dict(zip("ba", MEAN + FACTOR @ np.array([1.5, -1.0]), strict=True))
    narrow = posterior(0.5 * FACTOR)
    without, found = narrow.evidence(key), narrow.evidence(key, truth=z)
    assert (without.method, without.upper, without.upper_error) == ("none", np.inf, np.inf)
    assert "no upper bound" in repr(without)
    assert found.method == "exact draw"
    assert found.lower == without.lower < LOG_Z + 5 * found.lower_error
    assert LOG_Z < found.upper < LOG_Z + 1.0
    assert found.upper == narrow.evidence(key, truth=z | DATA).upper
    one = narrow.evidence(key, truth=z, num_particles=1)
    s = np.linalg.solve(0.5 * FACTOR, np.array(list(z.values())) - MEAN)
    log_q = -0.5 * s @ s - np.log(2 * np.pi) - np.log(np.diagonal(0.5 * FACTOR)).sum()
    log_p = LOG_Z + dist.MultivariateNormal(MEAN, COV).log_prob(np.array(list(z.values())))
    np.testing.assert_allclose(one.upper, log_p - log_q, rtol=1e-9)
    np.testing.assert_allclose(one.upper_error, 0.0, atol=1e-9)


def test_an_exact_posterior_leaves_nothing_open(key):
    found = posterior(FACTOR).evidence(key, 100)
    np.testing.assert_allclose([found.elbo, found.lower, found.estimate, found.upper], LOG_Z, rtol=1e-9)
    np.testing.assert_allclose([found.lower_error, found.estimate_error, found.upper_error], 0.0, atol=1e-6)


def log_weights(z):
    """log p / q of N(0, 1) by N(0, 1.2²), so that log Z = 0."""
    return -0.5 * z**2 + 0.5 * (z / 1.2) ** 2 + jnp.log(1.2)


def means(key, is_exact):
    """Numbers whose expectations are 1, by which both bounds are bounds."""
    keys = jax.random.split(key)
    others = log_weights(1.2 * jax.random.normal(keys[0], (6,)))
    true = log_weights(jnp.where(is_exact, 1.0, 1.2) * jax.random.normal(keys[1]))
    lower, upper = group_means(others, 3, xp=jnp), group_means(others, 3, true, xp=jnp)
    return {"lower": jnp.exp(lower).mean(), "upper": jnp.exp(-upper).mean()}


def test_both_bounds_are_jensens(key):
    """E[mean of w] = Z; E[1 / mean of w with one exact draw] = 1 / Z, and not of draws of the guide alone."""
    exact = {"lower": np.ones(()), "upper": np.ones(())}
    assert_unbiased(means, exact, key=key, resolution=0.01, args=(True,))
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(means, exact, key=key, resolution=0.01, args=(False,))


def test_the_mean_of_smoothed_weights_is_that_of_all_where_none_is_smoothed(key):
    e = 0.3 * jax.random.normal(key, (1000,)) + 500.0
    found = smooth(e)
    np.testing.assert_allclose(found.log_mean, np.logaddexp.reduce(e) - np.log(1000), atol=0.01)
    flat = smooth(jnp.full(1000, 800.0))
    np.testing.assert_allclose(flat.log_mean, 800.0)
    unnormalized = found.log_weights + found.log_mean + np.log(1000)
    largest = np.sort(e)[-94:].min()
    below = np.asarray(e) < largest
    np.testing.assert_allclose(unnormalized[below], np.asarray(e)[below])


def test_groups_of_zero_weights_bound_nothing():
    log_w = np.full(40, -np.inf)
    log_w[:20] = 1.0
    np.testing.assert_array_equal(group_means(log_w, 20), [1.0, -np.inf])
