# %% [markdown]
# # A variational autoencoder
#
# A variational autoencoder (Kingma and Welling, 2014) is a latent variable model whose likelihood is a neural
# network, with a guide that is another one. Model and guide are ordinary programs here; the networks are ordinary
# Flax modules. What needs care is what is *not* in the textbook formula: minibatches, dropout, batch normalization,
# and the question whether the result is any good.
#
# The data are the 1797 handwritten digits of 8 x 8 pixels that come with scikit-learn. A pixel counts how many dots
# of a 4 x 4 block were on, 0 to 16. So its likelihood is Binomial with 16 trials, and the bound is a bound on the
# log probability of the image as it is.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import vipl
from vipl import objectives, sample
from vipl.interop.flax import functional

key = jax.random.key(0)
LATENT, HIDDEN, DOTS, BATCH = 8, 256, 16, 100

images, digits = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))
images, digits = images[order].astype("int32"), digits[order]
train, held_out = images[297:], images[:297]
print(train.shape, held_out.shape)

# %% [markdown]
# ## The networks
#
# The encoder has batch normalization and dropout. The decoder has neither, and this is a matter of being right:
#
# - **Batch normalization** makes the result for one row depend on the other rows of its batch. For a *guide* this
#   is allowed: whatever a guide is, the bound is a bound. In the *model* it would couple the images, and the bound
#   would be one on something else.
# - **Dropout** is noise that nobody infers. In the guide it makes the bound that of a random guide: still a bound.
#
# `nnx.Dropout` keeps its own random state, which a program cannot see. So the module takes a key, and without one
# it is in evaluation mode.


# %%
class Encoder(nnx.Module):
    """images [rows, 64] -> location and log scale of z, [rows, LATENT] each."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, HIDDEN, rngs=rngs)
        self.norm = nnx.BatchNorm(HIDDEN, momentum=0.9, rngs=rngs)
        self.out = nnx.Linear(HIDDEN, 2 * LATENT, rngs=rngs)

    def __call__(self, images, key=None):
        x = images / DOTS - 0.5
        if key is not None:
            x = x * jax.random.bernoulli(key, 0.9, x.shape) / 0.9
        h = nnx.gelu(self.norm(self.hidden(x), use_running_average=key is None))
        return jnp.split(self.out(h), 2, axis=-1)


class Decoder(nnx.Module):
    """z [LATENT] -> logits of the pixels, [64]."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(LATENT, HIDDEN, rngs=rngs)
        self.out = nnx.Linear(HIDDEN, 64, rngs=rngs)

    def __call__(self, z):
        return self.out(nnx.gelu(self.hidden(z)))


encoder, statistics, encode = functional(Encoder(nnx.Rngs(0)), state=True)
decoder, decode = functional(Decoder(nnx.Rngs(1)))
params = {"encoder": encoder, "decoder": decoder}
print(jax.tree.map(jnp.shape, statistics))

# %% [markdown]
# `functional` splits a module into arrays and a function that puts it together again, because a program must see
# its parameters as arguments. With `state=True` the moving averages of the batch normalization are split off too:
# they are an argument and a result of each call.
#
# ## Model, guide, bound
#
# Both programs are about one image. The bound runs the encoder on the whole batch, and then takes one ELBO for each
# row, in lanes of a `vmap`. `vipl.random_key("dropout")` gives a new key in each step and sample. With
# `has_aux=True` the objective returns the new moving averages beside its value.


# %%
@vipl.gen
def model(decoder):
    z = sample("z", dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
    sample("image", dist.Binomial(DOTS, logits=decode(decoder)(z)).to_event(1))


@vipl.gen
def guide(loc, log_scale):
    sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))


@vipl.expectation(has_aux=True)
def bound(params, statistics, batch):
    (loc, log_scale), statistics = encode(params["encoder"], statistics)(batch, vipl.random_key("dropout"))

    def of_row(image, loc, log_scale):
        return objectives.elbo(model(params["decoder"]), guide(loc, log_scale), {"image": image})

    return jnp.mean(jax.vmap(of_row)(batch, loc, log_scale)), statistics


# %% [markdown]
# **Why is there no `vipl.scaled`?** All latent choices belong to a row. The mean over a random batch of rows then
# estimates the mean over all rows, and nothing has to be weighed. It is different when the model has a *global*
# latent choice, say weights `w` of the decoder with a prior: its prior counts once for the whole data set, and the
# rows of a batch stand for all rows. Then the rows get the weight n / b, `vipl.scaled(rows, len(train) /
# len(batch))`, and the bound is that of all data.
#
# ## Training
#
# `batch_size` takes random rows of `data` in each step; `state=` hands the moving averages from step to step.

# %% short="NUM_STEPS, FLOOR = 200, -130.0"
NUM_STEPS, FLOOR = 6000, -97.0

# %%
optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, NUM_STEPS), weight_decay=0.1)
options = {"data": train, "batch_size": BATCH, "state": statistics, "num_steps": NUM_STEPS, "progress": False}
fitted = vipl.fit(bound, params, optimizer, key=key, **options)
trained, statistics = fitted.params, fitted.state

# %% [markdown]
# ## Is it any good?
#
# The training bound cannot say: it is measured on what was fitted. We take the 297 held-out images, the encoder in
# evaluation mode, and two bounds. The ELBO has a gap that is the error of the guide. The importance weighted bound
# with K draws has a smaller one, and is nearly the log probability itself for large K. If the two are far apart,
# the guide is bad; if both are low, the model is.


# %%
def encoded(images):
    (loc, log_scale), _ = encode(trained["encoder"], statistics)(images)
    return loc, log_scale


@vipl.expectation
def held_out_bound(images, num_particles):
    def of_row(image, loc, log_scale):
        of_model, of_guide = model(trained["decoder"]), guide(loc, log_scale)
        return objectives.iwelbo(of_model, of_guide, {"image": image}, num_particles=num_particles)

    return jnp.mean(jax.vmap(of_row)(images, *encoded(images)))


bounds = {}
for num_particles in (1, 100):
    estimate = jax.jit(lambda key, images, k=num_particles: held_out_bound.estimate(key, images, k, num_samples=5))
    bounds[num_particles] = float(estimate(key, held_out))
    print(f"held out, {num_particles:>3} particles: {bounds[num_particles]:8.2f} nats per image")

# %% [markdown]
# How good is that number? A linear model with Gaussian noise, probabilistic PCA (Tipping and Bishop, 1999), has its
# maximum likelihood in closed form, so there is no doubt about its fit. To compare a density with a probability of
# counts we add uniform noise to the counts: the mean log density of x + u is then a lower bound on the log
# probability of x (Theis et al., 2016). We give it the number of components that suits the held-out images best.

# %%
noise = np.random.default_rng(1).uniform(-0.5, 0.5, images.shape)
noisy = images + noise
linear = {n: PCA(n).fit(noisy[297:]).score(noisy[:297]) for n in (2, 8, 16, 32, 48, 63)}
best = max(linear, key=linear.get)
for n, score in linear.items():
    print(f"probabilistic PCA, {n:>2} components: {score:8.2f} nats per image")

fig, ax = plt.subplots(figsize=(7, 3.2))
smooth = np.convolve(fitted.values, np.ones(20) / 20, "valid")
ax.plot(np.arange(len(smooth)) + 20, smooth, linewidth=1, label="ELBO of training batches (mean of 20 steps)")
ax.axhline(bounds[1], color="C1", linestyle="--", linewidth=1, label="held out, ELBO")
ax.axhline(bounds[100], color="C2", linestyle="--", linewidth=1, label="held out, 100 particles")
ax.axhline(linear[best], color="0.4", linestyle=":", linewidth=1, label=f"held out, PCA, {best} components")
ax.set(xlabel="step", ylabel="nats per image", title="Training", ylim=(-190, -85))
ax.legend(frameon=False, fontsize=8, loc="lower right")
fig.tight_layout()

# %% [markdown]
# - The curve of the training bound ends a little *below* the held-out ELBO: it is taken with dropout, and dropout
#   makes the guide worse. So there is no sign of overfitting.
# - From 1 to 100 particles the bound gains about four nats: that is the error of a diagonal Gaussian guide.
# - The linear model is far below, and the more components it has the better: digits do not lie on a plane, and
#   counts of dots are not Gaussian.
#
# ## Reconstructions and new digits
#
# A number does not show *what* was learned. Above: held-out images, and the decoder's mean at a draw of the guide.
# Below: draws of the model alone, z from the prior. `simulate(key)` of the model gives images with their Binomial
# noise; the decoder's mean is without it.


# %%
def mosaic(rows):
    """Rows of images f[..., 64] as one picture, with a white pixel between them."""
    padded = [np.pad(np.reshape(row, (-1, 8, 8)), ((0, 0), (1, 0), (1, 0))) for row in rows]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in padded], axis=0)


def mean_image(z):
    return DOTS * jax.nn.sigmoid(decode(trained["decoder"])(z))


@jax.jit
def drawn_and_new(keys, shown):
    """Draws of the guide for some images, and draws of the model."""
    z = jax.vmap(lambda key, loc, log_scale: guide(loc, log_scale).simulate(key).choices["z"])(keys, *encoded(shown))
    new = jax.vmap(lambda key: model(trained["decoder"]).simulate(key).choices)(keys)
    return jax.vmap(mean_image)(z), new["image"], jax.vmap(mean_image)(new["z"])


shown = held_out[:16]
reconstructed, new, new_means = drawn_and_new(jax.random.split(key, 16), shown)

fig, axes = plt.subplots(2, 1, figsize=(9, 3.1))
pictures = {
    "Held out (above) and reconstructed (below)": mosaic([shown, reconstructed]),
    "New: drawn with the pixels' noise (above), and the mean at the same z (below)": mosaic([new, new_means]),
}
for ax, (title, picture) in zip(axes, pictures.items(), strict=True):
    ax.imshow(picture, cmap="gray_r", vmin=0, vmax=DOTS)
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_axis_off()
fig.tight_layout()

# %% [markdown]
# Reconstructions are a little smoother than the images, and keep the digit. Of the new ones some can be read, and
# some are between two digits. That is a limit of the model and not of the bound: the prior has mass where no image
# is encoded, and nothing taught the decoder what to draw there.
#
# ## The latent space
#
# The model has never seen a label. Nevertheless the guide's means cluster by digit: to tell pixels apart, it pays
# to know the digit. The picture shows the two directions of largest variance of eight.

# %%
loc, _ = encoded(held_out)
plane = PCA(2).fit(encoded(train)[0]).transform(loc)
fig, ax = plt.subplots(figsize=(5.6, 4.6))
points = ax.scatter(*plane.T, c=digits[:297], cmap="tab10", vmin=-0.5, vmax=9.5, s=14)
ax.set(xlabel="first principal component of E[z]", ylabel="second", title="Held-out images in latent space, by digit")
fig.colorbar(points, ax=ax, ticks=range(10), label="digit")
fig.tight_layout()

distances = jnp.linalg.norm(loc[:, None] - encoded(train)[0][None], axis=-1)
nearest = digits[297:][np.asarray(jnp.argmin(distances, 1))]
same = np.mean(nearest == digits[:297])
print(f"the nearest training image in latent space has the same digit in {same:.0%} of cases")

# %% [markdown]
# **With labels.** A *conditional* autoencoder takes the digit as an argument of model and guide:
# `decode(decoder)(jnp.append(z, jax.nn.one_hot(digit, 10)))`. A *semi-supervised* one makes it a choice,
# `sample("digit", dist.Categorical(jnp.ones(10) / 10))`. For images with a label it is in the data. For the others
# the guide draws it, with `Enumerate()`, which sums over ten values and has no noise (Kingma et al., 2014). The sum
# of the two bounds is an objective like any other.
#
# The last cell asserts that the held-out bound is above a number, and, after the full training, far above the best
# linear model.

# %%
print(f"autoencoder {bounds[100]:.1f}, best linear model {linear[best]:.1f}")
assert bounds[1] < bounds[100]
assert bounds[100] > FLOOR
