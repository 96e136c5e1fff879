# %% [markdown]
# # Write your own objective
#
# The evidence lower bound is one objective of many. Others are tighter, others cover the posterior instead of
# hiding in it, and others bound the evidence from above. In vipl an objective is a program that returns a number,
# so that you can write one, change one, and add two.
#
# A wrong objective runs just as well as a right one. So this notebook asks the same two questions of each:
#
# 1. What is the expectation of its **value**?
# 2. What is the expectation of its **gradient**? Often it is the gradient of that same number, and sometimes, on
#    purpose, it is not.
#
# The model is Gaussian, so that every answer is known, and every answer is checked.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
from jax import lax
from matplotlib.patches import Ellipse
from scipy import optimize

import vipl
from vipl import objectives, sample
from vipl.testing import assert_unbiased

key = jax.random.key(0)

# %% [markdown]
# ## A model with a known posterior
#
# Two latent numbers are added, and their sum is observed with noise. Given the sum, one is large where the other is
# small: the posterior is a Gaussian with a correlation of -1/2. The guide has independent coordinates, so that it
# cannot be the posterior. That is deliberate. Where a guide can be exact, all objectives have the same optimum; where
# it cannot, the objective decides what the guide will be.

# %%
Y = 1.5


@vipl.gen
def model():
    z = sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    sample("y", dist.Normal(z[0] + z[1], 1.0))


@vipl.gen
def guide(phi):
    sample("z", dist.Normal(phi["mean"], jnp.exp(phi["log_sd"])).to_event(1))


data = {"y": Y}
PRECISION = np.array([[2.0, 1.0], [1.0, 2.0]])
COVARIANCE = np.linalg.inv(PRECISION)
MEAN = COVARIANCE @ [Y, Y]
LOG_EVIDENCE = float(dist.Normal(0.0, 3**0.5).log_prob(Y))
print(f"posterior mean {MEAN.round(3)}, sds {np.sqrt(np.diag(COVARIANCE)).round(3)}, log evidence {LOG_EVIDENCE:.4f}")

# %% [markdown]
# The exact answers come from quadrature: a grid of points and weights for the two coordinates of the guide. `log_w`
# is written by hand here, so that it checks what vipl computes.

# %% short="RESOLUTION = 1.0"
RESOLUTION = 0.05

# %%
points, weights = np.polynomial.hermite_e.hermegauss(24)
NOISE = jnp.array(np.stack(np.meshgrid(points, points), -1).reshape(-1, 2), "float32")
WEIGHTS = jnp.array(np.outer(weights, weights).ravel() / (2 * np.pi), "float32")


def log_weights(phi):
    """log p(z, y) - log q(z) at the points of the grid, f[576]."""
    sd = jnp.exp(phi["log_sd"])
    z = phi["mean"] + sd * NOISE
    log_p = -0.5 * jnp.sum(z**2, 1) - 0.5 * (Y - jnp.sum(z, 1)) ** 2 - 1.5 * jnp.log(2 * jnp.pi)
    log_q = -0.5 * jnp.sum(NOISE**2, 1) - jnp.sum(phi["log_sd"]) - jnp.log(2 * jnp.pi)
    return log_p - log_q


def exact_elbo(phi):
    return WEIGHTS @ log_weights(phi)


PHI = {"mean": jnp.array([0.3, -0.2]), "log_sd": jnp.array([-0.3, -0.1])}  # where everything is checked
print(f"the ELBO at PHI, exactly: {exact_elbo(PHI):.4f}")

# %% [markdown]
# `check` does the comparing. `vipl.testing.assert_unbiased` draws as often as it needs to see a difference of
# `RESOLUTION`, and raises if there is one in any of the numbers: the value, and the four derivatives.


# %%
def check(name, objective, exact_value, exact_gradient, at=PHI):
    """Fails unless the mean of `objective.value_and_grad` is the exact pair."""
    found = assert_unbiased(
        lambda key: objective.value_and_grad(key, at), (exact_value, exact_gradient), key=key, resolution=RESOLUTION
    )
    largest = max(float(np.max(z)) for z in jax.tree.leaves(found.z))
    numbers = sum(np.size(z) for z in jax.tree.leaves(found.z))
    print(f"{name}: value {found.mean[0]:.4f}, exact {exact_value:.4f}; {numbers} numbers, largest z = {largest:.1f}")


# %% [markdown]
# ## The bound in three lines, and the importance weighted one in five
#
# A guide is simulated and the model assessed; a particle is a lane of `jax.vmap`. The same two are in
# `vipl.objectives`, as `elbo` and `iwelbo`.


# %%
@vipl.expectation
def elbo(phi):
    q = guide(phi).simulate()
    return model().assess(q.choices | data).log_prob - q.log_prob


def iwelbo(num_particles):
    def program(phi):
        def particle():
            q = guide(phi).simulate()
            return model().assess(q.choices | data).log_prob - q.log_prob

        return jax.nn.logsumexp(jax.vmap(particle, axis_size=num_particles)()) - jnp.log(num_particles)

    return vipl.expectation(program)


def exact_pairs(phi, of_pair):
    """E[of_pair(log w_1, log w_2)] for two independent particles."""
    log_w = log_weights(phi)
    return WEIGHTS @ of_pair(log_w[:, None], log_w[None, :]) @ WEIGHTS


def exact_iwelbo2(phi):
    return exact_pairs(phi, lambda a, b: jnp.logaddexp(a, b) - jnp.log(2.0))


check("ELBO     ", elbo, *jax.value_and_grad(exact_elbo)(PHI))
check("IWELBO(2)", iwelbo(2), *jax.value_and_grad(exact_iwelbo2)(PHI))

# %% [markdown]
# Both are unbiased, in value and gradient. **Of what?** Of $L_K = E[\log \frac1K \sum_k w_k]$, a different number for
# each $K$. The mean of the weights is unbiased for the evidence; its logarithm is not, because a logarithm of a mean
# is above the mean of logarithms (Burda, Grosse and Salakhutdinov, 2016). That is what makes it a bound. The gap
# shrinks as 1/K.
#
# ## Renyi bounds: unbiased for what is not the limit
#
# Li and Turner (2016) raise the weights to a power, $L_\alpha = \frac{1}{1-\alpha} \log E[w^{1-\alpha}]$. In the limit
# of many particles it is below the log evidence for $\alpha > 0$, and above for $\alpha < 0$. What a program can
# compute has K particles.


# %% short="PARTICLES, ALPHAS, NUM_DRAWS = [4], [0.5], 500"
PARTICLES, ALPHAS, NUM_DRAWS = [1, 4, 16, 64], [0.5, 0.0, -0.5], 20_000


# %%
def renyi(alpha, num_particles):
    return vipl.expectation(lambda phi: objectives.renyi(model(), guide(phi), data, alpha, num_particles=num_particles))


def exact_renyi2(phi):
    """alpha = 1/2, two particles."""
    return exact_pairs(phi, lambda a, b: 2.0 * (jnp.logaddexp(a / 2, b / 2) - jnp.log(2.0)))


def limit(phi, alpha):
    return jax.nn.logsumexp((1 - alpha) * log_weights(phi), b=WEIGHTS) / (1 - alpha)


check("Renyi(1/2), 2 particles", renyi(0.5, 2), *jax.value_and_grad(exact_renyi2)(PHI))

fig, ax = plt.subplots(figsize=(7, 3.4))
for number, alpha in enumerate(ALPHAS):
    color, means = f"C{number}", []
    for num_particles in PARTICLES:
        draws = jax.jit(jax.vmap(lambda key, k=num_particles, a=alpha: renyi(a, k).estimate(key, PHI)))
        means.append(float(draws(jax.random.split(key, NUM_DRAWS)).mean()))
    name = f"alpha = {alpha}" + (", IWELBO" if alpha == 0 else "")
    ax.plot(PARTICLES, means, "o-", color=color, markersize=4, label=name)
    ax.axhline(limit(PHI, alpha), color=color, linestyle="--", linewidth=1)
ax.axhline(LOG_EVIDENCE, color="0.3", linewidth=0.8)
ax.annotate("log evidence", (PARTICLES[0], LOG_EVIDENCE), xytext=(0, 3), textcoords="offset points", fontsize=9)
ax.set(xscale="log", xlabel="particles", ylabel="nats", title="Renyi bounds, and their limits (dashed)")
ax.legend(frameon=False, loc="lower right")
fig.tight_layout()

# %% [markdown]
# All three curves rise to their limits from below. **Look at** $\alpha = -0.5$: its limit is an upper bound, and with
# few particles its expectation is below the evidence all the same. An "upper bound" of few particles bounds nothing.
#
# ## Forward KL: who can draw from the posterior?
#
# $\mathrm{KL}(p \,\|\, q) = E_p[\log p - \log q]$ punishes a guide that has no mass where the posterior has some. It
# needs draws of the posterior. Here we have them:


# %%
@vipl.gen
def posterior():
    sample("z", dist.MultivariateNormal(jnp.array(MEAN), jnp.array(COVARIANCE)))


@vipl.expectation
def forward_kl(phi):
    p = posterior().simulate()
    return p.log_prob - guide(phi).assess(p.choices).log_prob


def exact_forward_kl(phi):
    q = dist.MultivariateNormal(phi["mean"], jnp.diag(jnp.exp(2 * phi["log_sd"])))
    return dist.kl_divergence(dist.MultivariateNormal(jnp.array(MEAN), jnp.array(COVARIANCE)), q)


check("forward KL", forward_kl, *jax.value_and_grad(exact_forward_kl)(PHI))

# %% [markdown]
# Unbiased. Mostly there are no draws of the posterior, and there are two ways out:
#
# - **`sleep`** draws latents *and data* from the model. It is unbiased for the divergence averaged over data, and so
#   it is for guides that take the data as an argument.
# - **`wake_phi`** weighs draws of the guide. The weights are divided by their sum, and a ratio of two unbiased
#   estimates is biased, by a term of order 1/K.
#
# The second one is on our data. How large is the bias of its gradient? `check` would fail; we measure it.


# %%
def wake_phi(num_particles):
    return vipl.expectation(lambda phi: objectives.wake_phi(model(), guide(phi), data, num_particles=num_particles))


wanted, _ = jax.flatten_util.ravel_pytree(jax.grad(exact_forward_kl)(PHI))
bias, error = [], []
for num_particles in PARTICLES:
    gradients = jax.jit(jax.vmap(lambda key, k=num_particles: wake_phi(k).value_and_grad(key, PHI)[1]))
    drawn = gradients(jax.random.split(key, NUM_DRAWS))
    flat = jax.vmap(lambda g: jax.flatten_util.ravel_pytree(g)[0])(drawn)
    bias.append(float(jnp.linalg.norm(-flat.mean(0) - wanted)))
    error.append(float(jnp.sqrt(jnp.sum(flat.var(0) / len(flat)))))

fig, ax = plt.subplots(figsize=(7, 3.2))
ax.loglog(PARTICLES, bias, "o-", markersize=4, label="bias of the gradient of wake_phi")
ax.loglog(PARTICLES, error, ":", color="0.5", label="standard error of this measurement")
ax.loglog(PARTICLES, bias[-1] * PARTICLES[-1] / np.array(PARTICLES), color="0.7", linewidth=1, label="slope -1")
ax.axhline(np.linalg.norm(wanted), color="C1", linestyle="--", linewidth=1, label="length of the exact gradient")
ax.set(xlabel="particles", ylabel="nats", title="A ratio of unbiased estimates is biased")
ax.legend(frameon=False, fontsize=9, loc="lower left")
fig.tight_layout()

# %% [markdown]
# With one particle the weight is always 1, and the gradient estimates zero: the bias is as long as the gradient. From
# there it falls, towards a slope of 1/K. Ask an objective what it is unbiased of *before* you take few particles to
# save time.
#
# ## Trajectory balance: parts that are held
#
# Malkin et al. (2022) ask for balance: $\log Z + \log q(z) = \log p(z, y)$ should hold at every $z$. The loss is the
# squared defect at draws of the guide, with a learned $\log Z$. The draws are *held*: the guide shall not learn to draw
# where the defect is small. `stop_gradient` holds values, `vipl.detach` holds all parameters of a program:


# %%
@vipl.expectation
def balance(params):
    phi, log_z = params
    z = lax.stop_gradient(guide(phi).simulate().choices)
    defect = log_z + guide(phi).assess(z).log_prob - vipl.detach(model()).assess(z | data).log_prob
    return defect**2


def exact_balance(phi, log_z):
    return WEIGHTS @ (log_z - log_weights(phi)) ** 2


LOG_Z = -2.0
exact_gradient = (
    jax.tree.map(lambda g: -2.0 * g, jax.grad(exact_elbo)(PHI)),
    2.0 * (LOG_Z - exact_elbo(PHI)),
)
check("balance", balance, exact_balance(PHI, LOG_Z), exact_gradient, at=(PHI, LOG_Z))
of_value = jax.grad(exact_balance)(PHI, LOG_Z)["log_sd"]
print(f"log_sd: gradient that was checked {exact_gradient[0]['log_sd']}, gradient of the value {of_value}")

# %% [markdown]
# **The gradient is not the gradient of the value**, and it should not be. In $\phi$ its expectation is
# $2 \nabla \mathrm{KL}(q_\phi \,\|\, p)$, whatever $\log Z$ is (Malkin et al., 2023); in $\log Z$ it is twice the
# distance to the ELBO. So it leads to the optimum of the ELBO, and needs no derivative of the model in $z$. The
# model here has no parameters; with some, `detach` keeps the squared defect from teaching it anything.
#
# How would you know, had you forgotten the `stop_gradient`? The same check tells:


# %%
@vipl.expectation
def forgotten(params):
    phi, log_z = params
    q = guide(phi).simulate()
    return (log_z + q.log_prob - model().assess(q.choices | data).log_prob) ** 2


try:
    check("forgotten", forgotten, exact_balance(PHI, LOG_Z), exact_gradient, at=(PHI, LOG_Z))
except AssertionError as error:
    print("not what was claimed:", str(error).splitlines()[0])
else:
    raise AssertionError("the check is blind")

# %% [markdown]
# ## Your own, in five lines
#
# None of the above bounds the evidence from above with few draws. The second moment of the weight does:
# $E[w]^2 \le E[w^2]$, so that $\log p(y) \le \frac12 \log E[w^2]$. The logarithm spoils unbiasedness, so we leave it
# out: minimize $E[w^2]$ itself, and take the logarithm of a mean of many draws at the end. A constant `LEVEL` near the
# log evidence keeps the numbers near 1. (This is the chi upper bound of Dieng et al., 2017, before its logarithm.)

# %%
LEVEL = -2.0


@vipl.expectation
def second_moment(phi):
    q = guide(phi).simulate()
    log_w = model().assess(q.choices | data).log_prob - q.log_prob
    return jnp.exp(2.0 * (log_w - LEVEL))


def exact_second_moment(phi):
    return jnp.exp(jax.nn.logsumexp(2.0 * (log_weights(phi) - LEVEL), b=WEIGHTS))


WIDE = {"mean": jnp.array([0.6, 0.4]), "log_sd": jnp.array([0.0, 0.1])}
check("second moment", second_moment, *jax.value_and_grad(exact_second_moment)(WIDE), at=WIDE)

# %% [markdown]
# It was checked at a wider guide. This is the price of the objective: where the guide's variance is less than half of
# the posterior's in some direction, $E[w^2]$ is infinite, and no number of draws shows it. At `PHI` the mean is finite,
# but its variance is not, so that a mean of draws says little. Know when your objective is finite.
#
# Objectives are programs, and can be added: `lambda phi: elbo(phi) - 0.1 * second_moment(phi)` is one.
#
# ## What each objective makes of the same guide
#
# Now we fit the guide with each. For the ELBO and for trajectory balance the best sd is that of one coordinate *given
# the other*, $\Lambda_{ii}^{-1/2}$; for forward KL it is that of the coordinate alone, $\Sigma_{ii}^{1/2}$. For the
# second moment we minimize the exact function.

# %% short="NUM_STEPS, TOLERANCE, tasks = 100, 0.5, {name: tasks[name] for name in ('ELBO', 'second moment')}"
NUM_STEPS, TOLERANCE = 4000, 0.02
tasks = {
    "ELBO": (elbo, WIDE, True),
    "IWELBO(10)": (iwelbo(10), WIDE, True),
    "trajectory balance": (balance, (WIDE, 0.0), False),
    "forward KL": (forward_kl, WIDE, False),
    "second moment": (second_moment, WIDE, False),
}


# %%


def exact_optimum(function):
    def of(log_sd):
        return float(function({"mean": jnp.array(MEAN, "float32"), "log_sd": jnp.full(2, log_sd)}))

    return np.exp(optimize.minimize_scalar(of, bounds=(-0.3, 0.3), method="bounded").x)


exact_sd = {
    "ELBO": 1 / PRECISION[0, 0] ** 0.5,
    "IWELBO(10)": None,
    "trajectory balance": 1 / PRECISION[0, 0] ** 0.5,
    "forward KL": COVARIANCE[0, 0] ** 0.5,
    "second moment": exact_optimum(exact_second_moment),
}
fitted = {}
for name, (objective, start, maximize) in tasks.items():
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, NUM_STEPS))
    options = {"key": key, "num_steps": NUM_STEPS, "num_samples": 64, "progress": False, "maximize": maximize}
    found = vipl.fit(objective, start, optimizer, **options).params
    fitted[name], log_z = found if name == "trajectory balance" else (found, None)
    exact = "" if exact_sd[name] is None else f", exact {exact_sd[name]:.3f}"
    print(f"{name:<19} sds {np.exp(fitted[name]['log_sd']).round(3)}{exact}")
    if log_z is not None:
        print(f"{'':<19} log Z {log_z:.4f}, ELBO there {exact_elbo(fitted[name]):.4f}, evidence {LOG_EVIDENCE:.4f}")

# %% [markdown]
# Where the guide cannot be the posterior, the learned $\log Z$ is the ELBO, and not the log evidence. **Look at** the
# picture: each ellipse holds 39 % of its Gaussian. The ELBO's is the narrowest, and trajectory balance lies on it.
# Forward KL has the extent of the posterior along each axis. The second moment is wider still, and so is IWELBO(10),
# which wants a good proposal and not a good approximation. None is wrong; they answer different questions.

# %%
fig, ax = plt.subplots(figsize=(6.6, 4.2))
values, vectors = np.linalg.eigh(COVARIANCE)
angle = np.degrees(np.arctan2(*vectors[::-1, 0]))
ax.add_patch(Ellipse(MEAN, *2 * np.sqrt(values), angle=angle, color="0.8", label="posterior"))
styles = {"ELBO": "-", "IWELBO(10)": "-", "trajectory balance": ":", "forward KL": "-", "second moment": "-"}
for number, (name, phi) in enumerate(fitted.items()):
    width, height = 2 * np.exp(np.asarray(phi["log_sd"]))
    color = "k" if name == "trajectory balance" else f"C{number}"
    ax.add_patch(
        Ellipse(phi["mean"], width, height, fill=False, color=color, linestyle=styles[name], linewidth=1.5, label=name)
    )
ax.set(xlim=(-0.7, 1.7), ylim=(-0.7, 1.7), xlabel="z[0]", ylabel="z[1]", title="One guide, five objectives")
ax.set_aspect("equal")
ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
fig.tight_layout()

# %% [markdown]
# The last cell holds the log evidence between two bounds, the ELBO of one guide and the second moment of another, and
# asserts that every fitted sd is the exact one.

# %%
below = float(exact_elbo(fitted["ELBO"]))
drawn = second_moment.estimate(key, fitted["second moment"], num_samples=100_000)
above = LEVEL + 0.5 * float(jnp.log(drawn))
print(f"{below:.4f} <= log p(y) = {LOG_EVIDENCE:.4f} <= {above:.4f}")
assert below < LOG_EVIDENCE < above
for name, phi in fitted.items():
    if exact_sd[name] is not None:
        assert np.abs(np.exp(phi["log_sd"]) - exact_sd[name]).max() < TOLERANCE
