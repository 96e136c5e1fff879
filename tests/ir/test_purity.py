"""What is not known to be pure stays where it is, as often as it stands there; how often callbacks run."""

from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax
from jax.experimental import io_callback

import vipl
from tests.helpers.jaxprs import equations
from vipl import Enumerate, LocalEnumerate, MeasureValued, Reparam, Score, sample
from vipl.ir.purity import is_pure

KEY = jax.random.key(89)
UNIFORM = lambda: lax.rng_uniform(0.0, 1.0, ())  # noqa: E731

# --- what is merged, dropped, moved -----------------------------------------------------------------------

# A number that is another one each time, in plain code and inside other equations.
NUMBERS = {
    "plain": UNIFORM,
    "jit": lambda: jax.jit(UNIFORM)(),
    "scan": lambda: lax.scan(lambda c, _: (c, UNIFORM()), 0.0, None, length=2)[1].sum(),
    "cond": lambda: lax.cond(True, UNIFORM, lambda: 0.5),
    "while": lambda: lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, UNIFORM()), (0, 0.0))[1],
    "checkpoint": lambda: jax.checkpoint(UNIFORM)(),
    "nested": lambda: jax.jit(lambda: lax.cond(True, jax.jit(UNIFORM), lambda: 0.5))(),
}


@jax.custom_jvp
def _noisy(x):
    return x * UNIFORM()


_noisy.defjvps(lambda dx, out, x: dx)
NUMBERS["custom_jvp"] = lambda: _noisy(1.0)


def numbers_made(fn):
    """How many equations of `rng_uniform` an objective ends up with."""
    jaxpr = jax.make_jaxpr(vipl.expectation(fn).estimate)(KEY, 0.7).jaxpr
    return sum(eqn.primitive.name == "rng_uniform" for eqn in equations(jaxpr))


@pytest.mark.parametrize("name", NUMBERS)
def test_two_numbers_of_a_hidden_generator_are_two(name):
    number = NUMBERS[name]
    assert numbers_made(lambda t: t * (number() - number()) ** 2 + sample("x", dist.Normal(0.0, 1.0))) == 2


def test_the_difference_of_two_such_numbers():
    """E[(a - b)^2] = 1/6; merged they give 0, as the twin does. The generator has a state, and no rule for vmap."""

    def mean(first, second):
        estimate = vipl.expectation(
            lambda: (first() - second()) ** 2 + 0.0 * sample("x", dist.Normal(0.0, 1.0))
        ).estimate
        squares = np.array([estimate(KEY) for _ in range(200)])
        return squares.mean(), squares.std() / np.sqrt(200)

    found, error = mean(UNIFORM, UNIFORM)
    assert 0 < 8 * error < 1 / 6  # so that a mean of zero is seen
    assert abs(found - 1 / 6) < 5 * error
    assert mean(UNIFORM, lambda: 0.0)[0] != 0
    assert mean(lambda: 0.3, lambda: 0.3)[0] == 0


@pytest.mark.parametrize(
    ("name", "call"),
    {
        "optimization_barrier": lambda x: lax.optimization_barrier(x),
        "pure_callback": lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), float), x),
        "user": lambda x: _mine_p.bind(x),
    }.items(),
)
def test_what_is_not_on_the_list_stands_as_often_as_it_was_written(name, call):
    def program(t):
        call(2.0 * t)  # nothing reads it
        return call(t) + call(t) + sample("x", dist.Normal(0.0, 1.0))

    jaxpr = jax.make_jaxpr(vipl.expectation(program).estimate)(KEY, 0.7).jaxpr
    assert sum(eqn.primitive.name.startswith(name) for eqn in equations(jaxpr)) == 3


_mine_p = jax.extend.core.Primitive("user_mine")
_mine_p.def_abstract_eval(lambda x: x)


@pytest.mark.parametrize(
    "call",
    [
        jnp.sin, jnp.linalg.eigvalsh, lambda x: jax.random.bits(KEY, x.shape), jnp.fft.fft,
        lambda x: x.at[0].set(1.0), jax.nn.relu, lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
        lambda x: lax.scan(lambda c, r: (c + r, c), x[0], x)[1], lambda x: jnp.linalg.solve(x, x[0]), jnp.sort,
        lambda x: lax.while_loop(lambda c: c[0, 0] < 1, lambda c: c + 1, x), jax.scipy.special.gammaln,
    ],
)  # fmt: skip
def test_ordinary_functions_are_pure(call):
    jaxpr: Any = jax.make_jaxpr(call)(jnp.eye(3) + 1.0).jaxpr
    assert all(map(is_pure, jaxpr.eqns))


@pytest.mark.parametrize("name", NUMBERS)
def test_what_holds_a_hidden_generator_is_not(name):
    jaxpr: Any = jax.make_jaxpr(NUMBERS[name])().jaxpr
    assert not all(map(is_pure, jaxpr.eqns))


def test_a_reference_is_no_pure_equation():
    def program(x):
        r = jax.new_ref(x)
        r[...] = r[...] + 1.0
        return r[...]

    jaxpr: Any = jax.make_jaxpr(program)(1.0).jaxpr
    for eqn in jaxpr.eqns:
        assert is_pure(eqn) == (eqn.primitive.name not in ("new_ref", "get", "swap"))


def test_the_sampler_of_a_distribution_calls_the_host_once():
    """Its noise is drawn apart from the rest: what is not pure stays in the rest, once."""
    calls = []

    class Noted(dist.Normal):
        def sample(self, key, sample_shape=()):
            jax.debug.callback(lambda: calls.append(1))
            scale = io_callback(lambda: calls.append(2) or np.float64(2.0), jax.ShapeDtypeStruct((), float))
            return super().sample(key, sample_shape) * scale

    f = vipl.expectation(lambda t: sample("x", Noted(t, 1.0), Reparam()))
    assert f.estimate(KEY, 0.7) == 2.0 * vipl.expectation(lambda t: sample("x", dist.Normal(t, 1.0))).estimate(KEY, 0.7)
    jax.effects_barrier()
    assert sorted(calls) == [1, 2]


# --- how often callbacks run ------------------------------------------------------------------------------

LOGITS = jnp.array([0.0, 1.0, 2.0])


class Counter:
    """Counts how often the host is called."""

    def __init__(self, kind):
        """Says how: "print" (a debug callback), "io", "ordered"."""
        self.count, self.kind = 0, kind

    def __call__(self, x):
        """Calls the host once from a program."""

        def called(_):
            self.count += 1

        if self.kind == "print":
            jax.debug.callback(called, x)
        else:
            io_callback(called, None, x, ordered=self.kind == "ordered")

    def during(self, fn):
        """How often in a call."""
        self.count = 0
        jax.block_until_ready(fn())
        jax.effects_barrier()
        return self.count


# The table in docs/how-to.md: estimator, callbacks of a value of the site (of three values), of another value.
COUNTS = [
    (Score(), 1, 1),
    (Enumerate(), 3, 1),
    (MeasureValued(), 1 + 3, 1 + 1),
    (LocalEnumerate(), 1 + 3, 1 + 1),
]


@pytest.mark.parametrize("kind", ["print", "io"])
@pytest.mark.parametrize(("estimator", "of_value", "of_other"), COUNTS, ids=lambda x: type(x).__name__)
def test_how_often_a_callback_runs(estimator, of_value, of_other, kind):
    def runs(depends, **options):
        counter = Counter(kind)

        def program(t):
            z = 1.0 * sample("z", dist.Categorical(logits=LOGITS * t), estimator)
            counter(z if depends else t)
            return z * t

        f = vipl.expectation(program)
        if kind == "print":  # JAX takes no derivative of what holds an `io_callback`
            return counter.during(lambda: f.value_and_grad(KEY, 0.5, **options))
        return counter.during(lambda: f.estimate(KEY, 0.5, **options))

    assert runs(True) == of_value
    assert runs(False) == of_other
    assert runs(False, num_samples=4) == of_other


@pytest.mark.parametrize("kind", ["print", "io"])
def test_a_callback_of_a_draw_runs_once_for_each_sample_and_each_lane(kind):
    counter = Counter(kind)

    @vipl.expectation
    def f(t):
        def lane(_):
            x = sample("x", dist.Normal(t, 1.0))
            counter(x)
            return x

        return jnp.sum(jax.vmap(lane)(jnp.arange(3)))

    assert counter.during(lambda: f.estimate(KEY, 0.5)) == 3
    assert counter.during(lambda: f.estimate(KEY, 0.5, num_samples=4)) == 12


@pytest.mark.parametrize("kind", ["print", "io", "ordered"])
@pytest.mark.parametrize("reads", ["draw", "x"])
def test_a_callback_in_a_loop_runs_once_in_each_step(kind, reads):
    """The steps are taken apart where densities are added up: what the host sees stays in the loop, in order."""
    counter = Counter(kind)

    @vipl.gen
    def model():
        def step(carry, x):
            z = sample("z", dist.Normal(carry, 1.0))
            counter(z if reads == "draw" else x)
            return z, z

        return lax.scan(step, 0.0, jnp.arange(5.0))[0]

    objective = vipl.expectation(lambda: model().simulate().log_prob)
    assert counter.during(lambda: model().simulate(KEY)) == 5
    assert counter.during(lambda: model().assess({"z": jnp.ones(5)}).log_prob) == 5
    assert counter.during(lambda: objective.estimate(KEY)) == 5


def test_ordered_callbacks_keep_their_order():
    seen = []

    @vipl.gen
    def model():
        def step(carry, x):
            z = sample("z", dist.Normal(carry, 1.0))
            io_callback(lambda x: seen.append(float(x)), None, x, ordered=True)
            return z, None

        return lax.scan(step, 0.0, jnp.arange(5.0))[0]

    jax.block_until_ready(model().assess({"z": jnp.ones(5)}).log_prob)
    jax.effects_barrier()
    assert seen == [0.0, 1.0, 2.0, 3.0, 4.0]


RERUN = {
    "MeasureValued": (MeasureValued(), {}),
    "Enumerate": (Enumerate(), {}),
    "num_samples": (Score(), {"num_samples": 2}),
}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
@pytest.mark.parametrize("name", RERUN)
def test_an_ordered_callback_in_a_program_that_is_run_again_is_refused(name, wrap):
    estimator, options = RERUN[name]

    @vipl.expectation
    def f(t):
        z = 1.0 * sample("z", dist.Bernoulli(logits=t), estimator)
        wrap(lambda x: io_callback(lambda _: None, None, x, ordered=True))(z)
        return z

    with pytest.raises(vipl.errors.ControlFlowError, match=r"`io_callback` in .* \(test_purity.py:"):
        f.estimate(KEY, 0.7, **options)
