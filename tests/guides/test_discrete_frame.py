"""The Gaussian of the real choices beside discrete ones, and the frame that it gives."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipl
from vipl import guides, sample
from vipl.posterior._discrete import bound_at, framed

Y = np.array([0.3, 2.5])


def parts(model, data, real, discrete):
    return (
        guides.FullRank(model, data, addresses=real),
        guides.MeanField(model, data, addresses=discrete),
        model,
        data,
        jax.random.key(0),
    )


@vipl.gen
def mixture():
    level = sample("level", dist.HalfNormal(1.0))
    jax.vmap(
        lambda: sample("y", dist.Normal(level + sample("k", dist.Categorical(jnp.array([0.2, 0.5, 0.3]))), 0.5)),
        axis_size=2,
    )()


def test_independent_choices_are_summed_out_exactly():
    """The value, the logits of the conditional distribution, and two derivatives, of three values."""
    density, logits_at = bound_at(*parts(mixture(), {"y": Y}, "level", "k"))

    def joint(u):
        level = jnp.exp(u[0])
        each = jnp.log(jnp.array([0.2, 0.5, 0.3])) + dist.Normal(level + jnp.arange(3), 0.5).log_prob(Y[:, None])
        return dist.HalfNormal(1.0).log_prob(level) + u[0], each

    def exact(u):
        prior, each = joint(u)
        return prior + jnp.sum(jax.nn.logsumexp(each, 1))

    def derivatives(fn):
        return jax.jit(lambda u: jax.jvp(jax.value_and_grad(fn), (u,), (jnp.ones(1),)))(jnp.array([0.7]))

    (value, slope), (_, curvature) = derivatives(density)
    (wanted, wanted_slope), (_, wanted_curvature) = derivatives(exact)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    np.testing.assert_allclose(slope, wanted_slope, rtol=1e-10)
    np.testing.assert_allclose(curvature, wanted_curvature, rtol=1e-9)
    found, each = jax.jit(lambda u: (jax.nn.softmax(logits_at(u)[0]), jax.nn.softmax(joint(u)[1])))(jnp.array([0.7]))
    np.testing.assert_allclose(found, each, rtol=1e-10)


def test_dependent_choices_are_bounded():
    """Of two coins that the data connect: a bound, which is not the density."""

    @vipl.gen
    def coins():
        level = sample("level", dist.Normal(0.0, 1.0))
        sides = sample("sides", dist.Bernoulli(0.4).expand([2]).to_event(1))
        sample("y", dist.Normal(level + 2.0 * sides[0] * sides[1], 0.5))

    density, _ = bound_at(*parts(coins(), {"y": 1.9}, "level", "sides"))
    weights = np.array([0.84, 0.16])
    each = dist.Normal(np.array([0.3, 2.3]), 0.5).log_prob(1.9)
    exact = dist.Normal(0.0, 1.0).log_prob(0.3) + np.log(weights @ np.exp(each))
    assert exact - 1.0 < jax.jit(density)(jnp.array([0.3])) < exact - 1e-3


@vipl.gen
def groups(unit):
    """Two groups, in some unit."""
    low = sample("low", dist.Normal(3.0 * unit, 2.0 * unit))
    gap = sample("gap", dist.HalfNormal(3.0 * unit))
    sd = sample("sd", dist.HalfNormal(unit))
    jax.vmap(lambda: sample("y", dist.Normal(low + gap * sample("k", dist.Bernoulli(0.5)), sd)), axis_size=40)()


def of_unit(unit):
    """A model and its data."""
    rng = np.random.default_rng(0)
    y = np.where(rng.random(40) < 0.4, rng.normal(3.0, 0.3, 40), rng.normal(5.0, 0.4, 40))
    return groups(unit), {"y": y * unit}


@pytest.mark.oldest
def test_a_frame_has_the_units_of_the_posterior(key):
    """In a unit a million times smaller it is the same frame, and the same logits."""
    found = []
    for unit in (1e-3, 1e3):
        model, data = of_unit(unit)
        real = guides.FullRank(model, data, addresses=["low", "gap", "sd"])
        guide = guides.combine({"k": guides.MeanField(model, data, addresses="k"), "real": real})
        begun = framed(guide, model, data, None, key)
        assert begun is not None
        whole, params = begun
        loc, scale_tril = whole.parts["real"].frame
        scale = np.array([unit, 1.0, 1.0])
        loc = (loc - np.array([0.0, np.log(unit), np.log(unit)])) / scale
        found.append((loc, scale_tril / scale[:, None], params["k"]["k"]["logits"]))
    for small, large in zip(*found, strict=True):
        np.testing.assert_allclose(small, large, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.exp(found[0][0][1]), 2.0, atol=0.3)


@pytest.mark.oldest
def test_infer_does_not_depend_on_units(key):
    """Beside discrete choices: the bound of data in another unit is the same but for the unit."""
    bounds = []
    for unit in (1e-3, 1e4):
        model, data = of_unit(unit)
        improved = vipl.infer(model, data, key=key).improve(key, 4000)
        bounds.append(improved.bound + 40 * np.log(unit))
        assert improved.spread < 3.0
    assert abs(bounds[0] - bounds[1]) < 0.1


def test_no_frame_is_made_where_choices_are_not_enumerated(key):
    @vipl.gen
    def many():
        level = sample("level", dist.Normal(0.0, 1.0))
        sides = sample("sides", dist.Bernoulli(0.4).expand([12]).to_event(1))
        sample("y", dist.Normal(level + sides.sum(), 0.5))

    real, discrete, model, data, _ = parts(many(), {"y": 1.9}, "level", "sides")
    assert framed(guides.combine({"a": real, "b": discrete}), model, data, None, key) is None
    assert framed(real, model, data, None, key) is None
