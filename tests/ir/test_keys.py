"""Where a key stands among the arguments, and how the arguments are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import vipl

KEY = jax.random.key(3)


@vipl.gen
def model(m=0.3):
    z = vipl.sample("z", dist.Normal(m, 1.0))
    vipl.sample("y", dist.Normal(z, 0.5))


@vipl.expectation
def objective(t, s):
    return vipl.sample("x", dist.Normal(t["m"], s)) ** 2 * s


def test_argnums_counts_as_in_jax():
    """To rounding: the two are compiled as different programs."""
    args = ({"m": 0.7}, 1.3)
    for argnums in (1, 2, -1, -2, (1,), (1, 2), (2, 1), (-1, 1)):
        got = objective.value_and_grad(KEY, *args, argnums=argnums)
        exact = jax.value_and_grad(objective.estimate, argnums=argnums)(KEY, *args)
        assert jax.tree.structure(got) == jax.tree.structure(exact)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-14), got, exact)
    default = objective.value_and_grad(KEY, *args)
    jax.tree.map(np.testing.assert_array_equal, default, objective.value_and_grad(KEY, *args, argnums=1))


@pytest.mark.parametrize(
    ("argnums", "write"),
    [(0, "argnums=1;"), (-3, "argnums=1;"), ((0, 1), r"argnums=\(1, 2\);"), ((0, 2), "argnums=1;")],
)
def test_the_number_of_the_key_tells_the_one_to_write(argnums, write):
    with pytest.raises(vipl.errors.ProgramError, match=f"in the key(.|\n)*fix:       write {write}"):
        objective.value_and_grad(KEY, {"m": 0.7}, 1.3, argnums=argnums)


CHOICES = {"z": 0.2, "y": 0.1}
CALLS = {
    "estimate": (
        lambda: objective.estimate(KEY, {"m": 0.7}, 1.3),
        lambda: objective.estimate({"m": 0.7}, 1.3, key=KEY),
    ),
    "estimate of nothing": (
        lambda: vipl.expectation(lambda: vipl.sample("x", dist.Normal(0.0, 1.0))).estimate(KEY),
        lambda: vipl.expectation(lambda: vipl.sample("x", dist.Normal(0.0, 1.0))).estimate(key=KEY),
    ),
    "value_and_grad": (
        lambda: objective.value_and_grad(KEY, {"m": 0.7}, 1.3, argnums=2),
        lambda: objective.value_and_grad({"m": 0.7}, 1.3, argnums=2, key=KEY),
    ),
    "seed": (
        lambda: vipl.seed(lambda m, s: vipl.sample("x", dist.Normal(m, s)))(KEY, 0.2, s=2.0),
        lambda: vipl.seed(lambda m, s: vipl.sample("x", dist.Normal(m, s)))(0.2, s=2.0, key=KEY),
    ),
    "seed of keywords": (
        lambda: vipl.seed(lambda m: vipl.sample("x", dist.Normal(m, 1.0)))(KEY, m=2.0),
        lambda: vipl.seed(lambda m: vipl.sample("x", dist.Normal(m, 1.0)))(m=2.0, key=KEY),
    ),
    "simulate": (lambda: model().simulate(KEY).choices, lambda: model().simulate(key=KEY).choices),
    "particles": (
        lambda: vipl.normalize(model(), {"y": 0.1}, vipl.inference.Importance(3)).particles(KEY).log_weights,
        lambda: vipl.normalize(model(), {"y": 0.1}, vipl.inference.Importance(3)).particles(key=KEY).log_weights,
    ),
    "assess": (
        lambda: model().assess(CHOICES).log_prob,
        lambda: model().assess(CHOICES, key=KEY).log_prob,
    ),
    "generate": (
        lambda: vipl.seed(lambda: model().generate(CHOICES)[1])(KEY),
        lambda: model().generate(CHOICES, key=KEY)[1],
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_key_by_keyword(name):
    first, keyword = CALLS[name]
    jax.tree.map(np.testing.assert_array_equal, first(), keyword())


def test_a_fit_and_a_check_take_a_key_by_keyword():
    done = vipl.fit(objective, {"m": 0.7}, optax.sgd(0.01), data=1.3, num_steps=2, key=KEY, maximize=False)
    assert jnp.isfinite(done.params["m"])
    vipl.testing.assert_unbiased(lambda key: jax.random.normal(key), 0.0, key=KEY, resolution=0.5, num=2_000)


def test_without_a_key_python_says_so():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'key'"):
        objective.estimate()
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'key'"):
        vipl.seed(lambda: None)()
