# %% [markdown]
# # Gaussian processes
#
# A Gaussian process classifier has a latent number for each row, a kernel that ties them together, and
# hyperparameters of that kernel. Its posterior is not Gaussian and has no formula. We write it with its
# hyperparameters as choices, fit a guide, and predict at new points by the conditional process. Then we check the
# method on a regression, where evidence and predictions are linear algebra.
#
# ## Data
#
# Two half moons with noise.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
from jax.scipy.linalg import solve_triangular
from scipy.stats import multivariate_normal
from sklearn.datasets import make_moons

import vipl
from vipl import sample

key = jax.random.key(0)

# %% short="x, moon, num_steps = x[::3], moon[::3], 200"
x, moon = make_moons(48, noise=0.25, random_state=1)
num_steps = 2000

# %% [markdown]
# ## The model
#
# The latent function has a squared exponential kernel with an amplitude and a length. Write K = L Lᵀ, z ~ N(0, 1)
# and f = L z. Then f ~ N(0, K), and the latent choices are independent in the prior, whatever the hyperparameters
# are. Without this *whitening* f and the length are strongly tied, and no Gaussian fits them together.
#
# `latent` is a function that samples. Such functions are parts of the program that calls them, so that two programs
# can share it.


# %%
def kernel(a, b, amplitude, length):
    squares = jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)
    return amplitude**2 * jnp.exp(-0.5 * squares / length**2)


def cholesky(x, amplitude, length):
    return jnp.linalg.cholesky(kernel(x, x, amplitude, length) + 1e-3 * amplitude**2 * jnp.eye(len(x)))


def latent(x):
    amplitude = sample("amplitude", dist.LogNormal(1.0, 0.5))
    length = sample("length", dist.LogNormal(-0.5, 0.5))
    z = sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
    return amplitude, length, z


@vipl.gen
def classifier(x):
    amplitude, length, z = latent(x)
    sample("moon", dist.Bernoulli(logits=cholesky(x, amplitude, length) @ z))


vipl.sites(classifier(x), {"moon": moon})

# %% [markdown]
# ## The fit
#
# The natural gradients that `infer` takes by default need second derivatives, here those of a Cholesky
# factorization, once for each coordinate and draw. They are dear. With an `optimizer` it takes stochastic gradients
# instead, for as many steps as we say. The guide is Gaussian with a covariance that is diagonal plus one of rank
# 10: the data say something about few directions of the 50, and the prior is independent in all others.
#
# **Look at** the curve: it should be flat at its end.

# %%
optimizer = optax.adam(optax.cosine_decay_schedule(0.02, num_steps))
posterior = vipl.infer(
    classifier(x),
    {"moon": moon},
    key=key,
    guide=lambda model, data: vipl.guides.LowRank(model, data, rank=10),
    optimizer=optimizer,
    num_steps=num_steps,
)
axes = posterior.plot_fit()

# %% [markdown]
# **Look at** the verdict, and take it as it is meant: draws of this guide do not stand for the exact posterior,
# whose hyperparameters bend what a Gaussian cannot bend. Weights over 50 coordinates tell small differences. For
# the intervals of the hyperparameters one would run NUTS; for the picture below the guide is good enough.

# %%
print(posterior.improve(key).verdict())
draws = posterior.sample(key, 2000)
for name in ("amplitude", "length"):
    low, high = np.quantile(draws[name], [0.055, 0.945])
    print(f"{name:10} mean {draws[name].mean():.2f}, 89% between {low:.2f} and {high:.2f}")

# %% [markdown]
# ## Predictions at new points
#
# Given f at the rows, the process at new points is Gaussian. With w = L⁻¹ k(x, new) its mean is wᵀ z and its
# variance k(new, new) - wᵀ w. That is a program with the same latent choices and one more, so that `predict` can
# run it: it takes `amplitude`, `length` and `z` from the posterior and draws `f`.


# %%
@vipl.gen
def at_new_points(x, new):
    amplitude, length, z = latent(x)
    w = solve_triangular(cholesky(x, amplitude, length), kernel(x, new, amplitude, length), lower=True)
    variance = jnp.maximum(amplitude**2 - jnp.sum(w**2, axis=0), 1e-6)
    sample("f", dist.Normal(z @ w, jnp.sqrt(variance)))


across, up = np.linspace(-2.0, 3.0, 41), np.linspace(-1.5, 2.0, 36)
grid = np.stack(np.meshgrid(across, up), -1).reshape(-1, 2)
f = posterior.predict(key, at_new_points(x, grid), num_samples=400)["f"]
probability = jax.nn.sigmoid(f)

# %% [markdown]
# **Look at** the two panels together. On the left the probability goes back to a half far from the rows, where
# nothing is known. On the right is how much the probability itself is uncertain: least inside the moons, more
# between them, most where there are no rows. A classifier without uncertainty has the left panel only.

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
titles = ("Probability of the second moon", "Its standard deviation")
for axes, values, title, colours in zip(
    panels, (probability.mean(0), probability.std(0)), titles, ("RdBu_r", "Purples"), strict=True
):
    shown = axes.contourf(across, up, values.reshape(len(up), len(across)), levels=10, cmap=colours)
    figure.colorbar(shown, ax=axes)
    for label, marker in ((0, "o"), (1, "s")):
        axes.scatter(
            *x[moon == label].T, marker=marker, s=18, color=("C0", "C3")[label], edgecolor="white", linewidth=0.5
        )
    axes.set(xlabel="first coordinate", title=title)
panels[0].set_ylabel("second coordinate")
figure.tight_layout()

# %% [markdown]
# ## A check with an exact answer
#
# With Gaussian noise, and with fixed hyperparameters, all is known: the evidence is that of N(0, K + noise²), and
# the posterior of z is Gaussian. So the best guide is exact, and the bound *is* the evidence. L is a constant here.
# Natural gradients are cheap, and are what `infer` takes by itself.

# %%
rng = np.random.default_rng(2)
times = np.sort(rng.uniform(0.0, 10.0, 40))[:, None]
noise = 0.3
y = np.sin(times[:, 0]) + noise * rng.normal(size=40)
factor = cholesky(times, 1.0, 1.5)


@vipl.gen
def regression():
    z = sample("z", dist.Normal(0.0, 1.0).expand([40]))
    sample("y", dist.Normal(factor @ z, noise))


smooth = vipl.infer(regression(), {"y": y}, key=key)
improved = smooth.improve(key)
evidence = multivariate_normal(cov=np.asarray(factor @ factor.T, float) + noise**2 * np.eye(40)).logpdf(y)
print(smooth.report.method, smooth.report.steps, "steps")
print(f"evidence {evidence:.3f}, bound {improved.bound:.3f}, spread of the weights {improved.spread:.4f}")

# %% [markdown]
# **Look at** the spread of the log weights: it is zero up to rounding. Each single draw has the same weight,
# because guide and posterior agree everywhere.
#
# The predictions agree with kriging, the formula for the conditional mean.

# %%
new = np.linspace(0.0, 12.0, 100)[:, None]
w = solve_triangular(factor, kernel(times, new, 1.0, 1.5), lower=True)
f = smooth.sample(key, 4000)["z"] @ w
spread = jnp.sqrt(f.var(0) + jnp.maximum(1.0 - jnp.sum(w**2, axis=0), 0.0))
covariance = factor @ factor.T + noise**2 * np.eye(40)
kriging = kernel(new, times, 1.0, 1.5) @ np.linalg.solve(covariance, y)

figure, axes = plt.subplots(figsize=(7, 3))
axes.fill_between(new[:, 0], f.mean(0) - 2 * spread, f.mean(0) + 2 * spread, alpha=0.3, label="infer, two sds")
axes.plot(new[:, 0], f.mean(0), label="infer, mean")
axes.plot(new[:, 0], kriging, "k--", linewidth=1, label="kriging")
axes.plot(times[:, 0], y, "k.", markersize=5)
axes.set(xlabel="time", ylabel="f", title="Regression: no data after time 10")
axes.legend(loc="lower left", fontsize=8)
figure.tight_layout()

# %%
print(f"largest difference from kriging {abs(f.mean(0) - kriging).max():.3f}")
assert abs(evidence - float(improved.bound)) < 0.01
assert improved.spread < 0.05
assert abs(f.mean(0) - kriging).max() < 0.05
