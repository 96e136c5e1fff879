"""What is computed for a posterior is compiled once, for all data of the same shapes and any number of draws."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipl
from vipl import guides, sample
from vipl.cache import programs
from vipl.cache.fingerprint import read
from vipl.cache.programs import forget
from vipl.errors import ProgramError
from vipl.guides import _once

COMPILED = []


def listen(event: str, duration_secs: float, **said: Any) -> None:
    """Counts the programs that are compiled."""
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(1)


jax.monitoring.register_event_duration_secs_listener(listen)
X = np.linspace(-1.0, 1.0, 6)


@vipl.gen
def line(x):
    slope = sample("slope", dist.Normal(0.0, 1.0))
    level = sample("level", dist.Normal(0.0, 1.0))
    sample("y", dist.Normal(level + slope * x, 0.5))


def compiled(run):
    """What a run gives, and how many programs it compiles."""
    before = len(COMPILED)
    out = run()
    return out, len(COMPILED) - before


def ask(posterior, n, key, new):
    """All questions but those of ArviZ."""
    posterior.sample(key, n)
    posterior.predict(key, num_samples=n)
    posterior.predict(key, line(new), num_samples=n)
    posterior.expectation(lambda z: z["slope"], key, n)
    posterior.improve(key, n)
    posterior.log_likelihood(key, num_samples=n)
    posterior.summary(key, n)


def test_data_sets_in_a_vmap_compile_few_programs(key):
    """Not each equation by itself: 19 programs, and 128 before what is computed was one."""
    fit = jax.vmap(lambda y: vipl.infer(line(X), {"y": y}, key=key).params)
    params, number = compiled(lambda: fit(jnp.stack([1.0 + X, X])))
    assert params["loc"].shape == (2, 2)
    assert number < 40


def test_nothing_is_compiled_twice(key):
    """For an equal call, other data, other arguments of the model, and another number of draws; answers are others."""
    first, several = compiled(lambda: vipl.infer(line(X), {"y": 1.0 + X}, key=key))
    ask(first, 300, key, X[:2])
    assert several > 0
    again, none = compiled(lambda: vipl.infer(line(X), {"y": 1.0 + X}, key=key))
    assert none == 0
    np.testing.assert_array_equal(again.params["loc"], first.params["loc"])
    other, none = compiled(lambda: vipl.infer(line(X + 1.0), {"y": 3.0 - X}, key=jax.random.key(1)))
    assert none == 0
    assert np.abs(other.params["loc"] - first.params["loc"]).max() > 1.0
    for posterior, n in ((again, 300), (other, 300), (first, 40), (other, 700)):
        assert compiled(lambda p=posterior, n=n: ask(p, n, key, X[:2] + 3.0))[1] == 0


@pytest.mark.parametrize(
    "guide",
    [
        guides.Laplace,
        pytest.param(guides.MeanField, marks=pytest.mark.oldest),
        pytest.param(guides.Structured, marks=pytest.mark.oldest),
        pytest.param(lambda model, data: guides.Pathfinder(model, data, 1, num_steps=5), marks=pytest.mark.oldest),
    ],
    ids=["laplace", "mean field", "structured", "pathfinder"],
)
def test_no_guide_is_compiled_twice(guide, key):
    vipl.infer(line(X), {"y": 1.0 + X}, key=key, guide=guide)
    assert compiled(lambda: vipl.infer(line(X), {"y": 3.0 - X}, key=key, guide=guide))[1] == 0


@vipl.gen
def coin():
    side = sample("side", dist.Bernoulli(0.5))
    level = sample("level", dist.Normal(0.0, 1.0))
    sample("y", dist.Normal(level + 2.0 * side, 0.5))


@pytest.mark.oldest
@pytest.mark.filterwarnings("ignore:vipl.infer of coin did not meet")
def test_stochastic_gradients_are_not_compiled_twice(key):
    def run(y):
        return vipl.infer(coin(), {"y": y}, key=key, num_steps=5)

    first = run(1.0)
    second, none = compiled(lambda: run(-4.0))
    assert none == 0
    assert first.params["discrete"]["side"]["logits"] > second.params["discrete"]["side"]["logits"]


def test_draws_of_a_key_do_not_depend_on_how_many_there_are(key):
    params = guides.FullRank(line(X), {"y": X}).init(key)
    posterior = vipl.Posterior(line(X), {"y": X}, guides.FullRank(line(X), {"y": X}), params)
    many = posterior.sample(key, 600)["slope"]
    assert many.shape == (600,)
    assert len(np.unique(many)) == 600
    np.testing.assert_array_equal(posterior.sample(key, 251)["slope"], many[:251])
    np.testing.assert_array_equal(posterior.improve(key, 300).choices["slope"], many[:300])
    inside = jax.jit(lambda key: posterior.sample(key, 600)["slope"])(key)
    np.testing.assert_allclose(inside, many, rtol=1e-12)
    one = guides.FullRank(line(X), {"y": X})(params).simulate(jax.random.fold_in(key, 500)).choices["slope"]
    np.testing.assert_allclose(many[500], one, rtol=1e-12)
    means = posterior.expectation(lambda z: {"mean": z["slope"], "positive": z["slope"] > 0}, key, 600)
    np.testing.assert_allclose(means["mean"], np.mean(many), rtol=1e-12)
    np.testing.assert_allclose(means["positive"], np.mean(np.asarray(many) > 0), rtol=1e-6)


def test_a_use_in_another_precision_is_forgotten(key):
    """It raises; afterwards numbers are arguments of what is compiled, as before."""
    guide = guides.MeanField(line(X), {"y": X})
    posterior = vipl.Posterior(line(X), {"y": X}, guide, guide.init(key))
    refused = set(_once._refused)
    with jax.enable_x64(False), pytest.raises(ProgramError, match="another precision"):
        posterior.sample(jax.random.key(0), 5)
    assert set(_once._refused) == refused
    assert posterior.sample(key, 5)["slope"].dtype == jnp.float64


def test_rows_of_given_choices_stay_together(key):
    drawn = {"slope": jnp.zeros(300), "level": jnp.arange(300.0) * 1000}
    found = vipl.predict(key, line(X), 300, choices=drawn)["y"]
    np.testing.assert_allclose(found / 1000, np.broadcast_to(np.arange(300.0)[:, None], (300, 6)), atol=0.1)


def test_a_model_that_asks_for_numbers_is_compiled_for_them(key):
    """Its arguments are constants; equal ones compile nothing, others are not mistaken for them."""

    @vipl.gen
    def either(scale):
        wide = float(scale) > 1.0
        level = sample("level", dist.Normal(0.0, 100.0 if wide else 1e-3))
        sample("y", dist.Normal(level, 1.0))

    narrow = vipl.infer(either(jnp.float32(0.5)), {"y": 2.0}, key=key)
    assert compiled(lambda: vipl.infer(either(jnp.float32(0.5)), {"y": 2.0}, key=key))[1] == 0
    wide = vipl.infer(either(jnp.float32(2.0)), {"y": 2.0}, key=key)
    np.testing.assert_allclose([narrow.params["loc"][0], wide.params["loc"][0]], [0.0, 2.0], atol=0.05)


def test_a_model_that_has_changed_is_compiled_anew(key):
    """Also where a function holds it in the structure of a pytree, as the objective of stochastic gradients does."""
    settings = {"sd": 1e-3}

    @vipl.gen
    def model():
        sample("y", dist.Normal(sample("level", dist.Normal(0.0, settings["sd"])), 1.0))

    def level():
        return vipl.infer(model(), {"y": 2.0}, key=key).params["loc"][0]

    before, reading = level(), read(jax.tree.structure(model()))
    assert reading.holds()
    settings["sd"] = 100.0
    assert before < 0.01 < 1.9 < level()
    assert not reading.holds()
    assert read(jax.tree.structure(model())).token != reading.token


def test_options_of_the_compiler_are_for_calls_that_stand_alone(key, monkeypatch):
    """JAX refuses them in transformations, where the answers are the same; estimates are compiled as XLA does."""
    level = "xla_backend_optimization_level"
    monkeypatch.setenv("XLA_FLAGS", f"--{level}=0")
    assert programs._quickly() == {}
    monkeypatch.setenv("XLA_FLAGS", "")
    assert programs._quickly() == {level: 2}
    jax.config.update("jax_disable_most_optimizations", True)
    assert programs._quickly() == {}
    jax.config.update("jax_disable_most_optimizations", False)

    def cubes(x):
        return programs.compiled("cubes", (), None, lambda x: x**3, (x,), seldom=True)

    three = np.arange(3.0)
    forget()
    np.testing.assert_array_equal(cubes(three), three**3)
    np.testing.assert_array_equal(jax.jit(lambda: cubes(three))(), three**3)
    np.testing.assert_array_equal(jax.vmap(cubes)(three), three**3)
    for slope in (jax.grad(cubes)(2.0), jax.jit(jax.grad(cubes))(2.0), jax.linearize(cubes, 2.0)[1](1.0)):
        np.testing.assert_allclose(slope, 12.0, rtol=1e-12)
    np.testing.assert_allclose(jax.hessian(cubes)(2.0), 12.0, rtol=1e-12)

    monkeypatch.setattr(programs, "_quickly", lambda: {"xla_no_such_option": 1})
    forget()
    guide = guides.MeanField(line(X), {"y": X})
    bound = vipl.expectation(lambda params: vipl.objectives.elbo(line(X), guide(params), {"y": X}))
    params = {name: {"loc": 0.0, "log_scale": 0.0} for name in ("slope", "level")}
    assert bound.estimate(key, params).shape == ()
    with pytest.raises(Exception, match="xla_no_such_option"):
        vipl.Posterior(line(X), {"y": X}, guide, params).sample(key, 3)
