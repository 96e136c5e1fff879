"""Posteriors of models whose densities are estimates, or random: stochastic gradients of the bound that they give."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipl
from vipl import guides, sample
from vipl.inference import Enumeration, Importance


@vipl.gen
def noisy(x):
    u = sample("u", dist.Normal(0.0, 0.5))
    sample("y", dist.Normal(x + u, 1.0))


@vipl.gen
def summed_out(algorithm):
    x = sample("x", dist.Normal(0.0, 1.0))
    jax.vmap(lambda: sample("rows", vipl.marginal(noisy(x), "y", algorithm)), axis_size=3)()


@vipl.gen
def dropped():
    x = sample("x", dist.Normal(0.0, 1.0))
    keep = jax.random.bernoulli(vipl.random_key("dropout"), 0.5)
    sample("y", dist.Normal(x + keep, 1.0))


DATA = {"rows": {"y": jnp.array([1.0, 0.5, 2.0])}}
PRECISION = 1 + 3 / 1.25
MEAN, SD = 3.5 / 1.25 / PRECISION, PRECISION**-0.5


@pytest.mark.parametrize("guide", [guides.FullRank, guides.MeanField])
def test_infer_takes_models_with_estimated_densities(guide, key):
    """By stochastic gradients of the evidence lower bound; the posterior is the conjugate one."""
    found = vipl.infer(summed_out(Importance(8)), DATA, key=key, guide=guide)
    assert found.report is not None
    assert found.report.method == "stochastic gradients"
    draws = found.improve(key, 20_000).sample(key, 20_000)["x"]
    np.testing.assert_allclose(np.mean(draws), MEAN, atol=0.03)
    np.testing.assert_allclose(np.std(draws), SD, rtol=0.05)


def test_a_start_is_looked_at_with_one_noise(key):
    """The log density at coordinates is an estimate: the same one each time, and near the exact one."""
    guide = guides.FullRank(summed_out(Importance(4000)), DATA)
    value = guide.latents.log_density({("x",): jnp.asarray(0.3)})
    assert value == guide.latents.log_density({("x",): jnp.asarray(0.3)})
    rows = dist.Normal(0.3, 1.25**0.5).log_prob(DATA["rows"]["y"]).sum()
    np.testing.assert_allclose(value, dist.Normal(0.0, 1.0).log_prob(0.3) + rows, atol=0.03)


@pytest.mark.parametrize("program", [dropped(), summed_out(Importance(2))], ids=["random key", "estimate"])
def test_calibrate_wants_an_exact_density(program, key):
    with pytest.raises(vipl.errors.ProgramError, match="density .* is random"):
        vipl.diagnostics.calibrate(key, program, "y" if program.name == "dropped" else "rows", num_datasets=3)


def test_an_exact_sum_keeps_natural_gradients(key):
    @vipl.gen
    def either():
        x = sample("x", dist.Normal(0.0, 1.0))
        flip = vipl.gen(lambda: sample("y", dist.Normal(x + sample("b", dist.Bernoulli(0.5)), 1.0)))
        sample("part", vipl.marginal(flip(), "y", Enumeration()))

    found = vipl.infer(either(), {"part": {"y": 1.0}}, key=key)
    assert found.report is not None
    assert found.report.method == "natural gradients"
