"""A conditional neural process on random lines, beside the exact predictive distribution.

    a, b ~ Normal(0, 1),   x_i ~ Uniform(-2, 2),   y_i ~ Normal(a + b x_i, 1/2),   i <= 10,
    context: the first five points;   q(y | x, context) = Normal(μ(r, x), σ(r, x)),   r = mean_i h(x_i, y_i),

with h and (μ, σ) networks. The loss E[-log q(y | x, context)] over tasks and over their other five points is least
where q is the exact predictive distribution of Bayesian linear regression: with Φ of rows (1, x_i) and φ = (1, x),

    Λ = I + 4 ΦᵀΦ,   p(y | x, context) = Normal(φᵀ Λ^-1 4 Φᵀy, √(1/4 + φᵀ Λ^-1 φ)).

References, by this formula: the loss of the exact predictor on the same 4000 fresh tasks, so that the noise is shared,
and its mean and deviation at two x for one context. The best predictor that does not see the context,
Normal(0, √(5/4 + x²)), has a loss of 1.84 nats.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from flax import nnx

import vipl
from vipl.interop.flax import functional
from vipl.zoo import Number, Outcome

PAPER = "Garnelo et al. (2018), Conditional neural processes, eq. (4)"
OBJECTIVE = "the log density of targets given contexts, over tasks drawn from the model"


@vipl.gen
def task():
    """Ten points of one line; the first five are the context."""
    line = vipl.sample("line", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    x = vipl.sample("x", dist.Uniform(-2.0, 2.0).expand([10]))
    vipl.sample("y", dist.Normal(line[0] + line[1] * x, 0.5))


def network(seed, *sizes):
    """Layers of these sizes: parameters, and a function of them and of the input."""
    rngs, layers = nnx.Rngs(seed), []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nnx.Linear(before, after, rngs=rngs), nnx.silu]
    return functional(nnx.Sequential(*layers[:-1]))


(of_encoder, encoder), (of_decoder, decoder) = network(0, 2, 32, 32), network(1, 33, 32, 32, 2)


def predict(params, context, x):
    """The distribution q at x f[n], given a context of rows x and y, f[2, 5]."""
    r = jnp.mean(encoder(params["encoder"])(context.T), 0)
    out = decoder(params["decoder"])(jnp.hstack([jnp.broadcast_to(r, (len(x), 32)), x[:, None]]))
    return dist.Normal(out[:, 0], 0.1 + jax.nn.softplus(out[:, 1]))


def exact(context, x):
    """The distribution p at x, given a context."""
    rows, phi = (jnp.stack([jnp.ones_like(v), v], 1) for v in (context[0], x))
    precision = jnp.eye(2) + 4 * rows.T @ rows
    variance = 0.25 + jnp.sum(phi * jnp.linalg.solve(precision, phi.T).T, 1)
    return dist.Normal(phi @ jnp.linalg.solve(precision, 4 * rows.T @ context[1]), jnp.sqrt(variance))


@vipl.gen
def targets(predictor, z):
    """The last five points of a task."""
    context = jnp.stack([z["x"][:5], z["y"][:5]])
    vipl.sample("y", predictor(context, z["x"][5:]))


def log_density(predictor, z):
    """The mean of log q over the targets of a task."""
    return targets(predictor, z).assess({"y": z["y"][5:]}).log_prob / 5


@vipl.expectation
def objective(params):
    """The mean over 128 tasks."""

    def one():
        z = task().simulate().choices
        return log_density(lambda context, x: predict(params, context, x), z)

    return jnp.mean(jax.vmap(one, axis_size=128)())


def run(progress: bool = True) -> Outcome:
    """Fits to 3000 batches of tasks; the tolerances are for what small networks leave."""
    key, start = jax.random.key(0), {"encoder": of_encoder, "decoder": of_decoder}
    adam = optax.adam(optax.cosine_decay_schedule(0.02, 3000))
    params = vipl.fit(objective, start, adam, key=key, num_steps=3000, progress=progress).params

    def learned(context, x):
        return predict(params, context, x)

    tasks = jax.jit(jax.vmap(lambda k: task().simulate(k).choices))(jax.random.split(jax.random.key(1), 4000))
    loss, best = (-jax.jit(jax.vmap(lambda z, p=p: log_density(p, z)))(tasks).mean() for p in (learned, exact))
    context = jnp.array([[-1.5, -0.6, 0.1, 0.8, 1.1], [1.9, 1.1, 0.8, -0.1, 0.3]])
    x = jnp.linspace(-2, 2, 81)
    q, p = learned(context, x), exact(context, x)
    numbers = [Number("loss per target", float(loss), float(best), 0.03)]
    for i in (40, 70):
        numbers.append(Number(f"at x = {x[i]:.1f}: predictive mean", float(q.mean[i]), float(p.mean[i]), 0.1))
        numbers.append(Number(f"at x = {x[i]:.1f}: predictive sd", float(q.scale[i]), float(p.scale[i]), 0.05))

    def draw(figure):
        axes = figure.subplots()
        axes.fill_between(x, q.mean - 2 * q.scale, q.mean + 2 * q.scale, alpha=0.3, label="neural process, two sd")
        axes.plot(x, q.mean, label="neural process, mean")
        for sign, label in ((-2, None), (0, "exact"), (2, None)):
            axes.plot(x, p.mean + sign * p.scale, "k--", linewidth=1, label=label)
        axes.plot(*context, "ko", label="context")
        axes.set(xlabel="x", ylabel="y", title=f"Loss {loss:.3f} nats per target, at best {best:.3f}")
        axes.legend()

    return Outcome(numbers, draw)
