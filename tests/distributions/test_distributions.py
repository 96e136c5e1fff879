"""Chains whose states are summed out, against sums over all paths and joint normal densities."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.special
from jax import lax
from jax.tree_util import Partial

import vipl
from vipl import sample
from vipl.distributions import HiddenMarkov, LinearGaussian
from vipl.distributions._sums import log_total
from vipl.testing import assert_unbiased

KEY = jax.random.key(61)
YS = jnp.array([0.3, -0.9, 1.4, 1.1, -0.2])
INITIAL = jnp.array([0.2, -0.3, 0.4])
MOVES = jax.random.normal(jax.random.key(1), (4, 3, 3))


def chain(phi=1.0, varying=False, observed=None):
    observation = dist.Normal(jnp.array([-1.0, 0.2, 1.5]) * phi, 0.8)
    if varying:
        observation = dist.Normal(jnp.array([-1.0, 0.2, 1.5]) * phi + 0.1 * jnp.arange(5.0)[:, None], 0.8)
    return HiddenMarkov(INITIAL, (MOVES if varying else MOVES[0]) * phi, observation, 5, observed)


def paths(phi, ys, varying=False, observed=None):
    """All paths with their log joint densities."""
    states = jnp.array(list(itertools.product(range(3), repeat=5)))
    moves = jnp.broadcast_to(jax.nn.log_softmax((MOVES if varying else MOVES[0]) * phi, axis=-1), (4, 3, 3))
    means = jnp.array([-1.0, 0.2, 1.5])[states] * phi + (0.1 * jnp.arange(5.0) if varying else 0.0)
    log_p = jax.nn.log_softmax(INITIAL)[states[:, 0]]
    for t in range(4):
        log_p = log_p + moves[t][states[:, t], states[:, t + 1]]
    seen = jnp.ones(5, bool) if observed is None else observed
    return states, log_p + jnp.where(seen, dist.Normal(means, 0.8).log_prob(jnp.where(seen, ys, 0.0)), 0.0).sum(1)


SEEN = jnp.array([True, False, True, True, False])


@pytest.mark.parametrize(("varying", "observed"), [(False, None), (True, None), (True, SEEN)])
@pytest.mark.oldest
def test_a_hidden_markov_chain_is_the_sum_over_all_paths(varying, observed):
    ys = YS if observed is None else jnp.where(observed, YS, jnp.nan)
    exact = lambda phi: jax.nn.logsumexp(paths(phi, ys, varying, observed)[1])  # noqa: E731
    got = lambda phi: chain(phi, varying, observed).log_prob(ys)  # noqa: E731
    np.testing.assert_allclose(*(jax.jit(jax.value_and_grad(f))(1.1) for f in (got, exact)), rtol=1e-9)

    def pairs(z):
        powers = jnp.stack([1.0 * z, 1.0 * z**2])
        return jnp.einsum("at,bt->tab", powers[:, :-1], powers[:, 1:])

    @jax.jit
    def posterior(phi):
        states, log_p = paths(phi, ys, varying, observed)
        weights = jax.nn.softmax(log_p)
        marginals = weights @ (states[..., None] == jnp.arange(3)).reshape(len(states), -1)
        exact_pairs = jnp.einsum("p,ptij->tij", weights, jax.vmap(pairs)(states))
        return chain(phi, varying, observed).posterior_marginals(ys).reshape(-1), marginals, exact_pairs

    got_marginals, marginals, exact_pairs = posterior(1.1)
    np.testing.assert_allclose(got_marginals, marginals, rtol=1e-9)
    draw = lambda key: pairs(chain(1.1, varying, observed).posterior_sample(key, ys))  # noqa: E731
    assert_unbiased(draw, exact_pairs, key=KEY, resolution=0.1)


@pytest.mark.oldest
def test_draws_of_a_hidden_markov_chain():
    """E[y_t] and E[y_t y_{t+1}] by matrix products."""
    alpha, means, both = scipy.special.softmax(INITIAL), [], []
    m = np.array([-1.0, 0.2, 1.5]) * 1.1 + 0.1 * np.arange(5.0)[:, None]
    for t in range(5):
        means.append(alpha @ m[t])
        if t < 4:
            move = scipy.special.softmax(np.asarray(MOVES)[t] * 1.1, axis=-1)
            both.append((alpha * m[t]) @ move @ m[t + 1])
            alpha = alpha @ move

    def draw(key):
        y = chain(1.1, True).sample(key)
        return y, y[:-1] * y[1:]

    assert_unbiased(draw, (np.stack(means), np.stack(both)), key=KEY, resolution=0.05)
    assert jax.jit(lambda key: chain(1.1, True).sample(key, (2, 3)))(KEY).shape == (2, 3, 5)


def system(phi=1.0, observed=None, varying=False):
    a = jnp.array([[0.9, 0.2], [-0.1, 0.7]]) * phi
    more = {"transition_bias": jnp.array([0.1, -0.2]), "emission_bias": jnp.array([0.3])}
    if varying:
        a = a * (1 + 0.1 * jnp.arange(3.0)[:, None, None])
    return LinearGaussian(
        jnp.array([0.5, -0.3]), jnp.array([[1.0, 0.2], [0.2, 0.6]]), a, jnp.array([[0.3, 0.1], [0.1, 0.4]]),
        jnp.array([[1.0, -0.5]]), jnp.array([[0.25]]), 4, observed=observed, **more,
    )  # fmt: skip


def joint(phi, varying=False):
    """Mean and covariance of all states, and those of all data with the states."""
    d = system(phi, varying=varying)
    a = jnp.broadcast_to(d.transition, (3, 2, 2))
    means, blocks = [d.initial_mean], [[d.initial_cov]]
    for t in range(3):
        means.append(a[t] @ means[-1] + d.transition_bias)
        row = [a[t] @ c for c in blocks[-1]]
        blocks.append([*row, a[t] @ blocks[-1][-1] @ a[t].T + d.transition_cov])
    full = [[blocks[i][j] if j <= i else blocks[j][i].T for j in range(4)] for i in range(4)]
    mean, cov = jnp.concatenate(means), jnp.block(full)
    h = jnp.kron(jnp.eye(4), d.emission)
    return mean, cov, h, h @ mean + jnp.tile(d.emission_bias, 4), h @ cov @ h.T + 0.25 * jnp.eye(4)


def known_joint(varying=False):
    """`joint` at 1.1, in numbers."""
    return [np.asarray(x) for x in jax.jit(lambda phi: joint(phi, varying))(1.1)]


DATA = np.array([[0.2], [1.3], [-0.7], [0.4]])


@pytest.mark.parametrize(("varying", "seen"), [(False, None), (True, np.array([True, False, True, False]))])
@pytest.mark.oldest
def test_a_linear_gaussian_chain_is_a_joint_normal(varying, seen):
    keep = np.arange(4) if seen is None else np.flatnonzero(seen)
    data = DATA if seen is None else np.where(seen[:, None], DATA, np.nan)

    def exact(phi):
        _, _, _, m, s = joint(phi, varying)
        return dist.MultivariateNormal(m[keep], s[np.ix_(keep, keep)]).log_prob(DATA[keep, 0])

    got = lambda phi: system(phi, seen, varying).log_prob(data)  # noqa: E731
    np.testing.assert_allclose(*(jax.jit(jax.value_and_grad(f))(1.1) for f in (got, exact)), rtol=1e-8)

    mean, cov, h, m, s = known_joint(varying)
    gain = cov @ h[keep].T @ np.linalg.inv(s[np.ix_(keep, keep)])
    post_mean, post_cov = mean + gain @ (DATA[keep, 0] - m[keep]), cov - gain @ h[keep] @ cov
    got_mean, got_cov = jax.jit(lambda phi: system(phi, seen, varying).posterior_marginals(data))(1.1)
    np.testing.assert_allclose(got_mean.reshape(-1), post_mean, rtol=1e-8)
    for t in range(4):
        np.testing.assert_allclose(got_cov[t], post_cov[2 * t : 2 * t + 2, 2 * t : 2 * t + 2], rtol=1e-7, atol=1e-12)

    def draw(key):
        x = system(1.1, seen, varying).posterior_sample(key, data).reshape(-1)
        return x, jnp.outer(x, x)

    assert_unbiased(draw, (post_mean, post_cov + np.outer(post_mean, post_mean)), key=KEY, resolution=0.05)


@pytest.mark.oldest
def test_draws_of_a_linear_gaussian_chain():
    _, _, _, m, s = known_joint()

    def draw(key):
        y = system(1.1).sample(key).reshape(-1)
        return y, jnp.outer(y, y)

    assert_unbiased(draw, (m, s + np.outer(m, m)), key=KEY, resolution=0.1)
    # reparametrized: the derivative of a draw is that of its mean and covariance
    objective = vipl.expectation(lambda phi: jnp.sum(sample("y", system(phi)) ** 2))

    def second_moment(phi):
        *_, m, s = joint(phi)
        return m @ m + jnp.trace(s)

    exact = jax.jit(jax.value_and_grad(second_moment))(1.1)
    assert_unbiased(lambda key: objective.value_and_grad(key, 1.1), exact, key=KEY, resolution=(0.2, 0.4))


@pytest.mark.oldest
def test_chains_are_sources_of_sample():
    """An observed chain in a model; lanes of chains; the density is that of a marginal by enumeration."""

    @vipl.gen
    def model(phi):
        jax.vmap(lambda c: sample("y", chain(phi * c)))(jnp.array([1.0, 0.8]))
        return sample("g", system(phi))

    trace = model(1.1).simulate(KEY)
    assert trace.choices["y"].shape == (2, 5)
    assert trace.choices["g"].shape == (4, 1)
    again = model(1.1).assess(trace.choices, key=KEY)

    @jax.jit
    def by_hand(phi, choices):
        lanes = sum(chain(phi * c).log_prob(choices["y"][i]) for i, c in enumerate((1.0, 0.8)))
        return lanes + system(phi).log_prob(choices["g"])

    np.testing.assert_allclose(again.log_prob, by_hand(1.1, trace.choices), rtol=1e-12)

    @vipl.gen
    def unroll_scans():
        z = sample("first", dist.Categorical(logits=INITIAL))
        sample("y1", dist.Normal(jnp.array([-1.0, 0.2, 1.5])[z], 0.8))

        def step(z, _):
            z = sample("z", dist.Categorical(logits=MOVES[0][z]))
            sample("y", dist.Normal(jnp.array([-1.0, 0.2, 1.5])[z], 0.8))
            return z, None

        lax.scan(step, z, None, length=4)

    @jax.jit
    def densities(ys):
        summed = vipl.marginal(unroll_scans(), ("y1", "y"), vipl.inference.Enumeration()).assess(
            {"y1": ys[0], "y": ys[1:]}
        )
        return summed.log_prob, chain(1.0).log_prob(ys)

    summed, got = densities(YS)
    np.testing.assert_allclose(summed, got, rtol=1e-12)


@pytest.mark.oldest
def test_long_chains_are_finite():
    d = HiddenMarkov(INITIAL, MOVES[0], dist.Normal(jnp.array([-1.0, 0.2, 1.5]), 0.8), 1000)
    g = LinearGaussian(jnp.zeros(2), jnp.eye(2), 0.9 * jnp.eye(2), 0.1 * jnp.eye(2), jnp.eye(2), jnp.eye(2), 1000)
    assert jnp.isfinite(jax.jit(lambda key: d.log_prob(d.sample(key)) + g.log_prob(g.sample(key)))(KEY))


@pytest.mark.oldest
def test_series_of_chains():
    """Leading axes are series of their own, by `expand` and in log_prob."""
    for d in (HiddenMarkov(INITIAL, MOVES[0], dist.Normal(jnp.arange(3.0), 1.0), 3), system()):
        ys = jax.jit(jax.vmap(d.sample))(jax.random.split(KEY, 5))
        log_prob = jax.jit(d.log_prob)
        each = np.stack([log_prob(y) for y in ys])
        np.testing.assert_allclose(log_prob(ys), each, rtol=1e-12)
        expanded = vipl.gen(lambda: sample("y", d.expand([5])))().assess({"y": ys}, key=KEY)  # noqa: B023
        np.testing.assert_allclose(expanded.log_prob, each.sum(), rtol=1e-12)


def test_score_refuses_a_chain_whose_data_have_moving_bounds():
    objective = vipl.expectation(
        lambda t: sample(
            "y", HiddenMarkov(jnp.zeros(2), jnp.zeros((2, 2)), dist.Uniform(0.0, t * jnp.array([1.0, 2.0])), 3)
        ).sum()
    )
    with pytest.raises(vipl.errors.EstimatorError, match="a derivative is taken in a parameter"):
        objective.value_and_grad(KEY, 1.0)


INTEGERS = {
    "gamma": (dist.Gamma, (2, 1)),
    "inverse gamma": (dist.InverseGamma, (2, 1)),
    "beta": (dist.Beta, (2, 3)),
    "uniform beta": (dist.Beta, (1, 1)),
    "dirichlet": (dist.Dirichlet, ([1, 2, 3],)),
    "chi2": (dist.Chi2, (3,)),
    "student t": (dist.StudentT, (3, 0, 1)),
    "weibull": (dist.Weibull, (2, 3)),
    "pareto": (dist.Pareto, (1, 3)),
    "kumaraswamy": (dist.Kumaraswamy, (2, 3)),
    "gompertz": (dist.Gompertz, (2, 1)),
    "von mises": (dist.VonMises, (0, 2)),
    "poisson": (dist.Poisson, (3,)),
    "negative binomial": (dist.NegativeBinomial2, (3, 2)),
    "ordered": (dist.OrderedLogistic, (1, [0, 1])),
    "normals": (dist.MultivariateNormal, ([0, 0], [[2, 1], [1, 2]])),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_for_parameters_are_numbers(name, key):
    """As NumPyro takes them: draws, densities and their slopes are those of the same floats."""
    family, given = INTEGERS[name]

    def trace(convert):
        program = vipl.gen(lambda: sample("x", family(*map(convert, given))))()
        drawn = program.simulate(key)
        x = drawn.choices["x"]
        slope = jax.grad(lambda x: program.assess({"x": x}).log_prob) if jnp.issubdtype(x.dtype, jnp.floating) else abs
        return x, drawn.log_prob, program.assess(drawn.choices).log_prob, slope(x)

    of_floats = trace(lambda x: jnp.asarray(x, float))
    for convert in (jnp.asarray, lambda x: x if isinstance(x, int) else jnp.asarray(x)):
        for got, want in zip(trace(convert), of_floats, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12)


# --- zero probabilities -----------------------------------------------------------------------------------


def test_steps_that_cannot_be_have_no_part_in_a_derivative():
    """A chain that goes from left to right, by tables with zeros, against a sum over all paths."""
    ys = jnp.array([0.5, 1.5, 0.9])

    def tables(t):
        last = jnp.array([-jnp.inf, -jnp.inf, 0.0])
        return jnp.stack([jnp.stack([t, -t, -jnp.inf]), jnp.stack([-jnp.inf, t, -t]), last])

    def chain(t):
        return HiddenMarkov(tables(t)[0], tables(t), dist.Normal(jnp.arange(3.0), 1.0), 3)

    def exact(t):
        rows, total = jax.nn.softmax(tables(t), axis=-1), 0.0
        for path in itertools.product(range(3), repeat=3):
            p = rows[0, path[0]] * rows[path[0], path[1]] * rows[path[1], path[2]]
            total += p * jnp.exp(jnp.sum(dist.Normal(jnp.array(path), 1.0).log_prob(ys)))
        return jnp.log(total)

    slope = (exact(0.4 + 1e-5) - exact(0.4 - 1e-5)) / 2e-5
    np.testing.assert_allclose(chain(0.4).log_prob(ys), exact(0.4), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(lambda t: chain(t).log_prob(ys))(0.4), slope, rtol=1e-8)
    marginals = chain(0.4).posterior_marginals(ys)
    np.testing.assert_allclose(jnp.sum(marginals, axis=1), jnp.ones(3), rtol=1e-12)
    assert marginals[0, 2] == 0 < marginals[1, 2]
    assert np.all(np.diff(jax.vmap(lambda key: chain(0.4).posterior_sample(key, ys))(jax.random.split(KEY, 50))) >= 0)
    with pytest.raises(ValueError, match="invalid initial_logits"):
        HiddenMarkov(jnp.full(3, -jnp.inf), tables(0.4), dist.Normal(jnp.arange(3.0), 1.0), 3)


def test_a_sum_of_nothing_is_nothing_and_nan_stays():
    terms = jnp.array([[-jnp.inf, 0.3, jnp.nan], [-jnp.inf, -jnp.inf, -jnp.inf]])
    np.testing.assert_array_equal(log_total(terms), [-jnp.inf, 0.3, jnp.nan])
    np.testing.assert_array_equal(log_total(terms, axis=1)[1], -jnp.inf)
    np.testing.assert_array_equal(jax.grad(lambda x: log_total(x)[0])(terms)[:, 0], [0.0, 0.0])


def test_a_function_that_a_distribution_holds_may_have_parameters():
    """x_2 = x_1 - 0.3 t x_1 + noise, so that E[x_2] = (1 - 0.3 t) m; and the density is NumPyro's."""
    times = jnp.array([0.0, 0.3])

    def drift(t, x, _):
        return -t * x, 0.5 + 0.0 * x

    def process(t):
        return dist.EulerMaruyama(times, Partial(drift, t), dist.Normal(2.0, 1.0))

    @vipl.gen
    def program(t):
        sample("x", process(t))

    drawn = program(0.7).simulate(KEY)
    np.testing.assert_allclose(drawn.log_prob, process(0.7).log_prob(drawn.choices["x"]), rtol=1e-12)
    many = jax.vmap(lambda key: program(0.7).simulate(key).choices["x"])(jax.random.split(KEY, 40_000))
    error = np.std(many[:, 1]) / 200
    assert abs(np.mean(many[:, 1]) - (1 - 0.3 * 0.7) * 2.0) <= 5 * error
    objective = vipl.expectation(lambda t: sample("x", process(t), vipl.Score())[1])
    exact = 2.0 * (1 - 0.3 * 0.7), -0.6
    assert_unbiased(lambda key: objective.value_and_grad(key, 0.7), exact, key=KEY, resolution=0.1)
