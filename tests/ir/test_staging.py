"""In a program: what NumPyro's statements may do, and what staging leaves behind."""

import threading

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import numpyro.primitives
import pytest
from numpyro.infer.util import log_density

import vipl
from tests.helpers.malformed import KEY, uses_draws, with_a_site
from vipl import sample


def numpyro_model(y):
    """A NumPyro model; p(z, y) of it at z = 0.2, y = 1.5 is that of two normals."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 2), numpyro.handlers.scale(scale=3.0):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_a_numpyro_model_whose_statements_are_recorded_is_a_number():
    """`log_density` records every statement, so nothing is lost."""
    y = jnp.array([0.4, 1.5])

    @vipl.expectation
    def objective(m):
        z = sample("z", dist.Normal(m, 0.1))
        return 0.0 * z + log_density(numpyro_model, (y,), {}, {"z": m})[0]

    def exact(m):
        return dist.Normal(0.0, 1.0).log_prob(m) + 3.0 * jnp.sum(dist.Normal(m, 1.0).log_prob(y))

    value, grad = objective.value_and_grad(KEY, 0.2)
    assert jnp.allclose(value, exact(0.2), rtol=1e-12)
    assert jnp.allclose(grad, jax.grad(exact)(0.2), rtol=1e-12)


def test_a_numpyro_model_may_call_programs():
    """Handlers from outside a program are not its business; the density that it assesses enters by a factor."""

    @vipl.gen
    def noise(loc):
        sample("y", dist.Normal(loc, 1.0))

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.handlers.scale(scale=2.0):
            numpyro.factor("likelihood", noise(z).assess({"y": 1.5}).log_prob)

    value, _ = log_density(model, (), {}, {"z": 0.2})
    exact = dist.Normal(0.0, 1.0).log_prob(0.2) + 2.0 * dist.Normal(0.2, 1.0).log_prob(1.5)
    assert jnp.allclose(value, exact, rtol=1e-12)


@pytest.mark.parametrize("fails", [lambda: numpyro.factor("f", 1.0), lambda: 1 / 0])
def test_nothing_is_left_on_the_stack(fails):
    with numpyro.handlers.trace() as recorded:
        before = list(numpyro.primitives._PYRO_STACK)
        with pytest.raises((vipl.errors.ProgramError, ZeroDivisionError)):
            with_a_site(fails)
        assert numpyro.primitives._PYRO_STACK == before
        numpyro.factor("f", 1.0)
    assert list(recorded) == ["f"]


def test_another_thread_may_run_numpyro_meanwhile():
    found = []

    def statement():
        model = numpyro.handlers.seed(lambda: numpyro.sample("y", dist.Normal(0.0, 1.0)), KEY)
        thread = threading.Thread(target=lambda: found.append(model()))
        thread.start()
        thread.join()

    with_a_site(statement)
    assert jnp.isfinite(found[0])


def test_statements_that_do_nothing_pass():
    with_a_site(lambda: (numpyro.primitives.get_mask(), dist.Normal(0.0, 1.0)(rng_key=KEY)))


def test_the_message_keeps_the_error_of_jax():
    with pytest.raises(vipl.errors.ProgramError) as caught:
        uses_draws(lambda x, n: 1.0 if x > 0 else 2.0)
    assert isinstance(caught.value.__cause__, jax.errors.TracerBoolConversionError)
    assert "test_staging.py" in caught.value.at


@pytest.mark.parametrize(
    "error", [TypeError("mine"), IndexError("mine"), KeyError("mine"), ValueError("a static mind")]
)
def test_errors_of_the_users_own_pass_through(error):
    def fail(x, n):
        raise error

    with pytest.raises(type(error), match="mi") as caught:
        uses_draws(fail)
    assert caught.value is error


def test_a_precision_for_the_whole_program():
    with jax.enable_x64(False):
        assert vipl.gen(lambda: sample("x", dist.Normal(0.0, 1.0)))().simulate(KEY).retval.dtype == jnp.float32


def test_a_program_under_jit_is_told_how_to_run_it():
    """JAX refuses it; what it shows of us says what to write."""
    objective = vipl.expectation(lambda p: p * sample("b", dist.Bernoulli(logits=p)))
    with pytest.raises(ValueError, match=r"objective\.estimate\(key, \.\.\.\)"):
        jax.jit(objective)(0.3)
