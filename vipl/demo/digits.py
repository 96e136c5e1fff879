"""A variational autoencoder on the 1797 handwritten digits that scikit-learn ships.

A pixel counts how many of the 4 x 4 dots of a block were on (Alpaydin and Kaynak, 1998), so that its likelihood is
Binomial(16, logits); its bound is a bound on the log probability of the images as they are, in nats.

    z ~ Normal(0, I) in latent_dim dimensions,   pixel_j ~ Binomial(16, decoder(z)_j),   q(z | image) a diagonal Normal.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from flax import nnx

import vipl
from vipl._types import Array, Int, PRNGKeyArray, PyTree
from vipl.demo import _report
from vipl.expectation import Expectation
from vipl.fit import Fit, fit
from vipl.gen import GenerativeFunction
from vipl.interop.flax import functional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LATENT, HIDDEN, LEVELS = 10, 256, 16
NUM_HELD_OUT, BATCH, PARTICLES = 297, 100, 50


class Encoder(nnx.Module):
    """image f[64] -> location and log scale of q(z | image), f[latent] each."""

    def __init__(self, rngs: nnx.Rngs):
        """Draws the weights."""
        self.hidden = nnx.Linear(64, HIDDEN, rngs=rngs)
        self.out = nnx.Linear(HIDDEN, 2 * LATENT, rngs=rngs)

    def __call__(self, image: Array) -> list[Array]:
        """Encodes one image."""
        return jnp.split(self.out(nnx.gelu(self.hidden(image / LEVELS - 0.5))), 2, axis=-1)


class Decoder(nnx.Module):
    """z f[latent] -> logits f[64]."""

    def __init__(self, rngs: nnx.Rngs):
        """Draws the weights."""
        self.hidden = nnx.Linear(LATENT, HIDDEN, rngs=rngs)
        self.out = nnx.Linear(HIDDEN, 64, rngs=rngs)

    def __call__(self, z: Array) -> Array:
        """Decodes one latent vector."""
        return self.out(nnx.gelu(self.hidden(z)))


class Programs(NamedTuple):
    """The model, the guide, and what is made of them.

    Attributes:
      model: params -> generative function of z and the image.
      guide: params, image -> generative function of z.
      elbo: params, images -> the bound per image.
      iwelbo: the same with 50 particles.
      params: the encoder's and the decoder's, as drawn.
      decode: the decoder's params -> the decoder.
    """

    model: GenerativeFunction
    guide: GenerativeFunction
    elbo: Expectation
    iwelbo: Expectation
    params: PyTree
    decode: Callable[[PyTree], Decoder]


def programs(rngs: nnx.Rngs) -> Programs:
    """Writes the autoencoder as two generative functions of one image, and its bounds per image."""
    encoder, encode = functional(Encoder(rngs))
    decoder, decode = functional(Decoder(rngs))

    @vipl.gen
    def model(params):
        z = vipl.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
        vipl.sample("image", dist.Binomial(LEVELS, logits=decode(params["decoder"])(z)).to_event(1))

    @vipl.gen
    def guide(params, image):
        loc, log_scale = encode(params["encoder"])(image)
        vipl.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1), vipl.Reparam())

    def log_weight(params, image):
        q = guide(params, image).simulate()
        p = model(params).assess(q.choices | {"image": image})
        return p.log_prob - q.log_prob

    @vipl.expectation
    def elbo(params, images):
        return jnp.mean(jax.vmap(lambda image: log_weight(params, image))(images))

    @vipl.expectation
    def iwelbo(params, images):
        def bound(image):
            log_w = jax.vmap(lambda: log_weight(params, image), axis_size=PARTICLES)()
            return jax.nn.logsumexp(log_w) - jnp.log(PARTICLES)

        return jnp.mean(jax.vmap(bound)(images))

    return Programs(model, guide, elbo, iwelbo, {"encoder": encoder, "decoder": decoder}, decode)


class Split(NamedTuple):
    """Images i[n, 64], values 0..16."""

    train: Int[Array, "n 64"]
    held_out: Int[Array, "m 64"]


def load() -> Split:
    """The digits, shuffled in a fixed order; the first 297 are held out."""
    from sklearn.datasets import load_digits

    images, _ = load_digits(return_X_y=True)
    images = np.asarray(images, np.int32)
    images = images[np.random.default_rng(0).permutation(len(images))]
    return Split(jnp.asarray(images[NUM_HELD_OUT:]), jnp.asarray(images[:NUM_HELD_OUT]))


class Bounds(NamedTuple):
    """ELBO and IWELBO per held-out image, each with its Monte Carlo standard error."""

    elbo: tuple[float, float]
    iwelbo: tuple[float, float]


def evaluate(p: Programs, params: PyTree, images: Array, key: PRNGKeyArray) -> Bounds:
    """Estimates both bounds with fresh draws."""
    elbo = _report.mean_and_se(p.elbo, key, params, images, num=50)
    return Bounds(elbo, _report.mean_and_se(p.iwelbo, key, params, images, num=5))


def run(*, short: bool, out: Path) -> tuple[Bounds, Bounds]:
    """Trains the autoencoder, prints its bounds before and after, draws the picture `digits.png`."""
    print("\nA variational autoencoder of 8 x 8 digits: 1500 to train, 297 held out, pixels Binomial(16).", flush=True)
    data, p, key = load(), programs(nnx.Rngs(0)), jax.random.key(0)
    num_steps = 1500 if short else 10_000
    before = evaluate(p, p.params, data.held_out, key)
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, num_steps), weight_decay=0.1)
    with _report.stopwatch() as seconds:
        fitted = fit(p.elbo, p.params, optimizer, key=key, data=data.train, num_steps=num_steps, batch_size=BATCH)
        taken = seconds()
    after = evaluate(p, fitted.params, data.held_out, key)
    print(f"\n  {'per held-out image, nats':<26} {'ELBO':>9}   {'se':>5} {'IWELBO(50)':>11}   {'se':>5}")
    for name, b in (("before training", before), (f"after {num_steps} steps, {taken:.1f} s", after)):
        print(f"  {name:<26} {b.elbo[0]:9.2f} ± {b.elbo[1]:5.2f} {b.iwelbo[0]:11.2f} ± {b.iwelbo[1]:5.2f}")
    _report.save(picture(p, fitted, data.held_out, after), out / "digits.png")
    return before, after


# --- the picture --------------------------------------------------------------------------------------------

COLUMNS = 14


def picture(p: Programs, fitted: Fit, held_out: Array, after: Bounds) -> Figure:
    """Held-out images, what the autoencoder makes of them, draws of the model, and the bound while training."""
    drawing = _report.figure(12, 6.6)
    images, params = held_out[:COLUMNS], fitted.params
    keys = jax.random.split(jax.random.key(2), 3 * COLUMNS)
    means = jax.vmap(lambda key, image: _reconstruct(p, params, key, image))(keys[:COLUMNS], images)
    new = jax.vmap(lambda key: p.model(params).simulate(key).choices["image"])(keys)
    grid = drawing.add_gridspec(3, 1, height_ratios=[2, 3, 2.2])
    both = jnp.concatenate([images, means])
    _draw_images(drawing.add_subplot(grid[0]), both, "held out, and below it the decoder's mean at z ~ q(z | image)")
    _draw_images(drawing.add_subplot(grid[1]), new, "draws of the model: z ~ prior, pixels ~ Binomial(16, decoder(z))")
    axes = _report.plain(drawing.add_subplot(grid[2]))
    axes.plot(*_report.smooth(fitted.values, 15), color=_report.BLUE, linewidth=1, label="training batches, ELBO")
    for (value, _), color, name in ((after.elbo, _report.ORANGE, "ELBO"), (after.iwelbo, _report.PURPLE, "IWELBO(50)")):
        axes.axhline(value, color=color, linewidth=1, linestyle="--", label=f"held out, {name}: {value:.1f}")
    axes.set(ylim=(-150, -75), xlim=(0, len(fitted.values)), xlabel="step", ylabel="nats per image")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return drawing


def _reconstruct(p: Programs, params: PyTree, key: PRNGKeyArray, image: Array) -> Array:
    """The decoder's mean image at a draw of the guide."""
    z = p.guide(params, image).simulate(key).choices["z"]
    return LEVELS * jax.nn.sigmoid(p.decode(params["decoder"])(z))


def _draw_images(axes: Axes, images: Array, title: str) -> None:
    axes.imshow(_report.mosaic(images.reshape(-1, 8, 8), COLUMNS), cmap="gray_r", vmin=0, vmax=LEVELS)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_axis_off()
