"""`expectation`: a program that returns a scalar becomes a function whose derivatives are unbiased.

The program is staged once, planned (`plan`: what each site will do), and run (`surrogate`: a scalar whose value and
JAX derivatives are unbiased). See docs/theory.md.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax

from vipl import _jax
from vipl._checks import is_integer, whole_number
from vipl._types import Array, PRNGKeyArray, PyTree
from vipl.cache.programs import compiled, parts_of
from vipl.errors import EstimatorError, ProgramError, shortened, show_aval
from vipl.expectation.plan import Plan, make_plan
from vipl.expectation.surrogate import draws, one_sample
from vipl.gen import Estimator, Source
from vipl.gen._choices import flatten
from vipl.gen._program import with_estimators
from vipl.gen._sample import check_estimator
from vipl.ir.frames import show_function, user_frame
from vipl.ir.functions import check_function
from vipl.ir.keys import as_key, key_by_keyword
from vipl.ir.partition import Skeleton, is_array, not_arrays, partition, python_integer
from vipl.ir.purity import check_unordered
from vipl.ir.stage import Staged, stage_program
from vipl.passes.cse import cse

Argnums = int | tuple[int, ...]


class Expectation:
    """The expected value of a program; made by `vipl.expectation`.

    Calling it as a function runs the program as a part of the program around it, so that objectives can be
    combined: `lambda phi: a(phi) + b(phi)` is again a program.

    Attributes:
      fn: the program; returns a scalar, or `(scalar, aux)`.
      has_aux: whether it returns auxiliary output.
      estimators: replacements of estimators, by address.
    """

    _not_read = ("_lengths",)  # it changes nothing that a call gives

    def __init__(
        self, fn: Callable, has_aux: bool = False, estimators: tuple[tuple[tuple[str, ...], Estimator], ...] = ()
    ):
        """Wraps a program."""
        functools.update_wrapper(self, fn, updated=())
        self.fn, self.has_aux, self.estimators = fn, has_aux, estimators
        self._lengths: set[Skeleton] = set()  # kinds of arguments of which an integer is used as a length

    def __call__(self, *args: PyTree) -> Any:
        """Runs the program inside another one."""
        return self._program()(*args)

    @functools.partial(key_by_keyword, before=1)
    def estimate(self, key: PRNGKeyArray, *args: PyTree, num_samples: SupportsIndex = 1) -> Any:
        """Estimates the expected value; its JAX derivatives estimate the derivatives.

        (1/n) Σ_i S_i, with S_i independent surrogates: E[S] = E[f], E[∇S] = ∇E[f].

        A pure JAX function of arrays: `jax.grad`, `value_and_grad`, `jvp`, `jacfwd`, `hessian`, `vmap`, `jit` apply.
        It is compiled once for each kind of arguments, and anew where something that the program reads has changed.

        Args:
          key: PRNG key.
          *args: the program's arguments; arrays and numbers are traced, other leaves must be hashable. Where the
            program uses a number as a length, a condition of `if` or the like, Python integers and booleans stay
            what they are, and each value is compiled anew.
          num_samples: how many independent runs are averaged; the cost is linear in it.

        Returns:
          f[], or `(f[], aux)`; with `num_samples > 1`, aux has a leading axis.

        Raises:
          EstimatorError: an estimator is not supported; or a second derivative is taken through one that has none.
          ControlFlowError: a site stands where it is not supported.
          ProgramError: the program does not return a float scalar.
        """
        return self._call("estimate", self._estimate, key, args, num_samples)

    def estimate_anew(self, key: PRNGKeyArray, *args: PyTree, num_samples: int = 1) -> Any:
        """`estimate`, traced anew at each call, in the context of the call: nothing is kept."""
        skeleton, leaves = partition(args)
        return self._estimate(as_key(key), leaves, skeleton=skeleton, num_samples=num_samples)

    @functools.partial(key_by_keyword, before=1)
    def value_and_grad(
        self, key: PRNGKeyArray, *args: PyTree, num_samples: SupportsIndex = 1, argnums: Argnums = 1
    ) -> Any:
        """Estimates value and gradient in one run: `jax.value_and_grad(self.estimate, argnums)(key, *args)`.

        Compiled as one program, and kept, as `estimate` is.

        Args:
          key: PRNG key.
          *args: the program's arguments.
          num_samples: how many independent runs are averaged.
          argnums: in which argument (an integer or a tuple of them) the gradient is taken. As in JAX the key counts, as
            argument 0; negative numbers count from the last argument.

        Returns:
          `(value, grad)`, or `((value, aux), grad)`.
        """
        argnums = self._check_argnums(argnums, args)
        if _jax.staging() or any(isinstance(x, _jax.Tracer) for x in jax.tree.leaves((key, args))):
            return self._gradient(key, args, num_samples, argnums)
        return self._call("value_and_grad", self._value_and_grad, key, args, num_samples, argnums=argnums)

    def with_estimators(self, estimators: Mapping[str, Any]) -> Expectation:
        """The same objective with other estimators at some sites.

        Args:
          estimators: address -> estimator; nested addresses as nested dicts. Every site of an address is meant.

        Raises:
          AddressError: an address does not exist (raised at the first estimate).
        """
        at = f"with_estimators of {self._name}"
        flat = flatten(estimators, at)
        for estimator in flat.values():
            check_estimator(estimator, at)
        return Expectation(self.fn, self.has_aux, tuple((dict(self.estimators) | flat).items()))

    def _check_argnums(self, argnums: Argnums, args: tuple[PyTree, ...]) -> Argnums:
        """The numbers among `args`; raises where one is none, is that of the key, or names what has no gradient."""
        at = f"value_and_grad of {self._name} in {user_frame()}"
        got = f"argnums={shortened(argnums)}, with {len(args)} argument{'' if len(args) == 1 else 's'} after the key"
        several = isinstance(argnums, (tuple, list)) and bool(argnums)
        count = 1 + len(args)
        found = [_argument_number(given, count) for given in (argnums if several else (argnums,))]  # type: ignore
        if None in found:
            raise ProgramError(
                "argnums does not name arguments of the objective.",
                at=at,
                got=got,
                expected="an integer, or a tuple of them; the key counts as 0",
                fix="pass argnums=1 for the first argument after the key",
            )
        if 0 in found:
            meant = tuple(n + 1 for n in found)
            write = (meant if several else meant[0]) if max(meant) < count else 1
            raise _gradient_in_the_key(write, at, got)
        for number in found:
            self._check_differentiable(args[number - 1], number, at)
        return tuple(n - 1 for n in found) if several else found[0] - 1

    def _check_differentiable(self, argument: PyTree, number: int, at: str) -> None:
        leaves = jax.tree_util.tree_leaves_with_path(argument)
        for path, leaf in leaves:
            if not is_array(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                raise ProgramError(
                    "a gradient is asked for in something that is not a float.",
                    at=at,
                    got=f"{show_aval(leaf)} at argument {number}{jax.tree_util.keystr(path)}",
                    expected="a pytree of floats",
                    fix="write 1.0 for 1; pass what is not to be differentiated as another argument",
                )

    @property
    def _name(self) -> str:
        return getattr(self.fn, "__name__", repr(self.fn))

    def _program(self) -> Callable:
        if not self.estimators:
            return self.fn
        return functools.partial(with_estimators, self.fn, self.estimators, self._name)

    def _call(
        self,
        kind: str,
        program: Callable,
        key: PRNGKeyArray,
        args: tuple[PyTree, ...],
        num_samples: SupportsIndex,
        **static: Any,
    ) -> Any:
        """`program(key, leaves, skeleton=, num_samples=, **static)` of the arguments, compiled and kept.

        Numbers are traced; where one is used as a length or the like, integers stay what they are.
        """
        num_samples = whole_number(num_samples, "num_samples", f"{kind} of {self._name} in {user_frame()}")

        def called(skeleton: Skeleton, leaves: list[Array]) -> Any:
            roots, static_parts = parts_of(skeleton)
            known = (static_parts, num_samples, *static.values())
            fn = functools.partial(program, skeleton=skeleton, num_samples=num_samples, **static)
            return compiled(kind, (self, *roots), known, fn, (key, leaves))

        skeleton, leaves = partition(args)
        try:
            hash(skeleton)
        except TypeError:
            raise ProgramError(
                "an argument of an objective is neither an array nor hashable.",
                at=f"{kind} of {self._name}",
                got=", ".join(sorted({type(v).__name__ for kept, v in skeleton.static if kept})),
                expected="pytrees of arrays, and hashable objects",
                fix="pass arrays, or close over the object",
            ) from None
        key = as_key(key)
        if skeleton not in self._lengths:
            try:
                return called(skeleton, leaves)
            except ProgramError as error:
                if not error.needs_number or not any(map(python_integer, jax.tree.leaves(args))):
                    raise
        result = called(*partition(args, keep=python_integer))
        self._lengths.add(skeleton)
        return result

    def _value_and_grad(
        self, key: PRNGKeyArray, leaves: list[Array], *, skeleton: Skeleton, num_samples: int, argnums: Argnums
    ) -> Any:
        return self._gradient(key, skeleton.combine(leaves), num_samples, argnums)

    def _gradient(
        self, key: PRNGKeyArray, args: tuple[PyTree, ...], num_samples: SupportsIndex, argnums: Argnums
    ) -> Any:
        fn = lambda *args: self.estimate(key, *args, num_samples=num_samples)  # noqa: E731
        return jax.value_and_grad(fn, argnums=argnums, has_aux=self.has_aux)(*args)

    def _estimate(self, key: PRNGKeyArray, leaves: list[Array], *, skeleton: Skeleton, num_samples: int) -> Any:
        return cse(lambda key, leaves: self._average(key, skeleton, leaves, num_samples), key, leaves)

    def _average(self, key: PRNGKeyArray, skeleton: Skeleton, leaves: list[Array], num_samples: int) -> Any:
        staged = stage_program(_floating(self._program(), self.has_aux), skeleton.combine(leaves), {})
        _check_result(staged, self.has_aux, show_function(self.fn))
        plan = make_plan(staged)
        reasons = [f"the estimator of {p.site.at()}" for p in plan.runs_several]
        reasons += [f"num_samples={num_samples}"] if num_samples > 1 else []
        if reasons:
            check_unordered(plan.staged.jaxpr, reasons[0])
        if num_samples == 1:
            if plan.shares:
                raise _needs_samples(plan)
            sample = one_sample(plan, *draws(plan, key))
            return (sample.surrogate, staged.result(sample.outs)[1]) if self.has_aux else sample.surrogate
        noise = draws(plan, key, num_samples)
        samples = jax.vmap(functools.partial(one_sample, plan), axis_size=num_samples)(*noise)
        surrogates = samples.surrogate
        value = jnp.mean(surrogates)
        for mine, control in zip(samples.values, samples.shared_controls, strict=True):
            others = (jnp.sum(mine, axis=0) - mine) / (num_samples - 1)
            value += jnp.sum(lax.stop_gradient(others) * control) / num_samples
        return (value, staged.result(samples.outs)[1]) if self.has_aux else value


def _argument_number(given: object, count: int) -> Any:
    """Which of `count` arguments a number names, negative ones counting from the last; None where it is none."""
    number = operator.index(given) if is_integer(given) else count  # type: ignore[arg-type]
    return number % count if -count <= number < count else None


def expectation(fn: Callable | None = None, *, has_aux: bool = False) -> Any:
    """Makes an objective of a program that returns a scalar; a decorator.

    L(θ) = E[f(x; θ)], over all draws x of the program `fn(*args)`. `estimate(key, *args)` is unbiased for L, and its
    JAX derivatives are unbiased for those of L, each under the conditions of the estimators of its sites.

    Args:
      fn: a function that may call `sample`, and `simulate`, `assess`, `generate` of generative functions, without keys.
      has_aux: whether `fn` returns `(scalar, aux)`.

    Example:
      >>> import jax, numpyro.distributions as dist, vipl
      >>> @vipl.expectation
      ... def square(m):
      ...     return vipl.sample("x", dist.Normal(m, 1.0)) ** 2
      >>> jax.grad(square.estimate, argnums=1)(jax.random.key(0), 3.0).shape
      ()
    """
    if fn is None:
        return functools.partial(expectation, has_aux=has_aux)
    check_function(fn, "vipl.expectation")
    return Expectation(fn, has_aux)


def _floating(fn: Callable, has_aux: bool) -> Callable:
    """The program, with a Python integer as its result made a float: the sum of no terms is the integer 0."""

    def floating(value):
        return float(value) if type(value) is int else value

    @functools.wraps(fn, updated=())
    def program(*args):
        result = fn(*args)
        if has_aux and isinstance(result, tuple) and len(result) == 2:
            return floating(result[0]), result[1]
        return floating(result)

    return program


def _check_result(staged: Staged, has_aux: bool, name: str) -> None:
    outs = [v.aval for v in staged.jaxpr.jaxpr.outvars]
    result = staged.skeleton.combine(outs)
    if has_aux and (not isinstance(result, tuple) or len(result) != 2):
        raise ProgramError(
            "an objective with has_aux=True does not return a pair.",
            at=name,
            got=show_aval(result),
            expected="(scalar, aux)",
            fix="return (value, aux), or drop has_aux=True",
        )
    if has_aux and (others := not_arrays(staged.skeleton.combine([0.0] * len(outs))[1])):
        raise ProgramError(
            "the auxiliary output of an objective is not arrays.",
            at=name,
            got=", ".join(map(show_aval, others)),
            expected="a pytree of arrays",
            fix="return arrays, and close over the rest",
        )
    value: Any = result[0] if has_aux else result
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ProgramError(
            "an objective does not return a float scalar.",
            at=name,
            got=show_aval(value),
            expected="float[]" + (" first, then aux" if has_aux else ""),
            fix=_of_result(value),
        )


def _of_result(value: Any) -> str:
    """What makes a float scalar of what an objective returns."""
    if isinstance(value, Source):
        return "return a number: program.assess(choices).log_prob, or objectives such as vipl.objectives.elbo"
    if getattr(value, "shape", None) == () and jnp.issubdtype(value.dtype, jnp.complexfloating):
        return "take value.real, or jnp.abs(value)"
    if getattr(value, "shape", None) == ():
        return "make it a float: 1.0 * value, or value.astype(float)"
    return "reduce it with jnp.sum or jnp.mean; return aux with @vipl.expectation(has_aux=True)"


def _gradient_in_the_key(write: Argnums, at: str, got: str) -> ProgramError:
    return ProgramError(
        "a gradient is asked for in the key.",
        at=at,
        got=got,
        expected="numbers as in jax.value_and_grad(objective.estimate, argnums=1), where the key is argument 0",
        fix=f"write argnums={write}; the first argument after the key is 1",
    )


def _needs_samples(plan: Plan) -> EstimatorError:
    return EstimatorError(
        "a leave-one-out baseline has no other samples.",
        at=plan.shares[0].site.at(),
        got="num_samples=1",
        expected="num_samples of at least 2",
        fix="call estimate(key, ..., num_samples=4), or use another baseline",
    )
