"""Guides made of guides, by address."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax

from vipl._types import Array, ArrayLike, Float, PRNGKeyArray, PyTree
from vipl.errors import AddressError, ProgramError, show_address, show_addresses
from vipl.gen import GenerativeFunction, Program
from vipl.gen._check_arguments import call_maker
from vipl.gen._choices import Address, flatten, merge, nest
from vipl.guides._guide import Guide, Start, check_start
from vipl.guides._joint import FullRank
from vipl.guides._markov import Markov
from vipl.guides._once import apart, layout, together
from vipl.ir.keys import key_or_first


class Combined(Guide):
    """Several guides, or programs, over different choices, independent of each other; made by `combine`.

    As the source of a `sample` it returns the choices of the parts that are guides.

    Attributes:
      parts: by name, a guide; or a generative function of its parameters.
      addresses: of the choices of the parts that are guides.
    """

    def __init__(self, parts: Mapping[str, Any]):
        """See `combine`."""
        self.parts = dict(parts)
        self.addresses = [a for part in self._guides().values() for a in part.addresses]

        # as elbo_with_chain wants it
        chains_last = sorted(self.parts, key=lambda name: isinstance(self.parts[name], Markov))

        def function(params: PyTree) -> Any:
            drawn = []
            for name in chains_last:
                part = self.parts[name]
                program = (
                    part(params[name])
                    if isinstance(part, Guide)
                    else call_maker(part, params[name], f"part {name!r}", "combine")
                )
                value = program.inline((), name)
                if isinstance(part, Guide):
                    drawn.append(value)
            return merge(*drawn)

        function.__name__ = function.__qualname__ = f"combine({', '.join(self.parts)})"
        self._gf = GenerativeFunction(function)

    def _guides(self) -> dict[str, Guide]:
        return {name: part for name, part in self.parts.items() if isinstance(part, Guide)}

    def __call__(self, params: PyTree) -> Program:
        """See `Guide.__call__`."""
        _check_names(params, self.parts)
        for name, part in self._guides().items():
            part(params[name])
        return self._gf(params)

    def apart(self) -> tuple[Callable[[PyTree, PyTree], Any], PyTree, PyTree]:
        """See `Remade.apart`."""
        each = {name: apart(part) for name, part in self.parts.items()}
        return _recombined, [(name, fixed) for name, (fixed, _) in each.items()], [data for _, data in each.values()]

    def layout(self) -> Hashable:
        """See `Remade.layout`."""
        return tuple((name, layout(part)) for name, part in self.parts.items())

    def __repr__(self) -> str:
        return f"combine({', '.join(f'{name}: {part!r}' for name, part in self.parts.items())})"

    def for_data(self, model: Program, data: Mapping[str, Any]) -> Combined:
        """The same parts for another model or other data, such as a new batch; programs of your own stay the same."""
        return Combined(
            {name: part.for_data(model, data) if isinstance(part, Guide) else part for name, part in self.parts.items()}
        )

    def init(
        self, key: PRNGKeyArray | None = None, *, start: Start = None, scale: Float[ArrayLike, ""] = 0.1, **own: PyTree
    ) -> PyTree:
        """Parameters to begin with: a dict of each part's.

        Args:
          key: see `ModelGuide.init`.
          start: see `ModelGuide.init`; each part takes its own addresses.
          scale: see `ModelGuide.init`.
          **own: parameters of parts, by name: those of the parts that are no guides.

        Raises:
          ProgramError: those of a part that is no guide are missing; or there is no such part.
          AddressError: the start has an address that none of the guides has.
        """
        the_key = key_or_first(key)
        unknown = [name for name in own if name not in self.parts]
        missing = [name for name in self.parts if name not in own and name not in self._guides()]
        if unknown or missing:
            raise ProgramError(
                "parameters are given for a part that there is not." if unknown else _NO_GUIDE,
                at=f"init of combine({', '.join(self.parts)})",
                got=f"the part {(unknown or missing)[0]!r}",
                expected=f"parts among {sorted(self.parts)}" if unknown else "its parameters by name",
                fix="name the part as combine does" if unknown else f"write init(key, {missing[0]}=...)",
            )
        its = self._starts(start)
        for_parts = {name: (k, part) for k, (name, part) in enumerate(self.parts.items()) if name not in own}
        made = {
            name: part.init(jax.random.fold_in(the_key, k), start=its[name], scale=scale)
            for name, (k, part) in for_parts.items()
        }
        return own | made

    def start(self, key: PRNGKeyArray, start: Start = None) -> dict[Address, Array]:
        """See `Guide.start`."""
        its = self._starts(start)
        each = [
            part.start(jax.random.fold_in(key, k), its[name])
            for k, (name, part) in enumerate(self.parts.items())
            if isinstance(part, Guide)
        ]
        return {a: x for u in each for a, x in u.items()}

    def _starts(self, start: Start) -> dict[str, Start]:
        """What of a start each guide takes."""
        check_start(start, self)
        if not isinstance(start, Mapping):
            return dict.fromkeys(self._guides(), start)
        flat = flatten(dict(start), "the start")
        unknown = [a for a in flat if a not in self.addresses]
        if unknown:
            raise AddressError(
                "a start is given for an address that no guide of a combination has.",
                at=f"init of combine({', '.join(self.parts)})",
                got=show_addresses(unknown),
                expected=f"addresses among {show_addresses(self.addresses)}",
                fix="leave it out, or name it as the model does; a program of your own begins at its own parameters",
            )
        return {name: nest({a: flat[a] for a in part.addresses if a in flat}) for name, part in self._guides().items()}


def _recombined(fixed: list[tuple[str, PyTree]], data: list[PyTree]) -> Combined:
    return Combined({name: together(f, d) for (name, f), d in zip(fixed, data, strict=True)})


_NO_GUIDE = "a part that is no guide has no parameters to begin with."


def combine(parts: Mapping[str, Any]) -> Combined:
    """One guide of several, which share no choice and are independent of each other.

    q(z) = Π_parts q_part(z_part).

    Args:
      parts: by name, guides with `addresses=`; other combinations; or generative functions of their parameters.

    Returns:
      A guide; its parameters are a dict of those of its parts.

    Raises:
      ProgramError: there are no parts, or one is not a guide or a function.
      AddressError: two guides have a choice in common.

    Example:
      >>> import jax, numpyro.distributions as dist, vipl
      >>> @vipl.gen
      ... def model():
      ...     m = vipl.sample("m", dist.Normal(0.0, 1.0))
      ...     vipl.sample("s", dist.HalfNormal(1.0))
      >>> @vipl.gen
      ... def mine(params):
      ...     vipl.sample("s", dist.LogNormal(params, 0.1))
      >>> guide = vipl.guides.combine({"m": vipl.guides.FullRank(model(), {}, addresses="m"), "s": mine})
      >>> sorted(guide(guide.init(s=0.0)).simulate(jax.random.key(0)).choices)
      ['m', 's']
    """
    wrong = [name for name, part in parts.items() if not callable(part)] if isinstance(parts, Mapping) else ["parts"]
    if wrong or not parts:
        raise ProgramError(
            "what is to be combined are not guides.",
            at="combine",
            got=", ".join(map(repr, wrong)) or "no parts" if isinstance(parts, Mapping) else type(parts).__name__,
            expected="a dict of guides, or of generative functions of their parameters",
            fix='write combine({"a": FullRank(..., addresses="a"), "b": my_program})',
        )
    taken: dict[Address, str] = {}
    for name, part in parts.items():
        for address in _addresses(part):
            if address in taken:
                raise AddressError(
                    "two guides have a choice in common.",
                    at=f"combine({', '.join(parts)})",
                    got=f"{show_address(address)} in {taken[address]!r} and in {name!r}",
                    expected="guides over different addresses",
                    fix="pass addresses= to each",
                )
            taken[address] = name
    return Combined(parts)


def _addresses(part: Any) -> list[Address]:
    return part.addresses if isinstance(part, Guide) else []


def _check_names(params: PyTree, parts: Mapping[str, Any]) -> None:
    if not isinstance(params, dict) or set(params) != set(parts):
        raise ProgramError(
            "the parameters are not those of a combination.",
            at=f"combine({', '.join(parts)})",
            got=f"keys {sorted(params)}" if isinstance(params, dict) else type(params).__name__,
            expected=f"a dict with keys {sorted(parts)}",
            fix="begin with its init(key)",
        )


def BlockDiagonal(  # noqa: N802 - one of the guides, which are classes
    model: Program, data: Mapping[str, Any], blocks: Sequence[Any] | None = None
) -> Combined:
    """A Gaussian with a full covariance inside each block of choices, in unconstrained coordinates.

    q(z) = Π_blocks N(u_block; loc_block, L_block L_blockᵀ) |det dT/du|⁻¹.

    Parameters: a dict of those of `FullRank`, by block. Cost: the sum over blocks of n_block².
    Use it where correlations within a choice, or between a few, matter, and all together are too many.

    Args:
      model: over latents and data.
      data: the observed choices.
      blocks: lists of addresses; a choice that is in none is a block of its own. None: each choice is one.
    """
    every = [x.address for x in FullRank(model, data).latents.real]
    named = [[b] if isinstance(b, str) else list(b) for b in blocks or ()]
    parts = {"+".join(map(_name, block)): FullRank(model, data, addresses=block) for block in named}
    inside = {a for part in parts.values() for a in part.addresses}
    parts |= {_name(a): FullRank(model, data, addresses=[a]) for a in every if a not in inside}
    return combine(parts)


def _name(address: Any) -> str:
    return address if isinstance(address, str) else "/".join(address)


def parts_of(guide: Any) -> list[Any]:
    """The guides and functions of which a guide is combined; itself alone where it is not."""
    return [p for part in guide.parts.values() for p in parts_of(part)] if isinstance(guide, Combined) else [guide]
