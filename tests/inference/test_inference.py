"""Estimated densities: both contracts, their duality, nesting, and exact algorithms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from jax import lax

import vipl
from vipl import MeasureValued, Reparam, Score, marginal, normalize, sample
from vipl.inference import SMC, Enumeration, Importance
from vipl.testing import assert_unbiased

KEY = jax.random.key(23)


@vipl.gen
def coins(phi):
    """An auxiliary of unequal probabilities, and a coin and a number that depend on it."""
    a = sample("a", dist.Categorical(logits=jnp.stack([phi, 0.3 * phi, -0.5 + 0 * phi])))
    x = sample("x", dist.Bernoulli(jnp.array([0.2, 0.5, 0.85])[a]))
    sample("y", dist.Normal(jnp.array([-1.0, 0.4, 1.5])[a] + 0.3 * x, 0.8))


@jax.jit
def exact_log_prob(phi, x, y):
    p = jax.nn.softmax(jnp.stack([phi, 0.3 * phi, -0.5 + 0 * phi]))
    px = jnp.array([0.2, 0.5, 0.85])
    px = jnp.where(x == 1, px, 1 - px)
    py = jnp.exp(dist.Normal(jnp.array([-1.0, 0.4, 1.5]) + 0.3 * x, 0.8).log_prob(y))
    return jnp.log(jnp.sum(p * px * py))


def guess(kept):
    """A proposal that looks at the kept values."""

    @vipl.gen
    def proposal():
        sample("a", dist.Categorical(logits=jnp.stack([-kept["y"], 0.2 + 0 * kept["y"], 0.6 * kept["y"] + 0.1])))

    return proposal()


ALGORITHMS = [
    *(Importance(k) for k in (1, 2, 5, 50)),
    *(Importance(k, guess) for k in (1, 2, 5, 50)),
    Enumeration(),
]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: f"{a}".replace("<function ", "")[:45])
def test_a_marginal_keeps_both_contracts(algorithm):
    """E[w] = p(x) for given x; E[g(x) / w] = ∫ g for drawn x, which is E[1 / w | x] = 1 / p(x)."""
    source = marginal(coins(0.9), ("x", "y"), algorithm)

    def assessed(key):
        return jnp.exp(source.assess({"x": 1, "y": 0.7}, key=key).log_prob)

    def drawn(key, factor):
        trace = source.simulate(key)
        g = jnp.exp(dist.Normal(0.3, 0.5).log_prob(trace.choices["y"])) * (trace.choices["x"] == 1)
        return factor * g * jnp.exp(-trace.log_prob)

    exact = np.exp(exact_log_prob(0.9, 1, 0.7))
    assert_unbiased(assessed, exact, key=KEY, resolution=0.2 * exact)
    assert_unbiased(drawn, 1.0, key=KEY, resolution=0.2, args=(1.0,))
    with pytest.raises(AssertionError, match="z = "):  # a weight that leaves the own particle out
        assert_unbiased(drawn, 1.0, key=KEY, resolution=0.2, args=(1.25,))


def test_enumeration_is_exact():
    source = marginal(coins(0.9), ("x", "y"), Enumeration())
    for x, y in [(0, -0.3), (1, 1.1)]:
        np.testing.assert_allclose(source.assess({"x": x, "y": y}).log_prob, exact_log_prob(0.9, x, y), rtol=1e-12)
    trace = source.simulate(KEY)
    np.testing.assert_allclose(trace.log_prob, exact_log_prob(0.9, trace.choices["x"], trace.choices["y"]), rtol=1e-12)


def test_enumeration_of_a_loop_is_the_forward_algorithm():
    """A hidden Markov chain of 5 steps: 3^5 paths against the sum by matrix products."""
    transition = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    means = np.array([-1.0, 0.0, 2.0])
    ys = np.array([0.1, -0.7, 1.9, 2.2, 0.3])

    @vipl.gen
    def chain():
        def step(z, _):
            z = sample("z", dist.Categorical(probs=jnp.asarray(transition)[z]))
            sample("y", dist.Normal(jnp.asarray(means)[z], 0.5))
            return z, None

        lax.scan(step, 0, None, length=5)

    alpha = np.array([1.0, 0.0, 0.0])
    for y in ys:
        alpha = (alpha @ transition) * scipy.stats.norm.pdf(y, means, 0.5)
    got = marginal(chain(), "y", Enumeration()).assess({"y": ys}, key=KEY).log_prob
    np.testing.assert_allclose(got, np.log(alpha.sum()), rtol=1e-12)


@functools.partial(jax.jit, static_argnums=2)
def sets_of_particles(phi, y, k):
    """For all numbers of particles at each of the three values: its log probability, and the weights at each value."""
    log_r = jax.nn.log_softmax(jnp.stack([-y["y"], 0.2 + 0 * y["y"], 0.6 * y["y"] + 0.1]))
    log_w = jnp.stack([coins(phi).assess({"a": a} | y).log_prob for a in range(3)]) - log_r
    counts = np.array([(i, j, k - i - j) for i in range(k + 1) for j in range(k + 1 - i)])
    return jax.vmap(dist.Multinomial(k, logits=log_r).log_prob)(counts), counts * jnp.exp(log_w)


@pytest.mark.parametrize("num_particles", [1, 2, 5, 50])
def test_a_posterior_keeps_both_contracts(num_particles):
    """E[w] = q(a) and E[1 / w; a] = 1, with q the law of the particle that is picked."""
    y = {"x": 1, "y": jnp.array(0.7)}
    source = normalize(coins(0.9), y, Importance(num_particles, guess))

    def drawn(key):
        trace = source.simulate(key)
        here = trace.choices["a"] == jnp.arange(3)
        return 1.0 * here, jnp.exp(-trace.log_prob) * here

    def assessed(key):
        return jax.vmap(lambda a: jnp.exp(source.assess({"a": a}, key=key).log_prob))(jnp.arange(3))

    log_p, shares = sets_of_particles(0.9, y, num_particles)
    log_p, shares = np.asarray(log_p), np.asarray(shares)
    q = np.exp(log_p) @ (shares / shares.sum(1, keepdims=True))
    assert_unbiased(drawn, (q, np.ones(3)), key=KEY, resolution=(0.05, 0.5))
    assert_unbiased(assessed, q, key=KEY, resolution=0.05)
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(assessed, q + np.array([0.05, 0.0, -0.05]), key=KEY, resolution=0.05)


@pytest.mark.parametrize("k", [1, 4])
def test_a_proposal_is_a_source_or_a_function_that_makes_it(k):
    """Same draws, and the same gradient in its parameters: closed over, or applied to them."""
    y = {"x": 1, "y": jnp.array(0.7)}
    guide = vipl.gen(lambda t: sample("a", dist.Categorical(logits=t * jnp.arange(3.0))))

    def bound(proposal):
        def program(t):
            outer = vipl.objectives.elbo(coins(0.9), normalize(coins(0.9), y, Importance(k, proposal(t))), y)
            return outer + sample("s", normalize(coins(0.9), y, Importance(k, proposal(t))))["a"]

        return jax.value_and_grad(vipl.expectation(program).estimate, argnums=1)(KEY, 0.4)

    source, function = bound(guide), bound(lambda t: lambda known: guide(t))
    np.testing.assert_array_equal(source, function)
    assert source[1] != 0.0


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_elbo_of_a_posterior_is_the_bound_with_as_many_particles(k):
    """Both against E[log (1/K) Σ w] and its gradient."""
    y = {"x": 1, "y": jnp.array(0.7)}

    def elbo(phi):
        q = normalize(coins(phi), y, Importance(k, guess(y))).simulate()
        return coins(phi).assess(q.choices | y).log_prob - q.log_prob

    def iwelbo(phi):
        return normalize(coins(phi), y, Importance(k, guess(y))).particles().log_normalizer

    def exact(phi):
        log_p, shares = sets_of_particles(phi, y, k)
        return jnp.exp(log_p) @ jnp.log(shares.sum(1) / k)

    expected = jax.jit(jax.value_and_grad(exact))(0.9)
    for program in (elbo, iwelbo):
        estimate = vipl.expectation(program).value_and_grad
        assert_unbiased(estimate, expected, key=KEY, args=(0.9,), resolution=(0.02, 0.03))


def test_the_exact_posterior_as_proposal_makes_all_weights_equal():
    y = {"x": 1, "y": 0.7}

    @vipl.gen
    def posterior():
        log_joint = jnp.stack([coins(0.9).assess({"a": a} | y).log_prob for a in range(3)])
        sample("a", dist.Categorical(logits=log_joint))

    @jax.jit
    def got(key):
        particles = normalize(coins(0.9), y, Importance(7, posterior())).particles(key)
        return particles.ess, particles.log_normalizer

    np.testing.assert_allclose(got(KEY), (7.0, exact_log_prob(0.9, 1, 0.7)), rtol=1e-12)


def gaussian(phi, k):
    """x ~ Normal(a, 1), a ~ Normal(phi, 1): x ~ Normal(phi, sqrt 2)."""

    @vipl.gen
    def program():
        a = sample("a", dist.Normal(phi, 1.0))
        sample("x", dist.Normal(a, 1.0))

    return marginal(program(), "x", Importance(k))


@pytest.mark.parametrize("how", ["plain", "vmap", "scan", "cond"])
def test_a_marginal_is_a_source_of_sample_in_every_construct(how):
    """d/dphi E[Π_v (x_v^2 + 0.5)] for x_v ~ Normal(phi, sqrt 2), kept in its program by address."""

    @vipl.gen
    def program(phi):
        def visit(_):
            return sample("s", gaussian(phi, 2)) ** 2 + 0.5

        if how == "plain":
            return visit(0)
        if how == "vmap":
            return jnp.prod(jax.vmap(visit)(jnp.arange(2)))
        if how == "scan":
            return lax.scan(lambda c, t: (c * visit(t), None), 1.0, jnp.arange(2))[0]
        return lax.cond(phi > 0, visit, lambda _: 1.0, 0)

    trace = program(0.4).simulate(KEY)
    shape = (2,) if how in ("vmap", "scan") else ()
    assert trace.choices["s"]["x"].shape == shape
    assert jnp.shape(trace.log_prob) == ()
    assert jnp.isfinite(program(0.4).assess(trace.choices, key=KEY).log_prob)

    visits = 2 if shape else 1
    exact = jax.jit(jax.value_and_grad(lambda phi: (phi**2 + 2.5) ** visits))(0.4)
    objective = vipl.expectation(lambda phi: program(phi).simulate().retval)
    assert_unbiased(lambda key: objective.value_and_grad(key, 0.4), exact, key=KEY, resolution=(0.2, 0.2))
    # its estimated density: E[w] = p
    ones = {"s": {"x": jnp.full(shape, 0.9)}}
    p = scipy.stats.norm.pdf(0.9, 0.4, np.sqrt(2.0)) ** visits
    assert_unbiased(lambda key: jnp.exp(program(0.4).assess(ones, key=key).log_prob), p, key=KEY, resolution=0.05)


@pytest.mark.parametrize("estimator", [Reparam(), Score(), MeasureValued()])
def test_gradients_of_an_estimated_bound(estimator):
    """E[log w] of a marginal with one particle, against quadrature; every estimator at the auxiliary."""

    @vipl.gen
    def ring(phi):
        a = sample("a", dist.Normal(phi, 0.7), estimator)
        sample("x", dist.Normal(jnp.sin(a), 0.5), Reparam())

    @vipl.expectation
    def bound(phi):
        q = marginal(ring(phi), "x").simulate()
        return dist.Normal(0.4, 1.0).log_prob(q.choices["x"]) - q.log_prob

    nodes, weights = np.polynomial.hermite_e.hermegauss(60)

    def exact(phi):
        a = phi + 0.7 * nodes
        m = jnp.sin(a)
        inner = -0.5 * jnp.log(2 * jnp.pi) - 0.5 * ((m - 0.4) ** 2 + 0.25) + 0.5 + jnp.log(0.5 * jnp.sqrt(2 * jnp.pi))
        return jnp.sum(weights * inner) / weights.sum()

    expected = jax.jit(jax.value_and_grad(exact))(0.6)
    assert_unbiased(lambda key: bound.value_and_grad(key, 0.6), expected, key=KEY, resolution=(0.05, 0.15))


@pytest.mark.oldest
def test_marginal_in_normalize_in_marginal_is_a_lower_bound():
    @vipl.gen
    def inner(m):
        b = sample("b", dist.Normal(m, 0.6))
        sample("z", dist.Normal(b, 0.8))

    @vipl.gen
    def model():
        z = sample("z", marginal(inner(0.3), "z", Importance(2)))
        sample("y", dist.Normal(z, 0.5))

    @vipl.gen
    def outer(m):
        z = sample("post", normalize(model(), {"y": 1.2}, Importance(3, lambda _: marginal_of_z(m))))
        sample("w", dist.Normal(z["z"]["z"], 1.0))  # so wide that 1 / w has a variance

    def marginal_of_z(m):
        @vipl.gen
        def proposal():
            sample("z", marginal(inner(m), "z", Importance(2)))

        return proposal()

    # log E_{q}[...]: the density of w under the exact law of `outer` is not known; E[w] and E[1/w] bound it
    source = marginal(outer(0.5), "w", Importance(2))
    target = vipl.gen(lambda: sample("w", dist.Normal(0.8, 0.9)))

    @vipl.expectation
    def bound(m):
        q = marginal(outer(m), "w", Importance(2)).simulate()
        return target().assess(q.choices).log_prob - q.log_prob

    # -KL(q || target) <= 0, and the estimated bound is not above it; E[g / w] = 1 for any density g
    values = jax.vmap(lambda key: bound.estimate(key, 0.5))(jax.random.split(KEY, 100_000))
    assert values.mean() + 5 * values.std() / np.sqrt(len(values)) < 0.0

    def drawn(key):
        trace = source.simulate(key)
        return jnp.exp(dist.Normal(0.8, 0.2).log_prob(trace.choices["w"]) - trace.log_prob)

    assert_unbiased(drawn, 1.0, key=KEY, resolution=0.1)


@vipl.gen
def inner():
    u = sample("u", dist.Bernoulli(0.5))
    sample("x", dist.Bernoulli(jnp.where(u == 1, 0.95, 0.05)))


def test_choices_of_a_marginal_have_their_own_addresses_whatever_their_order():
    """JAX sorts the keys of dicts: values of one shape could change places without an error."""

    @vipl.gen
    def pair():
        vipl.sample("b", dist.Normal(100.0, 1.0))
        vipl.sample("a", dist.Normal(0.0, 1.0))

    @vipl.gen
    def around():
        return vipl.sample("both", vipl.marginal(pair(), ("a", "b")))

    for key in jax.random.split(jax.random.key(0), 3):
        trace = around().simulate(key)
        for drawn in (trace.choices["both"], trace.retval):
            assert abs(drawn["a"]) < 10 < 90 < drawn["b"]
        expected = pair().assess(trace.choices["both"]).log_prob
        np.testing.assert_allclose(trace.log_prob, expected, rtol=1e-5)


def test_a_marginal_keeps_all_addresses_below_one():
    @vipl.gen
    def pair():
        a = sample("a", dist.Normal(0.3, 1.2))
        sample("b", dist.Normal(a, 0.7))

    @vipl.gen
    def outer():
        sample("i", pair())
        sample("c", dist.Normal(0.0, 1.0))

    source = marginal(outer(), "i")
    trace = source.simulate(KEY)
    assert {name: sorted(x) for name, x in trace.choices.items()} == {"i": ["a", "b"]}
    a, b = (trace.choices["i"][name] for name in "ab")
    expected = dist.Normal(0.3, 1.2).log_prob(a) + dist.Normal(a, 0.7).log_prob(b)
    np.testing.assert_allclose(trace.log_prob, expected, rtol=1e-12)
    np.testing.assert_allclose(source.assess(trace.choices, key=KEY).log_prob, expected, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 3])
def test_a_marginal_that_keeps_an_estimated_site_keeps_both_contracts(k):
    """The kept value's own estimate goes with it into the weight: a fresh one would give 5.25 instead of 1."""

    @vipl.gen
    def outer():
        x = sample("i", marginal(inner(), "x", Importance(1)))
        sample("a", dist.Bernoulli(jnp.where(x == 1, 0.7, 0.2)))

    source = marginal(outer(), (("i", "x"),), Importance(k))

    def draw(key):
        trace = source.simulate(key)
        here = trace.choices["i"]["x"] == jnp.arange(2)
        assessed = source.assess({"i": {"x": jnp.array(1)}}, key=jax.random.fold_in(key, 1)).log_prob
        return here * jnp.exp(-trace.log_prob), jnp.exp(assessed)

    assert_unbiased(draw, (jnp.ones(2), 0.5), key=KEY, resolution=(0.3, 0.05))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("proposed", [False, True])
def test_a_posterior_of_a_model_with_an_estimated_site_keeps_both_contracts(k, proposed):
    """E[1 / w; z] = 1, and E[w] is the probability with which z is drawn."""

    @vipl.gen
    def likelihood(z):
        u = sample("u", dist.Bernoulli(0.5))
        sample("y", dist.Bernoulli(jnp.where(u == 1, 0.95, 0.05) * jnp.where(z == 1, 1.0, 0.5)))

    @vipl.gen
    def model():
        z = sample("z", dist.Bernoulli(0.4))
        sample("l", marginal(likelihood(z), "y", Importance(1)))

    guess = vipl.gen(lambda: sample("z", dist.Bernoulli(0.6)))
    algorithm = Importance(k, (lambda _: guess()) if proposed else None)
    source = normalize(model(), {"l": {"y": jnp.array(1)}}, algorithm)

    def draw(key):
        trace = source.simulate(key)
        here = trace.choices["z"] == jnp.arange(2)
        keys = jax.random.split(jax.random.fold_in(key, 1), 2)
        assessed = jnp.stack([source.assess({"z": z}, key=keys[z]).log_prob for z in range(2)])
        return here * jnp.exp(-trace.log_prob), jnp.exp(assessed) - here

    assert_unbiased(draw, (jnp.ones(2), jnp.zeros(2)), key=KEY, resolution=(0.3, 0.1))


@vipl.gen
def bounded(top):
    """Data above the latent are impossible."""
    sample("y", dist.Uniform(0.0, top * sample("x", dist.Uniform(0.0, 1.0))))


IMPOSSIBLE = {
    "simulate": lambda y: normalize(bounded(1.0), {"y": y}, Importance(5)).simulate().choices["x"],
    "one particle": lambda y: normalize(bounded(1.0), {"y": y}, Importance(1)).simulate().log_prob,
    "assess": lambda y: normalize(bounded(1.0), {"y": y}, Importance(5)).assess({"x": 0.9}).log_prob,
    "pick": lambda y: normalize(bounded(1.0), {"y": y}, Importance(3)).particles().pick()["x"],
    "wake": lambda y: vipl.objectives.wake_phi(bounded(1.0), flat(), {"y": y}, num_particles=5),
}
flat = vipl.gen(lambda: sample("x", dist.Uniform(0.0, 1.0)))


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_weights_that_are_all_zero_raise_when_compiled_code_runs(what):
    run = jax.jit(jax.vmap(vipl.seed(IMPOSSIBLE[what]), in_axes=(0, None)))
    keys = jax.random.split(KEY, 4)
    assert jnp.all(jnp.isfinite(run(keys, 0.1)))
    with pytest.raises(Exception, match="all weights are zero(.|\n)*fix: "):
        jax.block_until_ready(run(keys, 1.2))


def test_a_particle_of_weight_zero_is_not_looked_at():
    """With y = 0.5, half of the particles are impossible; the others have weight 1 / x."""

    @jax.jit
    def mean(key):
        particles = normalize(bounded(1.0), {"y": 0.5}, Importance(20, flat())).particles(key)
        return particles.mean(lambda z: jnp.log(z["x"] - 0.5)), particles.choices["x"]

    got, x = map(np.asarray, mean(KEY))
    possible = x > 0.5
    assert 5 < np.sum(possible) < 15
    w = np.where(possible, 1 / x, 0.0)
    np.testing.assert_allclose(got, w @ np.log(np.abs(x - 0.5)) / sum(w))
    estimates = jax.vmap(
        lambda top, key: vipl.expectation(
            lambda top: vipl.objectives.wake_theta(bounded(top), flat(), {"y": 0.5}, num_particles=20)
        ).value_and_grad(key, top),
        in_axes=(None, 0),
    )(1.0, jax.random.split(KEY, 5))
    np.testing.assert_allclose(estimates[1], -1.0, rtol=1e-12)


@vipl.gen
def may_be_impossible(logit):
    """Steps of which the second outcome is possible for one value of the latent alone."""

    def step(before, _):
        z = sample("z", dist.Bernoulli(logits=logit * (1 - before)))
        impossible = jnp.where(z == 1, 0.3, -jnp.inf)
        sample("y", dist.Categorical(logits=jnp.stack([logit * z, impossible])))
        return z, None

    jax.lax.scan(step, 0, None, length=2)


def _evidence(logit):
    """p(y = 1, 1), by hand: z is 1 in both steps."""
    first = jax.nn.sigmoid(logit) * jax.nn.softmax(jnp.stack([logit, 0.3]))[1]
    return first * jax.nn.softmax(jnp.stack([logit, 0.3]))[1] * 0.5


@pytest.mark.parametrize("algorithm", [Importance(1), Importance(2), SMC(2)], ids=str)
def test_an_estimate_whose_weights_may_all_be_zero_has_its_derivative(algorithm):
    """E[Z] = p(y) with its derivative, also where no particle has a weight; and so for the twin with 1.1 Z."""
    data = {"y": jnp.ones(2, int)}

    def estimate(scale):
        def program(logit):
            particles = normalize(may_be_impossible(logit), data, algorithm).particles()
            return scale * jnp.exp(particles.log_normalizer)

        return lambda key: vipl.expectation(program).value_and_grad(key, 0.7)

    exact = jax.value_and_grad(_evidence)(0.7)
    assert_unbiased(estimate(1.0), exact, key=KEY, resolution=0.005)
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(estimate(1.1), exact, key=KEY, resolution=0.005)


@pytest.mark.parametrize("algorithm", [Importance(2), SMC(2)], ids=str)
def test_a_particle_whose_estimated_density_is_zero_is_not_looked_at(algorithm):
    """Of three particles, some have data that are impossible in all inner particles: no number becomes NaN."""

    @vipl.gen
    def outer(logit):
        shift = sample("shift", dist.Normal(0.0, 1.0))
        sample("inner", marginal(may_be_impossible(logit + shift), "y", algorithm))

    guess = vipl.gen(lambda: sample("shift", dist.Normal(0.0, 1.0)))
    data = {"inner": {"y": jnp.ones(2, int)}}
    bound = vipl.expectation(lambda x: vipl.objectives.iwelbo(outer(x), guess(), data, num_particles=3))
    values, slopes = jax.vmap(lambda key: bound.value_and_grad(key, 0.7))(jax.random.split(KEY, 500))
    assert 5 < np.sum(~np.isfinite(values)) < 480
    assert np.all(np.isfinite(slopes[np.isfinite(values)]))
