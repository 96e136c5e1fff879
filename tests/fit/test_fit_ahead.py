"""Random bits and rows of many steps at once: bit for bit those of each step, and outside the loop."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import vipl
from vipl.cache.programs import forget
from vipl.fit import fit

AHEAD = importlib.import_module("vipl.fit._ahead")
STEPS = importlib.import_module("vipl.fit._steps")
DATA = jnp.arange(11.0)


@functools.partial(vipl.expectation, has_aux=True)
def objective(params, batch):
    """Draws of several kinds: by numbers, by a sampler that keeps its key, in a loop, and bits of a key by address."""

    def step(x, _):
        return x + vipl.sample("step", dist.Normal(params, 1.0)), None

    x = vipl.sample("x", dist.Normal(params, 1.0).expand([3]).to_event(1))
    scale = vipl.sample("scale", dist.Gamma(2.0, 1.0))
    end, _ = jax.lax.scan(step, 0.0, length=4)
    bits = jax.random.bits(vipl.random_key("noise"), (2,), "uint32")
    flip = vipl.sample("flip", dist.Bernoulli(0.3), vipl.Score())
    value = -jnp.sum((jnp.mean(x) + end - batch) ** 2) / 100 - scale + flip
    return value, {"bits": bits, "rows": batch, "flip": flip}


def run(impl, num_restarts=None, num_steps=20):
    key = jax.random.key(37, impl=impl)
    options = {"data": DATA, "batch_size": 3, "num_steps": num_steps, "progress": False}
    return fit(objective, 0.3, optax.adam(0.1), key=key, num_restarts=num_restarts, **options)


@pytest.mark.parametrize(("bound", "size"), [("MOST", 7), ("_NUMBERS", 60), ("_NUMBERS", 1)])
@pytest.mark.parametrize(("impl", "num_restarts"), [("threefry2x32", None), ("threefry2x32", 2), ("rbg", None)])
def test_steps_do_not_depend_on_how_many_are_prepared_together(monkeypatch, impl, num_restarts, bound, size):
    wanted = run(impl, num_restarts)
    forget()
    monkeypatch.setattr(AHEAD, bound, size)
    found = run(impl, num_restarts)
    jax.tree.map(np.testing.assert_array_equal, wanted.metrics, found.metrics)
    np.testing.assert_allclose(wanted.values, found.values, rtol=1e-12)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_step_draws_what_it_draws_by_itself(impl):
    """What is random in each step, where the steps are taken one by one without a split."""
    found, key = run(impl, num_steps=9), jax.random.key(37, impl=impl)
    job = STEPS.Job((objective,), (optax.adam(0.1),), batch_size=3)
    state = STEPS.State(jnp.float32(0.3), job.optimizers[0].init(jnp.float32(0.3)), jnp.int32(0), jnp.int32(0))
    one = jax.jit(functools.partial(STEPS._step, job))
    for i in range(9):
        ahead = AHEAD.ahead_of(key, jnp.int32(i), DATA, 3)
        state, record = one(ahead, state, (DATA,), jnp.int32(i))
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x, i=i: x[i], found.metrics), record.metrics)
        np.testing.assert_allclose(found.values[i], record.values, rtol=1e-6)
    assert len({tuple(bits) for bits in np.asarray(found.metrics["bits"])}) == 9


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_random_bits_are_drawn_outside_the_loop(impl):
    """One draw is left, that of the sampler of the Gamma, whose key comes out of a loop that draws until it accepts."""
    key, params = jax.random.key(0, impl=impl), jnp.float32(0.3)
    job = STEPS.Job((objective,), (optax.adam(0.1),), batch_size=3)
    state = STEPS.State(params, job.optimizers[0].init(params), jnp.int32(0), jnp.int32(0))
    jaxpr = jax.make_jaxpr(functools.partial(STEPS.take_steps, job))(key, state, (DATA,), 9).jaxpr
    outer = next(eqn for eqn in jaxpr.eqns if eqn.primitive.name == "while").params["body_jaxpr"].jaxpr
    inner = next(eqn for eqn in reversed(outer.eqns) if eqn.primitive.name == "while").params["body_jaxpr"].jaxpr
    assert sum(eqn.primitive.name == "random_bits" for eqn in inner.eqns) == 1


def test_a_fit_without_nan_has_none_for_jax_to_find():
    with jax.debug_nans(True):
        found = run("threefry2x32", num_restarts=2, num_steps=3)
        natural = vipl.infer(model(), {"y": 0.7}, key=jax.random.key(1))
    assert np.all(np.isfinite(found.values))
    assert np.isfinite(natural.evidence(jax.random.key(2), 50).elbo)


@vipl.gen
def model():
    vipl.sample("y", dist.Normal(vipl.sample("m", dist.Normal(0.0, 1.0)), 1.0))
