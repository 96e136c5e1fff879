"""Inputs that are taken for what they are: integers of NumPy and JAX, lists, data frames, whole floats, constants."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import vipl
from vipl import Enumerate, MeasureValued, RejectionReparam, Score, sample
from vipl.inference import SMC, Importance

KEY = jax.random.key(0)


class Frame:
    """What a pandas Series or DataFrame is to NumPy: not hashable, compared element by element, with `__array__`."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values.astype(dtype or self.values.dtype)

    def __eq__(self, other):
        return self.values == other


@vipl.gen
def model(loc):
    """Sites of floats and of integers, scalar and not."""
    z = sample("z", dist.Normal(loc, 1.0))
    sample("y", dist.Bernoulli(logits=z * jnp.ones(3)))
    sample("k", dist.Poisson(jnp.exp(z)))
    sample("w", dist.Normal(z * jnp.ones((2, 2)), 1.0))


CHOICES = {"z": 0.4, "y": jnp.array([0, 1, 1]), "k": 2, "w": jnp.array([[0.5, 1.0], [-1.0, 2.0]])}
OTHERS = {
    "whole floats": {"y": np.array([0.0, 1.0, 1.0]), "k": 2.0},
    "booleans": {"y": [False, True, True]},
    "lists": {"y": [0, 1, 1], "w": [[0.5, 1], [-1, 2.0]]},
    "tuples of arrays": {"y": (jnp.array(0), 1, np.int64(1)), "w": (jnp.array([0.5, 1.0]), jnp.array([-1.0, 2.0]))},
    "frames": {"y": Frame([0.0, 1.0, 1.0]), "w": Frame([[0.5, 1.0], [-1.0, 2.0]]), "k": Frame(2)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_choices_of_the_same_values_have_the_same_density(name):
    given = CHOICES | OTHERS[name]
    for key in (None, KEY):
        expected = model(0.3).assess(CHOICES, key=key)
        found = model(0.3).assess(given, key=key)
        # Converting in compiled code may change the order in which numbers are added; so too below.
        assert jnp.allclose(found.log_prob, expected.log_prob, rtol=1e-12)
        for address in CHOICES:
            assert found.choices[address].dtype == jnp.asarray(expected.choices[address]).dtype or address == "k"
        _, log_w = model(0.3).generate({a: x for a, x in given.items() if a != "z"}, key=KEY)
        _, wanted = model(0.3).generate({a: x for a, x in CHOICES.items() if a != "z"}, key=KEY)
        assert jnp.allclose(log_w, wanted, rtol=1e-12)


@pytest.mark.parametrize("name", OTHERS)
def test_data_of_the_same_values_give_the_same_fit(name):
    @vipl.expectation
    def bound(loc, data):
        return model(loc).assess({"z": 0.4} | data).log_prob

    def steps(data):
        return vipl.fit(bound, 0.3, optax.sgd(0.1), key=KEY, data=data, num_steps=3, progress=False).values

    data = {a: x for a, x in CHOICES.items() if a != "z"}
    # Converting in compiled code may change the order in which numbers are added.
    assert jnp.allclose(steps(data | OTHERS[name]), steps(data), rtol=1e-12)
    assert jnp.allclose(bound.estimate(KEY, 0.3, data | OTHERS[name]), bound.estimate(KEY, 0.3, data), rtol=1e-12)


@pytest.mark.parametrize("name", OTHERS)
def test_posteriors_of_the_same_values_are_the_same(name):
    def evidence(given):
        return vipl.normalize(model(0.3), given, Importance(3)).particles(KEY).log_normalizer

    data = {a: x for a, x in CHOICES.items() if a != "z"}
    # Converting in compiled code may change the order in which numbers are added.
    assert jnp.allclose(evidence(data | OTHERS[name]), evidence(data), rtol=1e-12)


@pytest.mark.parametrize("value", [0.5, -0.25, float("nan"), float("inf"), 1e30, 2.0**63])
def test_a_float_that_is_no_integer_is_refused_or_has_density_zero(value):
    """It is refused where its value is known; compiled code gives the density at it, which is zero."""
    with pytest.raises(vipl.errors.ChoiceError, match="wrong kind of dtype"):
        model(0.3).assess(CHOICES | {"k": value})
    for traced in (value, [1.0, value, 0.0]):
        given = CHOICES | ({"k": traced} if traced is value else {"y": jnp.array(traced)})
        assert jax.jit(lambda given: model(0.3).assess(given).log_prob)(given) == -jnp.inf


def test_a_drawn_float_is_no_datum_of_an_integer_site():
    def program():
        return model(0.3).assess(CHOICES | {"k": sample("q", dist.Normal(2.0, 1.0))}).log_prob

    with pytest.raises(vipl.errors.ChoiceError, match="wrong kind of dtype"):
        vipl.seed(program)(KEY)


INTEGERS = [3, np.int64(3), np.int32(3), np.array(3), jnp.array(3)]


def ids(n):
    """Names the integers by their types."""
    return type(n).__name__


@pytest.mark.parametrize("n", INTEGERS, ids=ids)
def test_integers_of_any_library_are_integers(n):
    @vipl.expectation
    def objective(m, data=1.0):
        return sample("x", dist.Normal(m, 1.0), Score()) * jnp.sum(data)

    options: dict[str, Any] = {"key": KEY, "progress": False, "data": jnp.arange(6.0)}
    one, other = (
        vipl.fit(objective, 0.5, optax.sgd(0.1), num_steps=k, batch_size=k, num_samples=k, **options).values
        for k in (n, 3)
    )
    assert np.array_equal(one, other)
    assert objective.estimate(KEY, 0.5, num_samples=n) == objective.estimate(KEY, 0.5, num_samples=3)
    assert Importance(n) == Importance(3)
    assert SMC(n).num_particles == 3
    assert isinstance(SMC(n).num_particles, int)
    gamma = vipl.expectation(lambda a, boost: sample("x", dist.Gamma(a, 1.0), RejectionReparam(boost)))
    assert gamma.value_and_grad(KEY, 1.5, int(n)) == vipl.expectation(
        lambda a: sample("x", dist.Gamma(a, 1.0), RejectionReparam(n))
    ).value_and_grad(KEY, 1.5)
    bound = {"num_particles": n}
    guide = vipl.gen(lambda: sample("z", dist.Normal(0.0, 1.0)))
    assert jnp.isfinite(vipl.expectation(lambda: vipl.objectives.iwelbo(guide(), guide(), {}, **bound)).estimate(KEY))
    chain = vipl.distributions.HiddenMarkov(jnp.zeros(2), jnp.zeros((2, 2)), dist.Normal(jnp.zeros(2), 1.0), n)
    assert chain.event_shape == (3,)


def test_an_integer_that_is_used_as_a_length_stays_one():
    """It is traced otherwise: a counter of steps does not compile at each step."""
    staged = []

    @vipl.expectation
    def total(m, n, doubled):
        staged.append(n)
        x = jnp.sum(jax.vmap(lambda _: sample("x", dist.Normal(m, 1.0)))(jnp.arange(n)))
        return 2.0 * x if doubled else x

    for n in (3, np.int64(4), 0):
        for factor, doubled in ((1.0, False), (2.0, True)):
            value, grad = total.value_and_grad(KEY, 0.5, n, doubled)
            draws = vipl.seed(lambda n: jax.vmap(lambda _: sample("x", dist.Normal(0.5, 1.0)))(jnp.arange(n)))(KEY, n)
            assert jnp.allclose(value, factor * jnp.sum(draws), rtol=1e-12)
            assert grad == factor * n
    count = len(staged)
    total.value_and_grad(KEY, 0.7, 3, True)
    assert len(staged) == count

    @vipl.expectation
    def counted(m, step):
        staged.append(step)
        return sample("x", dist.Normal(m, 1.0)) / (1.0 + step)

    values = [counted.estimate(KEY, 0.5, step) for step in range(4)]
    assert jnp.allclose(jnp.stack(values), values[0] / jnp.arange(1.0, 5.0), rtol=1e-12)
    assert len(staged) == count + 1


@pytest.mark.parametrize("constant", [3.0, 3, np.float64(3.0), jnp.asarray(3.0)], ids=ids)
@pytest.mark.parametrize("num_samples", [1, 2])
def test_a_constant_is_an_objective(constant, num_samples):
    """Its derivative is exactly zero, with sites beside it that do not reach it, too."""

    def program(p):
        sample("a", dist.Bernoulli(p), Enumerate())
        sample("b", dist.Bernoulli(p), MeasureValued())
        sample("c", dist.Normal(p, 1.0), Score())
        return constant

    for fn in (program, lambda p: constant):
        objective = vipl.expectation(fn)
        value, grad = objective.value_and_grad(KEY, 0.3, num_samples=num_samples)
        assert (value, grad) == (3.0, 0.0)
        assert jax.hessian(objective.estimate, 1)(KEY, 0.3) == 0.0
        assert jnp.array_equal(jax.vmap(objective.estimate, (None, 0))(KEY, jnp.array([0.3, 0.6])), jnp.full(2, 3.0))
        with_aux = vipl.expectation(lambda p, fn=fn: (fn(p), {"c": 2.0}), has_aux=True)
        assert with_aux.estimate(KEY, 0.3) == (3.0, {"c": 2.0})


def test_a_raw_key_is_a_key():
    raw = jax.random.key_data(KEY)
    keys: list[Any] = [raw, np.asarray(raw)]
    for key in keys:
        assert model(0.3).simulate(key).log_prob == model(0.3).simulate(KEY).log_prob


def test_a_generative_method_takes_other_estimators():
    class Guide:
        @vipl.gen
        def normal(self, m):
            return sample("z", dist.Normal(m, 1.0))

    trace = vipl.expectation(lambda m: Guide().normal.with_estimators({"z": Score()})(m).simulate().retval)
    assert trace.estimate(KEY, 0.5) == vipl.expectation(lambda m: Guide().normal(m).simulate().retval).estimate(
        KEY, 0.5
    )


@pytest.mark.parametrize("estimator", [Enumerate(), Enumerate(all_possible=True), MeasureValued(), Score()], ids=ids)
def test_a_site_of_no_numbers(estimator):
    """The sum over nothing is 0, whatever the estimator."""

    @vipl.expectation
    def objective(p):
        return 2.0 * p + jnp.sum(sample("x", dist.Bernoulli(p * jnp.ones(0)), estimator))

    assert objective.estimate(KEY, 0.3) == 0.6
    assert jax.grad(objective.estimate, 1)(KEY, 0.3) == 2.0


# --- integers that are too large for JAX's -------------------------------------------------------------------------

LARGE = np.array([3_000_000_000, 3_100_000_000, -2_900_000_000])


@pytest.mark.parametrize("given", [LARGE, LARGE.tolist(), tuple(LARGE)], ids=["NumPy", "list", "tuple"])
def test_large_integers_at_a_site_of_floats_are_floats(given):
    """In single precision JAX would wrap them in silence."""
    with jax.enable_x64(False):
        model = vipl.gen(lambda: sample("y", dist.Normal(jnp.zeros(3), 1e9)))()
        wanted = model.assess({"y": LARGE.astype(np.float32)}).log_prob
        assert model.assess({"y": given}).log_prob == wanted
        objective = vipl.expectation(lambda y: model.assess({"y": y}).log_prob)
        assert objective.estimate(KEY, LARGE) == wanted


def test_large_integers_of_other_types():
    with jax.enable_x64(False):
        model = vipl.gen(lambda: sample("y", dist.Normal(0.0, 1e9)))()
        for x in (3_000_000_000, np.int64(3_000_000_000), np.uint32(3_000_000_000)):
            np.testing.assert_allclose(model.assess({"y": x}).log_prob, dist.Normal(0.0, 1e9).log_prob(3e9), rtol=1e-6)
        fitted = vipl.fit(
            vipl.expectation(lambda m, y: -((m - jnp.mean(y) / 1e9) ** 2)),
            0.0, optax.sgd(0.25), key=KEY, num_steps=60, data=LARGE[:2], progress=False,
        )  # fmt: skip
        np.testing.assert_allclose(fitted.params, 3.05, rtol=1e-5)


@pytest.mark.parametrize("large", [np.array(4_294_967_303), np.uint32(3_000_000_000), 4_294_967_303.0])
def test_integers_that_a_site_of_integers_cannot_hold_are_refused(large):
    with jax.enable_x64(False), pytest.raises(vipl.errors.ChoiceError, match="jax_enable_x64"):
        vipl.gen(lambda: sample("k", dist.Poisson(3.0)))().assess({"k": large})


COUNTED = {
    "multinomial": lambda counts, logits: dist.Multinomial(counts, logits=logits),
    "Dirichlet": lambda counts, logits: dist.DirichletMultinomial(jnp.exp(logits), counts),
}


@pytest.mark.parametrize("family", COUNTED)
def test_counts_that_are_arrays_made_anew_in_each_trace(family):
    """NumPyro keeps them in the structure of a distribution, where they are compared by content."""
    votes, logits = np.array([[2, 3, 1], [4, 0, 5]]), jnp.array([0.3, -0.2, 0.1])

    @vipl.gen
    def model(rows):
        counts = np.sum(np.reshape(rows, (2, 3)), -1)
        sample("y", COUNTED[family](counts, logits).to_event(1))

    for rows in (votes, votes.copy(), votes[::-1], votes.astype(np.int32)):
        program = model(tuple(map(int, rows.ravel())))
        wanted = COUNTED[family](rows.sum(-1), logits).log_prob(rows).sum()  # NumPyro's is in single precision
        np.testing.assert_allclose(program.assess({"y": rows}).log_prob, wanted, rtol=1e-6)
        np.testing.assert_array_equal(program.simulate(KEY).choices["y"].sum(-1), rows.sum(-1))
