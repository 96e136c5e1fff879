"""The plan of an expectation: what each site will do, known before anything runs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vipl import _jax
from vipl._jax import Jaxpr, ShapedArray, Var
from vipl._types import Array
from vipl.analysis.decomposition import FEW, Costs, find_costs
from vipl.analysis.dependence import Dependences, find_dependence
from vipl.analysis.index import Indexed, values_of
from vipl.analysis.joint_end import JointEnd, find_joint_end
from vipl.analysis.supports import check_marks
from vipl.analysis.window import Axis
from vipl.errors import EstimatorError, ProgramError
from vipl.estimators._enumerate import MAX_POINTS
from vipl.estimators._reparam import Reparam
from vipl.estimators._score import Score
from vipl.expectation.common import never_stands_in
from vipl.expectation.vector_sites import Axes, Vectors, separate_sites
from vipl.gen import Draw, Points
from vipl.gen._density import is_factor
from vipl.gen._points import points_of
from vipl.interpret.noise import SiteProgram
from vipl.ir import fence
from vipl.ir.keys import check_digests
from vipl.ir.partition import partition
from vipl.ir.primitives import Path, Site, lanes_p, sample_p
from vipl.ir.sites import SiteInfo, list_sites
from vipl.ir.stage import Staged
from vipl.passes.pipeline import prepare
from vipl.passes.unroll import Origin, origins


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a program before it runs.

    Attributes:
      staged: the staged program.
      found: its sites.
      origins: path -> what the site was before loops were written out; noise is drawn for that.
      programs: path -> the site's program.
      reached: what the sites that weigh anything reach.
      costs: the objective, taken apart.
      apart: for each site with several values, and each loop around it: whether all that it reaches stays in its
        lane. Then all lanes take their values at once.
      indices: the values of what costs are indexed by.
    """

    staged: Staged
    found: list[SiteInfo]
    origins: dict[Path, Origin]
    programs: dict[Path, SiteProgram]
    reached: Dependences
    costs: Costs
    apart: dict[Path, tuple[bool, ...]]
    indices: dict[Var, Array]

    @functools.cached_property
    def enumerated(self) -> list[SiteInfo]:
        """The sites that are evaluated at all their values."""
        return [p for p in self.found if p.path in self.programs and isinstance(self.points(p), Points)]

    @functools.cached_property
    def in_branches(self) -> set[Path]:
        """The sites that stand in a branch of a `cond`."""
        return {p.path for p in self.found if p.in_branch}

    @functools.cached_property
    def in_common(self) -> dict[int, SiteInfo]:
        """Equation -> the enumerated site that it holds and nothing else, if lanes have its values in common."""
        found = {p.path[0]: p for p in self.enumerated if self._is_common(p)}
        # Inside a `shard_map` JAX has no collectives along the axes of a `vmap`, by which values would be spread.
        return found if self.reached.values is not None and not _jax.axes_that_vary() else {}

    def _is_common(self, info: SiteInfo) -> bool:
        at_end = () if self.joint_end is None else self.joint_end.lanes.get(info.path, ())
        apart = [alone or i in at_end for i, alone in enumerate(self.apart[info.path])]
        lanes = all(loop.kind == "lane" for loop in info.loops) and all(apart)
        fixed = self.programs[info.path].fixed.values is not None
        if not (lanes and fixed and _alone(self.staged.jaxpr, info.path)):
            return False
        if at_end:
            return math.prod(n for i, n in enumerate(info.loop_shape) if i not in at_end) > 1
        return info.count > 1 or (not info.loops and self._serves_a_vmap(info))

    def _serves_a_vmap(self, info: SiteInfo) -> bool:
        """Whether a site without loops is as quick with its values in common, and quicker in a `vmap` around."""
        if self.points(info).possible is None:
            return True
        if self.costs.picking:  # then the objective's value counts as well, also where the site's is not possible
            return False
        others = {p.path for p in self.enumerated} - {info.path}
        eqns = _jax.parts(self.staged.jaxpr).eqns
        return never_stands_in(eqns, self.reached.values or {}, info.path, others)

    @functools.cached_property
    def only_summed(self) -> dict[Var, tuple[int, ...]]:
        """Leaves of costs of which nothing but sums is wanted, and the axes that are kept."""
        outs = _jax.parts(self.staged.jaxpr).outvars
        return {v: axes for v, axes in self.costs.leaves.items() if not any(v is out for out in outs)}

    @functools.cached_property
    def runs(self) -> Runs:
        """The runs at other values."""
        full, num_full = self._number_runs("alternatives", 0)
        pruned, end = self._number_runs("pruned", num_full)
        return Runs(full | pruned, num_full, end - num_full)

    @functools.cached_property
    def pruned_order(self) -> np.ndarray | None:
        """For each run of which one is made, its number where no loop is written out -> its number; None: the same."""
        return _pruned_order(self)

    @functools.cached_property
    def is_long(self) -> bool:
        """Whether sites read one another in so long a chain that values are computed once (`vipl.ir.fence`)."""
        return any(len(self.programs.keys() & reach) > fence.FEW for reach in self.reached.sites.values())

    @functools.cached_property
    def cost_groups(self) -> list[list[int]]:
        """The numbers of costs that are weighed together, as one array: alike in shape, if they are many."""
        costs = self.costs.costs
        if len(costs) <= FEW:
            return [[k] for k in range(len(costs))]
        groups: dict[Any, list[int]] = {}
        for k, cost in enumerate(costs):
            groups.setdefault((cost.sizes, k if cost.mixed else None), []).append(k)
        return list(groups.values())

    @functools.cached_property
    def shares(self) -> list[SiteInfo]:
        """The sites whose baseline is the other samples' value."""
        return [p for p, points in self._draws() if points.shared_control is not None]

    @functools.cached_property
    def joint_end(self) -> JointEnd | None:
        """The end of the program in which lanes of enumerated sites meet, if they meet nowhere else."""
        has_control = any(points.control is not None for _, points in self._draws())
        return None if has_control or self.runs.first else _find_joint_end(self)

    @property
    def runs_several(self) -> list[SiteInfo]:
        """The sites for which the program is run at several values."""
        return [*self.enumerated, *(p for p in self.found if p.path in self.runs.first)]

    def points(self, info: SiteInfo) -> Any:
        """What the estimator of a site puts in its place: the shapes of a `Draw` or of `Points`."""
        return self.programs[info.path].shape

    def together(self, info: SiteInfo) -> tuple[int, ...]:
        """The sizes of the loops around a site whose passes take their values one by one, jointly."""
        return tuple(n for n, apart in zip(info.loop_shape, self.apart[info.path], strict=True) if not apart)

    def at(self, path: Path) -> str:
        """A site as messages write it."""
        return next(p.site.at() for p in self.found if p.path == path)

    def run_shape(self, info: SiteInfo) -> tuple[int, ...]:
        """How many passes of each loop take alternatives one by one, and how many alternatives there are."""
        points = self.points(info)
        others = points.alternatives if points.pruned is None else points.pruned
        return (*self.together(info), others.weights.shape[0])

    def _draws(self) -> list[tuple[SiteInfo, Draw]]:
        shapes = [(p, self.points(p)) for p in self.found if p.path in self.programs]
        return [(p, points) for p, points in shapes if isinstance(points, Draw)]

    def _number_runs(self, kind: str, start: int) -> tuple[dict[Path, int], int]:
        first = {}
        for p, points in self._draws():
            if getattr(points, kind) is not None and (count := math.prod(self.run_shape(p))):
                first[p.path] = start
                start += count
        return first, start


class Runs(NamedTuple):
    """The runs of a program in which a site has another value than its draw.

    Attributes:
      first: the sites with alternatives, and the number of the first run of each; the pruned ones last. A site without
        elements, or in a loop without passes, has none.
      num_full: how many runs are made.
      num_pruned: how many runs there are besides, of which one is made.
    """

    first: dict[Path, int]
    num_full: int
    num_pruned: int


def make_plan(staged: Staged) -> Plan:
    """Finds the sites of a program, and asks their estimators what they will do."""
    check_marks(staged.jaxpr)
    program, vectors = separate_sites(staged.jaxpr, _with_estimator, {})
    plan = _plan(staged._replace(jaxpr=program))
    if fewer := _axes_that_help(plan, vectors):
        program, _ = separate_sites(staged.jaxpr, _with_estimator, fewer)
        plan = _plan(staged._replace(jaxpr=program))
    _check_enumeration(plan)
    return plan


def _axes_that_help(plan: Plan, vectors: Vectors) -> Axes:
    """Of vector sites that were taken apart, those with axes along which nothing is told apart: how many to keep.

    A whole vector is less to compute than its elements where these count together.
    """
    fewer = {}
    for (address, whole_shape), vector in vectors.items():
        ndim, numbers = len(vector.shape), [0]
        for p in plan.found:  # one address may stand in several branches
            if p.site.address != address or (*p.loop_shape[-ndim:], *p.site.shape) != whole_shape:
                continue
            helps = _told_apart(plan, p)[-ndim:]
            last = max([i + 1 for i, x in enumerate(helps) if x] or [0])
            numbers.append((*helps, False).index(False) if vector.joint else last)
        if max(numbers) < ndim:
            fewer[address, whole_shape] = max(numbers)
    return fewer


def _told_apart(plan: Plan, info: SiteInfo) -> Sequence[bool]:
    """For each loop around a site, whether its passes are told apart somewhere."""
    points, path = plan.points(info), info.path
    if isinstance(points, Points):
        at_end = () if plan.joint_end is None else plan.joint_end.lanes.get(path, ())
        return [apart or i in at_end for i, apart in enumerate(plan.apart[path])]
    if points.alternatives is not None or points.pruned is not None:
        return plan.apart[path]
    axes = [cost.reach[path] for cost in plan.costs.costs if path in cost.reach]
    return [any(a is not None for a in each) for each in zip(*axes, strict=True)] or [False] * len(info.loops)


def _plan(staged: Staged) -> Plan:
    before = origins(staged.jaxpr)
    staged = staged._replace(jaxpr=prepare(staged.jaxpr, any(_may_weigh(origin.info) for origin in before)))
    found = [p._replace(site=_with_estimator(p.site, p.avals)) for p in list_sites(staged.jaxpr)]
    came_from = {p.path: origin for p, origin in zip(found, before, strict=True)}
    check_digests([origin.info for origin in before])
    _check_factors(found)
    _check_weights(list_sites(staged.jaxpr, whole=True))
    # The operands of a step that is written out may be of weaker types than those of the loop's body.
    programs = {p.path: points_of(p.site, came_from[p.path].info.avals) for p in found if p.outside_while is None}
    weighing = {p.path: len(p.loops) for p in found if p.path in programs and _weighs(programs[p.path].shape)}
    reached = find_dependence(staged.jaxpr, weighing) if weighing else Dependences({}, {}, {})
    # A baseline that is given from outside stands for the whole objective, which is then left whole for its site.
    whole = [path for path, program in programs.items() if getattr(program.shape, "control", None) is not None]
    weights_alone = all(_has_weights_alone(programs[path].shape) for path in weighing)
    costs = find_costs(staged.jaxpr, weighing, reached, whole, weights_alone)
    # A control is one number for the whole program: its expected value is one over all joint values.
    apart = {p.path: _apart(p, costs, programs[p.path].shape, bool(whole)) for p in found if p.path in programs}
    axes = [a for cost in (*costs.costs, *costs.aux) for of_site in cost.reach.values() for a in of_site]
    columns = {column.index: None for a in axes if isinstance(a, Indexed) for column in a.columns}
    indices = values_of(staged.jaxpr, list(columns))
    return Plan(staged, found, came_from, programs, reached, costs, apart, indices)


def _alone(jaxpr: Jaxpr, path: Path) -> bool:
    """Whether the equation that leads to a site holds lanes and that site alone."""
    eqn = _jax.parts(jaxpr).eqns[path[0]]
    if len(path) == 1:
        return eqn.primitive is sample_p
    inside: Any = eqn.params.get("jaxpr")
    return eqn.primitive is lanes_p and len(_jax.parts(inside).eqns) == 1 and _alone(inside, path[1:])


def _check_factors(found: list[SiteInfo]) -> None:
    for info in found:
        if is_factor(info.site):
            raise ProgramError(
                "a factor stands in an objective, outside every generative function, where it weighs nothing.",
                at=info.site.at(),
                got="vipl.factor in a program that is not simulated, assessed or generated",
                expected="a factor inside a function decorated with @vipl.gen",
                fix="add the log weight to the objective's value, or move it into the model",
            )


def _check_weights(found: list[SiteInfo]) -> None:
    for info in found:
        if info.site.scaled:
            raise ProgramError(
                "a scaled source stands in an objective, outside every generative function, where it weighs nothing.",
                at=info.site.at(),
                got="vipl.scaled in a program that is not simulated, assessed or generated",
                expected="a scaled source inside a function decorated with @vipl.gen",
                fix="sample from the source itself; scale a term of the objective by multiplying it",
            )


def _pruned_order(plan: Plan) -> np.ndarray | None:
    """See `Plan.pruned_order`: with the same key the same run is picked, whether loops are written out or not."""
    pruned = [p for p in plan.found if plan.runs.first.get(p.path, -1) >= plan.runs.num_full]
    if all(number is None for p in pruned for number in plan.origins[p.path].passes):
        return None
    groups: dict[Any, list[SiteInfo]] = {}
    for p in pruned:  # those that differ in which lanes are apart have no common numbers
        groups.setdefault((plan.origins[p.path].info.path, plan.apart[p.path]), []).append(p)
    order, start = np.zeros(plan.runs.num_pruned, np.int32), 0
    for members in groups.values():
        shapes = [plan.run_shape(p) for p in members]
        count = sum(map(math.prod, shapes))
        numbers = _loop_numbers(plan, members).reshape(-1) + start
        firsts = [plan.runs.first[p.path] - plan.runs.num_full for p in members]
        own = [first + np.arange(math.prod(shape)) for first, shape in zip(firsts, shapes, strict=True)]
        order[numbers] = np.concatenate(own)
        start += count
    return order


def _loop_numbers(plan: Plan, members: list[SiteInfo]) -> np.ndarray:
    """For passes of one loop, in order, the numbers that their runs have in the loop: i[runs]."""
    keys = []
    for p in members:
        origin, kept = plan.origins[p.path], iter(plan.apart[p.path])
        digits = iter(np.indices(plan.run_shape(p)).reshape(len(plan.run_shape(p)), -1))
        together = [n if n is not None else next(digits) for n in origin.passes if n is not None or not next(kept)]
        keys.append(np.broadcast_arrays(*together, next(digits)))
    joined = [np.concatenate(column) for column in zip(*keys, strict=True)]
    numbers = np.empty(len(joined[0]), np.int64)
    numbers[np.lexsort(joined[::-1])] = np.arange(len(numbers))
    return numbers


def _find_joint_end(plan: Plan) -> JointEnd | None:
    """Where the lanes of enumerated sites meet that are not apart in the costs."""
    if plan.reached.values is None or any(p.path not in plan.reached.sites for p in plan.found):
        return None
    lanes = {
        p.path: tuple(
            i for i, (loop, apart) in enumerate(zip(p.loops, plan.apart[p.path], strict=True))
            if loop.kind == "lane" and not apart and loop.size > 1
        )
        for p in plan.enumerated
    }  # fmt: skip
    costs = plan.costs
    outs = [*_jax.parts(plan.staged.jaxpr).outvars]
    outs += [v for cost in costs.costs for v, _ in cost.leaves] + [v for eqn in costs.tail for v in eqn.invars]
    return find_joint_end(plan.staged.jaxpr, plan.reached.values, plan.reached.sites, outs, lanes)


def _may_weigh(info: SiteInfo) -> bool:
    site = _with_estimator(info.site, info.avals)
    return not is_factor(site) and site.estimator.combine(info.avals[site.num_distribution :]).has_weights  # type: ignore[union-attr]


def _weighs(points: Draw | Points) -> bool:
    return isinstance(points, Points) or any(x is not None for x in points._replace(fixed=None, point=None)[1:])


def _has_weights_alone(points: Draw | Points) -> bool:
    """Whether an estimator runs the program at its draw alone, and has no control of its own."""
    return isinstance(points, Draw) and points.alternatives is points.pruned is points.control is None


def _apart(info: SiteInfo, costs: Costs, points: Draw | Points, has_control: bool) -> tuple[bool, ...]:
    """For each loop around a site, whether it runs along an axis of everything that the site reaches."""
    if has_control and isinstance(points, Points):
        return (False,) * len(info.loops)
    every = [cost.reach[info.path] for cost in (*costs.costs, *costs.aux) if info.path in cost.reach]
    return tuple(all(_one_each(axes[i]) for axes in every) for i in range(len(info.loops)))


def _one_each(a: Axis | None) -> bool:
    """Whether each element along an axis depends on one pass of the loop."""
    return isinstance(a, int) or (isinstance(a, Indexed) and not a.sums)


def _with_estimator(site: Site, avals: tuple[ShapedArray, ...]) -> Site:
    """Gives a site without an estimator the default one."""
    if site.estimator is not None or is_factor(site):
        return site
    reparametrized = site.distribution.combine(avals[: site.num_distribution]).has_rsample
    skeleton, _ = partition(Reparam() if reparametrized else Score())
    return dataclasses.replace(site, estimator=skeleton)


def _check_enumeration(plan: Plan) -> None:
    total = 1
    for p in plan.enumerated:
        size, count = plan.points(p).log_weights.shape[0], math.prod(plan.together(p))
        total *= size**count
        if total > MAX_POINTS:
            loops = [loop for loop, apart in zip(p.loops, plan.apart[p.path], strict=True) if not apart]
            around = " x ".join(f"{loop.size} {loop.kind}s" for loop in loops) or "no loop"
            raise EstimatorError(
                "a program has too many joint values to enumerate.",
                at=p.site.at(),
                got=f"{size} values at each of {count} visits ({around}), and {len(plan.enumerated)} enumerated sites",
                expected=f"at most {MAX_POINTS} joint values",
                fix="use MeasureValued() or Score() there; or map `estimate` over independent data, not the site",
            )
