"""Lanes that meet in the end of a program, inside lanes that never meet: joint values are the same in all of these."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipl
from tests.helpers.jaxprs import equations
from vipl import Enumerate, LeaveOneOut, Score, sample
from vipl.distributions._flips import BernoulliLogits, _log_bernoulli, total_log_bernoulli
from vipl.testing import assert_unbiased

LANES, UNITS, PIXELS = 4, 3, 5
KEY = jax.random.key(0)

# Units that are never, or always, on: by lane, or in all lanes.
PATTERNS = {
    "nowhere": np.zeros((LANES, UNITS)),
    "by lane": np.array([[0, 0, 0], [-np.inf, 0, 0], [0, np.inf, -np.inf], [0, 0, np.inf]]),
    "everywhere": np.array([[-np.inf, 0, 0]] * LANES),
}


def params():
    keys = jax.random.split(jax.random.key(3), 5)
    return {
        "down": jax.random.normal(keys[0], (UNITS, PIXELS)),
        "bias": jax.random.normal(keys[1], (PIXELS,)),
        "scale": jnp.array(0.7),
        "logits": jax.random.normal(keys[2], (LANES, UNITS)),
        "x": jax.random.normal(keys[3], (LANES,)),
        "pixels": jax.random.bernoulli(keys[4], 0.5, (LANES, PIXELS)).astype(int),
    }


def log_likelihood(p, h, pixels):
    return jnp.sum(BernoulliLogits(h @ p["down"] + p["bias"]).log_prob(pixels))


# (params, units h, a lane's number x, a lane's pixels) -> f[]; none adds up over units alone.
PROGRAMS = {
    "pixels": lambda p, h, x, pixels: log_likelihood(p, h, pixels),
    "pixels and units": lambda p, h, x, pixels: (
        log_likelihood(p, h, pixels) * p["scale"] + jnp.sum(h * p["down"][:, 0])
    ),
    "floats of units": lambda p, h, x, pixels: log_likelihood(p, h.astype(float) * p["scale"], pixels),
    "logits by lane": lambda p, h, x, pixels: jnp.sum(BernoulliLogits(h @ p["down"] + x * p["bias"]).log_prob(pixels)),
    "pixels one by one": lambda p, h, x, pixels: jnp.prod(BernoulliLogits(h @ p["down"]).log_prob(pixels) + 1.0),
    "two sums": lambda p, h, x, pixels: (
        jnp.sum(jnp.sum(BernoulliLogits(jnp.outer(h @ p["down"], p["bias"])).log_prob(pixels[:, None] * pixels), 0)) * x
    ),
    "a norm": lambda p, h, x, pixels: jnp.sqrt(jnp.sum(h * p["scale"] ** 2) + 0.1) * x,
    "a network": lambda p, h, x, pixels: (
        jnp.sum(jnp.tanh(jax.nn.softplus(h @ p["down"]) @ p["down"].T * p["scale"])) * x
    ),
    "a product": lambda p, h, x, pixels: jnp.prod(h + p["scale"]) * x,
    "cumulative": lambda p, h, x, pixels: jnp.sin(jnp.cumsum(h * p["scale"]))[-1] * x,
    "a row": lambda p, h, x, pixels: p["bias"][jnp.sum(h)] * x,
}


def exactly(program, mask):
    def total(p):
        out = 0.0
        for lane in range(LANES):
            logits = p["logits"][lane]
            for h in itertools.product(*([0, 1] if m == 0 else [int(m > 0)] for m in mask[lane])):
                free = [jax.nn.sigmoid(a if v else -a) for a, v, m in zip(logits, h, mask[lane], strict=True) if m == 0]
                weight = jnp.prod(jnp.stack(free)) if free else 1.0
                out += weight * program(p, jnp.array(h), p["x"][lane], p["pixels"][lane])
        return out

    return total


def by_vipl(program, mask, estimator=None):
    @vipl.expectation
    def total(p):
        def lane(logits, mask, x, pixels):
            units = dist.Bernoulli(logits=jnp.where(mask == 0, logits, mask)).to_event(1)
            return program(p, sample("h", units, estimator or Enumerate()), x, pixels)

        return jnp.sum(jax.vmap(lane)(p["logits"], jnp.asarray(mask), p["x"], p["pixels"]))

    return lambda p: total.estimate(KEY, p)


def close(got, want, rtol=1e-9):
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(want))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-10), got, want)


def differentiated(fn, p):
    """Value and gradient in the floats."""
    floats = {name: x for name, x in p.items() if name != "pixels"}
    return jax.jit(jax.value_and_grad(lambda floats: fn(floats | {"pixels": p["pixels"]})))(floats)


@pytest.mark.parametrize("pattern", ["by lane", "everywhere"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_layer_in_lanes_is_the_sum_over_what_is_possible(name, pattern):
    """Law: value and gradient are those of Σ_l Σ_h Π_u p(h_u) f(h, l) over the joint values that are possible."""
    p, mask = params(), PATTERNS[pattern]
    program = PROGRAMS[name]
    close(differentiated(by_vipl(program, mask), p), differentiated(exactly(program, mask), p))


# (params, units of all lanes, pixels of all lanes) -> f[]; lanes are added up with the pixels, each with a coefficient.
BATCHES = {
    "mean": lambda p, h, pixels: jnp.mean(BernoulliLogits(h @ p["down"] + p["bias"]).log_prob(pixels)) * p["scale"],
    "sum": lambda p, h, pixels: jnp.sum(BernoulliLogits(h @ p["down"] + p["bias"]).log_prob(pixels)),
    "weights": lambda p, h, pixels: jnp.sum(
        p["x"][:, None] * p["bias"] * BernoulliLogits(h @ p["down"]).log_prob(pixels)
    ),
    "mean of some": lambda p, h, pixels: jnp.mean(BernoulliLogits(h @ p["down"]).log_prob(pixels)[:, ::2]) * p["scale"],
    "masked": lambda p, h, pixels: jnp.sum(
        jnp.where(pixels == p["seen"], BernoulliLogits(h @ p["down"]).log_prob(1), 0.0)
    ),
    "read twice": lambda p, h, pixels: sum(
        jnp.sum(f(BernoulliLogits(h @ p["down"]).log_prob(pixels))) for f in (jnp.exp, lambda x: x * p["scale"])
    ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_that_is_added_up_at_once(name):
    """Law: the same for a vector site of all lanes, whose pixels are added up over lanes, too."""
    p, mask = params() | {"seen": jnp.array([0, 1, 1, 0, 1])}, PATTERNS["by lane"]

    @vipl.expectation
    def total(p):
        units = dist.Bernoulli(logits=jnp.where(mask == 0, p["logits"], jnp.asarray(mask))).to_event(2)
        return BATCHES[name](p, sample("h", units, Enumerate()), p["pixels"])

    def one(p, h, x, pixels):
        lane = jnp.argmax(p["x"] == x)
        alone = jnp.zeros((LANES, UNITS), int).at[lane].set(h)
        zero = jnp.zeros((LANES, UNITS), int)
        return BATCHES[name](p, alone, p["pixels"]) - BATCHES[name](p, zero, p["pixels"]) * (LANES - 1) / LANES

    floats = lambda fn: lambda q: fn(q | {"pixels": p["pixels"], "seen": p["seen"]})  # noqa: E731
    q = {k: v for k, v in p.items() if k not in ("pixels", "seen")}
    got, want = (
        jax.jit(jax.value_and_grad(floats(f)))(q) for f in (lambda p: total.estimate(KEY, p), exactly(one, mask))
    )
    close(got, want)


@pytest.mark.parametrize("estimator", [Enumerate(all_possible=True), None], ids=["promise", "plain"])
def test_its_second_derivatives_are_exact(estimator):
    p, mask = params(), PATTERNS["nowhere" if estimator else "by lane"]
    p = {k: x for k, x in p.items() if k != "pixels"}
    pixels = params()["pixels"]
    program = lambda p, h, x, _: log_likelihood(p, h, pixels[0]) * x  # noqa: E731
    got, want = (
        jax.jit(jax.hessian(lambda q, f=f: f(p | q | {"pixels": pixels})))({k: p[k] for k in ("down", "logits")})
        for f in (by_vipl(program, mask, estimator), exactly(program, mask))
    )
    close(got, want)


def test_what_is_no_number_at_an_impossible_joint_value_does_no_harm():
    """f is NaN where the first two units are off, which no lane can be: no derivative of that is seen."""
    p, two = params(), jnp.array([1, 1, 0])
    mask = np.array([[0, np.inf, 0], [np.inf, 0, 0], [np.inf, np.inf, 0], [0, np.inf, 0]])
    for program in (
        lambda p, h, x, _: jnp.log((h @ two) * p["scale"]) * x,
        lambda p, h, x, _: p["scale"] / jnp.sum(h[:2] @ jnp.ones((2, 2))) * x,
        lambda p, h, x, _: jax.nn.softplus(p["scale"] / (h @ two)) * x,
        lambda p, h, x, pixels: jnp.sum(BernoulliLogits(jnp.log(h @ two) * p["bias"] ** 2).log_prob(pixels)),
    ):
        close(differentiated(by_vipl(program, mask), p), differentiated(exactly(program, mask), p))


def test_what_is_no_number_in_one_lane_alone_does_no_harm():
    """f is NaN where the first two units are off, in the lanes where they cannot be."""
    p, two = params() | {"x": jnp.array([0.5, 0.7, -0.3, 0.2])}, jnp.array([1, 1, 0])
    mask = np.array([[0, np.inf, 0], [np.inf, 0, 0], [0, 0, np.inf], [0, np.inf, 0]])
    for program in (
        lambda p, h, x, pixels: jnp.sqrt(log_likelihood(p, h, pixels) + 1e3 * (h @ two + (x < 0))),
        lambda p, h, x, _: jnp.log((h @ two) * p["scale"] + (x < 0)) * x,
        lambda p, h, x, _: jnp.log(jnp.sum(h[:2]) * p["scale"] + (x < 0)) * x,
        lambda p, h, x, _: p["scale"] / (jax.nn.softplus(100.0 * jnp.sum(h[:2])) - np.log(2.0) + (x < 0)) * x,
    ):
        close(differentiated(by_vipl(program, mask), p), differentiated(exactly(program, mask), p))


def test_other_sites_around_and_beside():
    """An enumerated site outside decides what is possible; a second layer meets in the same end."""
    p = params()

    def lane(p, logits, x, pixels, s):
        first = jnp.where(s == 0, jnp.array([-jnp.inf, 0.3, np.inf]), logits)
        h = sample("h", dist.Bernoulli(logits=first).to_event(1), Enumerate())
        k = sample(
            "k", dist.CategoricalLogits(jnp.array([[0.1, -jnp.inf, 0.3], [0.0, 0.5, 1.0]])).to_event(1), Enumerate()
        )
        return log_likelihood(p, h, pixels) * jnp.sum(k * p["bias"][:2]) ** 2 * x

    @vipl.expectation
    def total(p):
        s = sample("s", dist.Bernoulli(0.4), Enumerate())
        return jnp.sum(jax.vmap(lambda a, x, y: lane(p, a, x, y, s))(p["logits"], p["x"], p["pixels"]))

    def exact(p):
        first, second = jax.nn.softmax(jnp.array([0.1, 0.3])), jax.nn.softmax(jnp.array([0.0, 0.5, 1.0]))
        of_second = sum(
            first[i] * second[j] * (k * p["bias"][0] + j * p["bias"][1]) ** 2
            for i, k in enumerate((0, 2))
            for j in range(3)
        )
        values = jnp.array(list(itertools.product((0, 1), repeat=UNITS)))

        def of_lane(logits, x, pixels):
            q = jnp.prod(jax.nn.sigmoid(jnp.where(values == 1, logits, -logits)), axis=1)
            return q @ jax.vmap(lambda h: log_likelihood(p, h, pixels))(values) * of_second * x

        fixed = jnp.broadcast_to(jnp.array([-1e9, 0.3, 1e9]), p["logits"].shape)
        return sum(
            weight * jnp.sum(jax.vmap(of_lane)(logits, p["x"], p["pixels"]))
            for logits, weight in ((fixed, 0.6), (p["logits"], 0.4))
        )

    close(differentiated(lambda p: total.estimate(KEY, p), p), differentiated(exact, p))


@pytest.mark.parametrize("written", ["in lanes", "as a batch"])
def test_nothing_of_joint_values_lanes_and_pixels_is_made(written):
    """Law: logits are computed once for all lanes, and the sums over pixels are products of matrices."""
    lanes, units, pixels = 20, 6, 30
    x = jnp.zeros((lanes, pixels), int)
    p = {"up": jnp.zeros((pixels, units)), "down": jnp.ones((units, pixels))}

    def elbo(p, x):
        guide = vipl.gen(lambda: sample("h", dist.Bernoulli(logits=x @ p["up"]).to_event(x.ndim), Enumerate()))

        @vipl.gen
        def model():
            h = sample("h", dist.Bernoulli(logits=jnp.zeros((*x.shape[:-1], units))).to_event(x.ndim))
            sample("x", dist.Bernoulli(logits=h @ p["down"]).to_event(x.ndim))

        return vipl.objectives.elbo(model(), guide(), {"x": x})

    @vipl.expectation
    def total(p):
        return elbo(p, x) / lanes if written == "as a batch" else jnp.mean(jax.vmap(lambda x: elbo(p, x))(x))

    found = list(equations(jax.make_jaxpr(jax.grad(lambda p: total.estimate(KEY, p)))(p)))
    most = max(v.aval.size for eqn in found for v in eqn.outvars if hasattr(v.aval, "size"))
    assert most == 2**units * max(pixels, lanes * units)
    assert not [eqn for eqn in found if "gather" in eqn.primitive.name or "scatter" in eqn.primitive.name]
    exps = [
        eqn for eqn in found
        if eqn.primitive.name in ("exp", "logistic") and eqn.outvars[0].aval.size > 2**units * lanes
    ]  # fmt: skip
    assert {eqn.outvars[0].aval.size for eqn in exps} == {2**units * pixels}


def test_samples_of_a_drawn_site_share_their_baseline():
    """A drawn site beside the layer, with a leave-one-out baseline: the mean of many samples is the sum."""
    p = params()

    @vipl.expectation
    def total(a):
        def lane(logits, x, pixels):
            h = sample("h", dist.Bernoulli(logits=logits).to_event(1), Enumerate())
            b = sample("b", dist.Bernoulli(logits=a + 0.0 * x), Score(LeaveOneOut()))
            return (log_likelihood(p, h, pixels) + 3.0) * (b + 0.5) + jnp.sum(h * p["down"][:, 0])

        return jnp.sum(jax.vmap(lane)(p["logits"], p["x"], p["pixels"]))

    program = lambda p, h, x, pixels: (log_likelihood(p, h, pixels) + 3.0) * p["b"] + jnp.sum(h * p["down"][:, 0])  # noqa: E731
    exact = lambda a: exactly(program, PATTERNS["nowhere"])(p | {"b": jax.nn.sigmoid(a) + 0.5})  # noqa: E731
    draw = functools.partial(total.value_and_grad, num_samples=2)
    assert_unbiased(draw, jax.value_and_grad(exact)(0.3), key=KEY, args=(0.3,), resolution=0.1)


# --- the sum of flips' log probabilities ------------------------------------------------------------------------------

SIGNS = {"none": None, "mixed": np.array([0.5, -2.0, 0.7]), "some zero": np.array([0.0, 2.0, -1.0])}
ODD = {
    "finite": (np.array([0.3, -2.0, 5.0]), [[0, 1, 1], [1, 1, 0]]),
    "infinite": (np.array([-np.inf, np.inf, 0.4]), [[0, 1, 1], [1, 1, 0], [0, 0, 1], [0, 1, 0]]),
    "neither 0 nor 1": (np.array([0.3, -2.0, 5.0]), [[0, 2, 1], [1, 1, -1], [1, 0, 1]]),
    "no number": (np.array([0.3, np.nan, 5.0]), [[0, 1, 1]]),
}


@pytest.mark.parametrize("signs", SIGNS)
@pytest.mark.parametrize("name", ODD)
def test_the_products_of_matrices_are_the_sum_over_pixels(name, signs):
    logits, values, c = jnp.asarray(ODD[name][0]), jnp.asarray(ODD[name][1]), SIGNS[signs]
    every = None if c is None else jnp.broadcast_to(c, values.shape)
    total = lambda logits, c: total_log_bernoulli(values, logits[None], c, (0,), (1,), ())  # noqa: E731
    each = lambda logits: _log_bernoulli(values, jnp.broadcast_to(logits, values.shape))  # noqa: E731
    weighted = each(logits) if c is None else jnp.where(c == 0, 0.0, c * each(logits))
    np.testing.assert_allclose(total(logits, every), jnp.sum(weighted, 1), rtol=1e-12)
    if name in ("finite", "infinite"):
        slope = jax.vmap(jax.vmap(jax.grad(_log_bernoulli, 1)), (0, None))(values, logits)
        np.testing.assert_allclose(
            jax.jacrev(total)(logits, every), slope if c is None else c * slope, rtol=1e-12, atol=1e-12
        )
        curved = jnp.diag(jax.jacfwd(jax.jacrev(lambda x: total(x, every)[0]))(jnp.ones(3)))
        want = -jax.nn.sigmoid(1.0) * jax.nn.sigmoid(-1.0) * (1.0 if c is None else c)
        np.testing.assert_allclose(curved, want, rtol=1e-12, atol=1e-12)
    if name == "finite" and c is not None:
        by_coefficient = jax.jacrev(total, 1)(logits, every)
        np.testing.assert_allclose(jnp.einsum("iij->ij", by_coefficient), each(logits), rtol=1e-12)


@pytest.mark.parametrize("coefficient", [None, 0.5])
def test_large_logits_lose_no_digits(coefficient):
    """In float32: what is certain adds nothing, however large its logit is."""
    small, largest = np.array([0.3, -1.0, 0.2], np.float32), np.finfo(np.float32).max
    values = jnp.array([[1, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0]])
    c = None if coefficient is None else jnp.full(values.shape, coefficient, jnp.float32)
    want = jnp.sum(_log_bernoulli(values[:, :3], jnp.broadcast_to(small, (2, 3))), 1) * (coefficient or 1.0)
    for certain in ([1e9, 1e9, -1e9], [largest, largest, -largest], [60.0, 80.0, -90.0]):
        logits = jnp.asarray(np.append(small, np.array(certain, np.float32)))
        got = total_log_bernoulli(values, logits[None], c, (0,), (1,), ())
        np.testing.assert_allclose(got, want, rtol=1e-6)


# --- sites in branches that enumerated sites choose ---------------------------------------------------------------


def one_branch(flip, branch, c, x):
    return branch(flip("k", x), lambda: 2.0 * flip("u", c), lambda: 0.5 * c)


def nested_branches(flip, branch, c, x):
    inner = lambda: branch(flip("m", x - c), lambda: 3.0 * flip("u", c), lambda: c * x)  # noqa: E731
    return branch(flip("k", x), inner, lambda: 1.0 + flip("w", -c))


def a_branch_in_steps(flip, branch, c, x, scan):
    def step(carry, y):
        new = branch(flip("k", x + 0.2 * carry), lambda: 2.0 * flip("u", c + y) + carry, lambda: c * y)
        return 0.5 * carry + new, new * carry

    last, each = scan(step, 0.3, np.array([0.5, -1.0]))
    return last + sum(each)


ENDS = {
    "product": lambda v: v[0] * v[1],
    "square of the sum": lambda v: (v[0] + v[1]) ** 2,
    "logsumexp": lambda v: jnp.logaddexp(v[0], v[1]),
}


def by_paths(value):
    """The exact expectation: `value` of a function that gives each flip's value, once for each way through it."""
    total, ways = 0.0, [()]
    while ways:
        way, taken, weight = ways.pop(), [], [1.0]

        def flip(_, logit, way=way, taken=taken, weight=weight):
            on = way[len(taken)] if len(taken) < len(way) else 0
            weight[0] *= jax.nn.sigmoid(logit if on else -logit)
            taken.append(on)
            return on

        found = value(flip)
        total += weight[0] * found
        ways += [(*taken[:i], 1) for i in range(len(way), len(taken))]
    return total


def steps_of_python(step, carry, xs):
    each = []
    for x in xs:
        carry, y = step(carry, x)
        each.append(y)
    return carry, each


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("lane", [one_branch, nested_branches, a_branch_in_steps], ids=lambda f: f.__name__)
def test_a_branch_that_enumerated_lanes_choose(lane, end):
    """What a site of the branch hands out counts where the branch is taken, at each joint value of the lanes."""
    xs, in_steps = jnp.array([0.3, -0.8]), lane is a_branch_in_steps

    def program(c):
        flip = lambda name, logit: sample(name, dist.Bernoulli(logits=logit))  # noqa: E731
        branch = lambda k, yes, no: jax.lax.cond(k == 1, lambda: 1.0 * yes(), lambda: 1.0 * no())  # noqa: E731
        scan = {"scan": jax.lax.scan} if in_steps else {}
        return ENDS[end](jax.vmap(lambda x: lane(flip, branch, c, x, **scan))(xs))

    def exactly(c):
        branch = lambda k, yes, no: yes() if k else no()  # noqa: E731
        scan = {"scan": steps_of_python} if in_steps else {}
        return by_paths(lambda flip: ENDS[end]([lane(flip, branch, c, x, **scan) for x in xs]))

    expected = jax.value_and_grad(exactly)(0.7)
    names = "kmuw" if lane is nested_branches else "ku"
    enumerated = vipl.expectation(program).with_estimators(dict.fromkeys(names, Enumerate()))
    np.testing.assert_allclose(enumerated.value_and_grad(KEY, 0.7), expected, rtol=1e-9)
    if lane is one_branch:  # the score of a site in a branch, too
        scored = vipl.expectation(program).with_estimators({"k": Enumerate(), "u": Score()})
        assert_unbiased(lambda key: scored.value_and_grad(key, 0.7), expected, key=KEY, resolution=0.05)
