"""The noisy cone: x, y ~ Normal(0, 10), z ~ Normal(x² + y², 0.1 + (x² + y²) / 100), z = 5 observed; 64 samples."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import RenyiELBO, Trace_ELBO

import vipl
from benchmarks.measure import Case
from benchmarks.table4 import KEPT, ring
from benchmarks.workloads import log_normal
from vipl import objectives
from vipl.demo.cone import guide, model

Z, SAMPLES = 5.0, 64
DATA = {"z": Z}
PHI = {"mx": jnp.array(0.3), "my": jnp.array(-0.2), "lx": jnp.array(-0.7), "ly": jnp.array(-0.8)}
RING = {"a": jnp.array(-0.7), "b": jnp.array(-0.6)}


def log_joint(x, y):
    r = x**2 + y**2
    return log_normal(x, 0.0, 10.0) + log_normal(y, 0.0, 10.0) + log_normal(Z, r, 0.1 + r / 100.0)


def log_mean_exp(log_w, axis):
    return jax.nn.logsumexp(log_w, axis=axis) - jnp.log(log_w.shape[axis])


def iwelbo_by_hand(particles, key, phi):
    eps = jax.random.normal(key, (2, SAMPLES, particles))
    sx, sy = jnp.exp(phi["lx"]), jnp.exp(phi["ly"])
    x, y = phi["mx"] + sx * eps[0], phi["my"] + sy * eps[1]
    log_q = log_normal(x, phi["mx"], sx) + log_normal(y, phi["my"], sy)
    return jnp.mean(log_mean_exp(log_joint(x, y) - log_q, axis=1))


def diwhvi_by_hand(key, phi):
    u_key, eps_key = jax.random.split(key)
    u = 2 * jnp.pi * jax.random.uniform(u_key, (SAMPLES, 5, 5))  # samples, outer, inner; the first made (x, y)
    eps = jax.random.normal(eps_key, (2, SAMPLES, 5))
    a, b = jnp.exp(phi["a"]), jnp.exp(phi["b"])
    cx, cy = jnp.sqrt(Z) * jnp.cos(u), jnp.sqrt(Z) * jnp.sin(u)
    x, y = cx[..., 0] + a * eps[0], cy[..., 0] + b * eps[1]
    log_q = log_mean_exp(log_normal(x[..., None], cx, a) + log_normal(y[..., None], cy, b), axis=2)
    return jnp.mean(log_mean_exp(log_joint(x, y) - log_q, axis=1))


def numpyro_model():
    x, y = (numpyro.sample(name, dist.Normal(0.0, 10.0)) for name in "xy")
    r = x**2 + y**2
    numpyro.sample("z", dist.Normal(r, 0.1 + r / 100.0), obs=Z)


def numpyro_bound(particles, key, phi):
    def numpyro_guide():
        for name in "xy":
            numpyro.sample(name, dist.Normal(phi[f"m{name}"], jnp.exp(phi[f"l{name}"])))

    bound: Any = Trace_ELBO() if particles == 1 else RenyiELBO(alpha=0.0, num_particles=particles)
    loss = jax.vmap(lambda key: bound.loss(key, {}, numpyro_model, numpyro_guide))
    return -jnp.mean(loss(jax.random.split(key, SAMPLES)))


def estimated(program):
    """The estimator by vipl."""
    return partial(vipl.expectation(program).estimate, num_samples=SAMPLES)


def cases(quick: bool) -> list[Case]:
    """Mean-field, and the ring with an estimated density."""
    del quick
    bounds = {
        "ELBO": (lambda phi: objectives.elbo(model(), guide(phi), DATA), 1),
        "IWELBO 5": (lambda phi: objectives.iwelbo(model(), guide(phi), DATA, num_particles=5), 5),
    }
    ringed = {
        "vipl": estimated(lambda phi: objectives.diwhvi(model(), ring(phi), DATA, KEPT, num_outer=5, num_inner=5)),
        "handwritten": diwhvi_by_hand,
    }
    return [
        Case(
            "noisy cone",
            name,
            {
                "vipl": estimated(program),
                "handwritten": partial(iwelbo_by_hand, particles),
                "numpyro": partial(numpyro_bound, particles),
            },
            (PHI,),
        )
        for name, (program, particles) in bounds.items()
    ] + [Case("noisy cone", "DIWHVI 5, 5 (ring)", ringed, (RING,))]
