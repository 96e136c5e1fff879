"""`vipl.fit` tells where the rows of a batch count once, and stand for more; and not where they are weighed."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import vipl
from vipl import sample, scaled

KEY = jax.random.key(5)
X = np.linspace(-1.0, 2.0, 12)
DATA = {"x": X, "y": 0.5 * X + 0.1}
PHI = {"loc": 0.1, "log_scale": -0.5}


@vipl.gen
def guide(phi):
    sample("w", dist.Normal(phi["loc"], jnp.exp(phi["log_scale"])))


def rows_of(kind, x, w, weight):
    """A site of rows: a vector, an event or lanes; with a weight or none."""
    weighed = (lambda d: d) if weight is None else (lambda d: scaled(d, weight))
    if kind == "lanes":
        jax.vmap(lambda x: sample("y", weighed(dist.Normal(w * x, 0.3))))(x)
    else:
        rows = dist.Normal(w * x, 0.3)
        sample("y", weighed(rows.to_event(1) if kind == "event" else rows))


def bound(kind="vector", weight=None, objective=vipl.objectives.elbo, by_hand=None):
    @vipl.gen
    def model(x):
        w = sample("w", dist.Normal(0.0, 1.0))
        rows_of(kind, x, w, None if weight is None else weight / x.size)

    @vipl.gen
    def prior():
        sample("w", dist.Normal(0.0, 1.0))

    @vipl.gen
    def likelihood(x, w):
        rows_of(kind, x, w, None)

    @vipl.expectation
    def value(phi, batch):
        if by_hand is None:
            return objective(model(batch["x"]), guide(phi), {"y": batch["y"]})
        q = guide(phi).simulate()
        rows = likelihood(batch["x"], q.choices["w"]).assess({"y": batch["y"]}).log_prob
        return prior().assess(q.choices).log_prob + by_hand / batch["x"].size * rows - q.log_prob

    return value


def fitted(objective, params=PHI, batch_size=4, **options):
    options = {"num_steps": 2, "num_samples": 2, "progress": False} | options
    return vipl.fit(objective, params, optax.sgd(0.01), key=KEY, data=DATA, batch_size=batch_size, **options)


FORGETFUL = {
    "a vector": bound(),
    "lanes": bound("lanes"),
    "an event": bound("event"),
    "a bound of particles": bound(objective=lambda p, q, d: vipl.objectives.iwelbo(p, q, d, num_particles=3)),
    "two programs": bound("lanes", by_hand=4.0),
    "twice the bound": bound(objective=lambda p, q, d: 2.0 * vipl.objectives.elbo(p, q, d)),
}


@pytest.mark.parametrize("name", FORGETFUL)
def test_rows_that_count_once_are_told_about_once(name):
    text = (
        r'^vipl.fit: each of the 4 rows of a batch counts once at "y" in \S+ \(test_fit_rows.py:\d+\), as does "w" '
        r"in \S+ \(test_fit_rows.py:\d+\), which all 12 rows share: .* at the site of the rows, here n / b = 3\.$"
    )
    with pytest.warns(RuntimeWarning, match=text) as told:
        fitted(FORGETFUL[name])
    assert len(told) == 1
    assert told[0].filename == __file__


@vipl.gen
def local(x):
    z = jax.vmap(lambda: sample("z", dist.Normal(0.0, 1.0)), axis_size=x.size)()
    jax.vmap(lambda z, x: sample("y", dist.Normal(z * x, 0.3)))(z, x)


@vipl.expectation
def amortized(phi, batch):
    """Choices of each row, and none that all share."""

    @vipl.gen
    def encoder():
        jax.vmap(lambda x: sample("z", dist.Normal(phi["loc"] * x, jnp.exp(phi["log_scale"]))))(batch["x"])

    return vipl.objectives.elbo(local(batch["x"]), encoder(), {"y": batch["y"]})


RIGHT = {
    "scaled rows": (bound(weight=12.0), {}),
    "scaled lanes": (bound("lanes", weight=12.0), {}),
    "rows that are scaled by hand": (bound(by_hand=12.0), {}),
    "all rows": (bound(), {"batch_size": None}),
    "batches of all rows": (bound(), {"batch_size": 12}),
    "choices of rows alone": (amortized, {}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_nothing_is_said_where_rows_are_weighed(name):
    objective, options = RIGHT[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(objective, **options)


def test_a_fit_that_is_continued_and_starts_together_are_looked_at_once():
    with pytest.warns(RuntimeWarning, match="counts once"):
        first = fitted(FORGETFUL["a vector"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(FORGETFUL["a vector"], resume=first)
    with pytest.warns(RuntimeWarning, match="counts once") as told:
        fitted(FORGETFUL["a vector"], num_restarts=2)
    assert len(told) == 1
