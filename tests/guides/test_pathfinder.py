"""Pathfinder: Gaussian targets, the secant equation, two modes and their weights."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipl
from vipl import guides, sample
from vipl.errors import ProgramError
from vipl.guides._pathfinder import climb, inverse_hessians

MEAN = jnp.array([1.0, -2.0, 0.5])
COV = jnp.array([[2.0, 0.9, 0.0], [0.9, 1.0, 0.3], [0.0, 0.3, 0.5]])


@vipl.gen
def target():
    sample("x", dist.MultivariateNormal(MEAN, COV))


def test_a_gaussian_is_found(key):
    found = vipl.infer(target(), {}, key=key, guide=lambda m, d: guides.Pathfinder(m, d, 2, memory=20, num_draws=200))
    np.testing.assert_allclose(found.params["loc"], jnp.broadcast_to(MEAN, (2, 3)), atol=1e-3)
    scale = found.params["scale_tril"]
    np.testing.assert_allclose(scale @ jnp.swapaxes(scale, 1, 2), jnp.broadcast_to(COV, (2, 3, 3)), atol=0.25)
    assert found.improve(key, 2000).weights.ess > 1600
    assert found.report is not None
    assert found.report.method == "Pathfinder"


def test_an_isotropic_gaussian_is_exact_after_one_step_and_early_means_are_newton_steps():
    """After one step along the gradient the diagonal is the variance."""
    density = lambda u: -0.5 * jnp.sum((u - MEAN) ** 2) / 4.0  # noqa: E731
    points, gradients = climb(density, jnp.zeros(3), 5, 4)
    h = inverse_hessians(points, gradients, 4)
    np.testing.assert_allclose(h[1], 4.0 * jnp.eye(3), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(points[1] + h[1] @ gradients[1], MEAN, rtol=1e-9)


def test_the_inverse_hessian_takes_the_last_change_of_gradient_to_the_last_step():
    precision = jnp.linalg.inv(COV)
    points, gradients = climb(lambda u: -0.5 * (u - MEAN) @ precision @ (u - MEAN), jnp.zeros(3), 4, 3)
    h = inverse_hessians(points, gradients, 3)
    np.testing.assert_allclose(h[3] @ (gradients[2] - gradients[3]), points[3] - points[2], rtol=1e-8)
    assert jnp.linalg.eigvalsh(h[3]).min() > 0


@pytest.mark.oldest
def test_two_modes_get_their_weights(key):
    """P(x > 0) is 0.7; the mixture of paths has another share on that side."""

    @vipl.gen
    def bimodal():
        modes = dist.Normal(jnp.array([-3.0, 3.0]), jnp.array([0.5, 0.7]))
        sample("x", dist.MixtureSameFamily(dist.Categorical(jnp.array([0.3, 0.7])), modes))

    found = vipl.infer(bimodal(), {}, key=key, guide=lambda m, d: guides.Pathfinder(m, d, 8))
    right = jnp.mean(found.sample(key, 4000)["x"] > 0)
    assert 0.05 < right < 0.95
    assert abs(right - 0.7) > 0.05
    improved = found.improve(key, 4000)
    share = improved.expectation(lambda z: jnp.where(z["x"] > 0, 1.0, 0.0))
    np.testing.assert_allclose(share, 0.7, atol=0.03)
    draws = improved.sample(key, 4000)["x"]
    np.testing.assert_allclose(jnp.mean(draws > 0), 0.7, atol=0.05)


def test_a_number_of_paths_is_a_whole_number():
    with pytest.raises(ProgramError, match="num_paths"):
        guides.Pathfinder(target(), {}, 0)
