"""Attend, infer, repeat: canvases with 0, 1 or 2 digits, explained by up to three objects.

Each of three steps of a `scan` says whether there is another object (`pres`), where (`where`: scale, shift) and what
(`what`, 50 numbers). A spatial transformer reads and writes windows of 20 x 20 on canvases of 50 x 50.

    pres_i ~ Bernoulli(0.05, 0.05^2.3, 0.05^5), while all before were 1;   x ~ Normal(sum of objects, 0.3)

An image is one expectation, mapped over the batch. The estimator of `pres` is chosen from outside, by `VARIANTS`. So
that the last step can have its own, `hybrid` writes it after the `scan` of the first two, under the address "last".

Reference: Eslami et al. (2016); the sizes are those of Becker et al. (2024), section 8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax

import vipl
from benchmarks.data import images
from benchmarks.measure import Case
from benchmarks.workloads import log_normal
from vipl import CoupledAlternative, Enumerate, LeaveOneOut, LocalEnumerate, MeasureValued, Score, objectives, sample

CANVAS, WINDOW, STEPS, WHAT, HIDDEN = 50, 20, 3, 50, 256
PRIOR = jnp.array([0.05, 0.05**2.3, 0.05**5])
WHERE_LOC, WHERE_SCALE = jnp.array([2.5, 0.0, 0.0]), jnp.array([0.2, 1.0, 1.0])

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


def all_steps(step: Any, carry: Any, xs: Any, loop: str) -> tuple[Any, Any]:
    """The steps in one of three ways.

    "unrolled" is a `scan` that is written out, so that only what depends on a step is run again; "python" a loop of
    Python's, whose step i has the address "step i"; in "last" the last step stands after a `scan` of the others.
    """
    if loop == "unrolled":
        return lax.scan(step, carry, xs, unroll=True)
    if loop == "python":
        ys = []
        for i, x in enumerate(xs):
            carry, y = sample(f"step {i}", vipl.gen(step)(carry, x))
            ys.append(y)
        return carry, jax.tree.map(lambda *ys: jnp.stack(ys), *ys)
    carry, first = lax.scan(step, carry, xs[:-1])
    carry, last = sample("last", vipl.gen(step)(carry, xs[-1]))
    return carry, jax.tree.map(lambda ys, y: jnp.append(ys, y), first, last)


@vipl.gen
def model(params, loop="unrolled"):
    """An image; its density is a scalar for one image."""

    def step(carry, prior):
        canvas, present = carry
        here = present * sample("pres", dist.Bernoulli(prior).mask(present > 0))
        where = sample("where", dist.Normal(WHERE_LOC, WHERE_SCALE).mask(here > 0).to_event(1))
        what = sample("what", dist.Normal(jnp.zeros(WHAT), 1.0).mask(here > 0).to_event(1))
        return (canvas + here * write(decode(params, what), where), here), None

    start = (jnp.zeros((CANVAS, CANVAS)), jnp.ones((), jnp.int32))
    (canvas, _), _ = all_steps(step, start, PRIOR, loop)
    sample("image", dist.Normal(canvas, 0.3).to_event(2))


@vipl.gen
def guide(params, image, loop="unrolled"):
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

    start = (jnp.zeros(HIDDEN), jnp.zeros(HIDDEN), jnp.zeros(WHAT + 4), jnp.ones((), jnp.int32))
    _, here = all_steps(step, start, jnp.arange(STEPS), loop)
    return jnp.sum(here)


def elbo(params, image, loop="unrolled"):
    """Of one image."""
    return objectives.elbo(model(params, loop), guide(params, image, loop), {"image": image})


def iwelbo(params, image, loop="unrolled"):
    """Of one image, two particles."""
    return objectives.iwelbo(model(params, loop), guide(params, image, loop), {"image": image}, num_particles=2)


def wake(params, image, loop="unrolled"):
    """Reweighted wake-sleep, ten particles: the model's gradient is that of the IWELBO, which is its value."""
    both, data = (model(params, loop), guide(params, image, loop)), {"image": image}
    phi = objectives.wake_phi(*both, data, num_particles=10)
    return objectives.wake_theta(*both, data, num_particles=10) + phi - lax.stop_gradient(phi)


class Variant(NamedTuple):
    """An objective of one image, and how its gradient is estimated.

    Attributes:
      program: (params, image, loop) -> f[].
      estimators: of its sites.
      num_samples: of each image.
      loop: how its steps are written (`all_steps`).
    """

    program: Callable[..., Any]
    estimators: dict[Any, Any] = {}  # noqa: RUF012
    num_samples: int = 1
    loop: str = "unrolled"

    def over_batch(self) -> Any:
        """(key, params, images) -> f[], the mean over images of their estimates."""
        objective = vipl.expectation(lambda params, image: self.program(params, image, self.loop))
        objective = objective.with_estimators(self.estimators)

        def total(key, params, batch):
            one = lambda key, image: objective.estimate(key, params, image, num_samples=self.num_samples)  # noqa: E731
            return jnp.mean(jax.vmap(one)(jax.random.split(key, len(batch)), batch))

        return total


PUBLISHED = {
    "REINFORCE": ({"pres": Score()}, "unrolled"),
    "ENUM": ({"pres": Enumerate()}, "unrolled"),
    "MVD": ({"pres": MeasureValued()}, "unrolled"),
    "hybrid": ({"pres": MeasureValued(), "last": {"pres": Enumerate()}}, "last"),
}
"""name -> the estimators of Becker et al. (2024), and how its steps are written."""

VARIANTS = (
    {name: Variant(elbo, estimators, loop=loop) for name, (estimators, loop) in PUBLISHED.items()}
    | {f"{name} IWELBO": Variant(iwelbo, estimators, loop=loop) for name, (estimators, loop) in PUBLISHED.items()}
    | {
        "RWS": Variant(wake),
        "ENUM, a loop of Python's": Variant(
            elbo, {f"step {i}": {"pres": Enumerate()} for i in range(STEPS)}, loop="python"
        ),
        "leave one out of 4": Variant(elbo, {"pres": Score(LeaveOneOut())}, num_samples=4),
        "local enumeration": Variant(elbo, {"pres": LocalEnumerate()}),
        "coupled flips": Variant(elbo, {"pres": CoupledAlternative()}),
    }
)
"""Those of the paper, with one and two particles; reweighted wake-sleep; and ours."""


def count_accuracy(key: Any, params: Any, batch: Any, counts: Any) -> Any:
    """The share of images whose number of objects a draw of the guide gets right."""
    draw = lambda key, image: guide(params, image).simulate(key).retval  # noqa: E731
    return jnp.mean(jax.vmap(draw)(jax.random.split(key, len(batch)), batch) == counts)


# --- by hand --------------------------------------------------------------------------------------------------------


def log_weight(params: Any, image: Any, noise: Any, choose: Callable[[int, Any], Any]) -> tuple[Any, Any, list[Any]]:
    """log p(image, z) - log q(z), Σ log q(pres), and the logits; `choose(step, logit)` says whether there is an object.

    The three steps of both are written out, and share what they have in common.
    """
    seen = dense(params["image"], image.reshape(-1))
    hidden, cell, last, present = jnp.zeros(HIDDEN), jnp.zeros(HIDDEN), jnp.zeros(WHAT + 4), 1.0
    canvas, total, score, logits = jnp.zeros((CANVAS, CANVAS)), 0.0, 0.0, []
    for step in range(STEPS):
        i, f, g, o = jnp.split(seen + dense(params["recur"], jnp.concatenate([hidden, last])), 4)
        cell = jax.nn.sigmoid(f + 1.0) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        out = dense(params["predict2"], jax.nn.relu(dense(params["predict1"], hidden)))
        chosen = choose(step, out[0])
        log_q = present * (chosen * out[0] - jax.nn.softplus(out[0]))
        total += present * jnp.where(chosen > 0, jnp.log(PRIOR[step]), jnp.log1p(-PRIOR[step])) - log_q
        here = present * chosen
        loc, scale = WHERE_LOC + out[1:4], jax.nn.softplus(out[4:]) + 1e-3
        where = loc + scale * noise["where"][step]
        total += here * jnp.sum(log_normal(where, WHERE_LOC, WHERE_SCALE) - log_normal(where, loc, scale))
        loc, scale = encode(params, read(image, where.at[0].set(jnp.maximum(where[0], 0.5))))
        what = loc + scale * noise["what"][step]
        total += here * jnp.sum(log_normal(what, 0.0, 1.0) - log_normal(what, loc, scale))
        canvas += here * write(decode(params, what), where)
        last, present = here * jnp.concatenate([what, where, jnp.ones(1)]), here
        score, logits = score + log_q, [*logits, out[0]]
    return total + jnp.sum(log_normal(image, canvas, 0.3)), score, logits


def draw_noise(key: Any, *batch: int) -> dict[str, Any]:
    """For images, or particles."""
    keys = jax.random.split(key, 3)
    return {
        "where": jax.random.normal(keys[0], (*batch, STEPS, 3)),
        "what": jax.random.normal(keys[1], (*batch, STEPS, WHAT)),
        "pres": jax.random.uniform(keys[2], (*batch, STEPS)),
    }


def drawn(noise: Any) -> Callable[[int, Any], Any]:
    """The flips that the noise makes."""
    return lambda step, logit: (noise["pres"][step] < jax.nn.sigmoid(lax.stop_gradient(logit))).astype(float)


def reinforce_by_hand(params, image, noise):
    """One particle for each entry of the noise."""
    log_w, score, _ = jax.vmap(lambda noise: log_weight(params, image, noise, drawn(noise)))(noise)
    bound = jax.nn.logsumexp(log_w) - jnp.log(len(log_w))
    return bound + lax.stop_gradient(bound) * (jnp.sum(score) - lax.stop_gradient(jnp.sum(score)))


def enumerate_by_hand(params, image, noise):
    """All flips after the first 0 are 0: four paths for each particle."""

    def path(noise, count):
        return log_weight(params, image, noise, lambda step, _: (step < count).astype(float))[:2]

    log_w, log_q = jax.vmap(jax.vmap(path, (None, 0)), (0, None))(noise, jnp.arange(STEPS + 1))
    for _ in range(len(log_w) - 1):  # with two particles, all pairs
        log_w = jnp.logaddexp(log_w[0][:, None], log_w[1][None]) - jnp.log(2.0)
        log_q = log_q[0][:, None] + log_q[1][None]
    return jnp.sum(jnp.exp(log_q) * log_w)


def measure_valued_by_hand(params, image, noise):
    """One particle; each flip in turn, with the same noise."""
    noise = jax.tree.map(lambda x: x[0], noise)
    at = drawn(noise)
    log_w, _, logits = log_weight(params, image, noise, at)
    fixed = jax.tree.map(lax.stop_gradient, params)

    def flipped(number):
        choose = lambda step, logit: jnp.where(step == number, 1 - at(step, logit), at(step, logit))  # noqa: E731
        return log_weight(fixed, image, noise, choose)[0]

    others = lax.stop_gradient(jax.vmap(flipped)(jnp.arange(STEPS)) - log_w)
    probs = jnp.stack([jax.nn.sigmoid(jnp.where(at(step, x) > 0, -x, x)) for step, x in enumerate(logits)])
    return log_w + jnp.sum((probs - lax.stop_gradient(probs)) * others)


def over_batch_by_hand(one: Any, particles: int) -> Any:
    """(key, params, images) -> f[]; all noise is drawn at once."""

    def total(key, params, batch):
        noise = draw_noise(key, len(batch), particles)
        return jnp.mean(jax.vmap(one, (None, 0, 0))(params, batch, noise))

    return total


def cases(quick: bool) -> list[Case]:
    """Every estimator of the two objectives; where it has no program by hand, beside that of enumeration."""
    batch = jnp.asarray(canvases(4 if quick else 64)[0])
    args = (parameters(jax.random.key(0)), batch)
    twins = {
        "REINFORCE": (reinforce_by_hand, 1),
        "ENUM": (enumerate_by_hand, 1),
        "ENUM, a loop of Python's": (enumerate_by_hand, 1),
        "MVD": (measure_valued_by_hand, 1),
        "REINFORCE IWELBO": (reinforce_by_hand, 2),
        "ENUM IWELBO": (enumerate_by_hand, 2),
    }
    out = []
    for name, variant in VARIANTS.items():
        if name == "RWS" or (quick and name not in twins):
            continue
        twin = twins.get(name, (enumerate_by_hand, 2 if variant.program is iwelbo else 1))
        both = {"vipl": variant.over_batch(), "handwritten": over_batch_by_hand(*twin)}
        note = "" if name in twins else "by hand: ENUM"
        out.append(Case("attend, infer, repeat", name, both, args, samples=32, note=note))
    return out
