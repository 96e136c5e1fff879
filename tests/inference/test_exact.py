"""Exact algorithms have exact densities on both sides, and exact posterior marginals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipl
from vipl import Enumerate, MeasureValued, Score, marginal, normalize, objectives, sample
from vipl.inference import SMC, Enumeration, ForwardBackward, Importance, Kalman
from vipl.testing import assert_unbiased

KEY = jax.random.key(97)
YS = jnp.array([0.4, -1.2, 0.9])

# --- programs ---------------------------------------------------------------------------------------------


def hidden(reverse=False, length=3):
    """A chain of three states."""

    @vipl.gen
    def program(t):
        rows = jnp.array([[0.3, -0.5, 0.1], [0.2, 0.9, -0.4], [-1.0, 0.3, 0.6]])

        def step(z, s):
            z = sample("z", dist.Categorical(logits=t * rows[z] + s))
            sample("y", dist.Normal(0.7 * z - 0.5, 0.8 + 0.1 * s))
            return z, None

        lax.scan(step, 1, jnp.arange(length) / 5.0, reverse=reverse)

    return program


def linear(reverse=False, length=3, size=None):
    """A chain of numbers, or of pairs."""

    @vipl.gen
    def program(t):
        def step(z, s):
            if size is None:
                z = sample("z", dist.Normal(t * z + 0.3, 0.9 + 0.2 * s))
            else:
                moved = jnp.array([[0.8, 0.2], [-0.3, 0.6]]) @ z * t
                z = sample("z", dist.MultivariateNormal(moved, jnp.array([[1.0, 0.3], [0.3, 0.7]])))
            sample("y", dist.Normal(jnp.sum(z) + 0.1 * s, 0.7))
            return z, None

        start = jnp.array(0.5) if size is None else jnp.array([0.5, -0.2])
        lax.scan(step, start, jnp.arange(1.0 * length), reverse=reverse)

    return program


@vipl.gen
def coins(t):
    """Unknown values in lanes, below an address, and one that does not begin at 0."""
    a = jax.vmap(lambda s: sample("a", dist.Bernoulli(logits=t * s)))(jnp.array([0.5, -1.0]))
    b = sample(("in", "b"), dist.DiscreteUniform(1, 3))
    c = sample("c", dist.Categorical(logits=jnp.array([0.3, -jnp.inf, t])))
    sample("y", dist.Normal(a.sum() * t + b * c, 1.0))


def brute_force(program, given, names, sizes):
    """Weights and values of all joint values, one by one."""
    values = jnp.array(list(itertools.product(*(range(n) for n in sizes))))
    return values, jax.vmap(lambda v: program.assess(names(v) | given).log_prob)(values)


# --- marginals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [ForwardBackward(), Enumeration()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize(("reverse", "length"), [(False, 3), (True, 3), (False, 1)])
def test_marginals_of_a_finite_chain(algorithm, reverse, length):
    given = {"y": YS[:length]}

    def exact(t):
        values, log_w = brute_force(hidden(reverse, length)(t), given, lambda v: {"z": v}, [3] * length)
        here = values[..., None] == jnp.arange(3)
        return jnp.einsum("n,nts->ts", jax.nn.softmax(log_w), here)

    got = lambda t: normalize(hidden(reverse, length)(t), given, algorithm).marginals("z").probs  # noqa: E731
    np.testing.assert_allclose(got(0.8), exact(0.8), rtol=1e-10)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(got))(0.8), jax.jit(jax.jacfwd(exact))(0.8), rtol=1e-8, atol=1e-12)


@pytest.mark.oldest
def test_marginals_of_other_values_and_nested_addresses():
    given = {"y": 1.3}
    names = lambda v: {"a": v[:2], "in": {"b": v[2] + 1}, "c": v[3]}  # noqa: E731

    def exact(t):
        values, log_w = brute_force(coins(t), given, names, (2, 2, 3, 3))
        shares = jax.nn.softmax(log_w)
        one = lambda i, n: jnp.stack([shares @ (values[:, i] == k) for k in range(n)])  # noqa: E731
        return jnp.stack([one(0, 2), one(1, 2)]), jnp.append(jnp.zeros(1), one(2, 3)), one(3, 3)

    def got(t):
        posterior = normalize(coins(t), given, Enumeration())
        return tuple(posterior.marginals(a).probs for a in ("a", ("in", "b"), "c"))

    for x, y in zip(jax.jit(got)(0.8), jax.jit(exact)(0.8), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-300)
    for x, y in zip(jax.jit(jax.jacfwd(got))(0.8), jax.jit(jax.jacfwd(exact))(0.8), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)
    log_probs = normalize(coins(0.8), given, Enumeration()).marginals("c").log_prob(jnp.arange(3))
    np.testing.assert_allclose(log_probs, jnp.log(exact(0.8)[2]), rtol=1e-10)


def dense_posterior(program, given, shape):
    """Mean and covariance by one Newton step on the joint log density, which is a polynomial of degree two."""
    log_prob = lambda z: program.assess({"z": z.reshape(shape)} | given).log_prob  # noqa: E731
    origin = jnp.zeros(int(np.prod(shape)))
    cov = jnp.linalg.inv(-jax.hessian(log_prob)(origin))
    return cov @ jax.grad(log_prob)(origin), cov


@pytest.mark.parametrize(
    ("reverse", "length", "size"), [(False, 3, None), (True, 3, None), (False, 1, None), (False, 3, 2), (True, 2, 2)]
)
def test_moments_of_a_linear_chain(reverse, length, size):
    given, shape = {"y": YS[:length]}, (length,) if size is None else (length, size)

    def exact(t):
        mean, cov = dense_posterior(linear(reverse, length, size)(t), given, shape)
        step = size or 1
        blocks = jnp.stack([cov[i : i + step, i : i + step] for i in range(0, length * step, step)])
        return mean.reshape(shape), blocks[:, 0, 0] if size is None else blocks

    def got(t):
        d = normalize(linear(reverse, length, size)(t), given, Kalman()).marginals("z")
        return d.mean, d.variance if size is None else d.covariance_matrix

    for x, y in zip(jax.jit(got)(0.8), jax.jit(exact)(0.8), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-12)
    if length == 3:
        for x, y in zip(jax.jit(jax.jacfwd(got))(0.8), jax.jit(jax.jacfwd(exact))(0.8), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-12)


def test_marginals_under_vmap_over_data():
    data = jnp.stack([YS, YS[::-1], 2.0 * YS])

    def each(algorithm, program, read):
        return lambda y: read(normalize(program(0.8), {"y": y}, algorithm).marginals("z"))

    for fn in (each(ForwardBackward(), hidden(), lambda d: d.probs), each(Kalman(), linear(), lambda d: d.mean)):
        fn = jax.jit(fn)
        np.testing.assert_allclose(jax.vmap(fn)(data), jnp.stack([fn(y) for y in data]), rtol=1e-10)


# --- densities --------------------------------------------------------------------------------------------

POSTERIORS = {
    "Enumeration": (hidden(), Enumeration()),
    "ForwardBackward": (hidden(), ForwardBackward()),
    "Kalman": (linear(), Kalman()),
}


@pytest.mark.parametrize("name", POSTERIORS)
def test_what_is_exact(name):
    program, algorithm = POSTERIORS[name]
    posterior = normalize(program(0.8), {"y": YS}, algorithm)
    assert posterior.is_exact()
    assert marginal(program(0.8), "y", algorithm).is_exact()
    assert not normalize(program(0.8), {"y": YS}, Importance(3, lambda _: posterior)).is_exact()
    assert not normalize(program(0.8), {"y": YS}, SMC(4)).is_exact()

    @vipl.gen
    def outer(source):
        sample("inside", source)

    assert outer(posterior).is_exact()
    assert outer(outer(posterior)).is_exact()
    assert not outer(normalize(program(0.8), {"y": YS}, Importance(3))).is_exact()


def test_a_marginal_of_a_posterior_of_a_program_is_exact():
    """And so is an Enumeration of a program that draws from an exact posterior."""
    posterior = normalize(coins(0.8), {"y": 1.3}, Enumeration())
    kept = marginal(posterior, "c", Enumeration())
    assert kept.is_exact()
    probs = posterior.marginals("c").probs
    for c in (0, 2):
        np.testing.assert_allclose(jnp.exp(kept.assess({"c": c}).log_prob), probs[c], rtol=1e-10)

    @vipl.gen
    def outer():
        z = sample("z", posterior)
        sample("w", dist.Normal(1.0 * z["c"], 1.0))

    evidence = marginal(outer(), "w", Enumeration()).assess({"w": 0.4}).log_prob
    exact = jax.nn.logsumexp(jnp.log(probs) + dist.Normal(jnp.arange(3.0), 1.0).log_prob(0.4))
    np.testing.assert_allclose(evidence, exact, rtol=1e-10)


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_draw_has_the_density_of_its_assessment(name):
    program, algorithm = POSTERIORS[name]
    posterior = normalize(program(0.8), {"y": YS}, algorithm)
    trace = posterior.simulate(KEY)
    np.testing.assert_allclose(posterior.assess(trace.choices).log_prob, trace.log_prob, rtol=1e-10)
    joint = program(0.8).assess(trace.choices | {"y": YS}).log_prob
    np.testing.assert_allclose(trace.log_prob, joint - algorithm.log_evidence(program(0.8), {"y": YS}), rtol=1e-10)


# --- objectives -------------------------------------------------------------------------------------------


def expected_finite(fn, t):
    """E[fn(z, log q(z))] for z from the posterior of the finite chain, by all its values."""
    values, log_w = brute_force(hidden()(t), {"y": YS}, lambda v: {"z": v}, [3] * 3)
    log_q = jax.nn.log_softmax(log_w)
    return jnp.exp(log_q) @ jax.vmap(fn)(values, log_q)


def reward(z, log_q):
    """What the tests below take the expected value of: of draws and densities."""
    return jnp.cos(1.0 * z) @ jnp.array([1.0, -0.7, 0.4]) + 0.3 * log_q


@pytest.mark.parametrize("name", ["Enumeration", "ForwardBackward"])
@pytest.mark.parametrize("sites", [Score(), MeasureValued(), Enumerate()], ids=lambda e: type(e).__name__)
def test_a_derivative_passes_draws_and_densities_of_a_finite_chain(name, sites):
    program, algorithm = POSTERIORS[name]
    estimators = {"pick": sites} if name == "Enumeration" else {"state": sites}

    def fn(factor):
        def f(t):
            trace = normalize(program(t), {"y": YS}, algorithm).simulate()
            return reward(trace.choices["z"], trace.log_prob * factor)

        return vipl.expectation(f).with_estimators(estimators).value_and_grad

    exact = jax.jit(jax.value_and_grad(lambda t: expected_finite(reward, t)))(0.8)
    assert_unbiased(fn(1.0), exact, key=KEY, args=(0.8,), resolution=(0.1, 0.1), num=20_000)
    with pytest.raises(AssertionError, match="z = "):  # without the density
        assert_unbiased(fn(0.0), exact, key=KEY, args=(0.8,), resolution=(0.1, 0.1), num=20_000)


@pytest.mark.oldest
def test_a_derivative_passes_draws_and_densities_of_a_linear_chain():
    def fn(held):
        def f(t):
            trace = normalize(linear()(t), {"y": YS}, Kalman()).simulate()
            z = lax.stop_gradient(trace.choices["z"]) if held else trace.choices["z"]
            return jnp.sum(z**2 * jnp.array([1.0, -0.5, 0.7])) + 0.3 * trace.log_prob

        return vipl.expectation(f).value_and_grad

    def exact(t):
        mean, cov = dense_posterior(linear()(t), {"y": YS}, (3,))
        entropy = 0.5 * jnp.linalg.slogdet(2 * jnp.pi * jnp.e * cov)[1]
        return (mean**2 + jnp.diagonal(cov)) @ jnp.array([1.0, -0.5, 0.7]) - 0.3 * entropy

    answer = jax.jit(jax.value_and_grad(exact))(0.8)
    assert_unbiased(fn(False), answer, key=KEY, args=(0.8,), resolution=(0.2, 0.2), num=20_000)
    with pytest.raises(AssertionError, match="z = "):  # without the derivative of the draws
        assert_unbiased(fn(True), answer, key=KEY, args=(0.8,), resolution=(0.2, 0.2), num=20_000)


GUIDES = ["Enumeration", "ForwardBackward", "Kalman"]


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("below", [False, True])
@pytest.mark.oldest
def test_at_the_posterior_the_landing_sticks(name, below):
    """Of the guide p_t(z | y) for the model p_0.8(z, y), at t = 0.8: no gradient, in any draw; the ELBO's has noise."""
    program, algorithm = POSTERIORS[name]
    model = program(0.8)

    @vipl.gen
    def whole():
        sample("in", model)

    @vipl.gen
    def around(t):
        sample("in", normalize(program(t), {"y": YS}, algorithm))

    def gradients(bound):
        def f(t):
            if below:
                return bound(whole(), around(t), {"in": {"y": YS}})
            return bound(model, normalize(program(t), {"y": YS}, algorithm), {"y": YS})

        estimate = vipl.expectation(f).estimate
        return jax.jit(jax.vmap(lambda key: jax.grad(estimate, 1)(key, 0.8)))(jax.random.split(KEY, 50))

    stuck = gradients(objectives.sticking_the_landing)
    if name == "Kalman":  # the draws are reparametrized
        assert jnp.max(jnp.abs(stuck)) < 1e-10
        assert jnp.std(gradients(objectives.elbo)) > 0.05
    elif name == "ForwardBackward":  # the normalizer, which no draw reaches, is told apart from the steps, which cancel
        assert jnp.max(jnp.abs(stuck)) < 1e-10
    else:  # a score times log w - log q, which is a constant
        assert jnp.abs(jnp.mean(stuck)) < 5 * jnp.std(stuck) / 50**0.5


def test_away_from_the_posterior_the_landing_has_the_gradient_of_the_elbo():
    """Value and gradient at t = 0.5 for the model at 0.8, in closed form."""
    log_p = lambda z: linear()(0.8).assess({"z": z, "y": YS}).log_prob  # noqa: E731

    def exact(t):
        mean, cov = dense_posterior(linear()(t), {"y": YS}, (3,))
        entropy = 0.5 * jnp.linalg.slogdet(2 * jnp.pi * jnp.e * cov)[1]
        return log_p(mean) + 0.5 * jnp.trace(jax.hessian(log_p)(mean) @ cov) + entropy

    def bound(hold):
        def f(t):
            guide = hold(normalize(linear()(t), {"y": YS}, Kalman()))
            return objectives.sticking_the_landing(linear()(0.8), guide, {"y": YS})

        return vipl.expectation(f).value_and_grad

    answer = jax.jit(jax.value_and_grad(exact))(0.5)
    assert_unbiased(bound(lambda q: q), answer, key=KEY, args=(0.5,), resolution=(0.05, 0.05), num=4_000)
    with pytest.raises(AssertionError, match="z = "):  # without the derivative of the guide
        assert_unbiased(bound(vipl.detach), answer, key=KEY, args=(0.5,), resolution=(0.05, 0.05), num=4_000)


@pytest.mark.parametrize("name", GUIDES)
def test_balance_conditions_take_exact_posteriors(name):
    """At the posterior and its evidence: no defect, no variance, no gradient."""
    program, algorithm = POSTERIORS[name]
    log_z = jax.jit(lambda: algorithm.log_evidence(program(0.8), {"y": YS}))()

    def guide(t):
        return normalize(program(t), {"y": YS}, algorithm)

    for fn in (
        lambda t: objectives.trajectory_balance(program(0.8), guide(t), {"y": YS}, log_z),
        lambda t: objectives.log_variance(program(0.8), guide(t), {"y": YS}, num_particles=3),
    ):
        value, grad = vipl.expectation(fn).value_and_grad(KEY, 0.8)
        assert abs(value) < 1e-18
        assert abs(grad) < 1e-9


def test_doubly_reparametrized_takes_linear_chains_and_refuses_finite_ones():
    def bound(name):
        program, algorithm = POSTERIORS[name]
        guide = lambda t: normalize(program(t), {"y": YS}, algorithm)  # noqa: E731
        return vipl.expectation(
            lambda t: objectives.doubly_reparametrized(program(0.8), guide(t), {"y": YS}, num_particles=3)
        ).value_and_grad

    value, grad = bound("Kalman")(KEY, 0.8)
    np.testing.assert_allclose(value, jax.jit(lambda: Kalman().log_evidence(linear()(0.8), {"y": YS}))(), rtol=1e-10)
    assert abs(grad) < 1e-10
    for name in ("Enumeration", "ForwardBackward"):
        with pytest.raises(vipl.errors.EstimatorError, match="not reparametrized"):
            bound(name)(KEY, 0.8)


def test_a_filter_keeps_a_trajectory_whose_steps_draw_from_an_exact_posterior():
    """E[1 / Z] = 1 / Z with one trajectory kept: through the density of `marginal(..., SMC)`, drawn and weighed."""

    @vipl.gen
    def pair():
        k = sample("k", dist.Bernoulli(0.4))
        sample("e", dist.Normal(1.0 * k, 0.5))

    inner = normalize(pair(), {"e": 0.6}, Enumeration())

    @vipl.gen
    def chain():
        def step(total, _):
            total = total + sample("s", inner)["k"]
            sample("y", dist.Normal(1.0 * total, 0.8))
            return total, None

        lax.scan(step, 0, None, length=2)

    data = {"y": jnp.array([0.3, 1.4])}
    exact = marginal(chain(), "y", Enumeration()).assess(data).log_prob
    estimate = marginal(chain(), "y", SMC(3))
    weight = lambda key: jnp.exp(estimate.assess(data, key=key).log_prob)  # noqa: E731
    assert_unbiased(weight, jnp.exp(exact), key=KEY, resolution=0.02)

    posterior = normalize(chain(), data, SMC(3))

    def one(key):  # E[1 / w | x] = 1 / p(x), summed over x: the number of values
        trace = posterior.simulate(key)
        return jnp.exp(-trace.log_prob)

    assert_unbiased(one, 4.0, key=KEY, resolution=0.5)

    values = jnp.array(list(itertools.product(range(2), repeat=2)))

    def total(key):  # of the expected weights of all trajectories, each of them kept in its turn
        kept = normalize(chain(), data, SMC(2))
        return sum(jnp.exp(kept.assess({"s": {"k": v}}, key=key).log_prob) for v in values)

    assert_unbiased(total, 1.0, key=KEY, resolution=0.02)


# --- states that cannot be --------------------------------------------------------------------------------


@vipl.gen
def left_to_right(t):
    """The last state cannot be reached in one step, and the first cannot be come back to."""
    rows = jnp.stack([jnp.stack([t, -t, -jnp.inf]), jnp.stack([-jnp.inf, t, -t]), jnp.array([-jnp.inf, -jnp.inf, 0.0])])

    def step(z, _):
        z = sample("z", dist.Categorical(logits=rows[z]))
        sample("y", dist.Normal(1.0 * z, 1.0))
        return z, None

    lax.scan(step, 0, None, length=3)


@vipl.gen
def narrow(t):
    """State 0 cannot give a datum above one."""

    def step(z, _):
        z = sample("z", dist.Categorical(logits=jnp.stack([t, -t, t * z])))
        sample("y", dist.Uniform(0.0, jnp.array([1.0, 2.0, 3.0])[z]))
        return z, None

    lax.scan(step, 0, None, length=3)


@pytest.mark.parametrize("program", [left_to_right, narrow], ids=lambda p: p.name)
@pytest.mark.parametrize("algorithm", [ForwardBackward(), Enumeration()], ids=lambda a: type(a).__name__)
def test_states_that_cannot_be_have_no_part_in_a_derivative(program, algorithm):
    given = {"y": jnp.array([0.5, 1.5, 0.9])}

    def exact(t):
        values = jnp.array(list(itertools.product(range(3), repeat=3)))
        weights = jax.vmap(lambda v: jnp.exp(program(t).assess({"z": v} | given).log_prob))(values)
        shares = weights / jnp.sum(weights)
        return jnp.log(jnp.sum(weights)), jnp.einsum("n,nts->ts", shares, values[..., None] == jnp.arange(3))

    def got(t):
        posterior = normalize(program(t), given, algorithm)
        return algorithm.log_evidence(program(t), given), posterior.marginals("z").probs

    h = 1e-5
    slopes = jax.tree.map(lambda a, b: (a - b) / (2 * h), exact(0.4 + h), exact(0.4 - h))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-12), got(0.4), exact(0.4))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-8), jax.jacfwd(got)(0.4), slopes)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-8), jax.jacrev(got)(0.4), slopes)


def test_a_marginal_of_density_zero_has_no_part_in_a_derivative():
    """Of two cases the second gives no such datum: log p(y) = log σ(t) + log N(y; t)."""

    @vipl.gen
    def inner(case, t):
        z = sample("z", dist.Bernoulli(logits=t))
        sample("y", dist.Uniform(0.0, 1.0 + t + 0.1 * z) if case else dist.Normal(t + 0.0 * z, 1.0))

    def log_prob(t, algorithm, key):
        cases = [marginal(inner(case, t), "y", algorithm).assess({"y": 1.7}, key=key).log_prob for case in (0, 1)]
        return jnp.logaddexp(jax.nn.log_sigmoid(t) + cases[0], jax.nn.log_sigmoid(-t) + cases[1])

    slope = jax.grad(lambda t: jax.nn.log_sigmoid(t) + dist.Normal(t, 1.0).log_prob(1.7))(0.4)
    np.testing.assert_allclose(jax.grad(log_prob)(0.4, Enumeration(), KEY), slope, rtol=1e-10)


def test_a_chain_without_inputs():
    """A scan without xs and known sites, as the prior of a chain is."""

    @vipl.gen
    def prior(t, length):
        def step(z, _):
            return sample("z", dist.Categorical(logits=jnp.stack([t, -t]) * (1 + z))), None

        lax.scan(step, 0, None, length=length)

    for length in (1, 3):
        by_chain, by_sum = (normalize(prior(0.4, length), {}, a) for a in (ForwardBackward(), Enumeration()))
        np.testing.assert_allclose(by_chain.marginals("z").probs, by_sum.marginals("z").probs, rtol=1e-10)
        drawn = by_chain.simulate(KEY)
        np.testing.assert_allclose(drawn.log_prob, prior(0.4, length).assess(drawn.choices).log_prob, rtol=1e-10)
