# %% [markdown]
# # First steps
#
# In the 1850s James Forbes read a thermometer in boiling water, and a barometer, at 17 places in the Alps and in
# Scotland. He wanted to know the height of a mountain from a kettle. We fit a line through his readings, ask the
# posterior for predictions, and find the reading that does not belong to the others.
#
# The first cell goes from a model to a posterior. The rest of the notebook opens the box: a model is a program, a
# guide is a program, a bound is a program, and each random choice in them has a gradient estimator that you can
# change.
#
# ## A posterior in one cell

# %%
import arviz_plots as azp
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import vipl
from vipl import sample

fahrenheit = "194.5 194.3 197.9 198.4 199.4 199.9 200.9 201.1 201.4 201.3 203.6 204.6 209.5 208.6 210.7 211.9 212.2"
inches = "20.79 20.79 22.40 22.67 23.15 23.35 23.89 23.99 24.02 24.01 25.14 26.57 28.49 27.76 29.04 29.88 30.06"
celsius = (np.array(fahrenheit.split(), float) - 32) / 1.8  # where water boils
data = {"pressure": 100 * np.log10(33.864 * np.array(inches.split(), float))}  # 100 log10 of the air's millibars


@vipl.gen
def boiling(celsius):
    intercept = sample("intercept", dist.Normal(0.0, 500.0))
    slope = sample("slope", dist.Normal(0.0, 10.0))
    sigma = sample("sigma", dist.HalfNormal(5.0))
    sample("pressure", dist.Normal(intercept + slope * celsius, sigma))


key = jax.random.key(0)
posterior = vipl.infer(boiling(celsius), data, key=key)
tree = posterior.to_arviz(key)
plot = azp.plot_dist(tree, kind="kde", stats={"point_estimate": {"round_to": 4}}, figure_kwargs={"figsize": (9, 2)})

# %% [markdown]
# A model is a function that calls `sample(address, distribution)`. Data are given by address, beside the model and
# not in it. `infer` makes a guide (here a Gaussian with any covariance, after positive choices such as `sigma` are
# mapped to the real line), fits it, and returns a posterior.
#
# **Look at** the summary. Each row is a latent number. The last line is a verdict: draws of the guide are weighted
# towards the exact posterior, and *k-hat* says how heavy the tail of these weights is. Below 0.7 the draws can be
# used. `moved` is how far the weights move each mean, in standard deviations; small numbers here mean that there is
# little left to correct.

# %%
posterior.summary()

# %% [markdown]
# The data are in raw units: temperatures between 90 and 100, none near zero, so that intercept and slope are
# correlated at -0.999. Nothing had to be standardized for that. `infer` fits by natural gradients, which do not see
# the units of the coordinates.
#
# ## Predictions
#
# A program with other arguments is another program. `predict` draws the latent choices from the posterior and runs
# it. A kettle that boils at 88 degrees, say:

# %%
kettle = posterior.predict(key, boiling(88.0), num_samples=4000)
millibars = 10 ** (kettle["pressure"] / 100)
height = 44330 * (1 - (millibars / 1013.25) ** 0.1903)  # metres, in the standard atmosphere
low, high = np.quantile(height, [0.055, 0.945])
print(f"height {height.mean():.0f} m, 89% between {low:.0f} and {high:.0f} m")

# %% [markdown]
# The next picture has the posterior predictive over a range of temperatures, as the distance from its mean. **Look
# at** the width of the band: it is too wide for nearly all readings. One, near 96 degrees, is far outside and makes
# `sigma` large. We come back to it.

# %%
import matplotlib.pyplot as plt

grid = np.linspace(88.0, 102.0, 50)
predicted = posterior.predict(key, boiling(grid), num_samples=4000)["pressure"]
line = predicted.mean(0)
low, high = np.quantile(predicted - line, [0.055, 0.945], axis=0)

figure, axes = plt.subplots(figsize=(6, 3))
axes.fill_between(grid, low, high, alpha=0.3, label="89% of the predictive")
axes.plot(celsius, data["pressure"] - np.interp(celsius, grid, line), "k.", label="Forbes's readings")
axes.set(
    xlabel="boiling point of water, °C",
    ylabel="100 log10 (pressure in mbar)",
    title="Distance from the mean prediction",
)
axes.legend(loc="upper left")
figure.tight_layout()

# %% [markdown]
# ## What a model is
#
# `vipl.sites` stages a program and lists its random choices. Nothing is drawn.

# %%
vipl.sites(boiling(celsius), data)

# %% [markdown]
# Each choice has an *address*, a string, which is unique in a program. A program can stand in another one as the
# source of a `sample`, `sample("line", boiling(x))`; its choices are then nested below that address. A site in a
# `jax.vmap` or a `lax.scan` has one address, and an axis more.
#
# A program with its arguments can be run in three ways:
#
# - `simulate` draws all choices,
# - `assess` takes a value for each, and returns the log density,
# - `generate` takes some, draws the rest, and returns an importance weight: its mean is the density of what was
#   given.

# %%
two = boiling(np.array([90.0, 100.0]))
trace = two.simulate(key)
print({address: value.round(2).tolist() for address, value in trace.choices.items()})
print(f"log density {trace.log_prob:.3f}")
print(f"assessed    {two.assess(trace.choices).log_prob:.3f}")
_, log_weight = two.generate({"pressure": np.array([285.0, 301.0])}, key=key)
print(f"log weight of two given pressures {log_weight:.3g}: the prior rarely draws a line that explains them")

# %% [markdown]
# ## The guide, the bound and the fit, by hand
#
# What `infer` did can be written out, and then changed. A guide is a program whose choices are the latent choices
# of the model. This one knows something: whatever the slope, the line passes through the middle of the data. So it
# draws the slope, and then the intercept *given* the slope. Such a dependence is ordinary Python.

# %%
middle = celsius.mean()


def draw_line(phi):
    slope = sample("slope", dist.Normal(phi["slope"], jnp.exp(phi["log_sd_slope"])))
    sample("intercept", dist.Normal(phi["height"] - slope * middle, jnp.exp(phi["log_sd_height"])))
    sample("sigma", dist.LogNormal(phi["log_sigma"], jnp.exp(phi["log_sd_sigma"])))


@vipl.gen
def line_guide(phi):
    draw_line(phi)


@vipl.expectation
def elbo(phi, data):
    q = line_guide(phi).simulate()
    p = boiling(celsius).assess(q.choices | data)
    return p.log_prob - q.log_prob


phi = {
    "slope": 0.0,
    "height": 290.0,
    "log_sigma": 0.0,
    "log_sd_slope": -3.0,
    "log_sd_height": -2.0,
    "log_sd_sigma": -1.0,
}

# %% [markdown]
# The evidence lower bound is an expectation over what the guide draws. `vipl.expectation` makes it an object with
# two methods. Both are functions of a key, and both are unbiased: the mean over keys is the bound, and its exact
# gradient.

# %%
print(f"mean of 1000 draws {elbo.estimate(key, phi, data, num_samples=1000):.0f}")
value, gradient = elbo.value_and_grad(key, phi, data)
print(f"one draw           {value:.0f}")
print("its gradient      ", {name: round(float(g)) for name, g in gradient.items()})

# %% [markdown]
# `vipl.fit` is a loop around `value_and_grad` with an optimizer of optax. It maximizes. You may write your own
# loop: the estimates are ordinary JAX functions.

# %%
import optax

num_steps = 2000
optimizer = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
fit = vipl.fit(elbo, phi, optimizer, key=key, data=data, num_steps=num_steps, num_samples=8, progress=False)

# %% [markdown]
# **Look at** where the curve ends: at the bound that `infer` reached with its Gaussian of any covariance. The guide
# by hand has six parameters where that one has nine, because it knows where the correlation comes from.

# %%
bound = float(elbo.estimate(key, fit.params, data, num_samples=1000))
of_infer = float(posterior.improve(key).bound)
print(f"by hand {bound:.2f}, by infer {of_infer:.2f}")

figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(fit.values, linewidth=0.7, label="estimates, 8 draws each")
axes.axhline(of_infer, color="black", linestyle="--", linewidth=1, label="infer")
axes.set(ylim=(of_infer - 25, of_infer + 5), xlabel="step", ylabel="nats", title="Evidence lower bound")
axes.legend()
figure.tight_layout()

# %% [markdown]
# ## A discrete choice, and its estimator
#
# Is one of the readings wrong? We say so in the model: each reading is wrong with probability 0.05, and then its
# error is ten times as large. `jax.vmap` over the rows makes 17 independent choices `wrong`.


# %%
@vipl.gen
def with_mistakes(celsius):
    intercept = sample("intercept", dist.Normal(0.0, 500.0))
    slope = sample("slope", dist.Normal(0.0, 10.0))
    sigma = sample("sigma", dist.HalfNormal(5.0))

    def reading(c):
        wrong = sample("wrong", dist.Bernoulli(0.05))
        sample("pressure", dist.Normal(intercept + slope * c, jnp.where(wrong, 10 * sigma, sigma)))

    jax.vmap(reading)(celsius)


@vipl.gen
def mistakes_guide(phi):
    draw_line(phi)
    jax.vmap(lambda logit: sample("wrong", dist.Bernoulli(logits=logit)))(phi["wrong"])


@vipl.expectation
def bound_of_mistakes(phi, data):
    return vipl.objectives.elbo(with_mistakes(celsius), mistakes_guide(phi), data)


phi = fit.params | {"wrong": jnp.full(17, -3.0)}

# %% [markdown]
# A Bernoulli draw has no derivative, so that a gradient needs more than `jax.grad`. Which estimator a site has is
# said at the site, `sample("wrong", ..., vipl.Enumerate())`, or from outside, by address. All estimators below are
# unbiased. **Look at** the standard deviations: `Score` multiplies the whole cost by the derivative of log q,
# `MeasureValued` compares the cost at both values, and `Enumerate` sums over both values.

# %% short="estimators = {'Enumerate': vipl.Enumerate()}"
estimators = {"Score": vipl.Score(), "MeasureValued": vipl.MeasureValued(), "Enumerate": vipl.Enumerate()}

# %%
print("the gradient in the logit of reading 11, the one near 96 degrees")
for name, estimator in estimators.items():
    chosen = bound_of_mistakes.with_estimators({"wrong": estimator})
    many = jax.jit(jax.vmap(lambda key, chosen=chosen: chosen.value_and_grad(key, phi, data)[1]["wrong"][11]))
    gradients = many(jax.random.split(key, 4000))
    print(
        f"{name:14} mean {gradients.mean():.3f} +- {gradients.std() / 4000**0.5:.3f}, sd of one draw {gradients.std():.3f}"
    )

# %% [markdown]
# The three means agree up to their standard errors. `Enumerate` costs two evaluations of each row here, not 2^17 of
# all rows together: the bound is a sum over rows, and vipl sees that. So we fit with it.

# %%
chosen = bound_of_mistakes.with_estimators({"wrong": vipl.Enumerate()})
fit = vipl.fit(chosen, phi, optimizer, key=key, data=data, num_steps=num_steps, num_samples=8, progress=False)
print(f"sigma {float(tree['posterior']['sigma'].mean()):.2f} before, {np.exp(fit.params['log_sigma']):.2f} now")

figure, axes = plt.subplots(figsize=(6, 3))
axes.bar(range(17), jax.nn.sigmoid(fit.params["wrong"]))
axes.set(xlabel="reading", ylabel="probability", title="Which reading is wrong?", xticks=range(0, 17, 2))
figure.tight_layout()

# %% [markdown]
# One reading stands out, and without it the line is three to four times as precise. The height by the same kettle
# follows from draws of the new guide, which is a program as any other:

# %%
draws = vipl.predict(key, mistakes_guide(fit.params), 4000)
pressure = vipl.predict(key, boiling(88.0), 4000, choices=draws)["pressure"]
height = 44330 * (1 - (10 ** (pressure / 100) / 1013.25) ** 0.1903)
low, high = np.quantile(height, [0.055, 0.945])
print(f"height {height.mean():.0f} m, 89% between {low:.0f} and {high:.0f} m")

# %% [markdown]
# ## The exact answer
#
# Given `sigma`, the first model is a linear regression with known noise, whose evidence and posterior are Gaussian
# formulas. The exact answer is therefore a sum over a fine grid of `sigma`. We compare the posterior of the first
# cell with it: the mean of the slope, in posterior standard deviations, and the evidence. The bound is below the
# evidence by the divergence KL(guide, posterior).

# %%
from scipy.stats import halfnorm, multivariate_normal

x, y = np.stack([np.ones(17), celsius], 1), data["pressure"]
prior = np.diag([500.0**2, 10.0**2])
grid = np.linspace(0.15, 2.0, 2000)
log_joint = np.array([multivariate_normal(cov=s**2 * np.eye(17) + x @ prior @ x.T).logpdf(y) for s in grid])
log_joint += halfnorm(scale=5.0).logpdf(grid) + np.log(grid[1] - grid[0])
log_evidence = np.logaddexp.reduce(log_joint)
weights = np.exp(log_joint - log_evidence)
means = np.array([np.linalg.solve(x.T @ x + s**2 * np.linalg.inv(prior), x.T @ y)[1] for s in grid])

slope = posterior.sample(key, 10_000)["slope"]
off = (slope.mean() - weights @ means) / slope.std()
print(f"slope     exact {weights @ means:.4f}, by infer {slope.mean():.4f}: {off:+.3f} standard deviations")
print(f"evidence  exact {log_evidence:.3f}, bound {of_infer:.3f}")
assert abs(off) < 0.05
assert 0.0 < log_evidence - of_infer < 0.1
