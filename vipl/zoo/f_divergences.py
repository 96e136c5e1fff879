"""f-divergences: three Normals that are nearest to one mixture of two.

    p = ½ Normal(-2, 0.5) + ½ Normal(2, 0.5),   q = Normal(m, s),   min over (m, s) of E_q[f(p / q)].

f is convex with f(1) = 0. Forward KL has f = t log t, and covers both modes: m and s are the moments of p, 0 and
√(2² + 0.5²). Reverse KL has f = -log t, and takes one mode; the Jensen-Shannon divergence covers both. The least values
and their s were computed by quadrature on a grid: forward KL 0.723553 at s = 2.0616, Jensen-Shannon 0.200963 at 2.0424,
reverse KL 0.693053 at 0.5004. The curves of the picture, of s at the best m, are by quadrature, too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax

import vipl
from vipl.objectives import ForwardKL, JensenShannon, ReverseKL
from vipl.zoo import Number, Outcome

PAPER = "Csiszar (1967), Information-type measures; Nowozin, Cseke and Tomioka (2016), f-GAN, table 1"
OBJECTIVE = "forward KL by draws of the target; Jensen-Shannon and reverse KL by their generators"

CASES = {  # generator; m where the fit begins, and where it ends; s; least value
    "forward KL": (ForwardKL(), 0.5, 0.0, 2.0616, 0.723553),
    "Jensen-Shannon": (JensenShannon(), 0.5, 0.0, 2.0424, 0.200963),
    "reverse KL": (ReverseKL(), 1.0, 2.0, 0.5004, 0.693053),
}
NUM_STEPS = 600


@vipl.gen
def target():
    """The mixture, whose components are distributions of one site."""
    modes = dist.Normal(jnp.array([-2.0, 2.0]), 0.5)
    vipl.sample("x", dist.MixtureSameFamily(dist.Categorical(jnp.array([0.5, 0.5])), modes))


@vipl.gen
def guide(phi):
    """One Normal."""
    vipl.sample("x", dist.Normal(phi["m"], jnp.exp(phi["log_s"])))


def divergence(generator) -> vipl.Expectation:
    """D_f(p || q) as an objective of the guide's parameters; forward KL with draws of p, which have less noise."""
    if isinstance(generator, ForwardKL):
        return vipl.expectation(lambda phi: vipl.objectives.forward_kl(target(), guide(phi)))
    return vipl.expectation(lambda phi: vipl.objectives.f_divergence(target(), guide(phi), generator))


def by_quadrature(generator, m, s):
    """D_f(p || q) as a sum over a grid."""
    x = jnp.linspace(-12.0, 12.0, 4801)
    log_q = dist.Normal(m, s).log_prob(x)
    log_p = jnp.logaddexp(dist.Normal(-2.0, 0.5).log_prob(x), dist.Normal(2.0, 0.5).log_prob(x)) - jnp.log(2.0)
    return jnp.sum(jnp.exp(log_q) * jax.vmap(generator.of_log_ratio)(log_p - log_q)) * (x[1] - x[0])


def run(progress: bool = True) -> Outcome:
    """Minimizes each divergence with 256 draws in each step, and evaluates it with 100,000."""
    key, found, numbers = jax.random.key(0), {}, []
    options = {"key": key, "num_steps": NUM_STEPS, "num_samples": 256, "maximize": False, "progress": progress}
    for name, (generator, begin, _, s, least) in CASES.items():
        objective, optimizer = divergence(generator), optax.adam(optax.cosine_decay_schedule(0.05, NUM_STEPS))
        start = {"m": jnp.asarray(begin), "log_s": jnp.log(3.0 if begin < 1 else 1.0)}
        phi = vipl.fit(objective, start, optimizer, **options).params
        values = jax.jit(jax.vmap(objective.estimate, (0, None)))(jax.random.split(key, 100_000), phi)
        found[name] = (float(phi["m"]), float(jnp.exp(phi["log_s"])), float(values.mean()))
        numbers.append(Number(f"{name}: s", found[name][1], s, 0.02))
        numbers.append(Number(f"{name}: value", found[name][2], least, 5 * float(values.std()) / 100_000**0.5 + 1e-4))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        x, s = jnp.linspace(-6.0, 6.0, 400), jnp.linspace(0.3, 3.0, 100)
        density = (jnp.exp(dist.Normal(-2.0, 0.5).log_prob(x)) + jnp.exp(dist.Normal(2.0, 0.5).log_prob(x))) / 2
        left.fill_between(x, density, color="lightgray", label="p")
        for name, (generator, _, best, *_) in CASES.items():
            style = "--" if name == "Jensen-Shannon" else "-"
            left.plot(x, jnp.exp(dist.Normal(*found[name][:2]).log_prob(x)), style, label=name)
            curve = jax.vmap(lambda s, generator=generator, best=best: by_quadrature(generator, best, s))(s)
            (line,) = right.plot(s, curve, label=f"{name}, by quadrature")
            right.plot(*found[name][1:], "o", color=line.get_color())
        left.set(xlabel="x", ylabel="density", title="p and the nearest q", ylim=(0.0, 1.1))
        right.set(xlabel="s", ylabel="nats", ylim=(0.0, 2.0), title="Divergence of s; dots: reached")
        left.legend()
        right.legend()

    return Outcome(numbers, draw)
