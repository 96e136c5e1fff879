"""Log densities with kinks, as of |x|: the curvature that no Hessian at a point sees."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm

import vipl
from vipl import guides, sample
from vipl.guides._gaussian import by_hessians, by_secants, fit_gaussian
from vipl.guides._natural import pairs
from vipl.testing import assert_unbiased

ROWS = jnp.array([[1.0, 0.3], [-0.4, 0.8], [0.2, -1.1]])
ENDS = jnp.array([0.2, -0.5, 1.0])
LOC, FACTOR = jnp.array([0.3, -0.2]), jnp.array([[0.9, 0.2], [-0.3, 0.6]])


def kinked(u):
    return -jnp.sum(jnp.abs(ROWS @ u - ENDS)) - jnp.sum(u**4) / 12


def curvature_of_kinked():
    """Aᵀ E[-∇² log p] A: |x - c| has the curvature 2 δ(x - c), and x⁴ / 12 has x²."""
    sds = jnp.linalg.norm(ROWS @ FACTOR, axis=1)
    weights = 2 * norm.pdf(ROWS @ LOC, ENDS, sds)
    smooth = LOC**2 + jnp.sum(FACTOR**2, 1)
    return FACTOR.T @ (ROWS.T @ (weights[:, None] * ROWS) + jnp.diag(smooth)) @ FACTOR, FACTOR.T @ jnp.diag(
        smooth
    ) @ FACTOR


def of(estimated, key):
    keys = jax.random.split(key)
    return estimated(kinked, LOC, FACTOR, pairs(keys[0], 2, LOC.dtype), keys[1])


def test_secants_have_the_curvature_of_kinks(key):
    exact, smooth = curvature_of_kinked()
    assert_unbiased(lambda key: of(by_secants, key).curvature, exact, key=key, resolution=0.01)
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(lambda key: of(by_hessians, key).curvature, exact, key=key, resolution=0.01)
    seen = lambda key: (of(by_hessians, key).curvature, of(by_hessians, key).missed)  # noqa: E731
    assert_unbiased(seen, (smooth, jnp.diagonal(exact - smooth)), key=key, resolution=0.01)


def test_secants_of_a_gaussian_have_no_noise(key):
    precision = jnp.array([[2.0, 0.7], [0.7, 1.0]])
    seen = by_secants(lambda u: -u @ precision @ u / 2, LOC, FACTOR, pairs(key, 2, LOC.dtype), key)
    np.testing.assert_allclose(seen.curvature, FACTOR.T @ precision @ FACTOR, rtol=1e-12)


def test_a_fit_is_made_again_only_where_hessians_miss_something(key):
    smooth = fit_gaussian(lambda u: -jnp.sum(jnp.cosh(u)), jnp.ones(2), key)
    assert not smooth.misses
    found = fit_gaussian(lambda u: -jnp.abs(u[0]) - u[1] ** 2 / 2, jnp.ones(2), key)
    assert found.misses
    # E[|x|] = sqrt(2 / π) sd: the bound is highest where that of |x| and the logarithm of sd have equal slopes.
    np.testing.assert_allclose(jnp.linalg.norm(found.factor, axis=1), [np.sqrt(np.pi / 2), 1.0], rtol=0.03)
    np.testing.assert_allclose(found.loc, 0.0, atol=0.05)


@pytest.mark.parametrize("n", [5, 40])
def test_a_kink_across_many_coordinates_is_seen(n, key):
    """Of each coordinate it is a small part. y ~ Laplace(v·b), b ~ N(0, I) and |v| = 1: the rest is free."""
    v = jnp.ones(n) / jnp.sqrt(n)
    found = fit_gaussian(lambda u: -u @ u / 2 - jnp.abs(0.5 - v @ u) / 0.3, jnp.zeros(n), key)
    assert found.misses
    alone = fit_gaussian(lambda u: -u @ u / 2 - jnp.abs(0.5 - u[0]) / 0.3, jnp.zeros(1), key)
    sd = jnp.linalg.norm(v @ found.factor)
    np.testing.assert_allclose(sd, alone.factor[0, 0], rtol=0.15)  # by Hessians it is three times as much
    np.testing.assert_allclose(v @ found.loc, alone.loc[0], atol=0.15 * sd)


X = jnp.asarray(np.random.default_rng(0).normal(size=(60, 2)))
Y = X @ jnp.array([1.0, -0.5]) + 0.7 * np.random.default_rng(1).laplace(size=60)


@vipl.gen
def median_regression():
    b = sample("b", dist.Normal(0.0, 2.0).expand([2]))
    sample("y", dist.Laplace(X @ b, 0.7))


def moments_of_median_regression():
    """By a grid."""
    ends = [np.linspace(c - 1.2, c + 1.2, 241) for c in (1.0, -0.5)]
    b = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 2)
    log_p = -np.abs(np.asarray(Y) - b @ np.asarray(X).T).sum(1) / 0.7 - (b**2).sum(1) / 8
    weights = np.exp(log_p - log_p.max())
    weights /= weights.sum()
    mean = weights @ b
    return mean, np.sqrt(weights @ (b - mean) ** 2)


def low_rank(model, data):
    return guides.LowRank(model, data, rank=1)


@pytest.mark.parametrize("guide", [None, guides.MeanField, low_rank, guides.Boosted])
def test_a_median_regression_is_fitted(guide, key):
    found = vipl.infer(median_regression(), {"y": Y}, key=key, guide=guide)
    mean, sd = moments_of_median_regression()
    draws = found.sample(key, 4000)["b"]
    np.testing.assert_allclose((draws.mean(0) - mean) / sd, 0.0, atol=0.15)
    np.testing.assert_allclose(draws.std(0) / sd, 1.0, atol=0.15)
    assert found.report is not None
    assert found.report.converged


def test_a_traced_fit_sees_kinks_too(key):
    eager = vipl.infer(median_regression(), {"y": Y}, key=key).params
    traced = jax.jit(lambda key: vipl.infer(median_regression(), {"y": Y}, key=key).params)(key)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8), eager, traced)


def test_blocks_do_not_take_a_density_with_kinks(key):
    @vipl.gen
    def walk():
        def step(x, y):
            x = sample("x", dist.Laplace(x, 0.5))
            sample("y", dist.Normal(x, 1.0))
            return x, None

        jax.lax.scan(step, 0.0, jnp.zeros(4))

    data = {"y": jnp.array([0.5, 1.0, -0.5, 2.0])}
    found = vipl.infer(walk(), data, guide=guides.Structured, key=key)
    assert found.report is not None
    assert found.report.method == "stochastic gradients"
    blocks = guides.Structured(walk(), data)
    assert blocks.fit(jnp.zeros(4), key).misses
