"""Distributions over choices whose densities are computed, most by an estimate: the base of `marginal`, `normalize`."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any

import jax

from vipl import _jax
from vipl._types import Array, Float
from vipl.analysis.regions import Region
from vipl.errors import AddressError, show_addresses
from vipl.gen._by_site import joint_address
from vipl.gen._choices import Address, Choices, flatten, merge, nest
from vipl.gen._source import Source, Trace
from vipl.interpret.subprograms import bind_composite, rewrite
from vipl.ir.primitives import Site


class Estimated(Source):
    """A distribution over choices with two programs, `_draw` and `_weigh`, under two contracts.

        _draw     x ~ p,  log w  with  E[1 / w | x] = 1 / p(x)
        _weigh    log w  with  E[w] = p(x)

    Both weights are the density itself where it is exact. It follows that -log w of a draw is, in expectation, at
    most -log p(x), and log w of a given x at most log p(x): in an evidence lower bound, a guide and a model with
    estimated densities still give a lower bound.

    As the source of `sample` it draws with `_draw`; `simulate`, `assess` and `generate` of the program around it
    count its weight as a log density.

    Reference: Lew, Cusumano-Towner and Mansinghka (2022), "Recursive Monte Carlo and variational inference with
    auxiliary variables", definitions 1 and 2; Lew et al. (2023), "Probabilistic programming with stochastic
    probabilities", section 3.
    """

    @abc.abstractmethod
    def _draw(self) -> tuple[Choices, Float[Array, ""]]:
        """Choices, and their log weight; a program."""

    @abc.abstractmethod
    def _weigh(self, choices: Choices) -> Float[Array, ""]:
        """The log weight of given choices; a program. Raises where they are not those of `_draw`."""

    def _value(self, choices: Choices) -> Any:
        """What `sample` returns for a draw."""
        return choices

    def _finite(self) -> dict[Address, tuple[int | float, ...]]:
        """The values that one element of a choice can take, by address, where these are known to be finitely many."""
        return {}

    def _regions(self) -> dict[Address, Region]:
        """Where choices lie, by address, where that is known."""
        return {}

    def _constraints(self) -> dict[Address, Callable[[], Any]]:
        """Of choices whose support is known, what gives NumPyro's constraint, or None where it is not known yet."""
        return {}

    def weigh(self, known: Choices, drawn: Choices) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """See `Source.weigh`."""
        log_w = self._weigh(merge(known, drawn))
        return log_w, log_w if flatten(known, self.name) else jax.numpy.zeros(())

    def simulate_split(self, counts: Callable[[Address], bool]) -> tuple[Trace, Float[Array, ""]]:
        """See `Source.simulate_split`."""
        trace = self._simulate()
        some = any(counts(a) for a in flatten(trace.choices, self.name))
        return trace, trace.log_prob if some else jax.numpy.zeros(())

    def is_exact(self) -> bool:
        """Whether its density is exact."""
        return False

    def _simulate(self) -> Trace:
        return self._trace(*self._draw())

    def _assess(self, choices: Choices) -> Trace:
        return self._trace(choices, self._weigh(choices))

    def _trace(self, choices: Choices, log_w: Float[Array, ""]) -> Trace:
        joint = nest({joint_address(list(flatten(choices, self.name))): log_w}) if _jax.wants_by_site() else None
        return Trace(choices, log_w, self._value(choices), {}, joint)

    def _generate(self, choices: Choices) -> tuple[Trace, Float[Array, ""]]:
        if not flatten(choices, self.name):
            return self._simulate(), jax.numpy.zeros(())
        try:
            trace = self._assess(choices)
        except AddressError as error:
            if error.at != f"the choices for {self.name}":  # it is raised inside the program
                raise
            raise AddressError(
                error.summary,
                at=f"generate of {self.name}",
                got=error.got,
                expected=f"{error.expected}, or none: others are not drawn given some",
                fix="give all of them; in an algorithm write Enumeration(), or Importance(K, proposal) with a program "
                "for the others",
            ) from None
        return trace, trace.log_prob

    def inline(self, address: Address, where: str) -> Any:
        """Binds one composite, whose values are the choices, below `address`."""
        _, shapes = jax.make_jaxpr(lambda: self._draw()[0], return_shape=True)()
        flat = flatten(shapes, self.name)
        finite, regions, constraints, is_exact = self._finite(), self._regions(), self._constraints(), self.is_exact()
        sites = [
            Site(
                address=(*address, *a),
                distribution=None,
                estimator=None,
                num_distribution=0,
                shape=x.shape,
                dtype=x.dtype,
                support=regions.get(a),
                where=where,
                is_exact=is_exact,
                finite=finite.get(a),
                constraint=constraints.get(a),
            )
            for a, x in flat.items()
        ]

        def draw():
            choices, log_w = self._draw()
            drawn = flatten(choices, self.name)
            return [*(drawn[a] for a in flat), log_w]  # JAX sorts the keys of a dict; the program has its own order

        def weigh(*values):
            return [self._weigh(nest(dict(zip(flat, values, strict=True))))]

        def below(program):
            def renamed(*values):
                jaxpr = jax.make_jaxpr(program)(*map(_jax.typeof, values))
                return rewrite(jaxpr, values, lambda inner: (*address, *inner), lambda *same: same)

            return renamed

        values = bind_composite(sites, below(draw), below(weigh), where)
        return self._value(nest(dict(zip(flat, values, strict=True))))


def only(choices: Choices, wanted: Iterable[Address], name: str) -> dict[Address, Any]:
    """Choices by address; raises where their addresses are not those that are wanted."""
    flat = flatten(choices, f"the choices for {name}")
    if set(flat) != set(wanted):
        raise AddressError(
            f"the choices are not those of {name}.",
            at=f"the choices for {name}",
            got=f"choices at {show_addresses(flat)}",
            expected=f"choices at {show_addresses(wanted)}",
            fix="give a value for each of its addresses, and for no other; of fewer addresses the density is that of a "
            "marginal that keeps these alone",
        )
    return flat
