"""Invariant: a `jit` in a program changes nothing, wherever it stands; no plain one is left in what is staged."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipl
from vipl import Enumerate, Reparam, Score, _jax, sample
from vipl.ir.stage import stage_program

TABLE = np.array([0.3, -0.7, 1.1])


def cost(z):
    return jnp.sum(jnp.tanh(TABLE * z))  # closes over an array


def in_plain_code(jit, m):
    return jit(lambda x: jit(cost)(sample("z", dist.Normal(x, 1.0), Score())))(m)


def the_same_twice(jit, m):
    z = sample("z", dist.Normal(m, 1.0), Score())
    f = jit(cost)
    return f(z) * f(z + m)


def an_operand_that_is_handed_on(jit, m):
    x, y, one = jit(lambda m: (m, jnp.exp(m), 1.0))(m)
    return sample("z", dist.Normal(x, y), Reparam()) * one


def in_a_scan(jit, m):
    def step(x, _):
        x = jit(lambda x: sample("z", dist.Normal(0.5 * x, jit(jnp.exp)(m)), Reparam()))(x)
        return x, jit(cost)(x)

    return jnp.sum(lax.scan(step, m, None, 3)[1])


def in_lanes(jit, m):
    def lane():
        z = sample("z", dist.Bernoulli(logits=jit(jnp.sin)(m)), Enumerate())
        return jit(cost)(m + z)

    return jax.nn.logsumexp(jax.vmap(lane, axis_size=2)())


def in_branches(jit, m):
    one = jit(lambda x: cost(sample("a", dist.Normal(x, 1.0), Score())))
    other = jit(lambda x: cost(2.0 * x))
    return lax.cond(sample("b", dist.Bernoulli(0.4), Enumerate()) == 1, one, other, m)


def in_a_checkpoint(jit, m):
    return jax.checkpoint(lambda x: jit(jnp.tanh)(sample("z", dist.Normal(x, 1.0), Reparam())))(m)


def in_a_while_loop(jit, m):
    z = sample("z", dist.Normal(m, 1.0), Score())
    return lax.while_loop(lambda s: jit(lambda x: jnp.abs(x) > 0.1)(s), jit(lambda s: s / 2), jit(cost)(z))


PROGRAMS = [
    in_plain_code,
    the_same_twice,
    an_operand_that_is_handed_on,
    in_a_scan,
    in_lanes,
    in_branches,
    in_a_checkpoint,
    in_a_while_loop,
]


def no_jit(fn):
    return fn


def donating(fn):
    """Says something about buffers: it is not inlined."""
    return jax.jit(fn, donate_argnums=0)


def results(program, jit):
    objective = vipl.expectation(lambda m: program(jit, m))
    if program is in_a_while_loop:
        return objective.estimate(jax.random.key(3), 0.8)
    return jax.value_and_grad(objective.estimate, argnums=1)(jax.random.key(3), 0.8)


def jits(jaxpr):
    """The names of all `jit`s in a program, at every depth."""
    eqns = _jax.parts(jaxpr).eqns
    here = [eqn.params["name"] for eqn in eqns if eqn.primitive is _jax.jit_p]
    return here + [name for eqn in eqns for body in _jax.bodies(eqn) for name in jits(body)]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_jit_changes_nothing(program):
    for mine, plain in zip(*(jax.tree.leaves(results(program, f)) for f in (jax.jit, no_jit)), strict=True):
        assert mine == plain, (mine, plain)
    assert jits(stage_program(lambda m: program(jax.jit, m), (0.8,), {}).jaxpr) == []


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_jit_that_is_not_plain_changes_no_value(program):
    for mine, plain in zip(*(jax.tree.leaves(results(program, f)) for f in (donating, no_jit)), strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-12)
    assert jits(stage_program(lambda m: program(donating, m), (0.8,), {}).jaxpr) != []
