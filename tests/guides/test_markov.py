"""Markov: the exact posterior of hidden Markov models, exact bounds, and chains beside real choices."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

import vipl
from vipl import guides, objectives, sample
from vipl.errors import DistributionError, ProgramError
from vipl.estimators import Enumerate, LeaveOneOut, Score
from vipl.inference import ForwardBackward
from vipl.posterior._ways import _objective, _with_chain
from vipl.testing import assert_unbiased

FIRST = jnp.array([0.5, 0.2, 0.3])
STEPS = jnp.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.3, 0.1, 0.6]])
LEVELS = jnp.array([-1.0, 0.5, 2.0])


@vipl.gen
def hidden(length, reverse=False):  # noqa: FBT002
    def step(z, _):
        z = sample("z", dist.Categorical(jnp.where(z < 0, FIRST, STEPS[z])))
        return z, sample("y", dist.Normal(LEVELS[z], 0.8))

    lax.scan(step, -1, None, length=length, reverse=reverse)


Y = {"y": jnp.array([-0.7, 0.1, 1.6, 0.9])}


def moved(params, key, by=1.0):
    """Parameters anywhere."""
    flat, back = ravel_pytree(params)
    return back(flat + by * jax.random.normal(key, flat.shape))


def log_evidence(model, data):
    return vipl.marginal(model, "y", ForwardBackward()).assess(data).log_prob


def by_sum(guide, params, model, data, values=3):
    """The bound, the entropy and the marginals, over all joint values of "z"."""
    shape = guide.latents.discrete[0].shape
    z = jnp.array(list(itertools.product(range(values), repeat=int(np.prod(shape))))).reshape(-1, *shape)

    @jax.jit
    def sums(params):
        log_q = jax.vmap(lambda z: guide(params).assess({"z": z}).log_prob)(z)
        log_p = jax.vmap(lambda z: model.assess({"z": z} | data).log_prob)(z)
        q = jnp.exp(log_q)
        marginals = jnp.stack([jnp.tensordot(q, (z == v).astype(float), 1) for v in range(values)], -1)
        return jnp.sum(q), jnp.sum(q * (log_p - log_q)), -jnp.sum(q * log_q), marginals

    return sums(params)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_bound_the_entropy_and_the_marginals_are_sums_over_all_paths(reverse, key):
    model = hidden(4, reverse)
    guide = guides.Markov(model, Y)
    params = moved(guide.init(), key)
    one, bound, entropy, marginals = by_sum(guide, params, model, Y)
    np.testing.assert_allclose(one, 1.0, rtol=1e-12)
    np.testing.assert_allclose(guide.entropy(params), entropy, rtol=1e-10)
    np.testing.assert_allclose(guide.marginals(params)["z"], marginals, atol=1e-12)
    exact = vipl.expectation(lambda p: objectives.elbo_with_chain(model, guide(p), Y, "z"))
    np.testing.assert_allclose(exact.estimate(key, params), bound, rtol=1e-10)


@pytest.mark.oldest
def test_the_gradient_of_the_sum_over_a_chain_is_that_of_all_paths(key):
    guide = guides.Markov(hidden(4), Y)
    params = moved(guide.init(), key)
    exact = vipl.expectation(lambda p: objectives.elbo_with_chain(hidden(4), guide(p), Y, "z"))
    enumerated = vipl.expectation(lambda p: objectives.elbo(hidden(4), guide(p), Y))  # 81 joint values, summed
    (value, grad), (other, same) = (o.value_and_grad(key, params) for o in (exact, enumerated))
    np.testing.assert_allclose(value, other, rtol=1e-10)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-9), grad, same)


@pytest.mark.oldest
@pytest.mark.parametrize("reverse", [False, True])
def test_infer_finds_the_exact_posterior_of_a_hidden_markov_model(reverse, key):
    model = hidden(30, reverse)
    data = {"y": model.simulate(key).choices["y"]}
    posterior = vipl.infer(model, data, key=key, guide=guides.Markov)
    assert posterior.report is not None
    assert posterior.report.method == "forward-backward"
    bound = posterior.improve(key, 100)
    np.testing.assert_allclose(bound.bound, log_evidence(model, data), atol=1e-9)
    assert bound.spread < 1e-9
    exact = vipl.normalize(model, data, ForwardBackward()).marginals("z").probs
    np.testing.assert_allclose(posterior.guide.marginals(posterior.params)["z"], exact, atol=1e-10)


@pytest.mark.oldest
def test_gradients_reach_the_evidence_where_independence_does_not(key):
    model, evidence = hidden(4), log_evidence(hidden(4), Y)
    guide = guides.Markov(model, Y)
    exact = vipl.expectation(lambda p: objectives.elbo_with_chain(model, guide(p), Y, "z"))
    options = {"key": key, "num_steps": 2000, "progress": False}
    fitted = vipl.fit(exact, guide.init(), optax.adam(0.1), **options)
    assert 0 <= evidence - exact.estimate(key, fitted.params) < 1e-4
    free = guides.MeanField(model, Y)
    factored = vipl.expectation(lambda p: objectives.elbo(model, free(p), Y))
    best = vipl.fit(factored, moved(free.init(), key, 0.1), optax.adam(0.1), **options)
    assert evidence - factored.estimate(key, best.params) > 0.2


@pytest.mark.oldest
def test_impossible_steps_have_no_probability_in_the_exact_posterior(key):
    """Left to right: a state is not gone back to."""

    @vipl.gen
    def forward_only():
        steps = jnp.log(jnp.array([[0.7, 0.3, 0.0], [0.0, 0.6, 0.4], [0.0, 0.0, 1.0]]))

        def step(z, _):
            z = sample("z", dist.Categorical(logits=steps[z]))
            return z, sample("y", dist.Normal(LEVELS[z], 0.8))

        lax.scan(step, 0, None, length=4)

    posterior = vipl.infer(forward_only(), Y, key=key, guide=guides.Markov)
    np.testing.assert_allclose(posterior.improve(key, 50).bound, log_evidence(forward_only(), Y), atol=1e-9)
    assert jnp.all(jnp.diff(posterior.sample(key, 200)["z"], axis=1) >= 0)
    program = posterior.program
    value = vipl.expectation(lambda: objectives.elbo_with_chain(forward_only(), program, Y, "z")).estimate(key)
    np.testing.assert_allclose(value, log_evidence(forward_only(), Y), atol=1e-9)


@vipl.gen
def many(groups):
    """Chains in lanes, whose steps have lanes: axes before and after that of time."""

    def chain():
        def step(z, _):
            z = jax.vmap(lambda z: sample("z", dist.Bernoulli(jnp.where(z == 1, 0.8, 0.3))))(z)
            return z, sample("y", dist.Normal(z.sum(), 0.7))

        lax.scan(step, jnp.zeros(2, int), None, length=3)

    jax.vmap(chain, axis_size=groups)()


@pytest.mark.oldest
def test_chains_in_lanes_and_lanes_in_steps(key):
    data = {"y": jnp.array([[0.1, 1.2, 2.0], [0.4, -0.3, 0.8]])[:1]}
    guide = guides.Markov(many(1), data, discrete=Enumerate())
    params = moved(guide.init(), key)
    assert jax.tree.map(jnp.shape, params) == {"z": {"initial": (1, 2, 2), "transition": (1, 2, 2, 2, 2)}}
    one, bound, entropy, marginals = by_sum(guide, params, many(1), data, values=2)
    np.testing.assert_allclose(one, 1.0, rtol=1e-12)
    np.testing.assert_allclose(guide.entropy(params), entropy, rtol=1e-10)
    np.testing.assert_allclose(guide.marginals(params)["z"], marginals, atol=1e-12)
    value = vipl.expectation(lambda p: objectives.elbo(many(1), guide(p), data)).estimate(key, params)
    np.testing.assert_allclose(value, bound, rtol=1e-10)
    # each lane is a chain with its own tables
    two = guides.Markov(many(2), {"y": jnp.zeros((2, 3))})
    p = moved(two.init(), key)
    trace = two(p).simulate(key)
    assert trace.choices["z"].shape == (2, 3, 2)
    total, q = 0.0, jax.tree.map(lambda x: np.asarray(x - jax.nn.logsumexp(x, -1, keepdims=True)), p["z"])
    for i in range(2):
        for j in range(2):
            z = np.asarray(trace.choices["z"])[i, :, j]
            total += q["initial"][i, j, z[0]] + sum(q["transition"][i, j, t, z[t], z[t + 1]] for t in range(2))
    np.testing.assert_allclose(trace.log_prob, total, rtol=1e-10)


@vipl.gen
def switching(length):
    """A level that moves to where the regime says: given the levels the regimes are a chain, and not alone."""
    rho = sample("rho", dist.Normal(0.5, 0.3))

    def step(carry, _):
        z, x = carry
        z = sample("z", dist.Bernoulli(jnp.where(z == 1, 0.9, 0.2)))
        x = sample("x", dist.Normal(rho * x + 2.0 * z, 0.4))
        return (z, x), sample("y", dist.Normal(x, 0.5))

    lax.scan(step, (0, 0.0), None, length=length)


def beside_a_chain(model, data, **options):
    """A chain first, which a combination puts last."""
    return guides.combine(
        {
            "chain": guides.Markov(model, data, addresses="z", **options),
            "rest": guides.MeanField(model, data, addresses=["x", "rho"]),
        }
    )


@pytest.mark.oldest
def test_a_chain_beside_real_choices_is_summed_over_without_bias(key):
    """One bound in three ways: the chain summed over, enumerated at the same draws of the rest, and drawn."""
    model, data = switching(3), {"y": jnp.array([0.4, 1.9, 2.5])}
    guide = beside_a_chain(model, data, discrete=Score(LeaveOneOut()))
    params = moved(guide.init(scale=0.3), key, 0.2)
    summed = vipl.expectation(lambda p: objectives.elbo_with_chain(model, guide(p), data, "z"))
    drawn = vipl.expectation(lambda p: objectives.elbo(model, guide(p), data))
    enumerated = drawn.with_estimators({"z": Enumerate()})
    a, b = (jax.jit(o.value_and_grad)(key, params) for o in (summed, enumerated))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), a, b)

    def draw(key, factor):
        of_sum, of_draw = summed.value_and_grad(key, params), drawn.value_and_grad(key, params, num_samples=2)
        return jax.tree.map(lambda x, y: x - factor * y, of_sum, of_draw)

    zero = jax.tree.map(jnp.zeros_like, a)
    options = {"key": key, "resolution": 1.0, "num": 20_000}
    assert_unbiased(draw, zero, args=(1.0,), **options)
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(draw, zero, args=(0.9,), **options)


@pytest.mark.oldest
def test_infer_takes_the_exact_sum_over_the_chain(key):
    """Where the model is a chain given the rest; with two chains it draws them."""
    model, data = switching(4), {"y": jnp.array([0.4, 1.9, 2.5, 0.3])}
    guide = beside_a_chain(model, data)
    params = guide.init()
    summed = vipl.expectation(lambda p: objectives.elbo_with_chain(model, guide(p), data, "z"))
    taken, numbers = _objective(model, data, guide, params)
    assert numbers is None
    assert taken.estimate(key, params) == summed.estimate(key, params)
    posterior = vipl.infer(model, data, key=key, guide=guide, optimizer=optax.adam(0.05), num_steps=100)
    assert posterior.report is not None
    assert posterior.report.values[-20:].mean() > posterior.report.values[:20].mean() + 1.0
    lanes = guides.Markov(many(1), {"y": jnp.zeros((1, 3))})
    assert _with_chain(many(1), lanes.data, lanes) is None


def test_estimators_follow_the_number_of_paths():
    assert isinstance(guides.Markov(hidden(5), {"y": jnp.zeros(5)})._estimator(), Enumerate)
    assert isinstance(guides.Markov(hidden(6), {"y": jnp.zeros(6)})._estimator(), Score)
    assert isinstance(guides.Markov(hidden(6), {"y": jnp.zeros(6)}, discrete=Enumerate())._estimator(), Enumerate)


@pytest.mark.oldest
def test_posteriors_of_chains_in_files(key, tmp_path):
    posterior = vipl.infer(hidden(4), Y, key=key, guide=guides.Markov)
    posterior.save(tmp_path / "chain.npz")
    read = vipl.load(tmp_path / "chain.npz", hidden(4), Y)
    assert isinstance(read.guide, guides.Markov)
    z = posterior.sample(key, 1)["z"][0]
    np.testing.assert_allclose(read.log_prob({"z": z}), posterior.log_prob({"z": z}), rtol=1e-12)


@vipl.gen
def stages(length):
    """A chain over 2, 3 and 4."""

    def step(z, _):
        z = sample("z", dist.DiscreteUniform(2, 4))
        return z, sample("y", dist.Normal(z, 0.5))

    lax.scan(step, 2, None, length=length)


def test_chains_of_integers_from_another_value_on(key):
    data = {"y": jnp.array([2.2, 3.0, 3.9])}
    log_joint = dist.Normal(jnp.arange(2, 5), 0.5).log_prob(data["y"][:, None]) - jnp.log(3.0)
    found = vipl.infer(stages(3), data, key=key, guide=guides.Markov)
    assert found.report is not None
    assert found.report.method == "forward-backward"
    np.testing.assert_allclose(found.evidence(key, 50).elbo, jax.nn.logsumexp(log_joint, axis=1).sum(), rtol=1e-6)
    law = jax.nn.softmax(log_joint, axis=1)
    np.testing.assert_allclose(found.guide.marginals(found.params)["z"], law, atol=1e-6)
    z = jnp.array([2, 3, 4])
    np.testing.assert_allclose(found.log_prob({"z": z}), jnp.log(law[jnp.arange(3), z - 2]).sum(), rtol=1e-5)


def test_what_is_no_chain():
    @vipl.gen
    def other():
        a = sample("a", dist.Bernoulli(0.3))
        sample("y", dist.Normal(a, 1.0))

    with pytest.raises(DistributionError, match='"a" in no scan'):
        guides.Markov(other(), {"y": 0.0})
    guide = guides.Markov(hidden(4), Y)
    with pytest.raises(ProgramError, match="two chains over one choice"):
        vipl.expectation(lambda p: objectives.elbo_with_chain(hidden(4), guide(p), Y, "y")).estimate(
            jax.random.key(0), guide.init()
        )
