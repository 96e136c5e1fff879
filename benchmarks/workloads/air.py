"""Attend, infer, repeat: canvases with 0, 1 or 2 digits, explained by up to three objects.

Each of three steps of a `scan` says whether there is another object (`pres`), where (`where`: scale, shift) and what
(`what`, 50 numbers). A spatial transformer reads and writes windows of 20 x 20 on canvases of 50 x 50.

    pres_i ~ Bernoulli(0.05, 0.05^2.3, 0.05^5), while all before were 1;   x ~ Normal(sum of objects, 0.3)

An image is one expectation, mapped over the batch. The estimator of `pres` is chosen from outside, by `ESTIMATORS`.

Reference: Eslami et al. (2016); the sizes are those of Becker et al. (2024), section 8.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax

import vipl
from benchmarks.data import images
from vipl import CoupledFlips, Enumerate, LeaveOneOut, LocalEnumerate, MeasureValued, Score, objectives, sample

CANVAS, WINDOW, STEPS, WHAT, HIDDEN = 50, 20, 3, 50, 256
PRIOR = jnp.array([0.05, 0.05**2.3, 0.05**5])
WHERE_LOC, WHERE_SCALE = jnp.array([2.5, 0.0, 0.0]), jnp.array([0.2, 1.0, 1.0])

ESTIMATORS: dict[str, tuple[Any, int]] = {
    "REINFORCE": (Score(), 1),
    "ENUM": (Enumerate(), 1),
    "MVD": (MeasureValued(), 1),
    "leave one out of 4": (Score(LeaveOneOut()), 4),
    "local enumeration": (LocalEnumerate(), 1),
    "coupled flips": (CoupledFlips(), 1),
}
"""name -> the estimator of `pres`, and samples per image."""


# --- images ---------------------------------------------------------------------------------------------------------


def canvases(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, str]:
    """f[n, 50, 50] in [0, 1] with 0, 1 or 2 digits that do not overlap, how many, and the name of the data."""
    x, _, name = images()
    side = int(np.sqrt(x.shape[1]))
    x = x.reshape(-1, side, side)
    digits = x[:, 4:24, 4:24] if side == 28 else np.kron(x, np.ones((1, 2, 2)))  # MNIST's digits fill their middle
    size = digits.shape[1]
    rng = np.random.default_rng(seed)
    out = np.zeros((n, CANVAS, CANVAS), np.float32)
    counts = rng.integers(0, 3, n)
    for image, count in zip(out, counts, strict=True):
        corners = rng.integers(0, CANVAS - size + 1, (count, 2))
        while count == 2 and np.abs(corners[0] - corners[1]).max() < size:  # both anew: one may leave no room
            corners = rng.integers(0, CANVAS - size + 1, (count, 2))
        for i, j in corners:
            image[i : i + size, j : j + size] = digits[rng.integers(len(digits))]
    return out, counts, name


# --- networks -------------------------------------------------------------------------------------------------------


def parameters(key: Any) -> dict[str, Any]:
    """Decoder 50-200-400, encoder 400-200-100, recurrent (2500 + 54) to 256, its output to 7 numbers."""
    sizes = {
        "decode1": (WHAT, 200), "decode2": (200, WINDOW**2), "encode1": (WINDOW**2, 200), "encode2": (200, 2 * WHAT),
        "image": (CANVAS**2, 4 * HIDDEN), "recur": (HIDDEN + WHAT + 4, 4 * HIDDEN), "predict1": (HIDDEN, 200),
        "predict2": (200, 7),
    }  # fmt: skip
    keys = jax.random.split(key, len(sizes))
    params = {
        name: (jax.random.normal(k, shape) / np.sqrt(shape[0]), jnp.zeros(shape[1]))
        for k, (name, shape) in zip(keys, sizes.items(), strict=True)
    }
    w, b = params["decode2"]
    params["decode2"] = (w, b - 2.0)  # objects begin dark
    return params


def dense(params: Any, x: Any) -> Any:
    """x W + b."""
    return x @ params[0] + params[1]


def decode(params: Any, what: Any) -> Any:
    """f[20, 20], an object's window."""
    hidden = jax.nn.relu(dense(params["decode1"], what))
    return jax.nn.sigmoid(dense(params["decode2"], hidden)).reshape(WINDOW, WINDOW)


def encode(params: Any, window: Any) -> tuple[Any, Any]:
    """Mean and scale of `what`."""
    out = dense(params["encode2"], jax.nn.relu(dense(params["encode1"], window.reshape(-1))))
    return out[:WHAT], jax.nn.softplus(out[WHAT:]) + 1e-3


def taps(size_from: int, size_to: int, scale: Any, shift: Any) -> Any:
    """f[to, from]: bilinear weights of reading at scale * u + shift, with u and what it reads in [-1, 1]."""
    at = (scale * jnp.linspace(-1.0, 1.0, size_to) + shift + 1.0) * (size_from - 1) / 2
    return jax.nn.relu(1.0 - jnp.abs(at[:, None] - jnp.arange(size_from)))


def write(window: Any, where: Any) -> Any:
    """f[50, 50]: the window on the canvas; the canvas point c reads it at scale * c + shift."""
    scale, x, y = where
    return taps(WINDOW, CANVAS, scale, y) @ window @ taps(WINDOW, CANVAS, scale, x).T


def read(image: Any, where: Any) -> Any:
    """f[20, 20], the inverse of `write`: what the image shows where the window lies."""
    scale, x, y = where
    return taps(CANVAS, WINDOW, 1 / scale, -y / scale) @ image @ taps(CANVAS, WINDOW, 1 / scale, -x / scale).T


# --- model and guide ------------------------------------------------------------------------------------------------


@vipl.gen
def model(params):
    """An image; its density is a scalar for one image."""

    def step(carry, prior):
        canvas, present = carry
        here = present * sample("pres", dist.Bernoulli(prior).mask(present > 0))
        where = sample("where", dist.Normal(WHERE_LOC, WHERE_SCALE).mask(here > 0).to_event(1))
        what = sample("what", dist.Normal(jnp.zeros(WHAT), 1.0).mask(here > 0).to_event(1))
        return (canvas + here * write(decode(params, what), where), here), None

    start = (jnp.zeros((CANVAS, CANVAS)), jnp.ones((), jnp.int32))
    (canvas, _), _ = lax.scan(step, start, PRIOR)
    sample("image", dist.Normal(canvas, 0.3).to_event(2))


@vipl.gen
def guide(params, image):
    """A recurrent network looks at the image, and at the last object; returns the number of objects."""
    seen = dense(params["image"], image.reshape(-1))

    def step(carry, _):
        hidden, cell, last, present = carry
        i, f, g, o = jnp.split(seen + dense(params["recur"], jnp.concatenate([hidden, last])), 4)
        cell = jax.nn.sigmoid(f + 1.0) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        out = dense(params["predict2"], jax.nn.relu(dense(params["predict1"], hidden)))
        here = present * sample("pres", dist.Bernoulli(logits=out[0]).mask(present > 0))
        loc = WHERE_LOC + out[1:4]
        where = sample("where", dist.Normal(loc, jax.nn.softplus(out[4:]) + 1e-3).mask(here > 0).to_event(1))
        safe = where.at[0].set(jnp.maximum(where[0], 0.5))  # what is read; not what is weighed
        loc, scale = encode(params, read(image, safe))
        what = sample("what", dist.Normal(loc, scale).mask(here > 0).to_event(1))
        last = here * jnp.concatenate([what, where, jnp.ones(1)])
        return (hidden, cell, last, here), here

    zeros = jnp.zeros(HIDDEN)
    _, here = lax.scan(step, (zeros, zeros, jnp.zeros(WHAT + 4), jnp.ones((), jnp.int32)), None, length=STEPS)
    return jnp.sum(here)


def elbo(params, image):
    """Of one image."""
    return objectives.elbo(model(params), guide(params, image), {"image": image})


def iwelbo(params, image):
    """Of one image, two particles."""
    return objectives.iwelbo(model(params), guide(params, image), {"image": image}, num_particles=2)


def over_batch(program: Any, estimator: Any, num_samples: int) -> Any:
    """(key, params, images) -> f[], the mean over images of their estimates."""
    objective = vipl.expectation(program).with_estimators({"pres": estimator})

    def total(key, params, batch):
        one = lambda key, image: objective.estimate(key, params, image, num_samples=num_samples)  # noqa: E731
        return jnp.mean(jax.vmap(one)(jax.random.split(key, len(batch)), batch))

    return total


def count_accuracy(key: Any, params: Any, batch: Any, counts: Any) -> Any:
    """The share of images whose number of objects a draw of the guide gets right."""
    draw = lambda key, image: guide(params, image).simulate(key).retval  # noqa: E731
    return jnp.mean(jax.vmap(draw)(jax.random.split(key, len(batch)), batch) == counts)
