# %% [markdown]
# # Attend, infer, repeat
#
# How many objects are in a picture, where are they, and what do they look like? Attend, infer, repeat (Eslami et
# al., 2016) answers with a model that draws objects one after the other, and a guide that looks for them one after
# the other. The number of objects is a discrete choice, made in a loop. It needs a gradient estimator that is not
# `Reparam()`, and which one it is decides whether anything is learned at all.
#
# Becker et al. (2024) compared such estimators in their Figure 7 (what is learned against time) and Table 2 (what a
# gradient costs). This notebook does both on a small scale: two minutes instead of hours, canvases of 24 x 24
# pixels, digits of scikit-learn. The figures of a longer run on MNIST stand beside ours at the end.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
from sklearn.datasets import load_digits

import vipl
from vipl import Enumerate, MeasureValued, Score, objectives, sample

key = jax.random.key(0)
CANVAS, WINDOW, STEPS, WHAT, HIDDEN, BATCH = 24, 8, 3, 12, 128, 64

# %% [markdown]
# ## The data
#
# Zero, one or two digits of 8 x 8 pixels, at random places where they do not overlap. The counts are used for
# nothing but to see whether they were found.

# %%
digits = load_digits().images / 16


def canvases(number, seed):
    """f[number, 24, 24] with 0, 1 or 2 digits, and how many."""
    rng = np.random.default_rng(seed)
    images, counts = np.zeros((number, CANVAS, CANVAS), "float32"), rng.integers(0, 3, number)
    for image, count in zip(images, counts, strict=True):
        corners = rng.integers(0, CANVAS - WINDOW + 1, (count, 2))
        while count == 2 and np.abs(corners[0] - corners[1]).max() < WINDOW:
            corners = rng.integers(0, CANVAS - WINDOW + 1, (count, 2))
        for i, j in corners:
            image[i : i + WINDOW, j : j + WINDOW] = digits[rng.integers(len(digits))]
    return images, counts


images, _ = canvases(6400, seed=0)
held_out, held_out_counts = canvases(500, seed=1)
figure, axes = plt.subplots(1, 8, figsize=(9, 1.5))
for ax, image, count in zip(axes, held_out, held_out_counts, strict=False):
    ax.imshow(image, cmap="gray_r")
    ax.set(title=str(count), xticks=[], yticks=[])
figure.tight_layout()

# %% [markdown]
# ## The networks
#
# Plain functions of plain arrays. A decoder makes an 8 x 8 window of a code `what`. A spatial transformer writes a
# window on the canvas at `where` = (scale, x, y), and reads one back; it is two matrices of bilinear weights. The
# guide has a recurrent network (an LSTM), which sees the image and the last object that was found.

# %%
WHERE_LOC, WHERE_SCALE = jnp.array([3.0, 0.0, 0.0]), jnp.array([0.2, 1.0, 1.0])


def network(key):
    sizes = {
        "decode1": (WHAT, 64),
        "decode2": (64, WINDOW**2),
        "encode1": (WINDOW**2, 64),
        "encode2": (64, 2 * WHAT),
        "image": (CANVAS**2, 4 * HIDDEN),
        "recur": (HIDDEN + WHAT + 4, 4 * HIDDEN),
        "predict1": (HIDDEN, 64),
        "predict2": (64, 7),
    }
    keys = jax.random.split(key, len(sizes))
    layers = {
        name: (jax.random.normal(k, shape) / shape[0] ** 0.5, jnp.zeros(shape[1]))
        for k, (name, shape) in zip(keys, sizes.items(), strict=True)
    }
    decode_weights, decode_bias = layers["decode2"]
    predict_weights, predict_bias = layers["predict2"]
    return layers | {
        "decode2": (decode_weights, decode_bias - 2.0),  # objects begin dark
        "predict2": (predict_weights, predict_bias.at[0].set(2.0)),  # the guide begins by looking for objects
    }


def dense(layer, x):
    return x @ layer[0] + layer[1]


def decode(params, what):
    hidden = jax.nn.relu(dense(params["decode1"], what))
    return jax.nn.sigmoid(dense(params["decode2"], hidden)).reshape(WINDOW, WINDOW)


def encode(params, window):
    hidden = jax.nn.relu(dense(params["encode1"], window.reshape(-1)))
    loc, scale = jnp.split(dense(params["encode2"], hidden), 2)
    return loc, jax.nn.softplus(scale) + 1e-3


def taps(size_from, size_to, scale, shift):
    """f[to, from]: bilinear weights of reading at scale * u + shift, u and what is read in [-1, 1]."""
    at = (scale * jnp.linspace(-1.0, 1.0, size_to) + shift + 1.0) * (size_from - 1) / 2
    return jax.nn.relu(1.0 - jnp.abs(at[:, None] - jnp.arange(size_from)))


def write(window, where):
    scale, x, y = where
    return taps(WINDOW, CANVAS, scale, y) @ window @ taps(WINDOW, CANVAS, scale, x).T


def read(image, where):
    scale, x, y = where
    return taps(CANVAS, WINDOW, 1 / scale, -y / scale) @ image @ taps(CANVAS, WINDOW, 1 / scale, -x / scale).T


# %% [markdown]
# ## Model and guide
#
# One step is a program: is there another object (`pres`), where, and what? It is the source of a `sample` in a
# Python loop, so that the choices of step 1 are below the address `object_1`. What comes after the first `pres` = 0
# is masked: it is drawn, and does not count. `is_here` is the product of all `pres` so far.


# %%
@vipl.gen
def draw_object(params, prior, present):
    here = present * sample("pres", dist.Bernoulli(prior).mask(present > 0))
    where = sample("where", dist.Normal(WHERE_LOC, WHERE_SCALE).mask(here > 0).to_event(1))
    what = sample("what", dist.Normal(jnp.zeros(WHAT), 1.0).mask(here > 0).to_event(1))
    return here, here * write(decode(params, what), where)


@vipl.gen
def model(params):
    canvas, here = jnp.zeros((CANVAS, CANVAS)), jnp.ones((), int)
    for step, prior in enumerate((0.05, 0.05**2.3, 0.05**5)):
        here, drawn = sample(f"object_{step}", draw_object(params, prior, here))
        canvas = canvas + drawn
    sample("image", dist.Normal(canvas, 0.3).to_event(2))


@vipl.gen
def find_object(params, image, seen, state):
    hidden, cell, last, present = state
    gates = seen + dense(params["recur"], jnp.concatenate([hidden, last]))
    enter, forget, new, leave = jnp.split(gates, 4)
    cell = jax.nn.sigmoid(forget + 1.0) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
    hidden = jax.nn.sigmoid(leave) * jnp.tanh(cell)
    out = dense(params["predict2"], jax.nn.relu(dense(params["predict1"], hidden)))
    here = present * sample("pres", dist.Bernoulli(logits=out[0]).mask(present > 0))
    where_law = dist.Normal(WHERE_LOC + out[1:4], jax.nn.softplus(out[4:]) + 1e-3)
    where = sample("where", where_law.mask(here > 0).to_event(1))
    safe = where.at[0].set(jnp.maximum(where[0], 0.5))  # what is read; not what is weighed
    loc, scale = encode(params, read(image, safe))
    what = sample("what", dist.Normal(loc, scale).mask(here > 0).to_event(1))
    return hidden, cell, here * jnp.concatenate([what, where, jnp.ones(1)]), here


@vipl.gen
def guide(params, image):
    seen = dense(params["image"], image.reshape(-1))
    state = jnp.zeros(HIDDEN), jnp.zeros(HIDDEN), jnp.zeros(WHAT + 4), jnp.ones((), int)
    found = 0
    for step in range(STEPS):
        state = sample(f"object_{step}", find_object(params, image, seen, state))
        found = found + state[3]
    return found


params = network(jax.random.key(1))
print(vipl.sites(model(params), {"image": images[0]}))

# %% [markdown]
# ## One objective, several estimators
#
# The bound of one image. Nothing in it says how `pres` gets its gradient: that is chosen from outside, by address.
# `where` and `what` keep their default, `Reparam()`.


# %%
@vipl.expectation
def elbo(params, image):
    return objectives.elbo(model(params), guide(params, image), {"image": image})


def of_steps(*estimators):
    return {f"object_{step}": {"pres": estimator} for step, estimator in enumerate(estimators)}


ESTIMATORS = {
    "REINFORCE": of_steps(Score(), Score(), Score()),
    "MVD": of_steps(MeasureValued(), MeasureValued(), MeasureValued()),
    "ENUM": of_steps(Enumerate(), Enumerate(), Enumerate()),
    "hybrid": of_steps(MeasureValued(), MeasureValued(), Enumerate()),
}

# %% [markdown]
# These are the estimators of the paper:
#
# | name | what it does at a `pres` | cost for one image |
# | --- | --- | --- |
# | REINFORCE | multiplies the score by what comes after the draw | one run |
# | MVD | runs the rest again at the other value, and takes the difference | one run more for each step |
# | ENUM | sums over both values at every step | all 2 x 2 x 2 joint values |
# | hybrid | MVD at the first two steps, ENUM at the last | between the two |
#
# All four are unbiased for the same gradient. They differ in its noise, and in what it costs.

# %% [markdown]
# ## Training
#
# A batch is 64 lanes of `jax.vmap` around the estimate, and the gradient is JAX's. (`vipl.fit` is a loop of the same
# kind around one expectation. We write our own here, as images are lanes and the clock should tick between epochs.)
# All estimators see the same batches, and begin at the same network.

# %% short="NUM_EPOCHS, STEPS_PER_EPOCH, ESTIMATORS = 2, 20, {'MVD': ESTIMATORS['MVD']}"
NUM_EPOCHS, STEPS_PER_EPOCH = 10, 150

# %%
optimizer = optax.adam(1e-3)
rows = jnp.asarray(images)


def make_epoch(objective):
    def of_batch(params, key, batch):
        keys = jax.random.split(key, BATCH)
        return jnp.mean(jax.vmap(lambda key, image: objective.estimate(key, params, image))(keys, batch))

    def step(state, key):
        params, moments = state
        key_rows, key_draws = jax.random.split(key)
        batch = rows[jax.random.randint(key_rows, (BATCH,), 0, len(rows))]
        value, gradient = jax.value_and_grad(of_batch)(params, key_draws, batch)
        updates, moments = optimizer.update(jax.tree.map(jnp.negative, gradient), moments)  # it minimizes
        return (optax.apply_updates(params, updates), moments), value

    return jax.jit(lambda state, key: jax.lax.scan(step, state, jax.random.split(key, STEPS_PER_EPOCH)))


@jax.jit
def count_accuracy(key, params):
    """The share of held-out images of which a draw of the guide has the right number of objects."""
    keys = jax.random.split(key, len(held_out))
    return jnp.mean(jax.vmap(lambda k, x: guide(params, x).simulate(k).retval)(keys, held_out) == held_out_counts)


log, trained = {}, {}
for name, chosen in ESTIMATORS.items():
    state = params, optimizer.init(params)
    epoch = make_epoch(elbo.with_estimators(chosen)).lower(state, key).compile()  # the clock begins after this
    seconds, log[name] = 0.0, []
    for number in range(NUM_EPOCHS):
        begun = time.perf_counter()
        state, values = jax.block_until_ready(epoch(state, jax.random.fold_in(key, number)))
        seconds += time.perf_counter() - begun
        log[name].append((seconds, float(values.mean()), float(count_accuracy(key, state[0]))))
    trained[name] = state[0]
    milliseconds = 1000 * seconds / (NUM_EPOCHS * STEPS_PER_EPOCH)
    print(f"{name:<10} {milliseconds:5.1f} ms a step; bound {log[name][-1][1]:6.1f}, accuracy {log[name][-1][2]:.3f}")

# %% [markdown]
# The milliseconds are our Table 2, and the next picture is our Figure 7: on the left the bound, on the right the
# share of held-out images whose number of objects is found. **Look at** REINFORCE: its steps are the cheapest, its
# bound grows, and it does not learn to count. Its gradient in the networks has the noise of the whole log density of
# an image. The others find the number in a few epochs.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
for name, rows_of_log in log.items():
    seconds, values, accuracies = np.transpose(rows_of_log)
    left.plot(seconds, values, ".-", label=name)
    right.plot(seconds, accuracies, ".-", label=name)
left.set(xlabel="seconds", ylabel="nats per image", title="Bound on training batches")
right.set(xlabel="seconds", ylabel="share", title="Right number of objects, held out", ylim=(0, 1.03))
right.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# ## What was found
#
# Above: held-out images. Below: the mean of the image given a draw of the guide, with a box for each object that was
# found, in the order in which it was found. Nobody told the guide what a digit is.

# %%
best = trained.get("ENUM", trained["MVD"])


@jax.jit
def explain(key, image):
    """The canvas of a draw of the guide, and whether and where its objects are."""
    choices = guide(best, image).simulate(key).choices
    objects = [choices[f"object_{step}"] for step in range(STEPS)]
    here = jnp.cumprod(jnp.stack([found["pres"] for found in objects]))
    windows = [write(decode(best, found["what"]), found["where"]) for found in objects]
    return sum(h * w for h, w in zip(here, windows, strict=True)), here, jnp.stack([x["where"] for x in objects])


figure, axes = plt.subplots(2, 8, figsize=(9, 2.6))
for number, (above, below) in enumerate(axes.T):
    canvas, here, where = explain(jax.random.key(number), held_out[number])
    above.imshow(held_out[number], cmap="gray_r", vmin=0, vmax=1)
    below.imshow(canvas, cmap="gray_r", vmin=0, vmax=1)
    for present, (scale, x, y), color in zip(here, where, ("C3", "C0", "C2"), strict=True):
        if present:
            side = (CANVAS - 1) / scale
            corner = [(CANVAS - 1) / 2 * (1 - shift / scale) - side / 2 for shift in (x, y)]
            below.add_patch(plt.Rectangle(corner, side, side, fill=False, color=color, linewidth=1.2))
    for ax in (above, below):
        ax.set(xticks=[], yticks=[])
figure.tight_layout()

# %% [markdown]
# ## The long run
#
# The suite of benchmarks has the model at the paper's size: canvases of 50 x 50 made of MNIST, windows of 20 x 20, 50
# numbers for what an object is (`python -m benchmarks.air`, from a checkout). Below are its figures from
# `benchmarks/results/air-twenty-epochs.json`: 20 epochs of 12,800 images, Adam with a rate of 1e-3, two CPU cores
# that other work used, too. Beside them are the times of one gradient of a batch of 64 (`benchmarks/RESULTS.md`),
# with one particle and with two, and what the paper published after 41 epochs of 60,000 images on a GPU.

# %%
LONG = {
    # seconds of 20 epochs, count accuracy after epochs 1, 2, 5, 10, 20; ms of a gradient: ELBO, IWELBO with 2; published
    "REINFORCE": (86, (0.251, 0.277, 0.297, 0.326, 0.323), 19.9, 25.2, ".27"),
    "MVD": (156, (0.776, 0.992, 0.998, 0.997, 0.998), 23.6, 60.6, ".984"),
    "ENUM": (624, (0.835, 0.986, 0.997, 0.998, 1.0), 65.7, 100.3, ".984"),
    "hybrid": (333, (0.578, 0.988, 0.998, 0.997, 0.999), 33.3, 75.8, ".950"),
}
EPOCHS = (1, 2, 5, 10, 20)

print(f"{'':<10} {'ELBO, ms':>9} {'IWELBO, ms':>11} {'20 epochs, s':>13} {'accuracy':>9} {'published':>10} {'here':>6}")
for name, (seconds, accuracies, ms, ms_two, published) in LONG.items():
    here = f"{log[name][-1][2]:.3f}" if name in log else "-"
    print(f"{name:<10} {ms:9.1f} {ms_two:11.1f} {seconds:13.0f} {accuracies[-1]:9.3f} {published:>10} {here:>6}")

figure, ax = plt.subplots(figsize=(5.5, 3))
for name, (_, accuracies, *_) in LONG.items():
    ax.plot(EPOCHS, accuracies, ".-", label=name)
ax.set(xlabel="epoch of 12,800 images", ylabel="share", title="The long run: right number of objects", ylim=(0, 1.03))
ax.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# The order is the same in the short run, in the long run and in the paper: REINFORCE does not count, the others do.
# The gradient by enumeration costs three times that by REINFORCE, MVD little more than REINFORCE. With two particles
# (`objectives.iwelbo(..., num_particles=2)` in place of `elbo`, and nothing else) each of these estimators still works,
# in any mixture; systems with a fixed list of them have some of these cells, and not the others.
#
# The last cell asserts that an estimator other than REINFORCE has learned to count.

# %% short="FLOOR = 0.2"
FLOOR = 0.95

# %%
counted = {name: rows_of_log[-1][2] for name, rows_of_log in log.items()}
print(counted)
assert max(counted.values()) > FLOOR
assert counted.get("REINFORCE", 0.0) < max(counted.values()) or len(counted) == 1
