"""What a program tells: records, random keys, tables of sites, weights of densities, log densities by site."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipl
from vipl import DisARM, Enumerate, LocalEnumerate, MeasureValued, Score, deterministic, random_key, sample, scaled
from vipl.estimators import Draw, Estimator
from vipl.gen._choices import flatten
from vipl.inference import SMC, Enumeration, Importance
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
    def both(m):
        trace = layer(m).simulate()
        return (trace.deterministics["square"] + trace.retval) / 2.0

    objective = vipl.expectation(both)
    assert_unbiased(lambda key: objective.value_and_grad(key, 0.7)[1], 1.4, key=KEY, resolution=0.05)
    twin = vipl.expectation(lambda m: (both(m) + lax.stop_gradient(both(m))) / 2.0)
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
    assert (list(trace.choices), trace.deterministics) == (["y"], {})
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
    assert_unbiased(
        lambda key: jnp.exp(outer().assess({"m": {"y": 1}}, key=key).log_prob), 0.5, key=KEY, resolution=0.02
    )


# --- tables of sites ----------------------------------------------------------------------------------------------


def programs():
    """Programs in all control flow, and sources."""
    posterior = vipl.normalize(recorded(True), {"layer": {"z": 0.3}}, Importance(2))
    inner = vipl.gen(lambda: sample("post", vipl.marginal(recorded(True), ("b", "layer"))))
    return [recorded(True), parts(0.7), noisy(), posterior, inner(), vipl.detach(layer(0.5))]


@pytest.mark.parametrize("number", range(6))
def test_a_row_has_the_shape_and_dtype_of_what_simulate_gives(number):
    program = programs()[number]
    trace = program.simulate(KEY)
    flat = flatten(trace.choices, "") | flatten(trace.deterministics, "")
    rows = {r.address if isinstance(r.address, tuple) else (r.address,): r for r in vipl.sites(program)}
    assert set(flat) == {a for a, r in rows.items() if r.distribution not in ("factor", "random_key")}
    for address, value in flat.items():
        assert (rows[address].shape, rows[address].dtype) == (value.shape, value.dtype)
        assert rows[address].shape[: len(rows[address].loops)] == tuple(loop.size for loop in rows[address].loops)


def test_the_table_of_a_program():
    table = vipl.sites(parts(0.7), {"one": jnp.ones(2), "lanes": {"b": jnp.zeros(2)}})
    by_address = {row.address: row for row in table}
    assert [row.address for row in table if row.observed] == ["one", ("lanes", "b")]
    assert by_address["one"].scaled
    assert not by_address["z"].scaled
    assert by_address["lanes", "a"].loops == (("lane", 2),)
    assert by_address["steps"].loops == (("scan", 2),)
    assert by_address["one"].support == "reals from 0 to inf"
    row = vipl.sites(vipl.gen(lambda: sample("x", dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(1), Score()))())[0]
    assert (row.distribution, row.shape, row.event_shape, row.estimator) == ("Normal", (2, 3), (3,), "Score")
    assert len(table) == len(list(table)) == len(table[:2]) + len(table[2:])
    assert table == vipl.sites(parts(0.7), {"one": jnp.ones(2), "lanes": {"b": jnp.zeros(2)}})
    assert table != vipl.sites(parts(0.7))


def test_the_table_is_aligned_text_and_html():
    table = vipl.sites(layer(0.5), {"z": 0.1})
    assert str(table) == "\n".join(
        [
            "address  distribution   value      support    observed",
            "-------  -------------  ---------  ---------  --------",
            "z        Normal         float64[]  all reals  yes",
            "square   deterministic  float64[]",
        ]
    )
    html = vipl.sites(vipl.gen(lambda: sample("<x>", dist.Normal(0.0, 1.0)))())._repr_html_()
    assert "<td>&lt;x&gt;</td><td>Normal</td>" in html
    assert html.count("<tr>") == 2


# --- weights of densities -----------------------------------------------------------------------------------------


@vipl.gen
def parts(w):
    """Every kind of source with a weight."""
    z = sample("z", dist.Normal(0.0, 1.0))
    sample("one", scaled(dist.Gamma(2.0, jnp.ones(2)), w))
    lanes = jax.vmap(lambda v: sample("lanes", scaled(pair(z), v)))(jnp.array([0.5, 2.0]))
    lax.scan(lambda c, x: (c, sample("steps", scaled(scaled(dist.Normal(c + x, 1.0), 0.5), w))), z, jnp.arange(2.0))
    return lanes


@vipl.gen
def pair(z):
    a = sample("a", dist.Bernoulli(0.3))
    vipl.factor("f", 0.2 * a + jnp.array([0.1, 0.3]))
    deterministic("twice", 2 * a)
    return sample("b", scaled(dist.Normal(z, 1.0), 3.0)) + uniform()


def density_by_hand(w, x, lanes=(0.5, 2.0)):
    z, a, b = x["z"], x["lanes"]["a"], x["lanes"]["b"]
    each = dist.Bernoulli(0.3).log_prob(a) + 0.4 * a + 0.4 + 3.0 * dist.Normal(z, 1.0).log_prob(b)
    steps = dist.Normal(z + jnp.arange(2.0), 1.0).log_prob(x["steps"])
    one = dist.Gamma(2.0, 1.0).log_prob(x["one"])
    return dist.Normal(0.0, 1.0).log_prob(z) + w * one.sum() + jnp.dot(each, jnp.array(lanes)) + 0.5 * w * steps.sum()


def test_the_density_of_scaled_sources_is_that_by_hand():
    trace = parts(0.7).simulate(KEY)
    np.testing.assert_allclose(trace.log_prob, density_by_hand(0.7, trace.choices), rtol=1e-6)
    again = parts(0.7).assess(trace.choices, key=KEY)
    np.testing.assert_allclose(again.log_prob, trace.log_prob, rtol=1e-6)
    assert_equal(again.deterministics["lanes"]["twice"], 2 * trace.choices["lanes"]["a"])
    whole = scaled(parts(0.7), 1.5)
    np.testing.assert_allclose(whole.assess(trace.choices, key=KEY).log_prob, 1.5 * trace.log_prob, rtol=1e-6)
    slope = jax.grad(lambda w: parts(w).assess(trace.choices, key=KEY).log_prob)(0.7)
    np.testing.assert_allclose(slope, jax.grad(density_by_hand)(0.7, trace.choices), rtol=1e-6)
    impossible = scaled(parts(0.7), 0.5).assess(trace.choices | {"one": jnp.array([-1.0, 1.0])}, key=KEY)
    assert impossible.log_prob == -jnp.inf


def test_the_draws_of_a_scaled_source_are_those_of_the_source():
    plain, weighed = parts(1.0).simulate(KEY), scaled(parts(0.2), 3.0).simulate(KEY)
    assert_equal((plain.choices, plain.retval), (weighed.choices, weighed.retval))
    inner = vipl.gen(lambda: sample("n", parts(1.0)))(), vipl.gen(lambda: sample("n", scaled(parts(1.0), 3.0)))()
    assert_equal(inner[0].simulate(KEY).choices, inner[1].simulate(KEY).choices)


def test_generate_weighs_what_it_draws():
    """log_w is the density of all choices, less that of the law of what is drawn."""
    given = {"one": jnp.array([0.5, 1.0]), "lanes": {"b": jnp.zeros(2)}}
    trace, log_w = parts(0.7).generate(given, key=KEY)
    x = trace.choices
    law = dist.Normal(0.0, 1.0).log_prob(x["z"]) + dist.Bernoulli(0.3).log_prob(x["lanes"]["a"]).sum()
    law += dist.Normal(x["z"] + jnp.arange(2.0), 1.0).log_prob(x["steps"]).sum()
    np.testing.assert_allclose(log_w, density_by_hand(0.7, x) - law, rtol=1e-6)


@vipl.gen
def flips(w):
    def step(b, _):
        b = sample("b", scaled(dist.Bernoulli(0.3 + 0.4 * b), w))
        sample("y", scaled(dist.Normal(1.0 * b, 1.0), 0.5))
        return b, None

    lax.scan(step, sample("first", dist.Bernoulli(0.5)), None, length=2)


@vipl.gen
def proposal():
    sample("first", dist.Bernoulli(0.4))
    sample("b", dist.Bernoulli(0.5).expand([2]))


@pytest.mark.parametrize("algorithm", [Importance(3), SMC(3), Importance(2, proposal())])
def test_algorithms_are_unbiased_for_the_normalizer_of_scaled_densities(algorithm):
    data = {"y": jnp.array([0.4, -0.2])}
    exact = jnp.exp(vipl.normalize(flips(0.6), data, Enumeration()).particles(KEY).log_normalizer)
    estimate = lambda w, key: jnp.exp(vipl.normalize(flips(w), data, algorithm).particles(key).log_normalizer)  # noqa: E731
    assert_unbiased(functools.partial(estimate, 0.6), exact, key=KEY, resolution=0.02)
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(functools.partial(estimate, 1.0), exact, key=KEY, resolution=0.02)


class ScoreOfScaled(Estimator):
    """The broken twin: the score of a scaled density."""

    weight: float

    def points(self, law, key):
        point = law.standing(law.draw(key))
        return Draw(point.value, log_weight=self.weight * law.log_prob(point), point=point)


def elbo_of_scaled(estimator, theta, w):
    """E_q[v log p(b) - w log q(b)] with weights on model and guide."""

    def guide():
        sample("b", scaled(dist.Bernoulli(logits=theta), w), estimator)

    q = vipl.gen(guide)().simulate()
    return (
        vipl.scaled(vipl.gen(lambda: sample("b", dist.Bernoulli(0.8)))(), 2.5).assess(q.choices).log_prob - q.log_prob
    )


def exact_elbo_of_scaled(theta, w):
    q = jax.nn.sigmoid(theta)
    q = jnp.stack([q, 1 - q])
    return jnp.sum(q * (2.5 * jnp.log(jnp.array([0.8, 0.2])) - w * jnp.log(q)))


@pytest.mark.parametrize("estimator", FLIPS)
def test_objectives_of_scaled_sources_are_unbiased_under_every_estimator(estimator):
    exact = jax.grad(exact_elbo_of_scaled, argnums=(0, 1))(0.4, 0.6)
    objective = vipl.expectation(functools.partial(elbo_of_scaled, estimator))
    gradient = lambda key: jnp.stack(objective.value_and_grad(key, 0.4, 0.6, argnums=(1, 2))[1])  # noqa: E731
    assert_unbiased(gradient, jnp.stack(exact), key=KEY, resolution=0.05)
    value = lambda key: objective.estimate(key, 0.4, 0.6)  # noqa: E731
    assert_unbiased(value, exact_elbo_of_scaled(0.4, 0.6), key=KEY, resolution=0.05)


def test_the_score_of_a_scaled_density_would_be_seen():
    objective = vipl.expectation(functools.partial(elbo_of_scaled, ScoreOfScaled(0.6)))
    exact = jax.grad(exact_elbo_of_scaled)(0.4, 0.6)
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(lambda key: objective.value_and_grad(key, 0.4, 0.6)[1], exact, key=KEY, resolution=0.05)


@pytest.mark.parametrize("objective", [vipl.objectives.elbo, vipl.objectives.elbo_with_kl])
def test_a_pathwise_objective_of_scaled_sources(objective):
    """E_q[w log p(z) + log p(y | z) - log q(z)] with q = Normal(m, 1), p(z) = Normal(0, 1), p(y | z) = Normal(z, 1)."""
    model = vipl.gen(lambda w: sample("y", dist.Normal(sample("z", scaled(dist.Normal(0.0, 1.0), w)), 1.0)))
    guide = vipl.gen(lambda m: sample("z", dist.Normal(m, 1.0)))
    bound = vipl.expectation(lambda m, w: objective(model(w), guide(m), {"y": 0.3}))
    exact = jnp.array([-0.6 * 0.5 + 0.3 - 0.5, -0.5 * (0.5**2 + 1) - 0.5 * jnp.log(2 * jnp.pi)])
    gradient = lambda key: jnp.stack(bound.value_and_grad(key, 0.5, 0.6, argnums=(1, 2))[1])  # noqa: E731
    assert_unbiased(gradient, exact, key=KEY, resolution=0.05)


def test_estimators_of_scaled_sources_are_replaced_from_outside():
    def model(w):
        return vipl.gen(lambda: sample("b", scaled(dist.Bernoulli(0.3), w)))().with_estimators({"b": Enumerate()})

    bound = vipl.expectation(lambda w: model(w).simulate().log_prob)
    entropy = 0.3 * jnp.log(0.3) + 0.7 * jnp.log(0.7)
    np.testing.assert_allclose(bound.estimate(KEY, 2.0), 2 * entropy, rtol=1e-6)
    whole = scaled(model(1.0), 2.0).with_estimators({"b": Enumerate()})
    np.testing.assert_allclose(
        vipl.expectation(lambda: whole.simulate().log_prob).estimate(KEY), 2 * entropy, rtol=1e-6
    )


def test_an_estimated_density_is_scaled():
    inner = vipl.marginal(vipl.gen(lambda: sample("y", dist.Normal(sample("z", dist.Normal(0.0, 1.0)), 1.0)))(), "y")
    model = vipl.gen(lambda source: sample("m", source))
    for given in ({}, {"m": {"y": 0.5}}):
        (trace, log_w), (weighed, weighed_log_w) = (
            model(source).generate(given, key=KEY) for source in (inner, scaled(scaled(inner, 0.5), 3.0))
        )
        np.testing.assert_allclose(weighed.log_prob, 1.5 * trace.log_prob, rtol=1e-6)
        np.testing.assert_allclose(weighed_log_w, 1.5 * log_w if given else 0.5 * trace.log_prob, rtol=1e-6)
    top = scaled(inner, 2.0).assess({"y": 0.5}, key=KEY)
    assert top.log_prob.shape == ()


def test_held_sources_and_weights():
    def at(m, w):
        source = vipl.detach(scaled(dist.Normal(m, 1.0), w))
        return vipl.gen(lambda: sample("x", source))().assess({"x": 2.0}).log_prob

    np.testing.assert_allclose(at(0.5, 3.0), 3.0 * dist.Normal(0.5, 1.0).log_prob(2.0), rtol=1e-6)
    assert jax.grad(at, argnums=(0, 1))(0.5, 3.0) == (0.0, 0.0)
    held = vipl.detach(scaled(layer(0.5), 2.0))
    np.testing.assert_allclose(held.assess({"z": 0.1}).log_prob, 2 * layer(0.5).assess({"z": 0.1}).log_prob, rtol=1e-6)
    np.testing.assert_allclose(
        scaled(vipl.detach(layer(0.5)), 2.0).assess({"z": 0.1}).log_prob, held.assess({"z": 0.1}).log_prob, rtol=1e-6
    )


# --- log densities by site ----------------------------------------------------------------------------------------


def total(log_probs):
    return sum(jnp.sum(x) for x in jax.tree.leaves(log_probs))


@vipl.gen
def estimated():
    """A composite of several values, one of one value, and a site beside them."""
    sample("post", vipl.normalize(recorded(True), {"layer": {"z": 0.3}}, Importance(2)))
    sample("m", vipl.marginal(recorded(True), "b"))
    sample("x", dist.Normal(0.0, 1.0))


def told():
    return [*programs(), estimated(), scaled(estimated(), 1.5), flips(0.6), rounded()]


@vipl.gen
def rounded():
    """Sites that know more than their rounded values, in batches and events; and branches with other axes."""
    a = sample("a", dist.Beta(jnp.full(3, 2.0), 0.1).to_event(1))
    sample("g", dist.Gamma(jnp.full((2, 3), 0.05), 1.0).to_event(1), Score())
    sample("d", scaled(dist.Dirichlet(jnp.full((2, 3), 0.1)), 0.5))
    lax.cond(
        a[0] < 0.5,
        lambda: sample("c", dist.Normal(jnp.zeros(2), 1.0)),
        lambda: sample("c", dist.Normal(jnp.zeros(2), 2.0).to_event(1)),
    )


@pytest.mark.parametrize("number", range(10))
def test_log_densities_by_site_sum_to_the_log_density(number):
    program = told()[number]
    trace = program.simulate(KEY)
    assessed = program.assess(trace.choices, key=KEY)
    for other in (trace, assessed, program.generate({}, key=KEY)[0]):
        np.testing.assert_allclose(total(other.log_probs), other.log_prob, rtol=1e-6)
    inside = lambda key: (lambda t: (t.log_probs, t.log_prob))(program.simulate(key))  # noqa: E731
    for log_probs, log_prob in (jax.jit(inside)(KEY), vipl.seed(lambda: inside(None))(KEY)):
        np.testing.assert_allclose(total(log_probs), log_prob, rtol=1e-6)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), log_probs, trace.log_probs)


@pytest.mark.oldest
def test_log_densities_by_site_have_the_axes_of_loops_and_batches():
    trace = parts(0.7).simulate(KEY)
    x, z = trace.choices, trace.choices["z"]
    weights = jnp.array([0.5, 2.0])
    expected = {
        "z": dist.Normal(0.0, 1.0).log_prob(z),
        "one": 0.7 * dist.Gamma(2.0, 1.0).log_prob(x["one"]),
        "lanes": {
            "a": weights * dist.Bernoulli(0.3).log_prob(x["lanes"]["a"]),
            "b": 3.0 * weights * dist.Normal(z, 1.0).log_prob(x["lanes"]["b"]),
            "f": weights[:, None] * (0.2 * x["lanes"]["a"][:, None] + jnp.array([0.1, 0.3])),
        },
        "steps": 0.35 * dist.Normal(z + jnp.arange(2.0), 1.0).log_prob(x["steps"]),
    }
    for other in (trace, parts(0.7).assess(x, key=KEY), parts(0.7).generate({"z": z}, key=KEY)[0]):
        assert jax.tree.structure(other.log_probs) == jax.tree.structure(expected)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), trace.log_probs, expected)
    shapes = jax.tree.map(jnp.shape, rounded().simulate(KEY).log_probs)
    assert shapes == {"a": (), "g": (2,), "d": (2,), "c": ()}


@pytest.mark.oldest
def test_where_the_log_density_of_an_estimated_part_stands():
    log_probs = estimated().simulate(KEY).log_probs
    assert jax.tree.map(jnp.shape, log_probs) == {"post": {"b, x": ()}, "m": {"b": ()}, "x": ()}
    other = vipl.normalize(recorded(True), {"layer": {"z": 0.3}}, Importance(2)).simulate(KEY)
    assert_equal(other.log_probs, {"b, x": other.log_prob})


def test_a_branch_that_is_not_taken_has_zeros():
    model = vipl.gen(
        lambda x: lax.cond(
            x > 0, lambda: sample("a", dist.Normal(0.0, 1.0)), lambda: sample("b", dist.Normal(0.0, 1.0))
        )
    )
    log_probs = model(1.0).simulate(KEY).log_probs
    assert log_probs["b"] == 0
    assert log_probs["a"] < 0


def test_pointwise_log_likelihoods_of_many_draws():
    draws = {"z": jnp.linspace(-1.0, 1.0, 5)}
    model = vipl.gen(lambda: sample("y", dist.Normal(sample("z", dist.Normal(0.0, 1.0)) * jnp.ones(3), 1.0)))
    y = jnp.array([0.1, -0.4, 0.8])
    exact = dist.Normal(draws["z"][:, None], 1.0).log_prob(y)
    pointwise = lambda z: model().assess(z | {"y": y}).log_probs["y"]  # noqa: E731
    np.testing.assert_allclose(jax.vmap(pointwise)(draws), exact, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(pointwise))(draws), exact, rtol=1e-6)
    np.testing.assert_allclose(pointwise({"z": 1.0}), exact[-1], rtol=1e-6)
    slope = jax.grad(lambda z: pointwise({"z": z})[0])(1.0)
    np.testing.assert_allclose(slope, y[0] - 1.0, rtol=1e-6)


@pytest.mark.parametrize("estimator", FLIPS)
def test_an_objective_may_read_log_densities_by_site(estimator):
    """The entropies of two flips, one of them twice: E[-log q(a) - 2 log q(b)]."""

    def guide(theta):
        sample("a", dist.Bernoulli(logits=theta), estimator)
        sample("b", dist.Bernoulli(logits=-theta), estimator)

    def reads(theta):
        log_probs = vipl.gen(guide)(theta).simulate().log_probs
        return -log_probs["a"] - 2.0 * log_probs["b"]

    def exact(theta):
        p = jax.nn.sigmoid(theta)
        return -3.0 * (p * jnp.log(p) + (1 - p) * jnp.log(1 - p))

    objective = vipl.expectation(reads)
    gradient = lambda key: objective.value_and_grad(key, 0.4)[1]  # noqa: E731
    assert_unbiased(gradient, jax.grad(exact)(0.4), key=KEY, resolution=0.05)
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(gradient, 1.5 * jax.grad(exact)(0.4), key=KEY, resolution=0.05)


def equations(objective, *args):
    text = str(jax.make_jaxpr(objective.estimate_anew)(KEY, *args))
    return len(text.splitlines())


def test_an_objective_that_does_not_read_them_is_without_them():
    def bound(reads, m):
        q = layer(m).simulate()
        p = layer(0.0).assess(q.choices)
        helper = jax.jit(lambda: parts(0.7).simulate())()
        return p.log_prob - q.log_prob + (total(helper.log_probs) if reads else helper.log_prob)

    unread = vipl.expectation(functools.partial(bound, False))
    before = equations(unread, 0.3)
    read = vipl.expectation(functools.partial(bound, True))
    assert equations(read, 0.3) > before
    assert equations(unread, 0.3) == before
    np.testing.assert_allclose(read.estimate(KEY, 0.3), unread.estimate(KEY, 0.3), rtol=1e-6)


@pytest.mark.parametrize("estimator", [None, Score()])
def test_an_objective_reads_batches_of_draws_that_know_more_than_their_value(estimator):
    def batch():
        return sample("g", dist.Gamma(jnp.full((2, 3), 0.05), 1.0).to_event(1), estimator)

    def law(by_site):
        trace = vipl.gen(batch)().simulate()
        assert not by_site or trace.log_probs["g"].shape == (2,)
        return trace.log_probs["g"].sum() if by_site else trace.log_prob

    read, unread = (vipl.expectation(functools.partial(law, by_site)).estimate(KEY) for by_site in (True, False))
    np.testing.assert_allclose(read, unread, rtol=1e-6)


@pytest.mark.oldest
def test_log_densities_of_a_program_inside_a_program():
    """The inner density by site is a part of the outer program, which is itself weighed and drawn."""

    def outer(by_site):
        trace = rounded().simulate()
        vipl.factor("inner", -0.5 * trace.log_probs["g"].sum() if by_site else 0.0)
        return trace.log_prob

    trace = vipl.gen(outer)(True).simulate(KEY)
    plain = vipl.gen(outer)(False).simulate(KEY)
    assert_equal((trace.choices, trace.retval), (plain.choices, plain.retval))
    np.testing.assert_allclose(total(trace.log_probs), trace.log_prob, rtol=1e-6)
    np.testing.assert_allclose(trace.log_probs["inner"], -0.5 * trace.log_probs["g"].sum(), rtol=1e-6)
