"""The latent choices of a program in unconstrained coordinates.

    x = T(u),   u in R^n,   log |det dT/du| = Σ over latent sites of that of NumPyro's bijection onto the support.

A support may depend on choices before it, so the program itself is run to compute T: a latent site takes the point that
its bijection makes of its coordinates, an observed site its datum. Along the order of the sites the Jacobian is
triangular, which is why the logarithms of the determinants add up.

A choice that only some passes of a loop make (`Site.present`) has coordinates for those alone, and zeros elsewhere.

Invariants: `unconstrain(constrain(u))` is `u`; a choice has the shape that `simulate` gives it, with the leading axes
of the loops around its site, and its coordinates have the same leading axes, or one axis over the
passes that are present.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import Transform

from vipl import _jax
from vipl._types import Array
from vipl.errors import (
    DistributionError,
    show_address,
    show_addresses,
)
from vipl.gen import Program
from vipl.gen._choices import Address, flatten, match, nest
from vipl.gen._density import is_factor, site_log_prob, verdict
from vipl.gen._program import merge_emits
from vipl.gen._without_choice import is_random_key, is_record, valued
from vipl.guides._coordinates import (
    Coordinates,
    Latent,
    check_inside,
    check_numbers,
    chosen_addresses,
    distribution_of,
    read_all,
    without_datum,
)
from vipl.guides._gaussian import Density
from vipl.interpret.interpreter import Interpreter, Outcome, Visit, run
from vipl.interpret.seed import seed
from vipl.ir.composite import Composite
from vipl.ir.dataflow import backward, evaluate, plain, read_arrays, walk
from vipl.ir.primitives import Path, Site, split_weight


class Latents(Coordinates):
    """The choices of a program that are not given.

    Attributes:
      program: over latent and given choices.
      left_out: the addresses of the latent choices that were not asked for.
      is_random: whether the density of the program is random: it has keys of its own, or a part of it is estimated.
        What is asked of the density here is then at one and the same noise.
      in_place: whether a guide has to draw some choice where its site stands, in its loops and branches.
      computed: whether the parameters of a support depend on latent choices.
    """

    def __init__(self, program: Program, given: Mapping[str, Any], role: str, addresses: Any = None):
        """Reads the sites; nothing is drawn.

        Args:
          program: over latent and given choices.
          given: the data.
          role: the guide, for messages.
          addresses: which of the latent choices; an address stands for all below it. None: all.

        Raises:
          AddressError: an address is not one of a latent choice.
          ChoiceError: a datum is NaN.
          SupportError: a datum lies outside the support of its site.
          DistributionError: a latent site's support has no bijection, or its values are integers without an end; or a
            support depends on a latent choice that is not among `addresses`.
        """
        self.program = program
        self._staged, found = program.staged()
        self._found = valued(found)
        self.is_random = any(is_random_key(info.site) or not info.site.is_exact for info in found)
        self._given = match(dict(given), self._found, program.name, complete=False)
        check_numbers(self._given, self._found, role)
        check_inside(self._given, self._found)
        latent = without_datum(self._found, self._given, role, program.name)
        unique = {info.site.address: info for info in latent}
        chosen = chosen_addresses(addresses, unique, program.name, role)
        self.left_out = frozenset(a for a in unique if a not in chosen)
        in_branch = any(info.in_branch and info.present is None for info in latent)
        super().__init__(*read_all([unique[a] for a in chosen], role), in_branch)
        self._real = frozenset(x.address for x in self.real)
        self._present = {x.address: x.present for x in self.real if x.present is not None}
        self.computed = self._supports_are_computed(role)
        self.in_place = self.computed or any(info.in_branch for info in latent)

    @property
    def given(self) -> dict[str, Any]:
        """The data, as arrays."""
        return nest(self._given)

    def observed_sites(self) -> frozenset[str]:
        """The sites that have data, as messages write them."""
        return frozenset(info.site.at() for info in self._found if info.site.address in self._given)

    def layout(self) -> Hashable:
        """All that is read of the sites but the supports: equal where a guide of one is a guide of the other."""
        real = tuple((*x[:4], str(x.dtype), _bits(x.present)) for x in self.real)
        discrete = tuple((*x[:2], str(x.dtype), *x[3:]) for x in self.discrete)
        flags = self.in_branch, self.in_place, self.computed, self.is_random
        return real, discrete, self.left_out, flags

    # --- the map ------------------------------------------------------------------------------------------------

    def constrain(self, u: Mapping[Address, Array]) -> tuple[dict[Address, Array], Array]:
        """T: the choices by address, and f[], log |det dT/du|."""
        out = self._run(u, lambda seen: seen.value if seen.coordinates is not None else None)
        return self._by_address(out.emits), out.totals["log_det"]

    def with_choices(self, u: Mapping[Address, Array], choices: Mapping[Address, Array]) -> dict[Address, Array]:
        """The coordinates u, with those of some choices in their places; those of branches that are not taken, too.

        Of an address that several branches share, the coordinates are those of the branch that is taken.
        """
        taken = self.unconstrain({**self.constrain(u)[0], **choices})[0]
        if not self.in_place:
            return taken
        there = self._run(u, lambda seen: seen.value if seen.coordinates is not None else None, every_branch=True)
        every = self._run(
            {**self._by_address(there.emits), **choices}, lambda seen: seen.coordinates, inverse=True, every_branch=True
        )
        number = Counter(info.site.address for info in self._found)
        return {a: x if number[a] == 1 else taken[a] for a, x in self._passes(every.emits).items()}

    def unconstrain(self, choices: Mapping[Address, Array]) -> tuple[dict[Address, Array], Array]:
        """T's inverse: the coordinates by address, and f[], log |det dT/du| there; not finite outside the supports."""
        u, log_det, _ = self._inverse(choices)
        return u, log_det

    def located(self, choices: Mapping[Address, Array]) -> tuple[dict[Address, Array], Array, Array]:
        """As `unconstrain`, and f[]: 0, or -inf where a choice lies outside its support, or NaN where one is NaN.

        All coordinates are then zero, so that densities there, and their derivatives in parameters, are numbers.
        """
        u, log_det, log_inside = self._inverse(choices)
        inside = log_inside == 0
        return {a: jnp.where(inside, x, 0) for a, x in u.items()}, jnp.where(inside, log_det, 0), log_inside

    def log_density(self, u: Mapping[Address, Array]) -> Array:
        """f[], log p(T(u), given) + log |det dT/du|: the joint density in the coordinates, factors included."""
        out = self._run(u, lambda seen: None, weigh=True)
        return out.totals["log_p"] + out.totals["log_det"]

    def density(self) -> Density:
        """The log density of the vector of all coordinates, made of those of each choice."""

        def of_parts(parts: Sequence[Array]) -> Array:
            pairs = zip(self.real, parts, strict=True)
            return self.log_density({x.address: part.reshape(x.coordinates) for x, part in pairs})

        return Density(of_parts, tuple(x.size for x in self.real))

    def log_densities(self, u: Mapping[Address, Array]) -> dict[str, Array]:
        """f[], the log density of each site at T(u), by the site as messages write it."""
        out = self._run(u, lambda seen: seen.log_p, weigh=True)
        return {info.site.at(): jnp.sum(out.emits[info.path]) for info in self._found if info.path in out.emits}

    def weights(self) -> dict[Address, np.ndarray | None]:
        """f[*loops], what each choice counts by `vipl.scaled`, None where that is traced; nothing of the others."""
        wanted = {*self._real, *(x.address for x in self.discrete)}
        found = [(i.path, i.site.address) for i in self._found if i.site.scaled and i.site.address in wanted]
        if not found:
            return {}
        values = {x.address: jnp.zeros(x.coordinates, x.dtype) for x in self.real}

        def leaves() -> list[Array]:
            emits = self._run(values, lambda seen: seen.weight if seen.site.address in wanted else None).emits
            return [emits[path] for path, _ in found]

        constvars, consts, _, eqns, outvars = _jax.parts(jax.make_jaxpr(leaves)())
        constants = dict(zip(constvars, consts, strict=True))
        return {a: _known(v, eqns, constants) for (_, a), v in zip(found, outvars, strict=True)}

    def bijections(self) -> dict[Address, Transform]:
        """T of each real choice by itself, for the whole array; of supports that are not computed."""
        return {a: biject_to(constraint) for a, constraint in self._constraints().items()}

    def constraint(self, address: Address) -> Any:
        """NumPyro's constraint of a real choice, of the whole array.

        None where it depends on other choices, where its numbers are traced, or where not every pass makes the choice.
        """
        return self._known_constraints.get(address)

    @functools.cached_property
    def _known_constraints(self) -> dict[Address, Any]:
        """See `constraint`. The program is read once, not at each trace of a program that has the choices."""
        if self.computed or self.in_branch:
            return {}
        with jax.ensure_compile_time_eval():
            found = self._constraints()
        traced = {a for a, c in found.items() if any(isinstance(x, _jax.Tracer) for x in jax.tree.leaves(c))}
        return {a: c for a, c in found.items() if a not in traced and a not in self._present}

    def _constraints(self) -> dict[Address, Any]:
        """NumPyro's constraint of each real choice, where none depends on other choices."""
        zeros = {x.address: jnp.zeros(x.coordinates, x.dtype) for x in self.real}
        structures = {}

        def leaves(seen: _Seen) -> Any:
            if seen.coordinates is None:
                return None
            found, structures[seen.site.address] = jax.tree.flatten(seen.distribution.support)
            return [jnp.asarray(x) for x in found]

        emits = self._run(zeros, leaves).emits
        out = {}
        for info in self._found:
            latent = next((x for x in self.real if x.address == info.site.address), None)
            if latent is not None:
                here = [_aligned(x, latent) for x in emits[info.path]]
                out[latent.address] = jax.tree.unflatten(structures[latent.address], here)
        return out

    def guided(
        self, params: Mapping[Address, Any], at_site: Callable[[Address, Any, Any], Array]
    ) -> dict[Address, Array]:
        """Runs the program with other sites in the places of the latent ones, inside its own control flow.

        Args:
          params: of each latent choice, a pytree of arrays with the axes of the loops around its site first.
          at_site: (address, the model's distribution there, the parameters there) -> the value; it samples.
        """
        latent = {*self._real, *(x.address for x in self.discrete)}
        params = {a: jax.tree.map(lambda x, a=a: self._spread(a, x), x) for a, x in params.items()}

        def handle(visit: Visit, operands: Sequence[Array], x: Any) -> Outcome:
            site = visit.site
            if _has_no_choice(site):
                return Outcome(jnp.zeros(site.shape, site.dtype), {}, {})
            if site.address not in latent:
                return Outcome(x, {}, {})
            value = at_site(site.address, distribution_of(site, operands), x)
            return Outcome(value, {}, {visit.path: value})

        def compose(composite: Composite, operands: list[Any], given: list[Any], path: Path) -> Outcome:
            values, emits = list(given), {}
            for k, site in enumerate(composite.sites):
                if site.address in latent:
                    emits[*path, k] = values[k] = at_site(site.address, distribution_of(site, ()), given[k])
            return Outcome(values, {}, emits)

        return self._by_address(self._interpret(params, handle, compose).emits)

    # --- inside -------------------------------------------------------------------------------------------------

    def _inverse(self, choices: Mapping[Address, Array]) -> tuple[dict[Address, Array], Array, Array]:
        out = self._run(choices, lambda seen: seen.coordinates, inverse=True)
        return self._passes(out.emits), out.totals["log_det"], out.totals["log_inside"]

    def _passes(self, emits: dict[Path, Array]) -> dict[Address, Array]:
        """Coordinates by address, those of the passes alone that make a choice."""
        u = self._by_address(emits)
        return {a: x[self._present[a]] if a in self._present else x for a, x in u.items()}

    def _run(
        self,
        values: Mapping[Address, Array],
        emit: Callable[[_Seen], Any],
        *,
        inverse: bool = False,
        weigh: bool = False,
        every_branch: bool = False,
    ) -> Outcome:
        """Runs the program at coordinates, or at choices.

        Args:
          values: the coordinates of real choices, or with `inverse` the choices; discrete choices, else their smallest.
          emit: what is collected at a site; None: nothing.
          inverse: whether coordinates are made of choices.
          weigh: whether densities are added up.
          every_branch: whether it is collected in branches that are not taken, too.
        """

        def handle(visit: Visit, operands: Sequence[Array], x: Any) -> Outcome:
            seen = self._see(visit.site, operands, x, inverse=inverse, weigh=weigh)
            emitted = emit(seen)
            emits = {} if emitted is None or _has_no_choice(visit.site) else {visit.path: emitted}
            return Outcome(seen.value, seen.totals(), emits)

        def compose(composite: Composite, operands: list[Any], given: list[Any], path: Path) -> Outcome:
            operands, weight = split_weight(composite.sites[0], operands)
            seen = [self._placed(s, x, inverse, weight) for s, x in zip(composite.sites, given, strict=True)]
            values = [s.value for s in seen]
            if weigh:
                log_p = _weighed(composite, [*operands[composite.num_draw :], *values])
                seen[0] = seen[0]._replace(log_p=log_p if weight is None else weight * log_p)
            emits = {(*path, k): x for k, x in enumerate(map(emit, seen)) if x is not None}
            return Outcome(values, jax.tree.map(lambda *x: jnp.stack(x).sum(), *(s.totals() for s in seen)), emits)

        values = values if inverse else {a: self._spread(a, x) for a, x in values.items()}
        out = self._interpret(values, handle, compose, every_branch=every_branch)
        zero = jnp.zeros(())
        return out._replace(totals={"log_det": zero, "log_p": zero, "log_inside": zero} | out.totals)

    def _interpret(
        self, values: Mapping[Address, Any], handle: Callable, compose: Callable, *, every_branch: bool = False
    ) -> Outcome:
        """Runs the program with data, with what is given for latent choices, and with some value for the others."""
        values = self._given | self._placeholders() | dict(values)
        paths = {info.path: values[info.site.address] for info in self._found}
        interpreter = Interpreter(handle, None, "a guide", compose, every_branch=every_branch)
        return run(self._staged.jaxpr, [], interpreter, paths)

    def _see(self, site: Site, operands: Sequence[Array], x: Any, *, inverse: bool, weigh: bool) -> _Seen:
        zero = jnp.zeros(())
        operands, weight = split_weight(site, operands)
        if _has_no_choice(site):
            log_p = site_log_prob(site, operands, jnp.zeros((0,)), check=False) if weigh and is_factor(site) else zero
            return _Seen(site, None, jnp.zeros(site.shape, site.dtype), None, zero, log_p, zero, None)
        seen = self._placed(site, x, inverse, weight, operands)
        if not weigh:
            return seen
        log_p = site_log_prob(site, operands, seen.value, check=seen.coordinates is None)
        return seen._replace(log_p=log_p if weight is None else weight * log_p)

    def _placed(
        self, site: Site, x: Array, inverse: bool, weight: Array | None, operands: Sequence[Array] = ()
    ) -> _Seen:
        """A site's value and coordinates, of one of them; without its density."""
        zero = jnp.zeros(())
        if site.address not in self._real:
            return _Seen(site, None, x, None, zero, zero, zero, weight)
        d = distribution_of(site, operands)
        bijection = biject_to(d.support)
        value, coordinates = (x, bijection.inv(x)) if inverse else (bijection(x), x)
        log_det = jnp.sum(bijection.log_abs_det_jacobian(coordinates, value))
        log_inside = jnp.sum(_log_inside(d, x)) if inverse else zero
        return _Seen(site, d, value, coordinates, log_det, zero, log_inside, weight)

    def _spread(self, address: Address, x: Array) -> Array:
        """What there is for each pass that makes a choice, for all passes of the loops around it."""
        present = self._present.get(address)
        if present is None:
            return x
        return jnp.zeros((*present.shape, *x.shape[1:]), x.dtype).at[np.nonzero(present)].set(x)

    def _by_address(self, emits: dict[Path, Array]) -> dict[Address, Array]:
        return flatten(merge_emits([info for info in self._found if info.path in emits], emits), self.program.name)

    def _placeholders(self) -> dict[Address, Array]:
        """Some value for each discrete choice, and for each choice that is left out."""
        out = {x.address: jnp.full(x.shape, x.low, x.dtype) for x in self.discrete}
        for info in self._found:
            if info.site.address in self.left_out:
                out[info.site.address] = jnp.zeros(info.loop_shape + info.site.shape, info.site.dtype)
        return out

    def _supports_are_computed(self, role: str) -> bool:
        """Whether the parameters of a support depend on latent choices; raises where on one that is left out."""
        latent = {x.address: jnp.zeros(x.coordinates, x.dtype) for x in self.real} | self._placeholders()

        def leaves(*values: Array) -> Any:
            def emit(seen: _Seen) -> Any:
                support = None if seen.coordinates is None else seen.distribution.support
                return [jnp.asarray(x) for x in jax.tree.leaves(support)]

            return self._run(dict(zip(latent, values, strict=True)), emit).emits

        _, _, invars, eqns, outvars = _jax.parts(jax.make_jaxpr(leaves)(*latent.values()))
        ends = backward(eqns, outvars).ends
        needed = [address for address, v in zip(latent, invars, strict=True) if v in ends or v in outvars]
        left_out = [a for a in needed if a in self.left_out]
        if left_out:
            raise DistributionError(
                "the support of a latent choice depends on one that the guide leaves out.",
                at=f"{role} of {self.program.name}",
                got=f"addresses without {show_addresses(left_out)}",
                expected="all choices that the supports of the chosen ones depend on",
                fix=f"put {show_address(left_out[0])} into the same guide, or block: add it to the addresses",
            )
        return bool(needed)


class _Seen(NamedTuple):
    """A site with its value.

    Attributes:
      site: the site.
      distribution: its distribution, of a composite's value one with its support; None of what is not a real choice.
      value: [...], the choice.
      coordinates: [...], T's inverse of it; None of what is given or discrete.
      log_det: f[], log |det dT/du| of the site.
      log_p: f[], its log density; zero where that is not asked for.
      log_inside: f[], 0, or -inf where a given choice lies outside the support, NaN where it is NaN.
      weight: f[], what that counts by `vipl.scaled`; None: once.
    """

    site: Site
    distribution: Any
    value: Array
    coordinates: Array | None
    log_det: Array
    log_p: Array
    log_inside: Array
    weight: Array | None

    def totals(self) -> dict[str, Array]:
        """What is added up over the sites."""
        return {"log_det": self.log_det, "log_p": self.log_p, "log_inside": self.log_inside}


def _weighed(composite: Composite, operands: list[Any]) -> Array:
    """The log density of a composite's values; of one that is estimated, the estimate by one and the same noise."""
    if all(site.is_exact for site in composite.sites):
        return walk(composite.weigh, operands, plain)[0]
    return seed(lambda *operands: walk(composite.weigh, list(operands), plain)[0])(jax.random.key(0), *operands)


def _log_inside(d: Any, value: Array) -> Array:
    """f[batch], 0 in the support, -inf outside, NaN at NaN."""
    inside, nan = verdict(d, value)
    return jnp.where(nan, jnp.nan, jnp.where(inside, 0.0, -jnp.inf))


def _known(v: Any, eqns: Sequence[Any], consts: Mapping[Any, Any]) -> np.ndarray | None:
    """The value of a variable that only constants make; None where one of these is traced."""
    cut = backward(eqns, [v])
    env = {x: consts[x] for x in cut.ends}
    if any(isinstance(x, _jax.Tracer) for x in env.values()):
        return None
    with jax.ensure_compile_time_eval():
        return np.asarray(read_arrays(evaluate(cut.eqns(eqns), env, plain), [v])[0])


def _bits(present: np.ndarray | None) -> Hashable:
    return None if present is None else (present.shape, present.tobytes())


def _has_no_choice(site: Site) -> bool:
    """Whether a site is a factor, a record, or a random key, which is taken for zeros here."""
    return is_factor(site) or is_record(site) or is_random_key(site)


def _aligned(leaf: Array, latent: Latent) -> Array:
    """A parameter of a support, stacked over the loops, in a shape that broadcasts against the whole choice."""
    loops, own = leaf.shape[: len(latent.loops)], leaf.shape[len(latent.loops) :]
    return leaf.reshape(*loops, *(1,) * (len(latent.shape) - leaf.ndim), *own)
