"""Sequential Monte Carlo over a program that is shaped like a `scan`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax

from vipl import _jax
from vipl._checks import whole_number
from vipl._jax import Atom, Eqn, Jaxpr, Var
from vipl._types import Array, Float, Int
from vipl.errors import ProgramError, shortened
from vipl.gen import Program, Source
from vipl.gen._check_arguments import call_maker, check_takes_known, not_a_function
from vipl.gen._choices import Address, Choices, match, nest
from vipl.gen._estimated import only
from vipl.gen._program import merge_emits
from vipl.gen._weighing import Drawn, Given, weighing
from vipl.gen._without_choice import valued, without_records
from vipl.inference._algorithms import Algorithm, First, require_exact
from vipl.inference._particles import Particles, log_mean_exp
from vipl.inference._resampling import Multinomial, MultinomialDropped, Resampling
from vipl.interpret.interpreter import Interpreter, run, run_equations
from vipl.ir.batching import has_site
from vipl.ir.dataflow import evaluate, plain, read
from vipl.ir.frames import user_frame
from vipl.ir.partition import is_real
from vipl.ir.primitives import Path, sample_p
from vipl.ir.sites import SiteInfo


@jax.tree_util.register_pytree_node_class
class Step(dict):
    """The known choices of one step of a program that is one `scan`; what the proposal of `SMC` is a function of.

    Attributes:
      step: i[], the number of the step.
      previous: the particle's unknown choices of the step before; zeros at first.
    """

    def __init__(self, known: Choices, step: Int[Array, ""], previous: Choices):
        """Takes the choices in."""
        super().__init__(known)
        self.step, self.previous = step, previous

    def tree_flatten(self) -> tuple[tuple[Choices, Int[Array, ""], Choices], None]:
        """Pytree interface."""
        return (dict(self), self.step, self.previous), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Choices, Int[Array, ""], Choices]) -> Step:
        """Pytree interface."""
        return cls(*children)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SMC(Algorithm):
    """Sequential Monte Carlo: K particles go through the steps of a `scan`, resampled by weight before each step.

    The program has one `lax.scan` (or `fori_loop`, `map`) that holds sites, at its top level, and perhaps sites before
    it, whose unknown values may enter the scan by its carry alone; none after it.

        w_t = Π over known sites of step t of p(value | ...), times Π over proposed sites of p / r,
        Ẑ = Π_t (1/K) Σ_k w_t^k;   E[Ẑ] = Z,  and given one trajectory of the posterior E[1 / Ẑ] = 1 / Z.

    The steps are one `scan`, the particles one `vmap`.

    Attributes:
      num_particles: K.
      proposal: a function of the known choices of a step, a `Step`, that makes a source over its unknown ones. None:
        the program itself (the bootstrap filter).
      resampling: how ancestors are chosen, and whether derivatives pass the choice: `Multinomial()` (unbiased),
        `MultinomialDropped()`, `Systematic()`, `Stratified()` (dropped: biased derivatives).
      ess_threshold: particles are resampled only where their effective number is below this share of K; always, at
        1. The derivative of that decision is dropped.

    Raises:
      ProgramError: the program does not have that shape; or one trajectory is to be kept with a resampling that
        is not multinomial.

    Reference: Doucet and Johansen (2011), section 3.5; Andrieu, Doucet and Holenstein (2010), section 4.3, for the
    conditional side; Maddison et al. (2017) for log Ẑ as an objective.
    """

    num_particles: int = field(metadata={"static": True})
    proposal: Callable[[Step], Source] | None = None
    resampling: Resampling = field(default_factory=Multinomial)
    ess_threshold: float = field(default=1.0, metadata={"static": True})

    def __post_init__(self):
        """Checks the number of particles."""
        count = whole_number(self.num_particles, "num_particles", f"SMC in {user_frame()}")
        object.__setattr__(self, "num_particles", count)
        if isinstance(self.proposal, (Source, dist.Distribution)):
            raise not_a_function(self.proposal, "proposal", "SMC")
        if callable(self.proposal):
            check_takes_known(self.proposal, "proposal", "SMC", ", with known.step and known.previous")
        if isinstance(self.resampling, (str, type)):
            raise self._refused("resampling", "vipl.inference.Multinomial()")
        if not is_real(self.ess_threshold) or np.ndim(self.ess_threshold) or not 0 <= self.ess_threshold <= 1:
            raise self._refused("ess_threshold", "0.5")

    def _refused(self, name: str, example: str) -> ProgramError:
        return ProgramError(
            f"{name} of SMC is not what it takes.",
            at=f"SMC in {user_frame()}",
            got=shortened(getattr(self, name)),
            expected="a resampling object" if name == "resampling" else "a number from 0 to 1",
            fix=f"pass SMC(..., {name}={example})",
        )

    def particles(self, program: Source, known: Choices) -> Particles:
        """Runs the filter: whole trajectories with their last weights."""
        return _run(self, parts_of(program, known), {})

    def conditional(self, program: Source, known: Choices, first: First) -> Float[Array, ""]:
        """Runs the filter with `first` as the trajectory of the first particle, which always survives."""
        if not isinstance(self.resampling, (Multinomial, MultinomialDropped)):
            raise ProgramError(
                "one trajectory is to be kept, and the resampling is not multinomial.",
                at=program.name,
                got=f"{type(self.resampling).__name__}()",
                expected="Multinomial() or MultinomialDropped()",
                fix="pass SMC(..., resampling=vipl.inference.Multinomial())",
            )
        require_exact(program, "SMC(...), one trajectory kept,")
        parts = parts_of(program, known)
        mine = match(first.choices, parts.unknown, program.name, complete=True)
        return _run(self, parts, {p.path: mine[p.site.address] for p in parts.unknown}).log_normalizer


class Parts(NamedTuple):
    """A program, taken apart at its scan.

    Attributes:
      name: the program's.
      jaxpr: the program.
      at: the number of the equation that is the scan.
      known: path -> value.
      unknown: the places of the other choices.
      addresses: path -> address, of all choices.
    """

    name: str
    jaxpr: Jaxpr
    at: int
    known: dict[Path, Array]
    unknown: list[SiteInfo]
    addresses: dict[Path, Address]

    @property
    def in_steps(self) -> list[SiteInfo]:
        """The places of the unknown choices in the scan."""
        return [p for p in self.unknown if p.path[0] == self.at]


def parts_of(program: Source, known: Choices) -> Parts:
    """Takes a program apart; raises where it is not one scan, and sites before it."""
    if not isinstance(program, Program):
        raise _shape(program.name, f"a {type(program).__name__}")
    staged, found = without_records(*program.staged())
    list_sites = valued(found)
    given = match(known, list_sites, program.name, complete=False)
    holding = [i for i, e in enumerate(_jax.parts(staged.jaxpr).eqns) if has_site(e)]
    scans = [i for i in holding if _jax.parts(staged.jaxpr).eqns[i].primitive is _jax.scan_p]
    if len(scans) != 1 or holding[-1] != scans[0]:
        after = "" if len(scans) != 1 else ", and sites after it"
        raise _shape(program.name, f"{len(scans)} scan(s) with sites at its top level{after}")
    by_path = {p.path: given[p.site.address] for p in list_sites if p.site.address in given}
    unknown = [p for p in list_sites if p.path not in by_path]
    return Parts(program.name, staged.jaxpr, scans[0], by_path, unknown, {p.path: p.site.address for p in list_sites})


def _shape(name: str, got: str) -> ProgramError:
    return ProgramError(
        "a program is not shaped like one scan.",
        at=name,
        got=got,
        expected="sites before one lax.scan, and in it, at the top level of a generative function",
        fix="write the steps as one lax.scan (not inside cond or vmap), and sites of the last step inside it",
    )


def _run(smc: SMC, parts: Parts, mine: dict[Path, Array]) -> Particles:
    """The filter; with `mine`, the first particle takes those values."""
    steps = steps_of(parts)
    num_carry, options = len(steps.carry), steps.options
    num = smc.num_particles
    given = {path: {"known": x} for path, x in parts.known.items()} | {path: {"mine": x} for path, x in mine.items()}

    def start(k):
        out = run_equations(steps.before, steps.env, _interpreter(k), given)
        return read(out.value, steps.carry), out.totals, out.emits

    carry, totals, first = jax.vmap(start)(jnp.arange(num))
    log_w = totals.get("log_w", jnp.zeros(num))
    in_steps = parts.in_steps
    previous = {p.path: jnp.zeros((num, *p.loop_shape[1:], *p.site.shape), p.site.dtype) for p in in_steps}
    step_given = {path: x for path, x in given.items() if path[0] == parts.at}

    def step(state, inputs):
        carry, log_w, log_z, previous = state
        number, x, step_given = inputs
        resample, ancestors = _ancestors(smc, log_w)
        if mine:
            ancestors = ancestors.at[0].set(0)
        log_z = log_z + jnp.where(resample, log_mean_exp(log_w), 0.0)
        log_w = jnp.where(resample, 0.0, log_w)

        def lane(k, carry, previous):
            site_inputs, log_q = step_given, jnp.zeros(())
            if smc.proposal is not None:
                known = {parts.addresses[p]: g["known"] for p, g in step_given.items() if "known" in g}
                known = Step(nest(known), number, merge_emits(in_steps, previous))
                source = call_maker(smc.proposal, known, "proposal", "SMC")
                proposed, log_q = _proposed(source, k, step_given, parts)
                site_inputs = step_given | proposed
            out = run(steps.body, [*steps.fixed, *carry, *x], _interpreter(k), site_inputs, (parts.at,))
            emits = {p.path: out.emits[p.path] for p in in_steps}
            return out.value[:num_carry], emits, out.totals.get("log_w", jnp.zeros(())) - log_q

        carry, previous = jax.tree.map(lambda x: x[ancestors], (carry, previous))
        carry, emits, weights = jax.vmap(lane)(jnp.arange(num), carry, previous)
        return (carry, log_w + weights, log_z, emits), (ancestors, emits)

    state = (carry, log_w, jnp.zeros(()), previous)
    (_, log_w, log_z, _), (ancestors, emits) = lax.scan(
        step, state, (jnp.arange(options["length"]), steps.xs, step_given), **options
    )

    backwards = not options.get("reverse", False)
    made = _trajectories(first, emits, ancestors, backwards)
    choices = merge_emits([p for p in parts.unknown if p.path in made], made)
    return Particles(choices, log_w, log_z + log_mean_exp(log_w))


def _ancestors(smc: SMC, log_w: Array) -> tuple[Array, Array]:
    """Whether the particles are resampled, bool[]; the ancestor of each, i[K], itself where they are not."""
    num, resample = smc.num_particles, jnp.array(True)
    if smc.ess_threshold < 1.0:
        shares = jax.nn.log_softmax(lax.stop_gradient(log_w))
        resample = jnp.exp(-jax.nn.logsumexp(2.0 * shares)) < smc.ess_threshold * num
    possible = jnp.any(log_w > -jnp.inf)  # else the estimate is zero, whoever goes on
    ancestors = smc.resampling.ancestors(jnp.where(resample & possible, log_w, 0.0))
    return resample, jnp.where(resample, ancestors, jnp.arange(num))


def _trajectories(
    first: dict[Path, Array], emits: dict[Path, Array], ancestors: Array, backwards: bool
) -> dict[Path, Array]:
    """The choices of the last particles and of those that they descend from: first [K, ...], emits [T, K, ...]."""
    roots, lineage = lax.scan(lambda i, a: (a[i], i), jnp.arange(ancestors.shape[1]), ancestors, reverse=backwards)
    pick = jax.vmap(lambda x, i: x[i])
    steps = jax.tree.map(lambda x: jnp.moveaxis(pick(x, lineage), 0, 1), emits)
    return steps | {p: x[roots] for p, x in first.items()}


def _interpreter(k: Array) -> Interpreter:
    """Weighs known and proposed values, draws the others; the first lane takes a value that is `mine`."""

    def policy(_, given):
        if not given:
            return Drawn(weighs=False)
        ((kind, value),) = given.items()
        if kind == "mine":
            return Drawn(weighs=False, change=lambda drawn: jnp.where(k == 0, value, drawn))
        return Given(value)

    return weighing(policy, name="smc")


def _proposed(
    source: Source, k: Array, given: dict[Path, dict[str, Array]], parts: Parts
) -> tuple[dict[Path, dict[str, Array]], Array]:
    """What a proposal draws for the unknown choices of a step, and its log density; the first lane's are `mine`."""
    steps = parts.in_steps
    trace = source.simulate()
    flat = only(trace.choices, {p.site.address for p in steps}, f"the proposal {source.name}")
    values, log_q = {p.path: flat[p.site.address] for p in steps}, trace.log_prob
    mine = {p.path: given[p.path]["mine"] for p in steps if "mine" in given.get(p.path, {})}
    if mine:
        log_q = jnp.where(k == 0, source.assess(merge_emits(steps, mine)).log_prob, log_q)
        values = {path: jnp.where(k == 0, mine[path], x) for path, x in values.items()}
    return {path: {"proposed": x} for path, x in values.items()}, log_q


class Steps(NamedTuple):
    """The parts of a program around and in its scan.

    Attributes:
      env: the program's constants.
      before: the equations before the scan.
      carry: the variables that are the first carry.
      body: the scan's; called with `fixed`, the carry and a slice of `xs`.
      fixed: what its body closes over.
      xs: what it runs over.
      options: of the scan.
    """

    env: dict[Var, Array]
    before: Sequence[Eqn]
    carry: Sequence[Atom]
    body: Jaxpr
    fixed: list[Array]
    xs: list[Array]
    options: dict[str, Any]


def steps_of(parts: Parts) -> Steps:
    """Raises where what was drawn before the scan enters it otherwise than by the carry."""
    constvars, consts, _, eqns, _ = _jax.parts(parts.jaxpr)
    env = dict(zip(constvars, consts, strict=True))
    before, scan = eqns[: parts.at], eqns[parts.at]
    body, num_consts, num_carry, options = _jax.scan_parts(scan.params)
    carry = scan.invars[num_consts:][:num_carry]
    shared = _shared_values(before, env, parts)
    fixed = _entering(shared, scan.invars[:num_consts], parts.name)
    xs = _entering(shared, scan.invars[num_consts + num_carry :], parts.name)
    return Steps(env, before, carry, body, fixed, xs, options)


def _shared_values(before: Sequence[Eqn], env: dict[Var, Array], parts: Parts) -> dict[Var, Array | None]:
    """The values before the scan, the same for all particles; None where they depend on unknown choices."""

    def visit(i: int, eqn: Eqn, values: list[Array | None]) -> Sequence[Array | None]:
        unknown: list[Array | None] = [None] * len(eqn.outvars)
        if any(x is None for x in values):
            return unknown
        if has_site(eqn):
            return [parts.known[i,], *unknown[1:]] if eqn.primitive is sample_p and (i,) in parts.known else unknown
        return plain(i, eqn, [x for x in values if x is not None])

    return evaluate(before, dict[Var, Array | None](env), visit)


def _entering(env: dict[Var, Array | None], variables: Sequence[Atom], name: str) -> list[Any]:
    """What enters the scan beside the carry; raises where it depends on unknown choices."""
    values = read(env, variables)
    if all(x is not None for x in values):
        return values
    raise ProgramError(
        "what a program draws before its scan enters the steps otherwise than by the carry.",
        at=name,
        got="a scan whose body closes over a drawn value, or runs over it",
        expected="unknown values from before the scan in its carry",
        fix="put the drawn value into the carry, and hand it on unchanged",
    )
