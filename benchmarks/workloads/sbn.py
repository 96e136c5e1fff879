"""A sigmoid belief network, 200-200-pixels, with an encoder of the same shape; a batch of images is a `vmap`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from numpyro.infer import TraceGraph_ELBO

import vipl
from benchmarks.data import binary_images
from benchmarks.measure import Case
from benchmarks.workloads.vae import dense
from vipl import DisARM, LeaveOneOut, LocalEnumerate, Score, objectives, sample

HIDDEN, SAMPLES = 200, 4


def parameters(pixels: int, hidden: int) -> dict[str, Any]:
    """Two layers down, two up, and the bias of the top."""
    sizes = {"down2": (hidden, hidden), "down1": (hidden, pixels), "up1": (pixels, hidden), "up2": (hidden, hidden)}
    keys = jax.random.split(jax.random.key(0), len(sizes))
    layers = {
        name: (jax.random.normal(k, shape) / np.sqrt(shape[0]), jnp.zeros(shape[1]))
        for k, (name, shape) in zip(keys, sizes.items(), strict=True)
    }
    return layers | {"top": jnp.zeros(hidden)}


# --- vipl ---------------------------------------------------------------------------------------------------------


@vipl.gen
def model(params):
    """One image."""
    h2 = sample("h2", dist.Bernoulli(logits=params["top"]).to_event(1))
    h1 = sample("h1", dist.Bernoulli(logits=dense(params["down2"], h2)).to_event(1))
    sample("x", dist.Bernoulli(logits=dense(params["down1"], h1)).to_event(1))


@vipl.gen
def guide(params, x):
    """Its hidden layers."""
    h1 = sample("h1", dist.Bernoulli(logits=dense(params["up1"], x)).to_event(1))
    sample("h2", dist.Bernoulli(logits=dense(params["up2"], h1)).to_event(1))


@vipl.expectation
def elbo(params, x):
    """Per image; the lanes of the `vmap` are only summed, so that each has its own score and its own alternatives."""
    return jnp.mean(jax.vmap(lambda x: objectives.elbo(model(params), guide(params, x), {"x": x}))(x))


def by(estimator: Any, num_samples: int = 1) -> Any:
    objective = elbo.with_estimators({"h1": estimator, "h2": estimator})
    return lambda key, params, x: objective.estimate(key, params, x, num_samples=num_samples)


# --- by hand ------------------------------------------------------------------------------------------------------


def log_flips(x, logits):
    return jnp.sum(x * logits - jax.nn.softplus(logits), -1)


def log_weight(params, x, h1, h2):
    """log p(x, h) - log q(h), and log q(h), of each image."""
    log_q = log_flips(h1, dense(params["up1"], x)) + log_flips(h2, dense(params["up2"], h1))
    log_p = log_flips(x, dense(params["down1"], h1)) + log_flips(h1, dense(params["down2"], h2))
    return log_p + log_flips(h2, params["top"]) - log_q, log_q


def draw(key, logits):
    """Flips, and the uniforms that made them."""
    u = jax.random.uniform(key, logits.shape)
    return (u < jax.nn.sigmoid(logits)).astype(logits.dtype), u


def leave_one_out_by_hand(key, params, x):
    keys = jax.random.split(key)
    h1, _ = draw(keys[0], jnp.broadcast_to(dense(params["up1"], x), (SAMPLES, len(x), params["top"].size)))
    h2, _ = draw(keys[1], dense(params["up2"], h1))
    f, log_q = log_weight(params, x, h1, h2)
    held = lax.stop_gradient(f)
    baseline = (held.sum(0) - held) / (SAMPLES - 1)
    return jnp.mean(f + (held - baseline) * (log_q - lax.stop_gradient(log_q)))


def score_by_hand(key, params, x):
    keys = jax.random.split(key)
    h1, _ = draw(keys[0], dense(params["up1"], x))
    h2, _ = draw(keys[1], dense(params["up2"], h1))
    f, log_q = log_weight(params, x, h1, h2)
    return jnp.mean(f + lax.stop_gradient(f) * (log_q - lax.stop_gradient(log_q)))


def draw_both(key, params, x):
    """Flips, uniforms and logits of both layers."""
    keys = jax.random.split(key)
    logits1 = dense(params["up1"], x)
    h1, u1 = draw(keys[0], logits1)
    logits2 = dense(params["up2"], h1)
    return (h1, u1, logits1), (*draw(keys[1], logits2), logits2)


def disarm_by_hand(key, params, x):
    """Antithetic pairs, one layer at a time; below the changed layer the same uniforms."""
    (h1, u1, logits1), (h2, u2, logits2) = draw_both(key, params, x)
    f, _ = log_weight(params, x, h1, h2)
    fixed = lax.stop_gradient(params)

    def other(logits, u):
        return (u > jax.nn.sigmoid(-logits)).astype(logits.dtype)

    def slope(h, o, logits, f, f_other):
        phi = lax.stop_gradient(logits)
        weight = 0.5 * (f - f_other)[:, None] * (h - o) * jax.nn.sigmoid(jnp.abs(phi))
        return jnp.sum(lax.stop_gradient(weight) * (logits - phi), -1)

    o1, o2 = other(logits1, u1), other(logits2, u2)
    below = (u2 < jax.nn.sigmoid(dense(fixed["up2"], o1))).astype(h1.dtype)
    f1, f2 = log_weight(fixed, x, o1, below)[0], log_weight(fixed, x, h1, o2)[0]
    return jnp.mean(f + slope(h1, o1, logits1, f, f1) + slope(h2, o2, logits2, f, f2))


def local_by_hand(key, params, x):
    """Every flip the other way, one at a time."""
    (h1, _, logits1), (h2, u2, logits2) = draw_both(key, params, x)
    f, _ = log_weight(params, x, h1, h2)
    fixed = lax.stop_gradient(params)

    def first(i):
        o1 = h1.at[:, i].set(1.0 - h1[:, i])
        below = (u2 < jax.nn.sigmoid(dense(fixed["up2"], o1))).astype(h1.dtype)
        return log_weight(fixed, x, o1, below)[0]

    def second(i):
        return log_weight(fixed, x, h1, h2.at[:, i].set(1.0 - h2[:, i]))[0]

    def slope(h, logits, others):
        p = jax.nn.sigmoid(logits)
        to_other = jnp.where(h > 0, 1.0 - p, p)  # the probability of the other value, [images, flips]
        difference = lax.stop_gradient(others.T - f[:, None])
        return jnp.sum(difference * (to_other - lax.stop_gradient(to_other)), -1)

    flips = jnp.arange(h1.shape[1])
    one, two = slope(h1, logits1, jax.vmap(first)(flips)), slope(h2, logits2, jax.vmap(second)(flips))
    return jnp.mean(f + one + two)


# --- NumPyro ------------------------------------------------------------------------------------------------------


def numpyro_model(params, x):
    with numpyro.plate("images", x.shape[0]):
        top = jnp.broadcast_to(params["top"], (x.shape[0], params["top"].size))
        h2 = numpyro.sample("h2", dist.Bernoulli(logits=top).to_event(1))
        h1 = numpyro.sample("h1", dist.Bernoulli(logits=dense(params["down2"], h2)).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=dense(params["down1"], h1)).to_event(1), obs=x)


def numpyro_guide(params, x):
    with numpyro.plate("images", x.shape[0]):
        h1 = numpyro.sample("h1", dist.Bernoulli(logits=dense(params["up1"], x)).to_event(1))
        numpyro.sample("h2", dist.Bernoulli(logits=dense(params["up2"], h1)).to_event(1))


def numpyro_score(key, params, x):
    return -TraceGraph_ELBO().loss(key, {}, numpyro_model, numpyro_guide, params, x) / x.shape[0]


def cases(quick: bool) -> list[Case]:
    """Score with and without a baseline, antithetic pairs, and every flip in turn."""
    hidden, batch = (50, 8) if quick else (HIDDEN, 64)
    x, name = binary_images(batch)
    x = jnp.asarray(x)
    few = (parameters(x.shape[1], 50), x[:8])
    args = few if quick else (parameters(x.shape[1], hidden), x)
    lines = {
        "Score": ({"vipl": by(Score()), "handwritten": score_by_hand, "numpyro": numpyro_score}, args),
        "Score, leave one out of 4": (
            {"vipl": by(Score(LeaveOneOut()), SAMPLES), "handwritten": leave_one_out_by_hand},
            args,
        ),
        "DisARM": ({"vipl": by(DisARM()), "handwritten": disarm_by_hand}, args),
        "LocalEnumerate, 50-50, batch 8": ({"vipl": by(LocalEnumerate()), "handwritten": local_by_hand}, few),
    }
    return [
        Case(f"sigmoid belief network on {name}", line, implementations, arguments, samples=200)
        for line, (implementations, arguments) in lines.items()
    ]
