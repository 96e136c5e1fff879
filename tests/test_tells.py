"""What a program tells: records, random keys, tables of sites, weights of densities, log densities by site."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipl
from vipl import DisARM, Enumerate, LocalEnumerate, MeasureValued, Reparam, Score, deterministic, random_key, sample
from vipl.inference import SMC, Importance
from vipl.testing import assert_unbiased

KEY = jax.random.key(5)


def assert_equal(a, b):
    """Equal structure, shapes, and numbers."""
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)


# --- records ------------------------------------------------------------------------------------------------------


@vipl.gen
def layer(m):
    z = sample("z", dist.Normal(m, 1.0))
    return deterministic("square", z**2)


@vipl.gen
def recorded(on):
    """A record in every kind of control flow; without them where `on` is False."""
    note = deterministic if on else lambda _, value: value
    b = note("twice", sample("b", dist.Bernoulli(0.4)) * 2)
    lax.cond(b == 2, lambda: note("branch", 3.0 * b), lambda: note("branch", -1.0))

    def step(c, x):
        c = note(("walk", "at"), sample("x", dist.Normal(c + x, 1.0)))
        return c, jax.vmap(lambda i: note(("walk", "lanes"), i + c), axis_size=2)(jnp.arange(2.0))

    c, _ = jax.checkpoint(lambda: lax.scan(step, 0.0, jnp.arange(3.0)))()
    sample("layer", layer(c) if on else vipl.gen(lambda: sample("z", dist.Normal(c, 1.0)) ** 2)())
    return note("last", c)


def expected_records(choices):
    b, x, z = choices["b"], choices["x"], choices["layer"]["z"]
    return {
        "twice": 2 * b,
        "branch": jnp.where(b == 1, 6.0, -1.0),
        "walk": {"at": x, "lanes": x[:, None] + jnp.arange(2.0)},
        "layer": {"square": z**2},
        "last": x[-1],
    }


def test_records_are_in_the_trace_of_each_verb_with_the_axes_of_loops():
    for seed in range(4):  # both branches
        key = jax.random.key(seed)
        trace = recorded(True).simulate(key)
        assert_equal(trace.deterministics, expected_records(trace.choices))
        assert "twice" not in trace.choices
        assert_equal(recorded(True).assess(trace.choices).deterministics, trace.deterministics)
        generated, _ = recorded(True).generate({"b": 1, "layer": {"z": 2.0}}, key=key)
        assert_equal(generated.deterministics, expected_records(generated.choices))
        assert_equal(jax.jit(recorded(True).simulate)(key).deterministics, trace.deterministics)


def test_a_program_without_its_records_is_the_same():
    with_records, without = recorded(True).simulate(KEY), recorded(False).simulate(KEY)
    assert_equal(with_records.choices, without.choices)
    assert_equal((with_records.log_prob, with_records.retval), (without.log_prob, without.retval))
    assert without.deterministics == {}
    several = jax.vmap(recorded(True).simulate)(jax.random.split(KEY, 3))
    assert several.deterministics["walk"]["lanes"].shape == (3, 3, 2)


@pytest.mark.parametrize("estimator", [Enumerate(), MeasureValued(), Score(), None])
def test_an_objective_with_records_has_the_value_and_gradient_of_the_one_without(estimator):
    def objective(note, theta):
        def flip(i):
            return note("flip", 1.0 * sample("b", dist.Bernoulli(logits=theta + i), estimator))

        flips = jax.vmap(flip)(jnp.arange(3.0))
        c, _ = lax.scan(lambda c, f: (note("c", c + f), None), note("start", 0.0), flips)
        q = layer(theta).simulate()
        assert_equal(q.deterministics["square"].shape, ())
        return note("all", c**2) + q.retval

    plain, noted = (vipl.expectation(functools.partial(objective, n)) for n in (lambda _, x: x, deterministic))
    assert_equal(plain.value_and_grad(KEY, 0.3), noted.value_and_grad(KEY, 0.3))
    assert_equal(vipl.seed(functools.partial(objective, deterministic))(KEY, 0.3), vipl.seed(plain.fn)(KEY, 0.3))


def test_a_derivative_passes_a_recorded_value():
    objective = vipl.expectation(lambda m: layer(m).simulate().deterministics["square"])
    assert_unbiased(lambda key: objective.value_and_grad(key, 0.7)[1], 1.4, key=KEY, resolution=0.05)
    twin = vipl.expectation(lambda m: lax.stop_gradient(layer(m).simulate().deterministics["square"]))
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(lambda key: twin.value_and_grad(key, 0.7)[1], 1.4, key=KEY, resolution=0.05)


def test_estimated_densities_of_a_program_with_records():
    kept = vipl.marginal(recorded(True), "b")
    trace = kept.simulate(KEY)
    assert trace.deterministics == {}
    np.testing.assert_allclose(kept.assess({"b": 1}, key=KEY).log_prob, jnp.log(0.4), rtol=1e-6)
    posterior = vipl.normalize(recorded(True), {"layer": {"z": 0.3}}, Importance(5))
    outer = vipl.gen(lambda: deterministic("around", sample("post", posterior)["x"].sum()))
    trace = outer().simulate(KEY)
    assert_equal(trace.deterministics["around"], trace.choices["post"]["x"].sum())


def test_a_filter_takes_a_program_with_records():
    @vipl.gen
    def series(on):
        note = deterministic if on else lambda _, value: value

        def step(c, _):
            c = note("level", sample("x", dist.Normal(c, 1.0)))
            sample("y", dist.Normal(c, 1.0))
            return c, None

        return note("end", lax.scan(step, note("start", 0.0), None, length=3)[0])

    data = {"y": jnp.array([0.1, -0.4, 0.8])}
    with_records, without = (vipl.normalize(series(on), data, SMC(4)).particles(KEY) for on in (True, False))
    assert_equal(with_records.log_normalizer, without.log_normalizer)


# --- random keys --------------------------------------------------------------------------------------------------


def uniform(address="noise"):
    return jax.random.uniform(random_key(address))


FLIPS = [Enumerate(), MeasureValued(), LocalEnumerate(), DisARM(), Score(), Score(0.3)]


@pytest.mark.parametrize("estimator", FLIPS)
def test_the_noise_of_a_random_key_is_integrated_under_every_estimator(estimator):
    objective = vipl.expectation(lambda theta: sample("b", dist.Bernoulli(logits=theta), estimator) * uniform() ** 2)
    p = jax.nn.sigmoid(0.4)
    assert_unbiased(lambda key: objective.estimate(key, 0.4), p / 3, key=KEY, resolution=0.02)
    slope = p * (1 - p) / 3
    assert_unbiased(lambda key: objective.value_and_grad(key, 0.4)[1], slope, key=KEY, resolution=0.02)
    tilted = vipl.expectation(lambda theta: sample("b", dist.Bernoulli(logits=theta), estimator) * uniform() ** 2.2)
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(lambda key: tilted.estimate(key, 0.4), p / 3, key=KEY, resolution=0.02)


@pytest.mark.parametrize("estimator", [Enumerate(), MeasureValued(), LocalEnumerate()])
def test_the_runs_of_one_sample_at_other_values_see_the_same_key(estimator):
    """The derivative in p is f(1, u) - f(0, u) at one u, without noise given that."""
    u = vipl.expectation(uniform).estimate(KEY)
    objective = vipl.expectation(lambda p: (sample("b", dist.Bernoulli(p), estimator) - uniform()) ** 2)
    slope = objective.value_and_grad(KEY, 0.3)[1]
    np.testing.assert_allclose(slope, (1 - u) ** 2 - u**2, rtol=1e-6)
    if isinstance(estimator, Enumerate):
        np.testing.assert_allclose(objective.estimate(KEY, 0.3), 0.3 * (1 - u) ** 2 + 0.7 * u**2, rtol=1e-6)


@vipl.gen
def noisy():
    """Keys in every kind of control flow."""
    first = uniform()
    steps = lax.scan(lambda c, _: (c, jax.vmap(lambda: uniform("inner"), axis_size=2)()), 0.0, None, length=3)[1]
    branch = lax.cond(first < 0.5, lambda: uniform("branch"), lambda: uniform("branch"))
    nested = sample("nested", vipl.gen(lambda: uniform())())
    sample("y", dist.Normal(first, 1.0))
    return {"first": first, "steps": steps, "branch": branch, "nested": nested}


def test_each_lane_step_and_address_has_its_own_key_and_each_verb_the_same():
    trace = noisy().simulate(KEY)
    assert list(trace.choices) == ["y"] and trace.deterministics == {}
    drawn = np.concatenate([np.ravel(x) for x in jax.tree.leaves(trace.retval)])
    assert drawn.size == len(np.unique(drawn)) == 9
    np.testing.assert_allclose(trace.log_prob, dist.Normal(trace.retval["first"], 1.0).log_prob(trace.choices["y"]))
    again = noisy().assess(trace.choices, key=KEY)
    assert_equal((again.retval, again.log_prob), (trace.retval, trace.log_prob))
    generated, log_w = noisy().generate({"y": 0.3}, key=KEY)
    assert_equal(generated.retval, trace.retval)
    assert_equal(log_w, generated.log_prob)
    assert_equal(vipl.seed(lambda: noisy().simulate().retval)(KEY), trace.retval)


def test_a_loop_that_is_written_out_has_the_keys_of_the_loop():
    def total(unroll):
        def step(c, _):
            return c + sample("b", dist.Bernoulli(0.5), MeasureValued()) * uniform(), None

        return vipl.expectation(lambda _: lax.scan(step, 0.0, None, length=4, unroll=unroll)[0])

    assert_equal(total(1).estimate(KEY, 0.0), total(True).estimate(KEY, 0.0))


def test_each_sample_of_an_estimate_has_its_own_key():
    objective = vipl.expectation(lambda _: (uniform(), uniform("noise")), has_aux=True)
    _, drawn = objective.estimate(KEY, 0.0, num_samples=50)
    assert len(np.unique(drawn)) == 50


def test_a_random_key_leaves_the_draws_of_sites_alone():
    def program(on):
        if on:
            random_key("noise")
        return sample("x", dist.Normal(0.0, 1.0))

    assert_equal(vipl.seed(program)(KEY, True), vipl.seed(program)(KEY, False))


def test_densities_given_a_random_key_are_honest_estimates():
    """With u integrated out: y ~ Bernoulli(1/2). Assess is unbiased for p(y), simulate for its inverse."""

    @vipl.gen
    def model():
        sample("y", dist.Bernoulli(0.25 + uniform() / 2))

    assert not model().is_exact()
    assess = lambda key: jnp.exp(model().assess({"y": 1}, key=key).log_prob)  # noqa: E731
    assert_unbiased(assess, 0.5, key=KEY, resolution=0.02)

    def inverse(key):
        trace = model().simulate(key)
        return jnp.where(trace.choices["y"] == 1, jnp.exp(-trace.log_prob), 2.0)

    assert_unbiased(inverse, 2.0, key=KEY, resolution=0.05)
    outer = vipl.gen(lambda: sample("m", vipl.marginal(model(), "y")))
    assert_unbiased(lambda key: jnp.exp(outer().assess({"m": {"y": 1}}, key=key).log_prob), 0.5, key=KEY, resolution=0.02)
