"""Many rows of one array are split off together: the same values and derivatives, and one `concatenate` of them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipl
from tests.helpers.jaxprs import equations
from vipl.passes.cse import cse

KEY = jax.random.key(11)
WANTED = [i for i in range(100) if i % 7 != 3]


def rows(x):
    """Rows with gaps, two of them twice, and others along the other axis, as well as a block of two."""
    total = sum(jnp.sin(x[i] * i) @ x[i] for i in WANTED) + jnp.sum(x[4] ** 2 + x[99])
    return total + sum(jnp.sum(x[:, j] ** (j % 3)) for j in range(80)) + jnp.sum(x[3:5] ** 2)


def primitives(fn, *args):
    return [eqn.primitive.name for eqn in equations(jax.make_jaxpr(fn)(*args).jaxpr)]


def test_rows_of_both_axes_have_their_values_and_derivatives():
    x = jax.random.normal(KEY, (100, 80))
    merged = lambda x: cse(rows, x)  # noqa: E731
    np.testing.assert_allclose(jax.jit(merged)(x), jax.jit(rows)(x), rtol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.grad(merged))(x), jax.jit(jax.grad(rows))(x), rtol=1e-12)
    names = primitives(jax.grad(merged), x)
    assert (names.count("split"), names.count("concatenate"), names.count("pad")) == (2, 2, 1)
    lanes = jnp.stack([x, 2 * x])
    np.testing.assert_allclose(jax.vmap(jax.grad(merged))(lanes)[1], jax.grad(rows)(2 * x), rtol=1e-12)


def test_few_rows_and_keys_stay_as_they_are():
    assert "split" not in primitives(lambda x: cse(lambda x: sum(x[i] for i in range(60)), x), jnp.ones(100))
    keys = jax.random.split(KEY, 100)
    drawn = lambda keys: sum(jax.random.normal(keys[i]) for i in range(100))  # noqa: E731
    assert "split" not in primitives(lambda keys: cse(drawn, keys), keys)


@pytest.mark.parametrize("estimator", [None, vipl.Score()], ids=str)
def test_an_objective_of_many_sites_has_one_concatenate(estimator):
    n = 90

    @vipl.expectation
    def objective(loc):
        return sum(vipl.sample(f"x{i}", dist.Normal(loc[i], 1.0), estimator) ** 2 for i in range(n))

    loc = jnp.linspace(-1.0, 1.0, n)
    names = primitives(lambda loc: objective.value_and_grad(KEY, loc), loc)
    assert names.count("pad") == 0
    if estimator is None:
        noise = jax.jacfwd(lambda loc: objective.value_and_grad(KEY, loc)[1])(loc)
        np.testing.assert_allclose(noise, 2 * jnp.eye(n), atol=1e-12)
