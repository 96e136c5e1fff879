"""What public signatures say is so: kinds, shapes and dtypes of arguments and results, looked at in each call."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jaxtyping import Array, Float, TypeCheckError

import vipl
from tests.helpers.typed import public_functions, typed
from vipl import guides, inference, sample

pytestmark = pytest.mark.usefixtures("typed_face")
X = jnp.linspace(-1.0, 1.0, 6)
Y = {"y": 1.0 + 0.7 * X}


@vipl.gen
def line(x):
    a = sample("a", dist.Normal(0.0, 2.0))
    b = sample("b", dist.Normal(0.0, 1.0))
    vipl.deterministic("end", a + b)
    jax.vmap(lambda x: sample("y", dist.Normal(a + b * x, 0.5)))(x)


def of_program(key, _):
    program = line(X)
    trace = program.simulate(key)
    program.assess(trace.choices)
    program.generate(Y, key=key)
    vipl.sites(program, Y)
    vipl.predict(key, program, 3)
    vipl.partly_observed(program, {"y": np.where(np.arange(6) > 3, np.nan, 0.5)})
    vipl.marginal(program, "y", inference.Importance(3)).simulate(key)
    vipl.normalize(program, Y, inference.Importance(3)).simulate(key)


def of_objective(key, _):
    guide = guides.MeanField(line(X), Y)
    params = guide.init(key)
    bound = vipl.expectation(lambda p: vipl.objectives.elbo(line(X), guide(p), Y))
    bound.estimate(key, params, num_samples=2)
    bound.value_and_grad(key, params)
    fit = vipl.fit(bound, params, optax.adam(0.01), key=key, num_steps=np.int64(5), average=0.5, progress=False)
    vipl.fit(bound, params, optax.adam(0.01), key=key, num_steps=5, resume=fit, average=0.5, progress=False)


def of_posterior(key, folder):
    posterior = vipl.infer(line(X), Y, key=key, start={"a": 1.0})
    posterior.sample(key, 4)
    posterior.log_prob({"a": 1.0, "b": 0.0})
    posterior.predict(key, line(X[:2]), 4)
    posterior.deterministics(key)
    posterior.log_likelihood(key)
    posterior.expectation(lambda z: z["a"] > 0, key)
    posterior.improve(key, 100)
    posterior.evidence(key, 400)
    posterior.summary(key, 100)
    posterior.to_arviz(key, num_samples=4, dims={"y": ["row"]}, coords={"row": np.arange(6)})
    posterior.plot_fit()
    posterior.save(folder / "fit")
    vipl.load(folder / "fit", line(X), Y)


def of_calibration(key, _):
    vipl.diagnostics.calibrate(key, line(X), "y", num_datasets=10)


@pytest.mark.parametrize("calls", [of_program, of_objective, of_posterior, of_calibration], ids=lambda f: f.__name__)
def test_calls_are_what_their_signatures_say(calls, key, tmp_path):
    calls(key, tmp_path)


def test_a_signature_that_is_not_so_is_seen(key):
    """The check sees shapes, dtypes and kinds, of arguments and of results."""

    def total(x: Float[Array, " n"]) -> Float[Array, ""]:
        return x.sum() if x.shape[0] > 2 else x

    assert typed(total)(jnp.ones(3)) == 3.0
    for wrong in (jnp.ones(2), jnp.ones((3, 3)), jnp.ones(3, int)):
        with pytest.raises(TypeCheckError):
            typed(total)(wrong)
    with pytest.raises(TypeCheckError):
        vipl.predict(key, line(X), "3")  # type: ignore[arg-type]


def test_all_of_the_public_face_is_looked_at():
    names = {name for _, name, _ in public_functions()}
    assert {"infer", "fit", "predict", "elbo", "iwelbo", "estimate", "assess", "summary", "to_arviz"} <= names
