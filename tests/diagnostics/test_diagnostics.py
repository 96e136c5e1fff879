"""Simulation-based calibration: an exact family passes, a family that is too narrow is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipl
from vipl import guides, sample
from vipl.diagnostics import Calibration, calibrate
from vipl.errors import AddressError, ProgramError

X = jnp.linspace(0.0, 2.0, 6)


@vipl.gen
def line(x):
    a = sample("a", dist.Normal(0.0, 1.0))
    b = sample(("slope", "b"), dist.Normal(jnp.zeros(2), 1.0))
    jax.vmap(lambda x: sample("y", dist.Normal(a + b[0] * x + b[1] * x**2, 0.7)))(x)


def test_an_exact_family_is_calibrated(key):
    found = calibrate(key, line(X), "y", num_datasets=300)
    assert found.ranks["a"].shape == (300,)
    assert found.ranks["slope"]["b"].shape == (300, 2)
    assert 0 <= found.ranks["a"].min() <= found.ranks["a"].max() <= 99
    p = np.concatenate([np.ravel(x) for x in jax.tree.leaves(found.p_values())])
    assert p.min() > 0.001
    assert "Calibrated" in str(found.summary())


def test_a_family_that_is_too_narrow_is_seen(key):
    found = calibrate(key, line(X), "y", guide=guides.MeanField, num_datasets=300)
    assert max(np.max(x) for x in jax.tree.leaves(found.p_values())) < 0.001
    assert "NOT calibrated" in str(found.summary())
    assert all(float(row[2]) > 1.1 for row in found.summary().rows)


def test_densities_with_kinks_are_calibrated(key):
    """Ranks have the variance 1/12, with a standard error of 0.005; by Hessians, ten times too wide, it is 0.01."""
    rows = jnp.array([[1.0, 0.5], [-0.5, 1.0], [0.3, 0.3], [1.0, -1.0]]).repeat(5, 0)

    @vipl.gen
    def medians():
        b = sample("b", dist.Normal(0.0, 1.0).expand([2]))
        sample("y", dist.Laplace(rows @ b, 0.5))

    found = vipl.diagnostics.calibrate(key, medians(), "y", num_datasets=200)
    ranks = (np.asarray(found.ranks["b"]) + 0.5) / (found.num_draws + 1)
    np.testing.assert_allclose(ranks.var(0), 1 / 12, atol=0.02)


def test_p_values_are_those_of_the_chi_square_law():
    rng = np.random.default_rng(0)
    uniform = Calibration({"z": rng.integers(0, 100, (400, 500))}, 99, np.zeros(400))
    p = uniform.p_values()["z"]
    assert 0.4 < p.mean() < 0.6
    assert 0.02 < (p < 0.05).mean() < 0.09
    axes = uniform.plot()
    assert len(axes.ravel()) == 1


def test_what_calibrate_refuses(key):
    with pytest.raises(AddressError, match="observed address"):
        calibrate(key, line(X), "z")
    with pytest.raises(ProgramError, match="such a guide"):
        calibrate(key, line(X), "y", guide=guides.Flow)
