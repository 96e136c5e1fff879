# %% [markdown]
# # Benchmark your own estimator
#
# You have a gradient estimator that you wrote by hand, for a model that you care about. Is vipl's as good? Is yours
# right? This notebook is a recipe in three steps, which you can copy:
#
# 1. **Check that both estimate the same gradient.** Ten lines, with a stated probability of error. A fast wrong
#    estimator is not a result.
# 2. **Time both**, compiled, in turns, and waited for.
# 3. **Compare time x variance.** An estimator that is twice as fast and four times as noisy is slower.
#
# The example is a sigmoid belief network: binary pixels, binary causes, and a guide whose probabilities are a linear
# function of the pixels. Binary causes have no reparametrization, so that there is something to choose.

# %%
import statistics
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist

import vipl
from vipl import DisARM, Enumerate, LeaveOneOut, MeasureValued, Score, objectives, sample
from vipl.testing import assert_unbiased

key = jax.random.key(0)
ROWS, PIXELS, CAUSES, DRAWS = 16, 12, 6, 4

keys = jax.random.split(key, 4)
params = {
    "decoder": 1.5 * jax.random.normal(keys[0], (CAUSES, PIXELS)),
    "bias": 0.5 * jax.random.normal(keys[1], (PIXELS,)),
    "encoder": 0.5 * jax.random.normal(keys[2], (PIXELS, CAUSES)),
}
pixels = jax.random.bernoulli(keys[3], 0.4, (ROWS, PIXELS)).astype(jnp.float32)

# %% [markdown]
# ## By hand
#
# This is what one writes: the score function with the mean of the other draws as its baseline (Kool, van Hoof and
# Welling, 2019), for a batch of rows, four draws for each. The surrogate has the value of the bound, and its
# derivative is the estimate.


# %%
def log_bernoulli(x, logits):
    return jnp.sum(x * logits - jax.nn.softplus(logits), axis=-1)


def by_hand(key, params, pixels):
    logits = pixels @ params["encoder"]  # [rows, causes]
    uniform = jax.random.uniform(key, (DRAWS, *logits.shape))
    h = (uniform < jax.nn.sigmoid(logits)).astype(jnp.float32)  # [draws, rows, causes]
    log_q = log_bernoulli(h, logits)
    log_p = log_bernoulli(h, 0.0) + log_bernoulli(pixels, h @ params["decoder"] + params["bias"])
    cost = log_p - log_q  # [draws, rows]
    fixed = jax.lax.stop_gradient(cost)
    baseline = (jnp.sum(fixed, axis=0) - fixed) / (DRAWS - 1)
    surrogate = cost + (fixed - baseline) * (log_q - jax.lax.stop_gradient(log_q))
    return jnp.mean(surrogate)


hand_written = jax.value_and_grad(by_hand, argnums=1)

# %% [markdown]
# ## In vipl
#
# A model, a guide and a bound. The estimator is chosen from outside, so that this is one program for all of them.


# %%
@vipl.gen
def model(params):
    h = sample("h", dist.Bernoulli(logits=jnp.zeros(CAUSES)))
    sample("x", dist.Bernoulli(logits=h @ params["decoder"] + params["bias"]))


@vipl.gen
def guide(params, row):
    sample("h", dist.Bernoulli(logits=row @ params["encoder"]))


@vipl.expectation
def bound(params, pixels):
    def of_row(row):
        return objectives.elbo(model(params), guide(params, row), {"x": row})

    return jnp.mean(jax.vmap(of_row)(pixels))


def by_vipl(estimator, num_samples):
    chosen = bound.with_estimators({"h": estimator})
    return lambda key, params, pixels: chosen.value_and_grad(key, params, pixels, num_samples=num_samples)


contenders = {
    "by hand": hand_written,
    "Score(LeaveOneOut())": by_vipl(Score(LeaveOneOut()), DRAWS),
    "Score()": by_vipl(Score(), DRAWS),
    "DisARM()": by_vipl(DisARM(), DRAWS),
    "MeasureValued()": by_vipl(MeasureValued(), DRAWS),
    "Enumerate()": by_vipl(Enumerate(), 1),
}

# %% [markdown]
# ## 1. The same gradient?
#
# Two estimators are unbiased for the same gradient if their difference has mean zero. `assert_unbiased` draws the
# difference as often as is needed to see a bias of `resolution`, and fails if some number of the gradient is more than
# five standard errors away from zero, or if such a bias could have gone unseen. These are the ten lines:

# %% short="RESOLUTION = 0.2"
RESOLUTION = 0.04


# %%
def difference(key, params, pixels):
    first, second = jax.random.split(key)
    yours = hand_written(first, params, pixels)
    theirs = contenders["Score(LeaveOneOut())"](second, params, pixels)
    return jax.tree.map(jnp.subtract, yours, theirs)


zero = (0.0, jax.tree.map(jnp.zeros_like, params))
check = assert_unbiased(difference, zero, key=key, resolution=RESOLUTION, args=(params, pixels))
print("largest z of a number:", max(float(np.max(z)) for z in jax.tree.leaves(check.z)))
print("largest standard error:", max(float(np.max(se)) for se in jax.tree.leaves(check.se)))

# %% [markdown]
# A test that cannot fail says nothing. So break the estimator in a way in which one does break it, and see that the
# test catches it: here the baseline is the mean of *all* draws, the own one included, which shrinks the gradient of
# the encoder to three quarters.


# %%
def broken_by_hand(key, params, pixels):
    def with_own_draw(params):
        logits = pixels @ params["encoder"]
        h = (jax.random.uniform(key, (DRAWS, *logits.shape)) < jax.nn.sigmoid(logits)).astype(jnp.float32)
        log_q = log_bernoulli(h, logits)
        log_p = log_bernoulli(h, 0.0) + log_bernoulli(pixels, h @ params["decoder"] + params["bias"])
        fixed = jax.lax.stop_gradient(log_p - log_q)
        return jnp.mean(log_p - log_q + (fixed - jnp.mean(fixed, axis=0)) * (log_q - jax.lax.stop_gradient(log_q)))

    return jax.value_and_grad(with_own_draw)(params)


def broken_difference(key, params, pixels):
    first, second = jax.random.split(key)
    theirs = contenders["Score(LeaveOneOut())"](second, params, pixels)
    return jax.tree.map(jnp.subtract, broken_by_hand(first, params, pixels), theirs)


try:
    assert_unbiased(broken_difference, zero, key=key, resolution=RESOLUTION, args=(params, pixels))
except AssertionError as error:
    caught = str(error).split(":")[0]
print("the broken one:", caught)

# %% [markdown]
# Where there is an exact gradient, compare with that. Here `Enumerate()` sums over the 64 values of the causes of each
# row, and has no noise; elsewhere it may be a formula, or the mean of many draws.

# %%
exact_value, exact = jax.jit(contenders["Enumerate()"])(key, params, pixels)
check = assert_unbiased(hand_written, (exact_value, exact), key=key, resolution=RESOLUTION, args=(params, pixels))
print("by hand, against the exact gradient: largest z", max(float(np.max(z)) for z in jax.tree.leaves(check.z)))

# %% [markdown]
# ## 2. How long does it take?
#
# What goes wrong when one times JAX, and what to do:
#
# - The first call traces and compiles. Do both beforehand, and time them apart: `jit(f).trace(...).lower().compile()`.
# - Calls return before they are done. Wait: `jax.block_until_ready`.
# - Arrays that are closed over are constants, which XLA computes with while it compiles. Pass data and parameters as
#   arguments.
# - The machine does other things. Take turns between the contenders, a call or a few in each, and report medians.
# - The same number of draws for all, or say so. `Enumerate()` needs one.

# %% short="contenders = {name: contenders[name] for name in ('by hand', 'Score(LeaveOneOut())')}"
arguments = (key, params, pixels)

# %%
compiled, trace_ms, compile_ms = {}, {}, {}
for name, gradient in contenders.items():
    begun = time.perf_counter()
    traced = jax.jit(gradient).trace(*arguments)
    trace_ms[name] = 1e3 * (time.perf_counter() - begun)
    begun = time.perf_counter()
    compiled[name] = traced.lower().compile()
    compile_ms[name] = 1e3 * (time.perf_counter() - begun)


def one_turn(call, num_calls=10):
    begun = time.perf_counter()
    for _ in range(num_calls):
        result = call(*arguments)
    jax.block_until_ready(result)
    return 1e6 * (time.perf_counter() - begun) / num_calls


turns = {name: [] for name in compiled}
for _ in range(30):
    for name, call in compiled.items():
        turns[name].append(one_turn(call))
microseconds = {name: statistics.median(times) for name, times in turns.items()}

# %% [markdown]
# XLA counts the floating-point operations of what it has compiled. That number does not depend on what else the
# machine does, and is the first thing to look at where two times differ.
#
# ## 3. Time x variance
#
# The variance of a gradient is that of all its numbers together, relative to its squared length. The error of a mean of
# n gradients is variance / n, and n of them take n times as long: in a given time, what counts is the product.

# %% short="NUM_GRADIENTS = 1000"
NUM_GRADIENTS = 4000

# %%
length = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(exact))


def relative_variance(gradient):
    def squared_error(key):
        _, drawn = gradient(key, params, pixels)
        return sum(jnp.sum((d - e) ** 2) for d, e in zip(jax.tree.leaves(drawn), jax.tree.leaves(exact), strict=True))

    many = jax.jit(lambda keys: jax.lax.map(squared_error, keys, batch_size=200))
    return float(jnp.mean(many(jax.random.split(jax.random.key(7), NUM_GRADIENTS)))) / length


variance = {name: relative_variance(gradient) for name, gradient in contenders.items()}
flops = {name: call.cost_analysis()["flops"] for name, call in compiled.items()}
print(
    f"{'':<21} {'us a call':>9} {'kflop':>7} {'trace, ms':>9} {'compile, ms':>11} {'variance':>9} {'us x variance':>13}"
)
for name in contenders:
    print(
        f"{name:<21} {microseconds[name]:9.1f} {flops[name] / 1e3:7.0f} {trace_ms[name]:9.0f} {compile_ms[name]:11.0f}"
        f" {variance[name]:9.4f} {microseconds[name] * variance[name]:13.2f}"
    )

# %%
figure, ax = plt.subplots(figsize=(6, 3.6))
floor = 1e-3  # Enumerate has no variance; it is drawn at the lower edge
times = np.geomspace(0.5 * min(microseconds.values()), 2 * max(microseconds.values()), 2)
for product in (0.1, 1.0, 10.0, 100.0):
    ax.plot(times, product / times, color="0.85", linewidth=1, zorder=0)
for name in contenders:
    ax.plot(microseconds[name], max(variance[name], floor), "o", label=name)
ax.set(xscale="log", yscale="log", xlim=times, ylim=(floor / 1.5, 3 * max(variance.values())))
ax.set(
    xlabel="microseconds a call",
    ylabel="relative variance",
    title="Time and noise; on a grey line the product is the same",
)
ax.legend(frameon=False, fontsize=9)
figure.tight_layout()

# %% [markdown]
# **Look at** the first two rows: both are the score function with the mean of the other draws. They are not quite the
# same estimator. In the program by hand the score of a cause multiplies the whole bound of its row. vipl multiplies it
# with the terms that this cause reaches, and the densities of the other causes are none of these: a tenth less noise, for
# more operations. The others differ in kind: `Score()` without a baseline is the noisiest at the same cost;
# `MeasureValued()` and `DisARM()` pay for less noise; with six causes `Enumerate()` sums over 64 values, and has none.
# With 20 causes it would sum over a million. (Two of the programs were traced or compiled in cells above, which their
# columns show.) Change `CAUSES` and run the notebook again.
#
# The repository's own suite does what this notebook does for twenty workloads: `python -m benchmarks`, whose table is
# `benchmarks/RESULTS.md`.
#
# The last cell asserts what does not depend on the machine: the same gradient was checked above; here are the variance
# and the operations, as ratios to those by hand.

# %% short="WORK, NOISE = 3.0, 1.2"
WORK, NOISE = 1.5, 1.0

# %%
work = flops["Score(LeaveOneOut())"] / flops["by hand"]
noise = variance["Score(LeaveOneOut())"] / variance["by hand"]
print(f"vipl / by hand: operations {work:.2f}, variance {noise:.3f}")
assert work < WORK
assert noise < NOISE
assert caught.startswith("z = ")
