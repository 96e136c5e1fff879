"""Structured: exact on Gaussian chains and hierarchies, its algebra against dense matrices, a series against NUTS."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipl
from tests.helpers.posteriors import references, volatility
from vipl import guides, sample
from vipl.errors import DistributionError
from vipl.guides import _blocks as blocks
from vipl.testing import assert_unbiased


@vipl.gen
def states(length):
    m = sample("m", dist.Normal(0.0, 1.0))

    def step(z, _):
        z = sample("z", dist.Normal(0.9 * z + 0.1 * m, 0.5))
        v = sample("v", dist.Normal(0.5 * z, 0.3))
        return z, sample("y", dist.Normal(z + v, 0.7))

    lax.scan(step, m, None, length=length)


@vipl.gen
def nested():
    """Loops of a `vmap` in one another, a `scan` in lanes, and a `scan` beside a `vmap` of its length."""
    m = sample("m", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    def group():
        g = sample("g", dist.Normal(m[0], 1.0))
        jax.vmap(lambda: sample("y", dist.Normal(sample("x", dist.Normal(g + m[1], 1.0)), 0.5)), axis_size=3)()
        last, _ = lax.scan(lambda c, _: (sample("c", dist.Normal(0.5 * c + g, 1.0)), None), m[1], None, length=4)
        sample("seen", dist.Normal(last, 1.0))

    jax.vmap(group, axis_size=2)()
    _, z = lax.scan(lambda c, _: (sample("z", dist.Normal(0.8 * c, 1.0)),) * 2, m[0], None, length=5)
    jax.vmap(lambda z: sample("w", dist.Normal(sample("v", dist.Normal(z, 0.7)), 1.0)))(z)


NESTED = {"y": jnp.arange(6.0).reshape(2, 3), "seen": jnp.ones(2), "w": jnp.linspace(-1.0, 1.0, 5)}


def gaussian_of(guide):
    """Mean, precision and log evidence of a Gaussian posterior, by dense matrices."""
    density = lambda u: guide.latents.log_density(guide.latents.split(u))  # noqa: E731
    zero = jnp.zeros(guide.latents.size)
    value, slope, curve = jax.jit(lambda u: (density(u), jax.grad(density)(u), jax.hessian(density)(u)))(zero)
    mean = jnp.linalg.solve(-curve, slope)
    return mean, -curve, value + slope @ mean / 2 - jnp.linalg.slogdet(-curve / (2 * jnp.pi))[1] / 2


@pytest.mark.oldest
def test_a_state_space_model_is_exact_where_independence_is_not(key):
    y = states(50).simulate(key).choices["y"]
    guide = guides.Structured(states(50), {"y": y})
    found = vipl.infer(states(50), {"y": y}, key=key, guide=guide)
    mean, precision, log_evidence = gaussian_of(guide)
    np.testing.assert_allclose(found.params["loc"], mean, atol=1e-9)
    q = guide.family(found.params)
    np.testing.assert_allclose(q.variance, jnp.diagonal(jnp.linalg.inv(precision)), rtol=1e-8)
    trace = found.program.simulate(key)
    bound = states(50).assess(trace.choices | {"y": y}).log_prob - trace.log_prob
    np.testing.assert_allclose(bound, log_evidence, atol=1e-8)
    assert found.report is not None
    assert found.report.method == "natural gradients"
    # the best bound of independent coordinates is lower by half of this
    assert jnp.sum(jnp.log(jnp.diagonal(precision))) - jnp.linalg.slogdet(precision)[1] > 10
    sizes = [x.size for x in jax.tree.leaves(found.params)]
    assert sum(sizes) == 101 + 1 + 1 + 50 * (2 + 4 + 2 + 4)


def test_the_algebra_of_blocks_is_that_of_dense_matrices(key):
    guide = guides.Structured(nested(), NESTED)
    mean, precision, _ = gaussian_of(guide)
    n, block = guide.latents.size, blocks.blocks_of(guide._layout)
    assert set(block.loops) == {"vmap of 2", "scan of 5"}
    assert set(block.loops["vmap of 2"].loops) == {"vmap of 3", "scan of 4"}
    assert block.loops["scan of 5"].size == 2
    probe, signs = blocks.probes(block), jax.random.rademacher(key, (n,), float)
    vectors = jnp.zeros((probe.max() + 1, n)).at[probe, np.arange(n)].set(signs)

    @jax.jit
    def of(products):
        factors = blocks.factorize(block, blocks.curvature(block, probe, products, signs))
        q = blocks.BlockGaussian(mean, factors, guide._layout)
        x = q.sample(key)
        return jax.vmap(q.of_noise)(jnp.eye(n)) - mean, q.variance, x, q.log_prob(x)

    scale, variance, x, log_prob = of(-vectors @ precision)
    scale = scale.T
    np.testing.assert_allclose(scale @ scale.T, jnp.linalg.inv(precision), atol=1e-10)
    np.testing.assert_allclose(variance, jnp.diagonal(jnp.linalg.inv(precision)), rtol=1e-9)
    np.testing.assert_allclose(log_prob, dist.MultivariateNormal(mean, precision_matrix=precision).log_prob(x))
    assert jax.jit(guide.has_structure)(mean, key)


def test_a_density_without_the_structure_is_told(key):
    @vipl.gen
    def crossed():
        a = jax.vmap(lambda: sample("a", dist.Normal(0.0, 1.0)), axis_size=3)()
        b = jax.vmap(lambda: sample("b", dist.Normal(0.0, 1.0)), axis_size=2)()
        sample("y", dist.Normal(a[:, None] + b, 1.0).to_event(2))

    guide = guides.Structured(crossed(), {"y": jnp.ones((3, 2))})
    assert not jax.jit(guide.has_structure)(jnp.zeros(5), key)


@pytest.mark.oldest
def test_the_bound_and_its_gradient_are_unbiased(key):
    data = {"y": jnp.array([0.3, 1.0, -0.2])}
    guide = guides.Structured(states(3), data)
    leaves, structure = jax.tree.flatten(guide.init(scale=0.3))
    keys = jax.random.split(key, len(leaves))
    shifts = [0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(structure, [x + s for x, s in zip(leaves, shifts, strict=True)])
    mean, precision, log_evidence = gaussian_of(guide)

    def exact(params):
        q = guide.family(params)
        scale = jax.jacobian(q.of_noise)(jnp.zeros(len(mean)))
        s, d = scale @ scale.T, q.loc - mean
        return log_evidence - 0.5 * (
            d @ precision @ d + jnp.trace(precision @ s) - len(mean) - jnp.linalg.slogdet(precision @ s)[1]
        )

    objective = vipl.expectation(lambda p: vipl.objectives.elbo(states(3), guide(p), data))
    value, gradient = jax.value_and_grad(exact)(params)
    # entries of L above its diagonal count for nothing
    some = lambda g: jnp.concatenate([g["loc"], g["loops"]["scan of 3"]["previous"].ravel()])  # noqa: E731

    def draw(key, factor):
        v, g = objective.value_and_grad(key, params)
        return v, factor * some(g)

    assert_unbiased(draw, (value, some(gradient)), key=key, resolution=2.0, num=20_000, args=(1.0,))
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(draw, (value, some(gradient)), key=key, resolution=2.0, num=20_000, args=(0.5,))


@pytest.mark.oldest
def test_a_stochastic_volatility_series_against_a_long_run():
    p = volatility()
    found = vipl.infer(p.model, p.data, key=jax.random.key(0), guide=guides.Structured)
    draws = found.sample(jax.random.key(1), 20_000)
    mean, sd = map(np.asarray, references()["volatility"]["h"])
    assert np.abs((np.mean(draws["h"], 0) - mean) / sd).max() < 0.3


@pytest.mark.parametrize(
    "family",
    [
        guides.MeanField,
        guides.FullRank,
        guides.Structured,
        lambda model, data: guides.BlockDiagonal(model, data, [["a"], ["x"]]),
    ],
    ids=["MeanField", "FullRank", "Structured", "BlockDiagonal"],
)
def test_draws_move_with_their_means(family, key):
    """Along a path each draw has the slope 1 in its mean; by the score function it is random."""

    @vipl.gen
    def model():
        sample("a", dist.Normal(0.0, 1.0))
        lax.scan(lambda x, _: (sample("x", dist.Normal(0.0, 1.0)), None), 0.0, None, length=3)

    guide = family(model(), {})
    params = guide.init(key, start="zero")

    @vipl.expectation
    def total(shift):
        moved = jax.tree_util.tree_map_with_path(lambda path, x: x + shift * ("loc" in str(path[-1])), params)
        drawn = guide(moved).simulate().choices
        return drawn["a"] + jnp.sum(drawn["x"])

    slopes = jax.vmap(lambda key: total.value_and_grad(key, 0.0)[1])(jax.random.split(key, 10))
    np.testing.assert_allclose(slopes, 4.0, rtol=1e-12)


def test_discrete_choices_are_refused():
    @vipl.gen
    def mixed():
        sample("y", dist.Normal(sample("b", dist.Bernoulli(0.3)), sample("s", dist.HalfNormal(1.0))))

    with pytest.raises(DistributionError, match="Structured of mixed"):
        guides.Structured(mixed(), {"y": 0.0})
    part = guides.Structured(mixed(), {"y": 0.0}, addresses="s")
    both = guides.combine({"s": part, "b": guides.MeanField(mixed(), {"y": 0.0}, addresses="b")})
    assert set(both(both.init()).simulate(jax.random.key(0)).choices) == {"s", "b"}
