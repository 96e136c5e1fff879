"""A change in place of a NumPy array is seen by all that is computed afterwards, whatever programs are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax import lax

import vipl
from vipl import guides, objectives, sample
from vipl.ir.stage import stage

KEY = jax.random.key(0)

# How a program comes to the sum of an array's elements times b.
WAYS = {
    "read": lambda b, x: jnp.sum(b * x),
    "in a scan": lambda b, x: lax.scan(lambda c, _: (c + jnp.sum(b * x), None), 0.0 * b, length=1)[0],
    "in a branch": lambda b, x: lax.cond(b > -100.0, lambda b: jnp.sum(b * x), lambda b: 0.0 * b, b),
    "in a loop": lambda b, x: lax.fori_loop(0, 1, lambda _, c: c + jnp.sum(b * x), 0.0 * b),
    "compiled": lambda b, x: jax.jit(lambda b: jnp.sum(b * x))(b),
    "in lanes": lambda b, x: jnp.sum(jax.vmap(lambda x: b * x)(x)),
    "once more": lambda b, x: jax.checkpoint(lambda b: jnp.sum(b * x))(b),
}


@pytest.fixture
def single():
    """JAX converts arrays of double precision, and keeps what it made of them; others it takes as they are."""
    with jax.enable_x64(False):
        yield


def regression(way, x):
    """b ~ Normal(0, 1), y ~ Normal(b sum(x), 1), of an array that it reads."""

    @vipl.gen
    def program():
        b = sample("b", dist.Normal(0.0, 1.0))
        sample("y", dist.Normal(WAYS[way](b, x), 1.0))

    return program


def log_density(x, b, y):
    return -0.5 * b**2 - 0.5 * (y - b * np.sum(x)) ** 2 - np.log(2 * np.pi)


@pytest.mark.parametrize(("way", "kind"), [*((way, np.float64) for way in WAYS), ("read", np.int64)])
def test_a_change_in_place_is_seen(way, kind, single):
    """Also where a guide of the program is kept, and a compiled bound."""
    x = np.arange(1, 4).astype(kind)
    model, data = regression(way, x), {"y": 0.7}
    guide = guides.FullRank(model(), data)
    bound = vipl.expectation(lambda params: objectives.elbo(model(), guide(params), data))
    params = guide.init(KEY)
    before = bound.estimate(KEY, params)
    x *= -3
    np.testing.assert_array_equal(jnp.asarray(x), x)
    np.testing.assert_allclose(model().assess({"b": 1.5, "y": 0.7}).log_prob, log_density(x, 1.5, 0.7), rtol=1e-5)
    assert abs(bound.estimate(KEY, params) - before) > 1e-3


def test_inner_programs_of_any_kind_are_left_whole():
    """Also those that JAX keeps in a tuple with names, as of a linear system."""
    matrix = np.array([[2.0, 0.5], [0.3, 1.0]])

    @vipl.gen
    def system():
        b = sample("b", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        sample("y", dist.Normal(jnp.linalg.solve(jnp.asarray(matrix), b), 1.0).to_event(1))

    def wanted(b):
        return -0.5 * b @ b - 0.5 * np.sum(np.linalg.solve(matrix, b) ** 2) - 2 * np.log(2 * np.pi)

    b = np.array([1.0, -2.0])
    for _ in range(2):
        np.testing.assert_allclose(system().assess({"b": b, "y": jnp.zeros(2)}).log_prob, wanted(b), rtol=1e-9)
        matrix += 1.0


def test_an_array_is_copied_once():
    x = np.ones(5)
    inner = jax.jit(lambda b: jnp.sum(b * x))
    jaxpr, _ = stage(lambda b: sum(inner(b) for _ in range(4)) + jnp.sum(b + x), 2.0)
    copies = [c for c in jaxpr.consts if np.shape(c) == (5,)]
    assert len({id(c) for c in copies}) == 1
    assert not np.shares_memory(copies[0], x)


def test_counts_in_the_structure_of_a_distribution(single):
    """NumPyro keeps those of a multinomial beside its parameters."""
    counts = np.array([2, 3])
    model = vipl.gen(lambda: sample("y", dist.Multinomial(counts, jnp.ones(3) / 3).to_event(1)))
    for total in ([2, 3], [7, 8]):
        counts[:] = total
        drawn = model().simulate(KEY).choices["y"]
        np.testing.assert_array_equal(drawn.sum(-1), total)
        assert np.isfinite(model().assess({"y": drawn}).log_prob)


WORK = {
    "estimate": lambda bound, params: bound.estimate(KEY, params),
    "value_and_grad": lambda bound, params: bound.value_and_grad(KEY, params),
    "fit": lambda bound, params: vipl.fit(bound, params, optax.sgd(0.1), key=KEY, num_steps=2, progress=False),
    "jit": lambda bound, params: jax.jit(bound.estimate)(KEY, params),
}


@pytest.mark.parametrize("work", WORK)
def test_no_program_that_is_kept_holds_the_array(work, single):
    x = np.linspace(1.0, 2.0, 3)
    model = regression("read", x)
    guide = guides.MeanField(model(), {"y": 0.7})
    bound = vipl.expectation(lambda params: objectives.elbo(model(), guide(params), {"y": 0.7}))
    kept = WORK[work](bound, guide.init(KEY))
    x *= -3
    np.testing.assert_allclose(jnp.asarray(x), x, rtol=1e-6)
    del kept


def test_a_function_of_draws_is_that_of_the_array_as_it_is(single):
    x = np.array([2], np.int64)
    posterior = vipl.infer(regression("read", np.ones(3))(), {"y": 0.7}, key=KEY)

    def first():
        return posterior.expectation(lambda choices: jnp.sum(jnp.exp(0.0 * choices["b"]) * x))

    assert first() == 2.0
    x += 5
    assert jnp.asarray(x)[0] == 7
    assert first() == 7.0


def test_arrays_of_another_precision():
    """Those that were converted to single precision are not used where double precision is the default later."""
    x = np.linspace(1.0, 2.0, 3)
    model, data = regression("read", x), {"y": 0.7}
    with jax.enable_x64(False):
        kept = guides.FullRank(model(), data)
        assert model().assess({"b": 1.5, "y": 0.7}).log_prob.dtype == jnp.float32
    found = model().assess({"b": 1.5, "y": 0.7}).log_prob
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, log_density(x, 1.5, 0.7), rtol=1e-12)
    del kept
