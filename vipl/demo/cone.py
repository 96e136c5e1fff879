"""The noisy cone: one guide, one model, two objectives, three gradient estimators.

    x, y ~ Normal(0, 10),   z ~ Normal(x² + y², 0.1 + (x² + y²) / 100),   z = 5 is observed.

The posterior of (x, y) is a thin ring, which the guide, a Normal with independent coordinates, cannot cover: its best
ELBO lies far below the log evidence. With 5 particles the bound is tighter, and the best guide wider.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

import vipl
from vipl._types import Array, ArrayLike, PRNGKeyArray
from vipl.demo import _report
from vipl.expectation import Expectation
from vipl.fit import Fit, fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OBSERVED = 5.0
PARTICLES = 5

# By quadrature, 96 x 96 Gauss-Hermite nodes, and BFGS from 30 starts: all maxima are equal by symmetry.
BEST_ELBO = -8.0745
# By 16 runs of Adam from all around (equal by symmetry, or worse), then BFGS on 2^17 Sobol' points: ± 0.0002.
BEST_IWELBO = -7.5336
# By a grid of 4001 x 4001 points.
LOG_EVIDENCE = -5.3232


@vipl.gen
def model():
    """The cone."""
    x = vipl.sample("x", dist.Normal(0.0, 10.0))
    y = vipl.sample("y", dist.Normal(0.0, 10.0))
    r = x**2 + y**2
    vipl.sample("z", dist.Normal(r, 0.1 + r / 100.0))


@vipl.gen
def guide(phi):
    """Independent Normals."""
    vipl.sample("x", dist.Normal(phi["mx"], jnp.exp(phi["lx"])), vipl.Reparam())
    vipl.sample("y", dist.Normal(phi["my"], jnp.exp(phi["ly"])), vipl.Reparam())


@vipl.expectation
def elbo(phi, z):
    """E[log p(x, y, z) - log q(x, y)]."""
    q = guide(phi).simulate()
    p = model().assess(q.choices | {"z": z})
    return p.log_prob - q.log_prob


@vipl.expectation
def iwelbo(phi, z):
    """E[log of the mean of 5 importance weights]."""

    def particle():
        q = guide(phi).simulate()
        return model().assess(q.choices | {"z": z}).log_prob - q.log_prob

    return jax.nn.logsumexp(jax.vmap(particle, axis_size=PARTICLES)()) - jnp.log(PARTICLES)


class Run(NamedTuple):
    """One line of the table: what is fitted, and how.

    Attributes:
      name: the objective, as the table writes it.
      estimator: the gradient estimator, as the table writes it.
      objective: what is fitted.
      evaluated: the same objective with the estimator of the evaluation.
      best: its optimum over the guides.
      num_samples: of each step.
      color: in the picture.
    """

    name: str
    estimator: str
    objective: Expectation
    evaluated: Expectation
    best: float
    num_samples: int
    color: str


class Reached(NamedTuple):
    """What a run reached: a `Fit`, the objective there with its standard error, and the time in seconds."""

    fitted: Fit
    mean: float
    se: float
    seconds: float


def runs() -> list[Run]:
    """The lines of the table."""
    score, measure_valued = vipl.Score(vipl.LeaveOneOut()), vipl.MeasureValued()
    by_score = elbo.with_estimators({"x": score, "y": score})
    by_measure = elbo.with_estimators({"x": measure_valued, "y": measure_valued})
    return [
        Run("ELBO", "Reparam", elbo, elbo, BEST_ELBO, 64, _report.BLUE),
        Run("ELBO", "Score(LeaveOneOut)", by_score, elbo, BEST_ELBO, 100, _report.GREEN),
        Run("ELBO", "MeasureValued", by_measure, elbo, BEST_ELBO, 32, _report.ORANGE),
        Run("IWELBO(5)", "Reparam", iwelbo, iwelbo, BEST_IWELBO, 64, _report.PURPLE),
    ]


def reach(line: Run, key: PRNGKeyArray, num_steps: int) -> Reached:
    """Fits one objective from a wide guide beside the ring, and evaluates it with fresh draws."""
    fit_key, evaluation_key = jax.random.split(key)
    start = {"mx": 3.0, "my": 1.0, "lx": 0.0, "ly": 0.0}
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
    with _report.stopwatch() as seconds:
        fitted = fit(
            line.objective,
            start,
            optimizer,
            key=fit_key,
            data=OBSERVED,
            num_steps=num_steps,
            num_samples=line.num_samples,
        )
        taken = seconds()
    mean, se = _report.mean_and_se(line.evaluated, evaluation_key, fitted.params, OBSERVED, num=100_000, batch=10_000)
    return Reached(fitted, mean, se, taken)


def run(*, short: bool, out: Path) -> list[Reached]:
    """Fits all lines, prints the table, draws the picture `cone.png`."""
    print("The noisy cone: x, y ~ Normal(0, 10), z ~ Normal(x² + y², 0.1 + (x² + y²)/100), z = 5.", flush=True)
    lines, num_steps = runs(), 2000 if short else 4000
    key = jax.random.key(0)
    reached = [reach(line, jax.random.fold_in(key, i), num_steps) for i, line in enumerate(lines)]
    print(f"\n  {'objective':<10} {'estimator':<20} {'reached':>9}   {'se':>6} {'optimum':>9} {'seconds':>8}")
    for line, r in zip(lines, reached, strict=True):
        best = f"{line.best:9.4f}"
        print(f"  {line.name:<10} {line.estimator:<20} {r.mean:9.4f} ± {r.se:6.4f} {best} {r.seconds:8.1f}")
    print(f"  log evidence, which no bound exceeds: {LOG_EVIDENCE}")
    _report.save(picture(lines, reached), out / "cone.png")
    return reached


# --- the picture --------------------------------------------------------------------------------------------


def picture(lines: list[Run], reached: list[Reached]) -> Figure:
    """The posterior with draws of each guide above, the objectives' estimates below."""
    drawing = _report.figure(13, 7.2)
    grid = drawing.add_gridspec(2, len(lines), height_ratios=[3, 2])
    for i, (line, r) in enumerate(zip(lines, reached, strict=True)):
        _draw_guide(drawing.add_subplot(grid[0, i]), line, r)
    _draw_values(_report.plain(drawing.add_subplot(grid[1, :])), lines, reached)
    return drawing


def _draw_guide(axes: Axes, line: Run, r: Reached) -> None:
    ticks = np.linspace(-3.2, 3.2, 257)
    x, y = np.meshgrid(ticks, ticks)
    density = jnp.exp(jax.vmap(jax.vmap(_log_joint))(x, y) - LOG_EVIDENCE)
    axes.imshow(density, origin="lower", extent=(-3.2, 3.2, -3.2, 3.2), cmap="Greys", vmax=1.5)
    keys = jax.random.split(jax.random.key(1), 400)
    draws = jax.vmap(lambda key: guide(r.fitted.params).simulate(key).choices)(keys)
    axes.scatter(draws["x"], draws["y"], s=5, color=line.color, alpha=0.6, linewidths=0)
    axes.set_title(f"{line.name}, {line.estimator}\n{r.mean:.3f} (optimum {line.best:.3f})", fontsize=10)
    axes.set(xlabel="x", ylabel="y", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))


def _log_joint(x: ArrayLike, y: ArrayLike) -> Array:
    return model().assess({"x": x, "y": y, "z": OBSERVED}, key=jax.random.key(0)).log_prob


def _draw_values(axes: Axes, lines: list[Run], reached: list[Reached]) -> None:
    for line, r in zip(lines, reached, strict=True):
        steps, values = _report.smooth(r.fitted.values, 20)
        axes.plot(steps, values, color=line.color, label=f"{line.name}, {line.estimator}", linewidth=1.2)
    for value, name in ((LOG_EVIDENCE, "log evidence"), (BEST_IWELBO, "best IWELBO(5)"), (BEST_ELBO, "best ELBO")):
        axes.axhline(value, color=_report.GREY, linewidth=0.8, linestyle="--")
        axes.annotate(name, (1.005, value), xycoords=("axes fraction", "data"), ha="left", va="center", fontsize=9)
    axes.set(ylim=(-14, -4.5), xlim=(0, len(reached[0].fitted.values)))
    axes.set(xlabel="step", ylabel="estimate, mean of 20 steps")
    axes.legend(loc="lower right", frameon=False, fontsize=9, ncols=2)
