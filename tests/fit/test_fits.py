"""`vipl.fit` for real work: frozen leaves, histories, callbacks, averages, several starts and objectives, states."""

import datetime
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import vipl
from vipl.fit import fit

KEY = jax.random.key(37)
DATA = jnp.arange(11.0)
OPTIONS: dict[str, Any] = {"key": KEY, "progress": False}


@vipl.expectation
def square(params, data):
    """E|x - data|² with x ~ Normal(params, 1): least at the data's mean."""
    return jnp.sum((vipl.sample("x", dist.Normal(params, 1.0)) - data) ** 2)


@vipl.expectation
def plain(params):
    """A function of the parameters alone."""
    return -jnp.sum((params - 1.3) ** 2)


def same(a, b):
    def equal(a, b):
        a, b = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype

    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(equal, *(jax.tree.map(jnp.asarray, x) for x in (a, b)))


def test_parts_of_any_fit_are_the_fit_bit_for_bit(case_of_parts):
    arguments, parts = case_of_parts
    total = sum(parts)
    whole = fit(**arguments | {"num_steps": total})
    there = None
    for n in parts:
        there = fit(**arguments | {"num_steps": n, "resume": there})
    same(whole, there)
    assert int(whole.stopped) == total


# --- frozen leaves ------------------------------------------------------------------------------------------


@vipl.expectation
def powers(params):
    """Least at w = 2 n, whatever else there is."""
    noise = jax.random.normal(params["key"]) * 0.0
    return jnp.where(params["flag"], 1.0, 0.0) * jnp.sum((params["w"] - 2 * params["n"]) ** 2) + noise


FROZEN = {"w": jnp.zeros(3), "n": 3, "flag": True, "key": jax.random.key(5), "rows": np.arange(4, dtype=np.int16)}


@pytest.mark.parametrize("optimizer", [optax.adam(0.1), optax.chain(optax.clip(9.0), optax.sgd(0.25))], ids="as")
def test_what_is_not_a_float_is_frozen(optimizer):
    found = fit(powers, FROZEN, optimizer, num_steps=300, maximize=False, **OPTIONS)
    np.testing.assert_allclose(found.params["w"], 6.0, atol=0.02)
    rest = {name: x for name, x in found.params.items() if name != "w"}
    same(rest, {name: jnp.asarray(x) for name, x in FROZEN.items() if name != "w"})


def test_frozen_leaves_have_no_state_of_an_optimizer():
    found = fit(powers, FROZEN, optax.adam(0.1), num_steps=2, maximize=False, **OPTIONS)
    floats = fit(plain, jnp.zeros(3), optax.adam(0.1), num_steps=2, **OPTIONS)
    assert [x.shape for x in jax.tree.leaves(found.opt_state)] == [x.shape for x in jax.tree.leaves(floats.opt_state)]


def test_parameters_of_integers_alone_are_refused():
    with pytest.raises(vipl.errors.ProgramError, match=r"float arrays\.\n.*\n  got:       int64\[\] at params"):
        fit(plain, 3, optax.sgd(0.1), num_steps=2, **OPTIONS)


# --- histories ----------------------------------------------------------------------------------------------


@vipl.expectation(has_aux=True)
def measured(params):
    """A draw, and what it was."""
    x = vipl.sample("x", dist.Normal(params, 1.0))
    return x**2, {"x": x, "twice": 2 * params, "positive": x > 0, "key": jax.random.key(3)}


def test_metrics_are_the_auxiliary_output_of_each_step():
    found = fit(measured, 0.7, optax.sgd(0.1), num_steps=5, maximize=False, **OPTIONS)
    assert found.metrics["x"].shape == (5,)
    np.testing.assert_allclose(found.metrics["x"] ** 2, found.values, rtol=1e-12)
    np.testing.assert_array_equal(found.metrics["positive"], found.metrics["x"] > 0)
    path = [0.7]
    for x in np.asarray(found.metrics["x"]):
        path.append(path[-1] - 0.1 * 2 * x)
    np.testing.assert_allclose(found.metrics["twice"], 2 * np.array(path[:5]), rtol=1e-12)
    np.testing.assert_allclose(found.gradient_norms, 2 * np.abs(found.metrics["x"]), rtol=1e-12)
    several = fit(measured, 0.7, optax.sgd(0.1), num_steps=5, num_samples=3, maximize=False, **OPTIONS)
    assert several.metrics["x"].shape == (5, 3)


def test_metrics_do_not_change_the_fit():
    @vipl.expectation
    def alone(params):
        return vipl.sample("x", dist.Normal(params, 1.0)) ** 2

    with_metrics = fit(measured, 0.7, optax.sgd(0.1), num_steps=5, maximize=False, **OPTIONS)
    without = fit(alone, 0.7, optax.sgd(0.1), num_steps=5, maximize=False, **OPTIONS)
    same(with_metrics.values, without.values)
    same(with_metrics.params, without.params)
    assert without.metrics is None


def test_large_metrics_do_not_take_the_room_of_all_steps(monkeypatch):
    from vipl.fit import _steps

    monkeypatch.setattr(_steps, "_BYTES", 10_000)

    @vipl.expectation(has_aux=True)
    def large(params):
        return -(params**2), jnp.full(400, params)

    found = fit(large, 1.0, optax.sgd(0.25), num_steps=9, **OPTIONS)
    np.testing.assert_array_equal(found.metrics[:, 7], 0.5 ** np.arange(9))


def test_metrics_after_a_number_that_is_not_finite():
    @vipl.expectation(has_aux=True)
    def log(params):
        return -jnp.log(params), (params, jnp.int32(7))

    with pytest.warns(RuntimeWarning, match="stopped at step 4 of 10"):
        found = fit(log, 1.0, optax.sgd(0.2), num_steps=10, **OPTIONS)
    assert np.isnan(found.metrics[0][5:]).all()
    np.testing.assert_array_equal(found.metrics[1], [7] * 5 + [0] * 5)


def test_gradient_norms_are_of_all_parameters():
    start = {"a": jnp.array([3.0, 4.0]), "b": jnp.full((2, 3), 2.0)}

    @vipl.expectation
    def half(params):
        return 0.5 * sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    found = fit(half, start, optax.sgd(0.5), num_steps=3, maximize=False, **OPTIONS)
    np.testing.assert_allclose(found.gradient_norms, 7.0 * 0.5 ** np.arange(3), rtol=1e-12)


def test_learning_rates_are_those_of_injected_hyperparameters():
    schedule = optax.exponential_decay(0.1, 1, 0.5)
    optimizer = optax.chain(optax.clip(9.0), optax.inject_hyperparams(optax.sgd)(learning_rate=schedule))
    found = fit(plain, 0.0, optimizer, num_steps=4, **OPTIONS)
    np.testing.assert_allclose(found.learning_rates, 0.1 * 0.5 ** np.arange(4), rtol=1e-6)
    assert fit(plain, 0.0, optax.sgd(schedule), num_steps=4, **OPTIONS).learning_rates is None


# --- optimizers that call the objective ----------------------------------------------------------------------


def test_lbfgs_finds_the_optimum_of_a_valley():
    @vipl.expectation
    def valley(params):
        return jnp.sum(100.0 * (params["x"][1:] - params["x"][:-1] ** 2) ** 2 + (1 - params["x"][:-1]) ** 2)

    start = {"x": jnp.array([-1.2, 1.0, 0.3]), "n": 3}
    found = fit(valley, start, optax.lbfgs(), num_steps=60, maximize=False, **OPTIONS)
    np.testing.assert_allclose(found.params["x"], 1.0, atol=1e-6)
    negated = vipl.expectation(lambda params: -valley(params))
    same(fit(negated, start, optax.lbfgs(), num_steps=60, **OPTIONS).params, found.params)


def test_value_grad_and_value_fn_are_those_of_the_step():
    def update(updates, state, params=None, **given):
        value, grad, value_fn = given["value"], given["grad"], given["value_fn"]
        return updates, (value, grad, value_fn(params), jax.grad(value_fn)(params))

    nothing = optax.GradientTransformationExtraArgs(lambda params: (0.0, params, 0.0, params), update)
    found = fit(square, 0.37, optax.chain(nothing, optax.sgd(0.0)), data=DATA, num_steps=3, num_samples=2, **OPTIONS)
    value, grad, again, grad_again = found.opt_state[0]
    assert value == again == -found.values[-1]
    assert grad == grad_again
    assert abs(grad) == found.gradient_norms[-1]


# --- callbacks ----------------------------------------------------------------------------------------------


def test_a_callback_is_called_every_few_steps_and_does_not_change_the_fit():
    seen = []
    options = {"data": DATA, "batch_size": 3, **OPTIONS}
    found = fit(square, 0.37, optax.adam(0.1), num_steps=23, callback=seen.append, callback_every=5, **options)
    assert [int(f.stopped) for f in seen] == [5, 10, 15, 20]
    whole = fit(square, 0.37, optax.adam(0.1), num_steps=23, **options)
    same(found, whole)
    for part in seen:
        n = int(part.stopped)
        same(part.params, fit(square, 0.37, optax.adam(0.1), num_steps=n, **options).params)
        same(part.values[:n], whole.values[:n])
        assert part.values.shape == (23,)
        assert np.isnan(part.values[n:]).all()


def test_a_callback_ends_a_fit_that_goes_on():
    whole = fit(plain, 0.0, optax.adam(0.1), num_steps=20, **OPTIONS)
    options = {"callback": lambda f: f.params > whole.params / 2, "callback_every": np.int64(2), **OPTIONS}
    ended = fit(plain, 0.0, optax.adam(0.1), num_steps=20, **options)
    n = int(ended.stopped)
    assert 0 < n < 20
    assert n % 2 == 0
    assert np.isnan(ended.values[n:]).all()
    same(fit(plain, 0.0, optax.adam(0.1), num_steps=20 - n, resume=ended, **OPTIONS), whole)


def test_a_callback_counts_from_the_first_step_of_all():
    seen = []
    half = fit(plain, 0.0, optax.adam(0.1), num_steps=7, **OPTIONS)
    fit(plain, 0.0, optax.adam(0.1), num_steps=7, resume=half, callback=seen.append, callback_every=5, **OPTIONS)
    assert [int(f.stopped) for f in seen] == [10]


def test_a_callback_by_time():
    seen = []
    options: dict[str, Any] = {"callback": lambda f: seen.append(int(f.stopped)), **OPTIONS}
    options["callback_every"] = datetime.timedelta(0)
    fit(plain, 0.0, optax.adam(0.1), num_steps=20, **options)
    assert seen[0] == 1
    assert seen[-1] == 20
    options["callback_every"] = datetime.timedelta(days=1)
    fit(plain, 0.0, optax.adam(0.1), num_steps=20, **options)
    assert seen[-1] == 20


def test_an_exception_of_a_callback_holds_the_fit():
    def fails(f):
        raise StopIteration("enough")

    with pytest.raises(StopIteration, match="enough") as error:
        fit(plain, 0.0, optax.adam(0.1), num_steps=20, callback=fails, callback_every=5, **OPTIONS)
    raised: Any = error.value
    assert int(raised.fit.stopped) == 5


# --- averages -----------------------------------------------------------------------------------------------


def path_of(num_steps, optimizer):
    """The iterates, each from a fit of its own."""
    return [float(fit(square, 0.37, optimizer, num_steps=n, data=DATA, **OPTIONS).params) for n in range(1, num_steps)]


@pytest.mark.parametrize("average", [1, 0.25])
def test_an_average_is_that_of_the_iterates(average):
    optimizer = optax.sgd(0.01)
    options = {"data": DATA, "average": average, "maximize": False, **OPTIONS}
    path = [float(fit(square, 0.37, optimizer, num_steps=n, **options).params) for n in range(1, 13)]
    found = fit(square, 0.37, optimizer, num_steps=12, **options)
    want = path[0]
    for t, x in enumerate(path[1:], start=2):
        want += min(1.0, 1 / (average * t)) * (x - want)
    np.testing.assert_allclose(found.averaged, want, rtol=1e-12)
    if average == 1:
        np.testing.assert_allclose(found.averaged, np.mean(path), rtol=1e-12)


def test_an_average_has_less_noise_than_the_last_iterate():
    keys = range(20)
    options = {"data": DATA, "num_steps": 2000, "maximize": False, "progress": False, "average": 0.5}
    founds = [fit(square, 5.0, optax.sgd(0.01), **options, key=jax.random.key(k)) for k in keys]
    last, averaged = (np.array([getattr(f, name) for f in founds]) for name in ("params", "averaged"))
    assert averaged.std() < 0.2 * last.std()
    assert abs(averaged.mean() - 5.0) < 0.05


def test_frozen_leaves_are_averaged_as_they_are():
    found = fit(powers, FROZEN, optax.adam(0.1), num_steps=5, average=0.5, maximize=False, **OPTIONS)
    same({**found.params, "w": 0.0}, {**found.averaged, "w": 0.0})
    assert np.all(found.averaged["w"] < found.params["w"])


# --- several starts -----------------------------------------------------------------------------------------


@vipl.expectation
def double_well(params):
    """Wells at -1 and 2; the second one is deeper."""
    x = params + vipl.sample("x", dist.Normal(0.0, 0.01))
    return (x + 1.0) ** 2 * (x - 2.0) ** 2 - 0.3 * x


def test_the_best_of_several_starts_is_kept():
    def init(key):
        return jax.random.uniform(key, minval=-2.0, maxval=3.0)

    options = {"num_steps": 200, "maximize": False, **OPTIONS}
    found = fit(double_well, init, optax.sgd(0.01), num_restarts=8, **options)
    assert abs(found.params - 2.0) < 0.05
    each = found.restarts
    assert each is not None
    assert each.values.shape == (8, 200)
    assert each.gradient_norms.shape == (8, 200)
    assert each.params.shape == (8,)
    wells = np.round(np.asarray(each.params))
    assert set(wells) == {-1.0, 2.0}
    best = int(np.argmin(np.asarray(each.values)[:, -20:].mean(1)))
    same(found.params, each.params[best])
    same(found.values, each.values[best])
    assert len(set(np.asarray(each.values[:, 0]))) == 8


def test_starts_at_the_same_parameters_have_keys_of_their_own():
    options = {"data": DATA, "batch_size": 3, **OPTIONS}
    found = fit(square, 0.37, optax.adam(0.1), num_restarts=3, num_steps=8, **options)
    assert found.restarts is not None
    assert len(np.unique(found.restarts.values)) == 24
    more = fit(square, 0.37, optax.adam(0.1), num_restarts=5, num_steps=8, **options)
    assert more.restarts is not None
    np.testing.assert_allclose(more.restarts.values[:3], found.restarts.values, rtol=1e-12)


def test_a_start_that_is_not_finite_is_left_out():
    @vipl.expectation
    def root(params):
        return -jnp.sqrt(params - 1.0)

    def init(key):
        return jax.random.choice(key, jnp.array([0.5, 4.0]))

    text = r"(\d) of 6 starts of root stopped, the first at step 0 of 9: the objective's value is not finite\."
    with pytest.warns(RuntimeWarning, match=text):
        found = fit(root, init, optax.sgd(0.1), num_restarts=6, num_steps=9, **OPTIONS)
    assert found.restarts is not None
    stopped = np.asarray(found.restarts.stopped)
    assert set(stopped) == {0, 9}
    assert int(found.stopped) == 9
    assert np.isfinite(found.values).all()
    assert np.isnan(np.asarray(found.restarts.values)[stopped == 0]).all()
    more = fit(root, init, optax.sgd(0.1), num_restarts=6, num_steps=3, resume=found, **OPTIONS)
    assert more.restarts is not None
    np.testing.assert_array_equal(more.restarts.stopped, np.where(stopped == 0, 0, 12))


def test_a_function_makes_the_parameters_of_one_start():
    found = fit(plain, lambda key: jax.random.normal(key, (2,)), optax.sgd(0.0), num_steps=1, **OPTIONS)
    assert found.params.shape == (2,)
    assert found.restarts is None


# --- several objectives ---------------------------------------------------------------------------------------


@vipl.expectation
def of_a(params):
    x = vipl.sample("x", dist.Normal(params["a"], 1.0))
    return -jnp.sum((x - params["b"] - 1.0) ** 2)


@vipl.expectation
def of_b(params):
    return -jnp.sum((params["b"] - 0.5 * params["a"] - 1.0) ** 2)


BOTH = {"a": of_a, "b": of_b}
TWO = {"a": 0.0, "b": 0.0}
SGDS = {"a": optax.sgd(0.1), "b": optax.sgd(0.2, momentum=0.5)}


def test_two_objectives_find_their_equilibrium():
    """A = b + 1 and b = a / 2 + 1 at a = 4, b = 3."""
    quiet = {"a": vipl.expectation(lambda p: -((p["a"] - p["b"] - 1.0) ** 2)), "b": of_b}
    for turns in (None, {"a": 1, "b": 1}, {"b": 3, "a": 1}):
        found = fit(quiet, TWO, SGDS, num_steps=300, turns=turns, **OPTIONS)
        np.testing.assert_allclose([found.params["a"], found.params["b"]], [4.0, 3.0], rtol=1e-6)
        assert set(found.values) == set(found.opt_state) == {"a", "b"}
        assert found.values["b"].shape == ((300, 3) if turns and turns["b"] == 3 else (300,))


def test_updates_together_and_in_turn():
    """By hand: together all from the parameters before the step; in turn the later from what the earlier have left."""
    quiet = {"a": vipl.expectation(lambda p: -((p["a"] - p["b"] - 1.0) ** 2)), "b": of_b}
    sgds = {"a": optax.sgd(0.1), "b": optax.sgd(0.2)}

    def of(turns):
        return fit(quiet, TWO, sgds, num_steps=1, turns=turns, **OPTIONS).params

    a = 0.2 * 1.0
    np.testing.assert_allclose([of(None)["a"], of(None)["b"]], [a, 0.4], rtol=1e-12)
    turned = of({"a": 1, "b": 1})
    np.testing.assert_allclose([turned["a"], turned["b"]], [a, 0.4 * (0.5 * a + 1.0)], rtol=1e-12)
    twice = of({"a": 1, "b": 2})
    b = 0.4 * (0.5 * a + 1.0)
    np.testing.assert_allclose(twice["b"], b + 0.4 * (0.5 * a + 1.0 - b), rtol=1e-12)


def test_labels_are_a_prefix_or_a_function_of_the_parameters():
    @vipl.expectation
    def far(params):
        return -sum(jnp.sum((x - 1.0) ** 2) for x in jax.tree.leaves(params))

    start = {"net": {"w": jnp.zeros(2), "n": 3}, "scale": 0.0}
    optimizers = {"slow": optax.sgd(0.0), "fast": optax.sgd(0.5)}
    labels = {"net": "slow", "scale": "fast"}
    for given in (labels, lambda params: labels):
        found = fit({"slow": far, "fast": far}, start, optimizers, labels=given, num_steps=1, **OPTIONS)
        same(found.params, {"net": {"w": jnp.zeros(2), "n": jnp.asarray(3)}, "scale": jnp.asarray(1.0)})


def test_the_objectives_of_a_game_go_up_and_down():
    @vipl.expectation
    def game(params):
        return params["up"] * params["down"] - 0.5 * params["up"] ** 2

    both, rates = {"up": game, "down": game}, {"up": optax.sgd(0.3), "down": optax.sgd(0.1)}
    found = fit(both, {"up": 1.0, "down": 1.0}, rates, maximize={"up": True, "down": False}, num_steps=400, **OPTIONS)
    np.testing.assert_allclose([found.params["up"], found.params["down"]], 0.0, atol=1e-4)


def test_an_objective_of_several_that_is_not_finite_undoes_the_step():
    @vipl.expectation
    def log(params):
        x = vipl.sample("z", dist.Normal(jnp.sqrt(params["b"]), 1.0))
        return -jnp.log(params["b"]) + 0.0 * x

    both = {"a": of_a, "b": log}
    text = r'stopped at step 4 of 9 of b: the objective\'s value is not finite .* site .* is "z" in log'
    for turns in (None, {"a": 2, "b": 1}):
        options = {"labels": {"a": "a", "b": "b"}, "turns": turns, **OPTIONS}
        optimizers = {"a": optax.adam(0.1), "b": optax.sgd(0.2)}
        with pytest.warns(RuntimeWarning, match=text):
            found = fit(both, {"a": 0.0, "b": 1.0}, optimizers, num_steps=9, **options)
        before = fit(both, {"a": 0.0, "b": 1.0}, optimizers, num_steps=4, **options)
        same((found.params, found.opt_state), (before.params, before.opt_state))
    after = vipl.expectation(lambda params: -((params["a"] - params["b"]) ** 2))
    options = {"labels": {"a": "a", "b": "b"}, "turns": {"b": 1, "a": 1}, **OPTIONS}
    with pytest.warns(RuntimeWarning, match="stopped at step 4 of 9 of b"):
        found = fit({"b": log, "a": after}, {"a": 0.0, "b": 1.0}, optimizers, num_steps=9, **options)
    assert np.isnan(found.values["b"][4])
    assert np.isfinite(found.values["a"][:5]).all()


# --- states -------------------------------------------------------------------------------------------------


@vipl.expectation(has_aux=True)
def stateful(params, state, data):
    x = vipl.sample("x", dist.Normal(params, 1.0))
    new = {"mean": 0.9 * state["mean"] + 0.1 * x, "count": state["count"] + 1}
    return jnp.sum((x - data) ** 2) + 0.0 * state["mean"], (new, {"x": x})


START = {"mean": 0.0, "count": 0}


def test_a_state_goes_from_step_to_step():
    found = fit(stateful, 0.37, optax.sgd(0.01), data=DATA, state=START, num_steps=7, maximize=False, **OPTIONS)
    mean = 0.0
    for x in np.asarray(found.metrics["x"]):
        mean = 0.9 * mean + 0.1 * x
    np.testing.assert_allclose(found.state["mean"], mean, rtol=1e-12)
    assert found.state["count"] == 7
    plain = fit(square, 0.37, optax.sgd(0.01), data=DATA, num_steps=7, maximize=False, **OPTIONS)
    np.testing.assert_allclose(found.values, plain.values, rtol=1e-12)


def test_the_state_of_several_samples_is_their_mean():
    options = {"data": DATA, "state": START, "num_samples": 4, "maximize": False, **OPTIONS}
    found = fit(stateful, 0.37, optax.sgd(0.01), num_steps=1, **options)
    np.testing.assert_allclose(found.state["mean"], 0.1 * np.mean(found.metrics["x"]), rtol=1e-12)
    assert found.state["count"] == 1


def test_a_state_may_be_all_of_the_auxiliary_output():
    @vipl.expectation(has_aux=True)
    def counts(params, state):
        return -(params**2), (state[0] + 1, state[1] + params)

    found = fit(counts, 1.0, optax.sgd(0.25), state=(0, 0.0), num_steps=3, **OPTIONS)
    assert found.state[0] == 3
    assert found.state[1] == 1.75
    assert found.metrics is None


def test_a_state_that_is_not_finite_stops_the_fit():
    @vipl.expectation(has_aux=True)
    def grows(params, state):
        return -(params**2), state * 1e100

    with pytest.warns(RuntimeWarning, match="stopped at step 3 of 9 of grows: the new state is not finite"):
        found = fit(grows, 1.0, optax.sgd(0.25), state=1.0, num_steps=9, **OPTIONS)
    np.testing.assert_allclose(found.state, 1e300)
    assert found.params == 0.125


# --- all of it, in parts ------------------------------------------------------------------------------------

PARTS = {
    "frozen": {"objective": powers, "params": FROZEN, "optimizer": optax.adam(0.1), "maximize": False},
    "metrics": {"objective": measured, "params": 0.7, "optimizer": optax.sgd(0.1), "maximize": False},
    "injected": {
        "objective": plain,
        "params": 0.7,
        "optimizer": optax.inject_hyperparams(optax.adam)(optax.cosine_decay_schedule(0.1, 20)),
    },
    "lbfgs": {"objective": square, "params": 0.7, "optimizer": optax.lbfgs(), "data": DATA, "maximize": False},
    "average": {"objective": square, "params": 0.7, "optimizer": optax.sgd(0.01), "data": DATA, "average": 0.3},
    "starts": {
        "objective": measured,
        "params": jax.random.normal,
        "optimizer": optax.adam(0.1),
        "num_restarts": 3,
        "average": 0.5,
    },
    "batches of starts": {
        "objective": square,
        "params": 0.37,
        "optimizer": optax.adam(0.1),
        "data": DATA,
        "batch_size": 3,
        "num_restarts": 2,
    },
    "together": {"objective": BOTH, "params": TWO, "optimizer": SGDS},
    "turns": {"objective": BOTH, "params": TWO, "optimizer": SGDS, "turns": {"a": 2, "b": 1}},
    "starts and turns": {
        "objective": BOTH,
        "params": TWO,
        "optimizer": SGDS,
        "turns": {"a": 2, "b": 1},
        "num_restarts": 2,
    },
    "state": {
        "objective": stateful,
        "params": 0.37,
        "optimizer": optax.adam(0.01),
        "data": DATA,
        "batch_size": 3,
        "state": START,
        "num_samples": 2,
    },
    "states of starts": {
        "objective": stateful,
        "params": 0.37,
        "optimizer": optax.adam(0.01),
        "data": DATA,
        "state": START,
        "num_restarts": 2,
    },
}


@pytest.fixture(params=[(13,), (1, 12), (5, 8)], ids=str)
def parts(request):
    return request.param


@pytest.fixture(params=PARTS)
def case_of_parts(request, parts):
    return PARTS[request.param] | OPTIONS, parts


# --- networks with state ------------------------------------------------------------------------------------


def test_batch_statistics_of_a_flax_module_go_from_step_to_step():
    nnx = pytest.importorskip("flax.nnx")
    from vipl.interop.flax import functional

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)
            self.linear = nnx.Linear(3, 1, rngs=rngs)

        def __call__(self, x):
            return self.linear(self.norm(x))[:, 0]

        def features(self, x):
            return self.norm(x)

    net = Net(nnx.Rngs(0))
    params, state, apply = functional(net, state=True)
    x = 2.0 + 3.0 * jax.random.normal(jax.random.key(1), (40, 3), "float32")
    y = x @ jnp.array([0.3, -1.2, 2.1], "float32") + 0.7
    found, new_state = apply(params, state)(x)
    features, also = apply(params, state).features(x)
    np.testing.assert_array_equal(found, net(x))
    same(new_state, also)
    same(new_state["norm"]["mean"], net.norm.mean[...])
    np.testing.assert_allclose(features, (x - x.mean(0)) / x.std(0), rtol=1e-3)

    @vipl.gen
    def model(mean):
        vipl.sample("y", dist.Normal(mean, 1.0).to_event(1))

    @vipl.expectation(has_aux=True)
    def log_likelihood(params, state, data):
        mean, state = apply(params, state)(data["x"])
        return model(mean).assess({"y": data["y"]}).log_prob, (state, {"error": jnp.mean((mean - data["y"]) ** 2)})

    options = {"data": {"x": x, "y": y}, "state": state, "num_steps": 300, **OPTIONS}
    fitted = fit(log_likelihood, params, optax.adam(0.1), **options)
    assert fitted.metrics["error"][-1] < 1e-3
    np.testing.assert_allclose(fitted.state["norm"]["mean"], x.mean(0), rtol=1e-6)
    net = nnx.merge(nnx.graphdef(net), fitted.params, fitted.state)
    net.eval()
    np.testing.assert_allclose(net(x), y, atol=0.3)


def test_a_module_with_random_numbers_is_refused_in_both_forms():
    nnx = pytest.importorskip("flax.nnx")
    from vipl.interop.flax import functional

    for state in (False, True):
        with pytest.raises(
            vipl.errors.ProgramError, match=r"RngCount at rngs.count.*\n.*\n  fix:       leave out Dropout"
        ):
            functional(nnx.Dropout(0.5, rngs=nnx.Rngs(0)), state=state)


def test_an_optimizer_that_calls_the_objective_by_another_name(key):
    """`optax.contrib.sophia` asks for `obj_fn`, and gets it as the how-to says: the same as by hand."""
    begin = jnp.array([0.5, -1.0])

    def loss(m):
        return jnp.sum((m - 3.0) ** 4)

    sophia: Any = optax.contrib.sophia(0.1)

    def update(updates, state, params=None, **extra_args):
        return sophia.update(updates, state, params, obj_fn=extra_args["value_fn"])

    given = optax.GradientTransformationExtraArgs(sophia.init, update)
    found = vipl.fit(vipl.expectation(loss), begin, given, key=key, num_steps=4, maximize=False, progress=False)
    params, state = begin, sophia.init(begin)
    for _ in range(4):
        updates, state = sophia.update(jax.grad(loss)(params), state, params, obj_fn=loss)
        params = params + updates
    np.testing.assert_allclose(found.params, params, rtol=1e-6)
    assert loss(params) < loss(begin)
