"""Variational inference for stochastic differential equations, driven by Brownian and by fractional noise.

    dX = -X dt + dB,   X_0 = 0,   y = 1.5 ~ Normal(X_T, 0.2),   T = 1, in n Euler steps of h = T / n:
    e_i ~ Normal(0, 1),   s_{i+1} = A s_i + g √h e_i,   X_n the first element of s_n,
    q: e_i ~ Normal(√h (α_iᵀ s_i + β_i), exp(c_i)): a control that is linear in the state, and a deviation.
Brownian noise: s = X, A = 1 - h, g = 1. Fractional noise of Hurst index H = 0.3: B is a mixture of Ornstein-Uhlenbeck
processes of one noise, B = Σ_k ω_k Y_k, dY_k = -γ_k Y_k dt + dW, with ω_k = γ_k^{½-H} Δlog γ / (Γ(½-H) Γ(½+H)), of the
integral of exp(-γ t) over γ that gives the kernel t^{H-½} / Γ(H+½); s = (X, Y), five processes.

References: X_n ~ Normal(0, v), v = h Σ_j (A^j g)_1², so that log p(y) is that of a Normal: -2.869564, -2.914408 and
-2.922874 for n = 20, 100, 400 and Brownian noise. q contains the posterior, which follows from P_n = 1 / 0.2² and
η_n = y / 0.2² in the first element by r = h gᵀ P_{i+1} g, α_i = -Aᵀ P g / (1 + r), β_i = gᵀ η / (1 + r),
c_i = -½ log(1 + r), P_i = Aᵀ (P - h P g gᵀ P / (1 + r)) A, η_i = Aᵀ (η - h P g gᵀ η / (1 + r)): there the bound is
log p(y) in each draw. With all c_i held at 0 the best bound is lower by ½ Σ_i (r_i - log(1 + r_i)). Of 20 steps α, β, c
are learned from 0; of 100 and 400 they are computed.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

import vipl
from vipl.zoo import Number, Outcome

PAPER = "Li et al. (2020), Scalable gradients for SDEs, eq. (10); Daems et al. (2024), VI for SDEs by fractional noise"
OBJECTIVE = "the evidence lower bound of a path, its guide a control of the noise"

Y, SD, HURST, RATES = 1.5, 0.2, 0.3, 0.3 * 4.0 ** np.arange(5)


def brownian(n):
    """A and g of the equation; the five other states stay zero."""
    return np.diag([1 - 1 / n, 0, 0, 0, 0, 0]), np.eye(6)[0]


def fractional(n):
    """A and g of the equation and its five processes."""
    weights = RATES ** (0.5 - HURST) * math.log(4.0) / (math.gamma(0.5 - HURST) * math.gamma(0.5 + HURST))
    decay = np.exp(-RATES / n)
    gain = (1 - decay) / (RATES / n)
    transition = np.diag([1 - 1 / n, *decay])
    transition[0, 1:] = weights * (decay - 1)
    return transition, np.array([weights @ gain, *gain])


def path(control, system):
    """Draws e along the path; `control` gives mean and deviation of a step."""
    transition, gain = system

    def step(s, parts):
        mean, deviation = control(s, parts)
        e = vipl.sample("e", dist.Normal(mean, deviation))
        return transition @ s + gain * e, s[0]

    return step


@vipl.gen
def model(system, n):
    """Noise, and what is seen at the end."""
    s, _ = jax.lax.scan(path(lambda s, _: (0.0, 1.0), system), jnp.zeros(6), None, length=n)
    vipl.sample("y", dist.Normal(s[0], SD))


@vipl.gen
def guide(phi, system, n):
    """The controlled path; returns it."""

    def control(s, now):
        return (now["a"] @ s + now["b"]) / math.sqrt(n), jnp.exp(now["c"])

    return jax.lax.scan(path(control, system), jnp.zeros(6), phi)[1]


@vipl.expectation
def bound(phi, data):
    """The bound; `free` is 0 where the deviations are held."""
    n = phi["b"].size
    phi = phi | {"c": data["free"] * phi["c"]}
    return vipl.objectives.sticking_the_landing(model(data["system"], n), guide(phi, data["system"], n), {"y": Y})


def exact(system, n):
    """Log p(y), how far below it the bound is with deviations that are held, and α, β, c of the posterior."""
    transition, gain = system
    variance, response, gap, steps = SD**2, gain, 0.0, []
    p, eta = np.diag([1 / SD**2, 0, 0, 0, 0, 0]), np.eye(6)[0] * Y / SD**2
    for _ in range(n):
        variance, response = variance + response[0] ** 2 / n, transition @ response
        push, pull, r = p @ gain, gain @ eta, gain @ p @ gain / n
        gap += 0.5 * (r - math.log1p(r))
        steps.append((-transition.T @ push / (1 + r), pull / (1 + r), -0.5 * math.log1p(r)))
        p = transition.T @ (p - np.outer(push, push) / (n * (1 + r))) @ transition
        eta = transition.T @ (eta - push * pull / (n * (1 + r)))
    a, b, c = (np.stack(values).astype("float32") for values in zip(*steps[::-1], strict=True))
    return -0.5 * float(Y**2 / variance + np.log(2 * np.pi * variance)), gap, {"a": a, "b": b, "c": c}


def paths(phi, system, n):
    """Ten draws of X from q, f[n, 10]."""
    (transition, gain), noise, s, drawn = system, np.random.RandomState(0).randn(n, 10), np.zeros((6, 10)), []
    for a, b, c, e in zip(*phi.values(), noise, strict=True):
        s = transition @ s + gain[:, None] * ((a @ s + b) / n + np.exp(c) * e / math.sqrt(n))
        drawn.append(s[0])
    return np.stack(drawn)


def run(progress: bool = True) -> Outcome:
    """3000 steps of Adam, which leave 0.01 nat; 0.02 where draws have noise, deviations held; else rounding."""
    key, numbers, drawn, controls = jax.random.key(0), [], {}, {}
    cases = [(brownian, 20, 1.0, 0.01), (brownian, 20, 0.0, 0.02), (brownian, 100, 1.0, 1e-3)]
    cases += [(brownian, 400, 1.0, 1e-3), (fractional, 20, 1.0, 0.01), (fractional, 400, 1.0, 1e-3)]
    for make, n, free, tolerance in cases:
        transition, gain = make(n)
        evidence, gap, phi = exact((transition, gain), n)
        system = jnp.asarray(transition, "float32"), jnp.asarray(gain / math.sqrt(n), "float32")
        data = {"system": system, "free": jnp.float32(free)}
        if n == 20:
            adam = optax.adam(optax.cosine_decay_schedule(0.2, 3000))
            options = {"key": key, "data": data, "num_samples": 2, "progress": progress}
            phi = vipl.fit(bound, jax.tree.map(jnp.zeros_like, phi), adam, num_steps=3000, **options).params
        value = bound.estimate(key, phi, data, num_samples=200_000 // n)
        name = f"{make.__name__}, {n} steps" + ("" if free else ", deviations held")
        numbers.append(Number(name, float(value), evidence - (1 - free) * gap, tolerance))
        controls[name] = np.asarray(phi["b"])
        if n == 400:
            drawn[make.__name__] = paths(phi, (transition, gain), n)

    def draw(figure):
        left, right = figure.subplots(1, 2)
        for i, (name, x) in enumerate(drawn.items()):
            left.plot(np.arange(1, 401) / 400, x, color=f"C{i}", lw=0.7, label=[name] + 9 * [None])
        left.errorbar(1.0, Y, 2 * SD, color="k", capsize=4, label="y, 2 sd")
        left.set(xlabel="time t", ylabel="X", title="Ten paths of q, 400 steps")
        for i, make in enumerate((brownian, fractional)):
            right.plot(np.arange(20) / 20, controls[f"{make.__name__}, 20 steps"], "o", ms=4, color=f"C{i}")
            label = f"{make.__name__}, 400 steps (dots: 20, learned)"
            right.plot(np.arange(400) / 400, controls[f"{make.__name__}, 400 steps"], color=f"C{i}", label=label)
        right.set(xlabel="time t", ylabel="β", title="Control at state 0", ylim=(-2, 45))
        left.legend()
        right.legend()

    return Outcome(numbers, draw)
