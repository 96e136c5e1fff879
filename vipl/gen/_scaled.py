"""`scaled`: a source whose log density counts with a weight.

Law: a scaled site is the site, and beside it a factor of log weight (w - 1) log p(x). So draws are those of the source,
what an estimator needs of a draw's law is unscaled, and

    simulate, assess    log_prob counts w log p(x)
    generate            log_w counts w log p(x) where x is given, (w - 1) log p(x) where it is drawn

which keeps E[exp log_w] = Σ over what is drawn of exp log_prob.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from vipl.errors import ProgramError, show_aval
from vipl.gen._density import ScaledDistribution, is_factor
from vipl.gen._program import GenerativeFunction, Program
from vipl.gen._source import Source
from vipl.gen._without_choice import is_random_key, is_record
from vipl.interpret.interpreter import Interpreter, Outcome, run
from vipl.interpret.subprograms import bind_whole
from vipl.ir.frames import user_frame
from vipl.ir.partition import is_array
from vipl.ir.primitives import Site, bind_site, split_weight
from vipl.ir.stage import stage_program


@jax.tree_util.register_pytree_node_class
class ScaledProgram(Program):
    """A source with a weight; made by `scaled`."""

    @property
    def name(self) -> str:
        """The source's name."""
        _, source = self.args
        return f"scaled({source.name}, ...)"


def scaled(source: Any, weight: Any) -> Any:
    """The same source, its log density times a weight.

    log_prob counts w log p(x), of a program at every site and factor of it; draws are those of the source. For a batch
    of b out of n rows, the rows scaled by n / b, E[log_prob] over batches is that of all rows.

    May stand wherever the source may: in `sample`, in an objective, in a loop or a `vmap` with a weight for each lane.
    Estimators are those of the source: they need the law that is drawn from, which has no weight. The density is
    unnormalized where the weight is not 1, as with `vipl.factor`: `generate` counts (w - 1) log p(x) of what it draws
    in its log_w, and `marginal` refuses to draw.

    Unbiased for the objective that is written, and for its derivatives, those in the weight included.

    Args:
      source: a NumPyro distribution; a program `model(x)`; or what `marginal` or `normalize` returns, whose estimated
        log density is scaled (with a positive weight a lower bound stays one).
      weight: f[], a float.

    Returns:
      A source of `sample`; of a program, a program.

    Raises:
      ProgramError: the source is none of these, or the weight is not a float scalar.

    Example:
      >>> import jax, numpyro.distributions as dist, vipl
      >>> @vipl.gen
      ... def model(m, batch_size):
      ...     vipl.sample("y", vipl.scaled(dist.Normal(m, 1.0).expand([batch_size]), 1000 / batch_size))
      >>> model(0.0, 10).assess({"y": jax.numpy.zeros(10)}).log_prob
      Array(-918.93854, dtype=float32)
    """
    where = user_frame()
    _check_weight(weight, where)
    if isinstance(source, ScaledDistribution):
        return ScaledDistribution(source.distribution, source.weight * weight)
    if isinstance(source, dist.Distribution):
        return ScaledDistribution(source, weight)
    if isinstance(source, Source):
        return ScaledProgram(_SCALED, (weight, source), {})
    is_function = callable(source) and hasattr(source, "__name__")
    raise ProgramError(
        "what is to be scaled is neither a distribution nor a program with its arguments.",
        at=where,
        got=f"the function {source.__name__} itself" if is_function else show_aval(source),
        expected="a NumPyro distribution; program(*args), with @vipl.gen on program; or another source",
        fix=f"write scaled({source.__name__}(...), weight)" if is_function else "multiply an array by the weight",
    )


def _check_weight(weight: Any, where: str) -> None:
    if is_array(weight) and jnp.shape(weight) == () and jnp.issubdtype(jnp.result_type(weight), jnp.floating):
        return
    raise ProgramError(
        "the weight of `scaled` is not a float scalar.",
        at=where,
        got=show_aval(weight),
        expected="one float, such as n / b",
        fix="write 2.0 for 2; for a weight by element put the site under jax.vmap, and map the weight",
    )


def _scaled(weight: Any, source: Source) -> Any:
    staged = stage_program(lambda: source.inline((), source.name), (), {})
    return staged.result(_scale_sites(staged.jaxpr, weight))


_SCALED = GenerativeFunction(_scaled)


def _scale_sites(jaxpr: Any, weight: Any) -> list[Any]:
    """Runs a program as a part of the one around it, every site, factor and composite with a weight more."""

    def handle(visit, operands, _):
        return Outcome(bind_site(*_with_weight(visit.site, operands, weight)), {}, {})

    def compose(composite, operands, *_):
        operands, before = split_weight(composite.sites[0], operands)
        sites = tuple(replace(s, scaled=True) for s in composite.sites)
        total = weight if before is None else before * weight
        return bind_whole(replace(composite, sites=sites), [*operands, total])

    return run(jaxpr, [], Interpreter(handle, lambda *_: {}, "scaled", compose), {}).value


def _with_weight(site: Site, operands: Sequence[Any], weight: Any) -> tuple[Sequence[Any], Site]:
    if is_record(site) or is_random_key(site):
        return operands, site
    if is_factor(site):
        return [operands[0] * weight], site
    operands, before = split_weight(site, operands)
    return [*operands, weight if before is None else before * weight], replace(site, scaled=True)
