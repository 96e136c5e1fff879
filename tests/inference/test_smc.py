"""Sequential Monte Carlo: both sides of its estimate, its gradients, its trajectories, against exact answers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from jax import lax

import vipl
from vipl import marginal, normalize, sample
from vipl.inference import (
    SMC,
    Enumeration,
    ForwardBackward,
    Kalman,
    Multinomial,
    MultinomialDropped,
    Stratified,
    Systematic,
)
from vipl.testing import assert_unbiased

KEY = jax.random.key(53)
YS = jnp.array([0.3, -0.9, 1.4, 1.1, -0.2])
START = jnp.array([0.5, 0.3, 0.2])
MEANS = jnp.array([-1.0, 0.2, 1.5])
MOVE = jnp.array([[0.6, 0.3, 0.1], [0.2, 0.6, 0.2], [0.1, 0.4, 0.5]])


@vipl.gen
def chain(phi, length=5):
    """A hidden Markov chain of 3 states; the first state is drawn before the scan."""
    z = sample("start", dist.Categorical(probs=START))
    logits = jnp.log(MOVE) * phi

    def step(z, _):
        z = sample("z", dist.Categorical(logits=logits[z]))
        sample("y", dist.Normal(MEANS[z] * phi, 0.8))
        return z, None

    lax.scan(step, z, None, length=length)


def alphas(phi, ys):
    """Forward algorithm: the joint density of the state and all data so far."""
    move = jax.nn.softmax(jnp.log(MOVE) * phi, axis=1)
    alpha, out = START, []
    for y in ys:
        alpha = (alpha @ move) * jnp.exp(dist.Normal(MEANS * phi, 0.8).log_prob(y))
        out.append(alpha)
    return out


@functools.cache
def evidence(phi):
    return float(jax.jit(lambda phi: alphas(phi, YS)[-1].sum())(phi))


def look_ahead(known):
    """A proposal that looks at the datum, and at the state before."""

    @vipl.gen
    def proposal():
        sticky = jnp.where(known.step > 0, 0.7, 0.0) * (jnp.arange(3) == known.previous["z"])
        sample("z", dist.Categorical(logits=sticky - 0.5 * (known["y"] - MEANS) ** 2))

    return proposal()


FILTERS = [
    SMC(1),
    SMC(3),
    SMC(3, look_ahead),
    SMC(4, resampling=MultinomialDropped()),
    SMC(4, resampling=Systematic()),
    SMC(4, look_ahead, resampling=Stratified()),
    SMC(4, look_ahead, ess_threshold=0.6),
]


def _id(smc):
    ahead = "" if smc.proposal is None else "-ahead"
    return f"{smc.num_particles}-{type(smc.resampling).__name__}{ahead}-{smc.ess_threshold}"


@vipl.gen
def count():
    def step(z, _):
        z = sample("z", dist.Normal(z, 10.0))
        sample("y", dist.Normal(z, 1.0))
        return z, None

    lax.scan(step, 0.0, None, length=3)


def test_a_proposal_sees_the_step_and_the_choices_before():
    """A generative function may be the proposal; what it is applied to is a pytree."""
    triangle = vipl.gen(lambda known: sample("z", dist.Normal(known.previous["z"] + known.step, 1e-6)))
    z = normalize(count(), {"y": jnp.zeros(3)}, SMC(2, triangle)).particles(KEY).choices["z"]
    np.testing.assert_allclose(z, [[0.0, 1.0, 3.0]] * 2, atol=1e-4)


def test_one_proposal_serves_importance_and_smc():
    @vipl.gen
    def beside(known):
        sample("z", dist.Normal(known["y"] + 2.0, 1e-6).expand(jnp.shape(known["y"])))

    y = jnp.array([0.3, -0.9, 1.4])
    for algorithm in (vipl.inference.Importance(2, beside), SMC(2, beside)):
        z = normalize(count(), {"y": y}, algorithm).particles(KEY).choices["z"]
        np.testing.assert_allclose(z, [y + 2.0] * 2, atol=1e-4)


@pytest.mark.parametrize("smc", FILTERS, ids=_id)
def test_the_evidence_is_unbiased(smc):
    source = marginal(chain(1.1), "y", smc)
    exact = evidence(1.1)
    draw = lambda key, factor: factor * jnp.exp(source.assess({"y": YS}, key=key).log_prob) / exact  # noqa: E731
    assert_unbiased(draw, 1.0, key=KEY, resolution=0.1, args=(1.0,))
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(draw, 1.0, key=KEY, resolution=0.1, args=(1.15,))


@pytest.mark.parametrize("smc", FILTERS[1:4], ids=_id)
@pytest.mark.oldest
def test_the_other_side_is_unbiased(smc):
    """E[p(y) / w] = ∫ p = 1 for data drawn with their trajectory."""
    source = marginal(chain(1.1, 3), "y", smc)

    def draw(key):
        trace = source.simulate(key)
        return alphas(1.1, trace.choices["y"])[-1].sum() * jnp.exp(-trace.log_prob)

    assert_unbiased(draw, 1.0, key=KEY, resolution=0.1)


@pytest.mark.parametrize("algorithm", [SMC(3), SMC(4, look_ahead)], ids=_id)
def test_a_posterior_by_smc_keeps_both_contracts(algorithm):
    """For one path: E[w] is the probability with which it is drawn, and E[1 / w] over its draws is one."""
    source = normalize(chain(1.1, 2), {"y": YS[:2]}, algorithm)
    path = {"start": jnp.array(0), "z": jnp.array([1, 0])}

    def draw(key):
        trace = source.simulate(key)
        same = jnp.all(trace.choices["z"] == path["z"]) & (trace.choices["start"] == 0)
        assessed = jnp.exp(source.assess(path, key=jax.random.fold_in(key, 1)).log_prob)
        return assessed - same, jnp.exp(-trace.log_prob) * same

    assert_unbiased(draw, (0.0, 1.0), key=KEY, resolution=(0.02, 0.2))


@pytest.mark.parametrize("algorithm", [vipl.inference.Importance, SMC])
def test_a_posterior_is_a_source_and_has_particles(algorithm):
    """Sampled inside a program, its weight obeys E[p(z, y) / w] = p(y); its particles, E[exp log_normalizer] = p(y)."""
    posterior = normalize(chain(1.1, 2), {"y": YS[:2]}, algorithm(3))

    @vipl.gen
    def program():
        return sample("path", posterior)

    def drawn(key):
        trace = program().simulate(key)
        log_joint = chain(1.1, 2).assess(trace.retval | {"y": YS[:2]}).log_prob
        return jnp.exp(log_joint - trace.log_prob), jnp.exp(posterior.particles(key).log_normalizer)

    enumerated = normalize(chain(1.1, 2), {"y": YS[:2]}, Enumeration())
    evidence = jnp.exp(jax.jit(enumerated.particles)(KEY).log_normalizer)
    assert_unbiased(drawn, (evidence, evidence), key=KEY, resolution=(0.02, 0.02))


@pytest.mark.parametrize("resampling", [Multinomial(), MultinomialDropped(), Systematic(), Stratified()], ids=repr)
def test_a_particle_is_copied_as_often_as_its_weight_says(resampling):
    """Of K particles, particle i K W_i times in expectation."""
    weights = jnp.array([0.5, 0.3, 0.15, 0.05])

    def copies(key):
        ancestors = vipl.seed(resampling.ancestors)(key, jnp.log(weights) + 3.0)
        return jnp.sum(jax.nn.one_hot(ancestors, 4), axis=0)

    assert_unbiased(copies, 4 * weights, key=KEY, resolution=0.04)


def test_positions_are_drawn_apart_or_together():
    """Shares (.35, .3, .2, .15) against four strata: a position of its own in each, or one for all."""
    log_weights = jnp.log(jnp.array([0.35, 0.3, 0.2, 0.15]))

    def together(resampling):
        def draw(key):
            first, *others = jax.nn.one_hot(vipl.seed(resampling.ancestors)(key, log_weights), 4)
            return first, jnp.einsum("i,j,k->ijk", *others)

        return draw

    first = jnp.array([1.0, 0.0, 0.0, 0.0])
    apart = jnp.einsum(
        "i,j,k->ijk", jnp.array([0.4, 0.6, 0, 0]), jnp.array([0, 0.6, 0.4, 0]), jnp.array([0, 0, 0.4, 0.6])
    )
    assert_unbiased(together(Stratified()), (first, apart), key=KEY, resolution=0.03)
    one = jnp.zeros((4, 4, 4)).at[0, 1, 2].set(0.4).at[1, 1, 3].set(0.2).at[1, 2, 3].set(0.4)
    assert_unbiased(together(Systematic()), (first, one), key=KEY, resolution=0.03)


@vipl.gen
def coins(length=3):
    def step(z, _):
        z = sample("z", dist.Bernoulli(0.3 + 0.4 * z))
        sample("y", dist.Normal(1.0 * z, 0.7))
        return z, None

    lax.scan(step, 0, None, length=length)


def test_estimators_of_choices_of_particles_arrive():
    """That of the pick, and that of the ancestors, at their sites."""

    def found(source):
        list_sites = vipl.gen(lambda: source.simulate().choices)().staged()[1]
        estimators = {p.site.address[-1]: p.site.estimator and p.site.estimator.combine(()) for p in list_sites}
        return estimators["pick"], estimators.get("ancestors")

    given, pick = {"y": YS[:3]}, vipl.MeasureValued()
    proposal = vipl.gen(lambda: jax.vmap(lambda: sample("z", dist.Bernoulli(0.4)), axis_size=3)())
    assert found(normalize(coins(), given, vipl.inference.Importance(3), estimator=pick)) == (pick, None)
    assert found(normalize(coins(), given, vipl.inference.Importance(3, proposal()), estimator=pick)) == (pick, None)
    assert found(normalize(coins(), given, SMC(3), estimator=pick)) == (pick, None)
    there = Multinomial(vipl.LocalEnumerate())
    assert found(normalize(coins(), given, SMC(3, resampling=there), estimator=pick)) == (pick, there.estimator)


def test_ancestors_can_be_enumerated():
    """The evidence is then that of all choices of ancestors, in double precision, too; its mean is exact."""
    objective = vipl.expectation(lambda t, smc: jnp.exp(smc.log_evidence(walk(t), {"y": YS[:2]})))

    @vipl.gen
    def walk(t):
        def step(z, _):
            z = sample("z", dist.Normal(t * z, 1.0))
            sample("y", dist.Normal(z, 0.7))
            return z, None

        lax.scan(step, 0.5, None, length=2)

    def draw(key):
        summed = objective.estimate(key, 0.8, SMC(2, resampling=Multinomial(vipl.Enumerate())))
        return summed - jnp.exp(Kalman().log_evidence(walk(0.8), {"y": YS[:2]}))

    assert_unbiased(draw, 0.0, key=KEY, resolution=0.03)


def test_the_threshold_of_a_filter_arrives():
    """Below 0 nothing is resampled: a weight is that of its own trajectory. At 1 always: that of its last step."""

    def weights(threshold):
        particles = normalize(coins(), {"y": YS[:3]}, SMC(4, ess_threshold=threshold)).particles(KEY)
        steps = dist.Normal(1.0 * particles.choices["z"], 0.7).log_prob(YS[:3])
        return particles.log_weights, steps

    log_w, steps = weights(0.0)
    np.testing.assert_allclose(log_w, jnp.sum(steps, axis=1), rtol=1e-12)
    log_w, steps = weights(1.0)
    np.testing.assert_allclose(log_w, steps[:, -1], rtol=1e-12)


def test_the_slope_of_an_evidence_whose_particles_may_all_die():
    """Two particles survive three steps with probability σ(t)³ of a weight of 1: E[Ẑ] and its derivative, never NaN."""

    @vipl.gen
    def flips(t):
        def step(alive, _):
            z = sample("z", dist.Bernoulli(logits=t))
            vipl.factor("heads", jnp.where(z == 1, 0.0, -jnp.inf))
            return alive * z, None

        lax.scan(step, 1, None, length=3)

    objective = vipl.expectation(lambda t: jnp.exp(SMC(2).log_evidence(flips(t), {})))
    p = jax.nn.sigmoid(0.4)
    exact = p**3, 3 * p**3 * (1 - p)
    assert_unbiased(lambda key: objective.value_and_grad(key, 0.4), exact, key=KEY, resolution=0.03)


def test_trajectories_follow_the_posterior():
    """With many particles, the weighted share of each state at each step is the smoothed probability."""

    @jax.jit
    def got(key):
        particles = normalize(chain(1.1), {"y": YS}, SMC(20_000, look_ahead)).particles(key)
        assert particles.choices["z"].shape == (20_000, 5)
        shares = particles.mean(lambda c: 1.0 * (c["z"][:, None] == jnp.arange(3)))
        return shares, particles.mean(lambda c: 1.0 * (c["start"] == jnp.arange(3))), particles.log_normalizer

    @jax.jit
    def exact():
        move = jax.nn.softmax(jnp.log(MOVE) * 1.1, axis=1)
        forward, beta, smoothed = alphas(1.1, YS), jnp.ones(3), []
        for t in reversed(range(5)):
            smoothed.insert(0, forward[t] * beta / jnp.sum(forward[t] * beta))
            beta = move @ (beta * jnp.exp(dist.Normal(MEANS * 1.1, 0.8).log_prob(YS[t])))
        return jnp.stack(smoothed), START * beta / (START @ beta)

    (shares, first, log_normalizer), (smoothed, smoothed_first) = got(KEY), exact()
    # one filter of 20000 particles: an error of 0.04 would be many standard errors, also where few ancestors are left
    np.testing.assert_allclose(shares, smoothed, atol=0.04)
    np.testing.assert_allclose(log_normalizer, np.log(evidence(1.1)), atol=0.03)
    np.testing.assert_allclose(first, smoothed_first, atol=0.04)


def test_gradients_pass_the_ancestors():
    """∇ E[Ẑ] = ∇ Z with the score of the choice; dropped, it is not. A drift that only the data pull back."""
    ys = jnp.array([1.5, 1.5])

    @vipl.gen
    def drift(phi):
        def step(x, _):
            x = sample("x", dist.Normal(phi * x, 1.0), vipl.Reparam())
            sample("y", dist.Normal(x, 0.5))
            return x, None

        lax.scan(step, 1.0, None, length=2)

    def exact(phi):
        mean = jnp.stack([phi, phi**2])
        cov = jnp.array([[1.25, 0.0], [0.0, 1.25]]) + jnp.stack([jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0])]) * phi
        return jnp.exp(dist.MultivariateNormal(mean, cov.at[1, 1].add(phi**2)).log_prob(ys))

    def draw(resampling):
        algorithm = SMC(2, resampling=resampling)
        objective = vipl.expectation(lambda phi: jnp.exp(algorithm.particles(drift(phi), {"y": ys}).log_normalizer))
        return lambda key: objective.value_and_grad(key, 0.8)

    value, slope = jax.jit(jax.value_and_grad(exact))(0.8)
    resolution = (0.1 * value, 0.1 * abs(slope))
    assert_unbiased(draw(Multinomial()), (value, slope), key=KEY, resolution=resolution)
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(draw(MultinomialDropped()), (value, slope), key=KEY, resolution=resolution)


def test_a_gaussian_chain_and_a_reversed_one():
    """Normal steps against the joint normal density, also with steps in reverse, with a plate in each step."""

    @vipl.gen
    def walk(scale, reverse):
        def step(x, _):
            x = sample("x", dist.Normal(0.9 * x, scale))
            jax.vmap(lambda _: sample("y", dist.Normal(x, 0.5)))(jnp.arange(2))
            return x, None

        lax.scan(step, 0.0, None, length=3, reverse=reverse)

    a = np.array([[1.0, 0, 0], [0.9, 1.0, 0], [0.81, 0.9, 1.0]])
    cov = np.kron(a @ a.T * 0.49, np.ones((2, 2))) + 0.25 * np.eye(6)
    ys = np.array([[0.2, -0.1], [0.5, 0.9], [-0.4, 0.1]])
    law: Any = scipy.stats.multivariate_normal
    exact = law(np.zeros(6), cov).pdf(ys.reshape(-1))
    prior = np.linalg.inv(a @ a.T * 0.49)
    mean = np.linalg.solve(prior + 8.0 * np.eye(3), 4.0 * ys.sum(1))
    for reverse in (False, True):
        data = ys[::-1] if reverse else ys
        source = marginal(walk(0.7, reverse), "y", SMC(10))
        draw = lambda key: jnp.exp(source.assess({"y": data}, key=key).log_prob) / exact  # noqa: B023, E731
        assert_unbiased(draw, 1.0, key=KEY, resolution=0.1)
        filtered = normalize(walk(0.7, reverse), {"y": data}, SMC(20_000))
        got = jax.jit(lambda key: filtered.particles(key).mean(lambda c: c["x"]))(KEY)  # noqa: B023
        np.testing.assert_allclose(got[::-1] if reverse else got, mean, atol=0.03)


@pytest.mark.oldest
def test_smc_inside_sample_and_vmap():
    """Two independent series, each with its own estimated density."""

    @vipl.gen
    def both():
        return jax.vmap(lambda _: sample("s", marginal(chain(1.1), "y", SMC(3))))(jnp.arange(2))

    data = {"s": {"y": jnp.stack([YS, YS])}}
    assert both().simulate(KEY).retval.shape == (2, 5)
    exact = evidence(1.1) ** 2
    draw = lambda key: jnp.exp(both().assess(data, key=key).log_prob) / exact  # noqa: E731
    assert_unbiased(draw, 1.0, key=KEY, resolution=0.1)


@vipl.gen
def known_start(phi, reverse=False):
    """The chain from a known state, with a counter beside the state."""
    logits = jnp.log(MOVE) * phi

    def step(carry, shift):
        t, z = carry
        z = sample("z", dist.Categorical(logits=logits[z]))
        sample("y", dist.Normal(MEANS[z] * phi + 0.1 * t + shift, 0.8))
        vipl.factor("pull", -0.1 * z)
        return (t + 1, z), None

    lax.scan(step, (0, 1), 0.05 * jnp.arange(5), reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_forward_backward_is_enumeration(reverse):
    """Value, gradient, posterior paths; S^T values against T S²."""

    def bound(algorithm):
        return lambda phi: marginal(known_start(phi, reverse), "y", algorithm).assess({"y": YS}).log_prob

    got, exact = (jax.jit(jax.value_and_grad(bound(a)))(1.1) for a in (ForwardBackward(), Enumeration()))
    np.testing.assert_allclose(got, exact, rtol=1e-10)
    posterior = normalize(known_start(1.1, reverse), {"y": YS}, ForwardBackward())

    def pairs(z):
        powers = jnp.stack([1.0 * z, 1.0 * z**2])
        return jnp.einsum("at,bt->tab", powers[:, :-1], powers[:, 1:])

    def draw(key):
        trace = posterior.simulate(key)
        joint = known_start(1.1, reverse).assess(trace.choices | {"y": YS}).log_prob
        return pairs(trace.choices["z"]), trace.log_prob - joint

    @jax.jit
    def enumerated(key):
        every = normalize(known_start(1.1, reverse), {"y": YS}, Enumeration()).particles(key)
        return jnp.einsum("p,ptij->tij", jnp.exp(every.log_probs), jax.vmap(pairs)(every.choices["z"]))

    assert_unbiased(draw, (enumerated(KEY), -exact[0]), key=KEY, resolution=(0.1, 1e-6))


@vipl.gen
def tracked(phi, seen, reverse=False):
    """A state of two numbers, with a counter beside it; some of the data are missing."""
    move = jnp.array([[0.9, 0.2], [-0.1, 0.8]])

    def step(carry, seen):
        t, x = carry
        x = sample("x", dist.MultivariateNormal(move @ x + 0.1 * t, phi * jnp.eye(2) + 0.1))
        jax.vmap(lambda _: sample("y", dist.Normal(x[0] - phi * x[1], 0.5).mask(seen)))(jnp.arange(2))
        return (t + 1, x), None

    lax.scan(step, (0, jnp.array([0.3, -0.2])), seen, reverse=reverse)


def joint_normal(phi, seen):
    """Mean and covariance of the states (8 numbers), the matrix of the data that are seen."""
    move = jnp.array([[0.9, 0.2], [-0.1, 0.8]])
    mean, x, powers = [], jnp.array([0.3, -0.2]), [jnp.eye(2)]
    for t in range(4):
        x = move @ x + 0.1 * t
        mean.append(x)
        powers.append(move @ powers[-1])
    lower = jnp.block([[powers[i - j] if i >= j else jnp.zeros((2, 2)) for j in range(4)] for i in range(4)])
    cov = lower @ jnp.kron(jnp.eye(4), phi * jnp.eye(2) + 0.1) @ lower.T
    rows = jnp.repeat(jnp.kron(jnp.eye(4), jnp.stack([1.0 + 0 * phi, -phi])), 2, axis=0)
    return jnp.concatenate(mean), cov, rows[np.repeat(seen, 2)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.oldest
def test_kalman_is_the_joint_normal(reverse):
    """Value, gradient, Hessian, posterior paths."""
    seen = np.array([True, True, False, True])
    ys = np.array([[0.2, 0.4], [-0.7, -0.1], [9.0, 9.0], [1.1, 0.8]])
    order = slice(None, None, -1 if reverse else 1)
    data = {"y": ys[order]}
    model = lambda phi: tracked(phi, jnp.array(seen)[order], reverse)  # noqa: E731

    def got(phi):
        return marginal(model(phi), "y", Kalman()).assess(data).log_prob

    def exact(phi):
        mean, cov, rows = joint_normal(phi, seen)
        y = ys[seen].reshape(-1)
        return dist.MultivariateNormal(rows @ mean, rows @ cov @ rows.T + 0.25 * jnp.eye(y.size)).log_prob(y)

    def derivatives(f):
        return jax.jit(lambda phi: (f(phi), jax.grad(f)(phi), jax.hessian(f)(phi)))(0.7)

    known = derivatives(exact)
    np.testing.assert_allclose(derivatives(got), known, rtol=1e-9)

    mean, cov, rows = map(np.asarray, jax.jit(lambda phi: joint_normal(phi, seen))(0.7))
    residual = ys[seen].reshape(-1) - rows @ mean
    gain = cov @ rows.T @ np.linalg.inv(rows @ cov @ rows.T + 0.25 * np.eye(residual.size))
    mean, cov = mean + gain @ residual, cov - gain @ rows @ cov
    posterior = normalize(model(0.7), data, Kalman())

    def draw(key):
        trace = posterior.simulate(key)
        x = trace.choices["x"][order].reshape(-1)
        return x, jnp.outer(x, x), trace.log_prob - model(0.7).assess(trace.choices | data).log_prob

    expected = mean, np.outer(mean, mean) + cov, -known[0]
    assert_unbiased(draw, expected, key=KEY, resolution=(0.1, 0.1, 1e-6))


@pytest.mark.parametrize(
    "density",
    [lambda z: z**4, lambda z: (z * z) * (z * z), lambda z: jnp.square(z) * z, lambda z: jnp.square(z**2), jnp.cos],
)
def test_kalman_refuses_a_density_that_is_not_quadratic(density):
    """Its second derivative at one point says nothing of that."""

    @vipl.gen
    def walk(density):
        def step(z, _):
            z = sample("z", dist.Normal(0.9 * z, 1.0))
            vipl.factor("f", -0.1 * density(z))
            return z, None

        lax.scan(step, 0.3, None, length=2)

    with pytest.raises(vipl.errors.ProgramError, match="not linear and Gaussian"):
        Kalman().log_evidence(walk(density), {})
    assert jnp.isfinite(Kalman().log_evidence(walk(jnp.square), {}))


def test_a_chain_without_a_finite_integral_raises():
    @vipl.gen
    def growing():
        def step(x, _):
            x = sample("x", dist.Normal(x, 1.0))
            vipl.factor("up", x**2)
            return x, None

        lax.scan(step, 0.0, None, length=3)

    with pytest.raises(Exception, match="no finite integral(.|\n)*fix: "):
        jax.block_until_ready(vipl.seed(lambda: Kalman().log_evidence(growing(), {}))(KEY))
