# %% [markdown]
# # Logistic regression in raw units
#
# Which tumours are malignant? The data are 569 biopsies of scikit-learn's breast cancer set, and some of its
# columns: sizes and shapes of cell nuclei, between 0.05 and 2500, in the units that were measured. We fit two
# models, check them against the data, compare them on held-out rows and by cross-validation, and compare the first
# with NUTS.

# %%
import arviz_plots as azp
import arviz_stats as azs
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from sklearn.datasets import load_breast_cancer

import vipl
from vipl import sample

key = jax.random.key(0)
cancer = load_breast_cancer(as_frame=True)
malignant = 1 - cancer.target.to_numpy()
size = cancer.data[["mean area", "mean texture"]].to_numpy()
shape = cancer.data[["mean area", "mean texture", "mean smoothness", "mean concave points"]].to_numpy()
order = np.random.default_rng(0).permutation(len(malignant))
train, test = order[:300], order[300:]

# %% [markdown]
# ## The model
#
# A prior on a coefficient in raw units says something about the unit. A change by one standard deviation of a
# column should move the log odds by a few, at most; so the prior's sd is 3 / sd of the column. Nothing else is
# scaled: the rows go in as they are.


# %%
@vipl.gen
def logistic(x, scale):
    intercept = sample("intercept", dist.Normal(0.0, 50.0))
    weights = sample("weights", dist.Normal(jnp.zeros(scale.size), 3.0 / scale))
    sample("malignant", dist.Bernoulli(logits=intercept + x @ weights))


def fit(x):
    return vipl.infer(logistic(x[train], x[train].std(0)), {"malignant": malignant[train]}, key=key)


by_size, by_shape = fit(size), fit(shape)
by_shape.summary()

# %% [markdown]
# **Look at** the means: 0.01 for an area, 75 for a share of concave points. The coefficients differ by four orders
# of magnitude, and so do their sds. Stochastic gradients would need columns of one scale. `infer` uses natural
# gradients here, which do not depend on units; they took a few dozen steps. k-hat is near 0.5 and nothing has
# moved: a Gaussian is a good description of this posterior.
#
# ## Does the model fit?
#
# `to_arviz` has the draws, the posterior predictive and the log likelihood of each row. ArviZ's calibration plot
# draws predictions against outcomes: where the model says 0.3, three of ten tumours should be malignant, which is
# the diagonal. **Look at** whether the diagonal lies inside the band.

# %%
trees = {name: posterior.to_arviz(key, prior=False) for name, posterior in {"size": by_size, "shape": by_shape}.items()}
plot = azp.plot_ppc_pava(trees["shape"], figure_kwargs={"figsize": (4, 4)})
labels = plt.gca().set(title="Rows that were fitted", xlabel="predicted probability", ylabel="share that is malignant")

# %% [markdown]
# ## Which model predicts better?
#
# ArviZ estimates, from the log likelihoods, how well each model would predict a row that was left out (PSIS-LOO).
# **Look at** `elpd_diff` beside its standard error `dse`, and at k-hat, here one for each row: how heavy the tail
# of the weights is that take the row out. It knows the shape of a tail and not its size. A row that each draw finds
# certain has weights that are all 1 up to a few percent; its k-hat may be large and means nothing, and ArviZ warns.
# So we look at the rows whose weights vary.

# %%
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of these k-hats
    table = azs.compare(trees)
    k_hat = azs.loo(trees["shape"], pointwise=True).pareto_k.to_numpy()

log_likelihood = trees["shape"]["log_likelihood"]["malignant"].to_numpy()[0]
varies = np.ptp(log_likelihood, axis=0) > 0.1
print(
    f"rows whose weights vary: {varies.sum()}, largest k-hat {k_hat[varies].max():.2f}; of the others {k_hat[~varies].max():.2f}"
)
table[["rank", "elpd", "p", "elpd_diff", "dse"]].round(1)

# %% [markdown]
# There are 269 rows that no model has seen. Their log predictive density is log mean over draws of p(y | z), a mean
# that is taken for each row. `log_likelihood` takes the model with other arguments, and other data.


# %%
def held_out(posterior, x):
    program = logistic(x[test], x[train].std(0))
    rows = posterior.log_likelihood(key, program, {"malignant": malignant[test]}, num_samples=2000)["malignant"]
    return jax.nn.logsumexp(rows, axis=0) - jnp.log(2000)


densities = {"size": held_out(by_size, size), "shape": held_out(by_shape, shape)}
for name, rows in densities.items():
    print(f"{name:6} {rows.mean():.3f} +- {rows.std() / len(rows) ** 0.5:.3f} nats a row")
difference = densities["shape"] - densities["size"]
by_loo = (table.elpd["shape"] - table.elpd["size"]) / len(train)
print(f"shape is better by {difference.mean():.3f} +- {difference.std() / len(test) ** 0.5:.3f}; LOO said {by_loo:.3f}")

# %% [markdown]
# ## Are the predictions calibrated?
#
# The probability of each held-out row is a mean over the posterior. Sort the rows by it, and compare in each group
# with how many are malignant.

# %%
probability = by_shape.expectation(lambda z: jax.nn.sigmoid(z["intercept"] + shape[test] @ z["weights"]), key)
edges = np.array([0.0, 0.02, 0.1, 0.3, 0.7, 0.9, 1.0])
group = np.digitize(probability, edges[1:-1])
said = np.array([probability[group == g].mean() for g in range(len(edges) - 1)])
seen = np.array([malignant[test][group == g].mean() for g in range(len(edges) - 1)])
count = np.bincount(group, minlength=len(edges) - 1)

figure, axes = plt.subplots(figsize=(4.5, 4))
axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
axes.errorbar(said, seen, np.sqrt(said * (1 - said) / count), fmt="o", capsize=3)
for g in range(len(count)):
    axes.annotate(f"{count[g]} rows", (said[g], seen[g]), (6, -12), textcoords="offset points", fontsize=8)
axes.set(
    xlim=(-0.03, 1.15),
    ylim=(-0.1, 1.08),
    xlabel="predicted probability",
    ylabel="share that is malignant",
    title="Held-out rows",
)
figure.tight_layout()

# %% [markdown]
# ## And by NUTS?
#
# The same model in NumPyro. In raw units NUTS needs a dense mass matrix and a long warm-up to find the scales; we
# start it at the mean of the guide.

# %% short="num_warmup, num_samples, tolerance = 200, 200, 0.01"
num_warmup, num_samples, tolerance = 1000, 2000, 0.005


# %%
def numpyro_logistic(x, scale, y):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 50.0))
    weights = numpyro.sample("weights", dist.Normal(jnp.zeros(scale.size), 3.0 / scale))
    numpyro.sample("malignant", dist.Bernoulli(logits=intercept + x @ weights), obs=y)


x = shape[train]
start = by_shape.expectation(lambda z: z, key)
kernel = numpyro.infer.NUTS(numpyro_logistic, dense_mass=True, init_strategy=numpyro.infer.init_to_value(values=start))
mcmc = numpyro.infer.MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
mcmc.run(key, x, x.std(0), malignant[train])
draws = mcmc.get_samples()
logits = draws["intercept"][:, None] + draws["weights"] @ shape[test].T
rows = dist.Bernoulli(logits=logits).log_prob(malignant[test])
by_nuts = jax.nn.logsumexp(rows, axis=0) - jnp.log(num_samples)

off = (by_shape.sample(key, 4000)["weights"].mean(0) - draws["weights"].mean(0)) / draws["weights"].std(0)
print("means of the weights, in sds from NUTS's:", off.round(2))
print(f"held-out density: infer {densities['shape'].mean():.4f}, NUTS {by_nuts.mean():.4f}")
assert densities["shape"].mean() > -0.2
assert abs(densities["shape"].mean() - by_nuts.mean()) < tolerance
