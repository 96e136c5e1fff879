"""Steps of a loop are told apart: a cost of step t is weighed with the sites of steps up to t alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipl
from vipl import sample
from vipl.expectation import run
from vipl.testing import assert_unbiased

T = 6
KEY = jax.random.key(11)
TIMES = jnp.linspace(0.0, 2.0, T)
PHI, W = jnp.linspace(-0.5, 0.8, T), jnp.linspace(1.0, 2.0, T)
ESTIMATORS = {"score": (vipl.Score(), 1), "leave-one-out": (vipl.Score(vipl.LeaveOneOut()), 3)}
STEP, COST = np.arange(T)[:, None], np.arange(T)


def flip(logits, estimator):
    return sample("x", dist.Bernoulli(logits=logits), estimator)


# Programs of logits f[T], one for each step's flip, and of weights f[T], one for each step's cost; and which flips
# reach which costs: bool[T, T].


def returns(phi, w, estimator, **options):
    """Each flip's law depends on the state before."""

    def step(c, at):
        phi, w = at
        x = flip(phi + c, estimator)
        return 0.5 * c + x, w * jnp.sin(c + 2.0 * x)

    return jnp.sum(lax.scan(step, 0.0, (phi, w), **options)[1])


def backwards(phi, w, estimator, **options):
    return returns(phi, w, estimator, reverse=True, **options)


def discounted(phi, w, estimator, **options):
    """A linear end that is no sum."""

    def step(c, at):
        phi, w = at
        x = flip(phi, estimator)
        return c + x, w * jnp.cos(c * x + x)

    return lax.scan(step, 0.0, (phi, w), **options)[1] @ (0.9 ** jnp.arange(T))


def of_those_before(phi, w, estimator, **options):
    """The cost of a step is one of the state before."""

    def step(c, at):
        phi, w = at
        x = flip(phi, estimator)
        return 0.5 * c + x, w * jnp.sin(c)

    return jnp.sum(lax.scan(step, 0.0, (phi, w), **options)[1])


def of_neighbours(phi, w, estimator, **options):
    """Flips are apart; each cost reads its own and the one before."""
    x = lax.scan(lambda _, phi: (None, flip(phi, estimator)), None, phi, **options)[1]
    return jnp.sum(w * jnp.sin(x - 2.0 * jnp.pad(x, (1, 0))[:-1]))


def by_another_loop(phi, w, estimator, **options):
    """What one loop draws, another weighs, from the end."""

    def weigh(c, at):
        x, w = at
        return 0.5 * c + x, w * jnp.sin(c + x)

    x = lax.scan(lambda _, phi: (None, flip(phi, estimator)), None, phi, **options)[1]
    return jnp.sum(lax.scan(weigh, 0.0, (x, w), reverse=True, **options)[1])


def added_up(phi, w, estimator, **options):
    """The total of the costs is carried."""

    def step(carry, at):
        (phi, w), (c, total) = at, carry
        x = flip(phi + c, estimator)
        return (0.5 * c + x, total - w * jnp.sin(c + x)), None

    return 3.0 - lax.scan(step, (0.0, 1.0), (phi, w), **options)[0][1]


def nested(phi, w, estimator, **options):
    """Two steps of three each; the outer loop hands on what the inner one ends with."""

    def inner(c, at):
        phi, w = at
        x = flip(phi + c, estimator)
        return 0.5 * c + x, w * jnp.cos(c + x)

    def outer(c, at):
        c, costs = lax.scan(inner, c, at, **options)
        return c, jnp.sum(costs)

    return jnp.sum(lax.scan(outer, 0.0, (phi.reshape(2, 3), w.reshape(2, 3)), **options)[1])


def in_lanes(phi, w, estimator, **options):
    """Two lanes of three steps."""
    lanes = jax.vmap(lambda phi, w: returns(phi, w, estimator, **options))
    return jnp.sum(lanes(phi.reshape(2, 3), w.reshape(2, 3)))


def of_lanes(phi, w, estimator, **options):
    """Two steps of three lanes, which meet in the carry: those of one step are not told apart then."""

    def step(c, at):
        phi, w = at
        x = jax.vmap(lambda phi: flip(phi + c, estimator))(phi)
        return jnp.sum(x) + 0.0, w * jnp.cos(c + x)

    return jnp.sum(lax.scan(step, 0.0, (phi.reshape(2, 3), w.reshape(2, 3)), **options)[1])


REACH = {
    returns: STEP <= COST,
    backwards: STEP >= COST,
    discounted: STEP <= COST,
    of_those_before: STEP < COST,
    of_neighbours: (STEP <= COST) & (STEP >= COST - 1),
    by_another_loop: STEP >= COST,
    added_up: STEP <= COST,
    nested: STEP // 3 <= COST // 3,
    in_lanes: (STEP <= COST) & (STEP // 3 == COST // 3),
    of_lanes: STEP // 3 <= COST // 3,
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("program", REACH)
def test_a_flip_is_weighed_with_the_costs_that_it_reaches(program, name):
    """What another weight of cost t changes in the gradient, for all t and all flips' logits, in five runs."""
    estimator, num_samples = ESTIMATORS[name]
    objective = vipl.expectation(lambda phi, w: program(phi, w, estimator))

    def gradient(key, w):
        return jax.grad(lambda phi: objective.estimate(key, phi, w, num_samples=num_samples))(PHI)

    keys = jax.random.split(KEY, 5)
    by_cost = jax.jit(jax.vmap(jax.jacobian(gradient, argnums=1), in_axes=(0, None)))(keys, W)  # the same in all w
    np.testing.assert_array_equal(np.any(np.abs(by_cost) > 1e-9, axis=0), REACH[program] & _counts(program))


def _counts(program):
    """Whether a cost has more than one value: that of the first state is a constant."""
    return COST[None] > 0 if program is of_those_before else np.ones((T, T), bool)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("program", [returns, backwards, of_those_before, of_neighbours, nested, of_lanes])
def test_gradients_are_those_of_all_values(program, name, monkeypatch):
    estimator, num_samples = ESTIMATORS[name]
    exact = jax.grad(vipl.expectation(lambda phi: program(phi, W, vipl.Enumerate())).estimate, argnums=1)(KEY, PHI)

    options = {"key": KEY, "resolution": 0.1, "num": 100_000}

    def gradient(program):
        objective = vipl.expectation(program)
        return lambda key: jax.grad(lambda phi: objective.estimate(key, phi, num_samples=num_samples))(PHI)

    assert_unbiased(gradient(lambda phi: program(phi, W, estimator)), exact, **options)
    monkeypatch.setattr(run, "summed_over", _short_by_one)
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(gradient(lambda theta: program(theta, W, estimator)), exact, **options)


def _short_by_one(x, axis, window, size, summed_over=run.summed_over):
    """A window without the step of its inner end."""
    first, last = window.first, window.last
    narrower = window._replace(last=last - 1) if last is not None else window._replace(first=first + 1)
    return summed_over(x, axis, narrower, size)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("program", [returns, backwards, discounted, of_those_before])
def test_a_loop_has_the_gradient_of_the_same_loop_written_out(program, name):
    """Written out, each step's site is a site of its own, and reaches what its values reach."""
    estimator, num_samples = ESTIMATORS[name]

    def gradient(**options):
        objective = vipl.expectation(lambda phi: program(phi, W, estimator, **options))
        return jax.jit(jax.grad(lambda phi: objective.estimate(KEY, phi, num_samples=num_samples)))(PHI)

    np.testing.assert_allclose(gradient(), gradient(unroll=True), rtol=1e-9, atol=1e-12)


def test_a_bound_of_chains_is_weighed_with_the_reward_to_go():
    """By hand: each state's score, times the terms of both densities from it on. The model reads the state before."""
    phi = jnp.array([0.3, -0.4])

    @vipl.gen
    def guide(phi):
        def step(z, t):
            z = sample("z", dist.Normal(0.5 * z + phi[0] * t, jnp.exp(phi[1])), vipl.Score())
            return z, None

        lax.scan(step, 0.0, TIMES)

    @vipl.gen
    def model():
        def step(z, t):
            z = sample("z", dist.Normal(0.9 * z, 1.0))
            sample("y", dist.Normal(jnp.sin(z), 0.5))
            return z, None

        lax.scan(step, 0.0, TIMES)

    objective = vipl.expectation(lambda phi: vipl.objectives.elbo(model(), guide(phi), {"y": TIMES}))
    grad = jax.grad(objective.estimate, argnums=1)(KEY, phi)
    z = vipl.seed(lambda: guide(phi).simulate().choices["z"])(KEY)
    before = jnp.concatenate([jnp.zeros(1), z[:-1]])

    def log_q(phi):
        return dist.Normal(0.5 * before + phi[0] * TIMES, jnp.exp(phi[1])).log_prob(z)

    terms = dist.Normal(0.9 * before, 1.0).log_prob(z) + dist.Normal(jnp.sin(z), 0.5).log_prob(TIMES) - log_q(phi)
    to_go = jnp.cumsum(terms[::-1])[::-1]
    np.testing.assert_allclose(grad, (to_go - 1.0) @ jax.jacobian(log_q)(phi), rtol=1e-9)


def test_states_that_are_drawn_apart_are_weighed_with_their_neighbours():
    """A mean-field guide of a chain: the state of step t is in the terms of t and t + 1 alone."""
    phi = jnp.linspace(-0.5, 0.8, T)

    @vipl.gen
    def guide(phi):
        sample("z", dist.Bernoulli(logits=phi).to_event(1), vipl.Score())

    @vipl.gen
    def model():
        def step(before, y):
            z = sample("z", dist.Bernoulli(probs=0.2 + 0.6 * before))
            sample("y", dist.Normal(z, 0.5))
            return z, None

        lax.scan(step, jnp.zeros((), int), TIMES)

    def gradient(y):
        objective = vipl.expectation(lambda phi: vipl.objectives.elbo(model(), guide(phi), {"y": y}))
        return jax.grad(objective.estimate, argnums=1)(KEY, phi)

    near, far = gradient(TIMES), gradient(TIMES.at[3].set(9.0))
    np.testing.assert_allclose(np.delete(near, 3), np.delete(far, 3), rtol=1e-9)
    assert abs(near[3] - far[3]) > 1.0


@pytest.mark.parametrize("estimator", [vipl.Enumerate(), vipl.LocalEnumerate(), vipl.MeasureValued()])
def test_steps_that_are_apart_take_their_values_at_once(estimator):
    """2^40 joint values are none too many, where each step's flip has a cost of its own; and all is exact."""
    phi, w = jnp.linspace(-1.0, 1.0, 40), jnp.linspace(1.0, 2.0, 40)

    def program(phi):
        def step(total, at):
            phi, w = at
            x = flip(phi, estimator)
            return total + w * jnp.sin(x + phi), None

        return lax.scan(step, 0.0, (phi, w))[0]

    objective = vipl.expectation(program)
    p = jax.nn.sigmoid(phi)
    direct = p * w * jnp.cos(1 + phi) + (1 - p) * w * jnp.cos(phi)
    grad = jax.grad(objective.estimate, argnums=1)(KEY, phi)
    exact = p * (1 - p) * w * (jnp.sin(1 + phi) - jnp.sin(phi)) + direct
    if isinstance(estimator, vipl.Enumerate):
        np.testing.assert_allclose(grad, exact, rtol=1e-9)
        return
    x = vipl.seed(lambda: lax.scan(lambda _, phi: (None, flip(phi, estimator)), None, phi)[1])(KEY)
    np.testing.assert_allclose(grad, exact - direct + w * jnp.cos(x + phi), rtol=1e-9)


def test_an_array_that_is_added_up_in_the_carry_is_not_stacked():
    """A thousand numbers for each of a thousand steps would be held."""

    def program(phi):
        def step(carry, _):
            x, total = carry
            x = jnp.cos(x) + flip(phi, vipl.Score())
            return (x, total + x), None

        return jnp.sum(lax.scan(step, (jnp.zeros(1000), jnp.zeros(1000)), None, 1000)[0][1])

    objective = vipl.expectation(program)
    compiled = jax.jit(objective.estimate).lower(KEY, 0.1).compile()
    memory: Any = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 100 * 1000 * 8


def test_the_program_does_not_grow_with_the_steps():
    def equations(length):
        def program(phi):
            def step(x, t):
                x = sample("x", dist.Normal(0.8 * x + phi, 1.0), vipl.Score())
                return x, (x - t) ** 2

            return jnp.sum(lax.scan(step, 0.0, jnp.linspace(0.0, 1.0, length))[1])

        gradient = jax.grad(vipl.expectation(program).estimate, argnums=1)
        return len(jax.make_jaxpr(gradient)(KEY, 0.2).jaxpr.eqns)

    assert equations(300) == equations(3)
