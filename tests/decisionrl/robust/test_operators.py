"""The six worst-case operators, against optimization over the distributions themselves, and what relates them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from decisionrl.robust import operators
from decisionrl.robust.ambiguity import Ball, Penalty, RadiusError

BALLS = {"tv": operators.tv_ball, "kl": operators.kl_ball, "chi2": operators.chi2_ball}
PENALTIES = {"tv": operators.tv_penalty, "kl": operators.kl_penalty, "chi2": operators.chi2_penalty}
DIVERGENCES = sorted(BALLS)
EVERY = pytest.mark.parametrize("divergence", DIVERGENCES)


def tensor(*numbers):
    return torch.tensor(*numbers, dtype=torch.float64)


def random_case(seed, *, states=6, zeros=False, ties=False):
    rng = np.random.default_rng(seed)
    values, p = rng.random(states) * rng.choice([0.1, 1.0, 5.0]), rng.dirichlet(np.full(states, 0.7))
    if zeros:
        p[rng.integers(states)] = 0
        p /= p.sum()
    if ties:
        values[1] = values[0]
    return values, p


# --------------------------------------------------------------------------------------- against the primal


def tv_program(values, p, *, radius=None, weight=None):
    """min q . V (+ weight * sum |q - p| / 2) over distributions q, as a linear program in (q, |q - p|)."""
    n = len(values)
    eye = np.eye(n)
    above = [np.hstack([eye, -eye]), np.hstack([-eye, -eye])]
    bound = [p, -p]
    if radius is not None:
        above.append(np.hstack([np.zeros(n), np.ones(n)])[None])
        bound.append(np.array([2 * radius]))
    cost = np.concatenate([values, np.full(n, 0.0 if weight is None else weight / 2)])
    found = optimize.linprog(
        cost,
        A_ub=np.vstack(above),
        b_ub=np.concatenate(bound),
        A_eq=np.hstack([np.ones(n), np.zeros(n)])[None],
        b_eq=[1],
        bounds=[(0, None)] * (2 * n),
    )
    assert found.success
    return found.fun


def smooth_primal(divergence, values, p, *, radius=None, weight=None):
    """The smallest E_q V found by SLSQP over q on the support of p; from above, as any feasible q is."""
    keep = p > 0
    values, p = values[keep], p[keep]

    def distance(q):
        q = np.maximum(q, 1e-300)
        return (q * np.log(q / p)).sum() if divergence == "kl" else ((q - p) ** 2 / p).sum()

    constraints = [{"type": "eq", "fun": lambda q: q.sum() - 1}]
    objective = values.__matmul__
    if weight is not None:

        def objective(q):
            return values @ q + weight * distance(q)
    else:
        constraints.append({"type": "ineq", "fun": lambda q: radius - distance(q)})
    found = optimize.minimize(
        objective,
        p,
        bounds=[(0, 1)] * len(p),
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.fun


@pytest.mark.parametrize("seed", range(12))
def test_total_variation_is_the_linear_program(seed):
    values, p = random_case(seed, zeros=seed % 3 == 0, ties=seed % 4 == 0)
    for level in (0.0, 0.05, 0.3, 0.7, 1.0):
        ball = operators.tv_ball(tensor(values), tensor(p), tensor(level))
        assert float(ball) == pytest.approx(tv_program(values, p, radius=level), abs=1e-12)
    for weight in (0.01, 0.2, 1.0, 10.0):
        penalty = operators.tv_penalty(tensor(values), tensor(p), tensor(weight))
        assert float(penalty) == pytest.approx(tv_program(values, p, weight=weight), abs=1e-12)


@pytest.mark.parametrize("divergence", ["kl", "chi2"])
@pytest.mark.parametrize("seed", range(5))
def test_kl_and_chi_square_are_the_convex_program(divergence, seed):
    values, p = random_case(seed + 100, states=5, zeros=seed % 3 == 0, ties=seed % 4 == 0)
    for level in (0.02, 0.2, 0.6):
        ball = float(BALLS[divergence](tensor(values), tensor(p), tensor(level)))
        assert ball == pytest.approx(smooth_primal(divergence, values, p, radius=level), abs=1e-6)
    for weight in (0.3, 1.0, 5.0):
        penalty = float(PENALTIES[divergence](tensor(values), tensor(p), tensor(weight)))
        assert penalty == pytest.approx(smooth_primal(divergence, values, p, weight=weight), abs=1e-6)


def test_against_the_dual_on_a_fine_grid():
    values, p = random_case(7)
    v, mass, rho = tensor(values), tensor(p), 0.4
    a = torch.linspace(values.min(), values.max(), 200_001, dtype=torch.float64)
    cut = v.minimum(a[:, None])
    mean, variance = cut @ mass, cut.square() @ mass - (cut @ mass) ** 2
    assert float(operators.chi2_ball(v, mass, tensor(rho))) == pytest.approx(
        float((mean - (rho * variance.clamp(min=0)).sqrt()).max()), abs=1e-8
    )
    assert float(operators.chi2_penalty(v, mass, tensor(rho))) == pytest.approx(
        float((mean - variance / (4 * rho)).max()), abs=1e-8
    )
    b = torch.logspace(-3, 3, 200_001, dtype=torch.float64)
    dual = -b * (mass.log() - v / b[:, None]).logsumexp(-1) - b * rho
    assert float(operators.kl_ball(v, mass, tensor(rho))) == pytest.approx(float(dual.max()), abs=1e-8)


# ----------------------------------------------------------------------------------------------- properties


@given(seed=st.integers(0, 10_000), radius=st.floats(1e-6, 0.95), shift=st.floats(-3, 3), scale=st.floats(0.01, 20))
@settings(max_examples=40, deadline=None)
def test_shift_scale_and_order(seed, radius, shift, scale):
    values, p = (tensor(part) for part in random_case(seed, zeros=seed % 2 == 0))
    rho = tensor(radius)
    mean, least = (p * values).sum(), values[p > 0].min()
    for divergence, ball in BALLS.items():
        worst = ball(values, p, rho)
        torch.testing.assert_close(ball(scale * values + shift, p, rho), scale * worst + shift, atol=1e-9, rtol=1e-9)
        penalized = PENALTIES[divergence](values, p, rho)
        both = PENALTIES[divergence](scale * values + shift, p, scale * rho)
        torch.testing.assert_close(both, scale * penalized + shift, atol=1e-9, rtol=1e-9)
        bottom = values.min() if divergence == "tv" else least
        for value in (worst, penalized):
            assert bottom - 1e-12 <= value <= mean + 1e-12


@EVERY
@pytest.mark.parametrize("seed", range(5))
def test_monotone_in_radius_and_weight(divergence, seed):
    values, p = (tensor(part) for part in random_case(seed))
    radii = torch.linspace(0, 1, 101, dtype=torch.float64)
    worst = BALLS[divergence](values, p, radii)
    assert (worst.diff() <= 1e-12).all()
    assert float(worst[0]) == pytest.approx(float(p @ values), abs=1e-12)
    weights = torch.logspace(-3, 4, 101, dtype=torch.float64)
    penalized = PENALTIES[divergence](values, p, weights)
    assert (penalized.diff() >= -1e-12).all()
    assert float(penalized[-1]) == pytest.approx(float(p @ values), abs=2e-3)


@EVERY
@pytest.mark.parametrize("seed", range(5))
def test_a_ball_is_the_dearest_penalty(divergence, seed):
    """Lagrange: ball(rho) = max over lam of penalty(lam) - lam rho."""
    values, p = (tensor(part) for part in random_case(seed))
    weights = torch.logspace(-5, 3, 40_001, dtype=torch.float64)
    penalized = PENALTIES[divergence](values, p, weights)
    for rho in (0.05, 0.3):
        best = (penalized - weights * rho).max()
        worst = BALLS[divergence](values, p, tensor(rho))
        assert best <= worst + 1e-12
        assert float(best) == pytest.approx(float(worst), abs=2e-4 if divergence == "tv" else 1e-6)


@pytest.mark.parametrize("seed", range(30))
def test_the_divergences_are_ordered(seed):
    """Pinsker, its chi-square relative, and KL <= log(1 + chi-square)."""
    values, p = (tensor(part) for part in random_case(seed))
    for rho in (1e-3, 0.05, 0.5, 1.5):
        tv, kl, chi2 = (lambda r, f=BALLS[name]: f(values, p, tensor(r)) for name in ("tv", "kl", "chi2"))
        assert kl(rho) >= tv(min(1.0, (rho / 2) ** 0.5)) - 1e-12
        assert chi2(rho) >= tv(min(1.0, rho**0.5 / 2)) - 1e-12
        assert kl(np.log1p(rho)) <= chi2(rho) + 1e-12


@pytest.mark.parametrize("seed", range(10))
def test_kl_of_small_and_large_radius(seed):
    values, p = (tensor(part) for part in random_case(seed))
    mean = p @ values
    variance = p @ (values - mean).square()
    for rho, slack in ((1e-8, 1e-3), (1e-6, 3e-3)):
        loss = mean - operators.kl_ball(values, p, tensor(rho))
        assert float(loss / (2 * rho * variance).sqrt()) == pytest.approx(1, abs=slack)
    assert operators.kl_ball(values, p, tensor(200.0)) == values.min()
    # just inside and outside the radius at which all mass can be on the smallest value
    edge = -p[values.argmin()].log()
    inside = operators.kl_ball(values, p, edge * (1 - 1e-9))
    assert float(inside) == pytest.approx(float(values.min()), abs=1e-6)
    assert operators.kl_ball(values, p, edge) == values.min()


def test_kl_and_chi_square_stay_on_the_support_and_total_variation_does_not():
    values, p = tensor([0.0, 0.5, 1.0]), tensor([0.0, 0.5, 0.5])
    assert float(operators.tv_ball(values, p, tensor(1.0))) == 0.0
    for ball in (operators.kl_ball, operators.chi2_ball):
        assert float(ball(values, p, tensor(50.0))) == 0.5
    support = operators.tv_ball(values, p, tensor(1.0), minimum=tensor(0.5))
    assert float(support) == 0.5
    assert float(operators.tv_penalty(values, p, tensor(0.1), minimum=tensor(0.5))) == pytest.approx(0.55)


@EVERY
def test_certain_outcomes_and_constant_values(divergence):
    dirac, values = tensor([0.0, 1.0, 0.0]), tensor([0.2, 0.7, 0.9])
    constant = torch.full((3,), 0.4, dtype=torch.float64)
    spread = tensor([0.2, 0.3, 0.5])
    for operator in (BALLS[divergence], PENALTIES[divergence]):
        assert float(operator(constant, spread, tensor(0.3))) == pytest.approx(0.4, abs=1e-15)
        if divergence != "tv":
            assert float(operator(values, dirac, tensor(0.3))) == pytest.approx(0.7, abs=1e-15)
        single = operator(tensor([0.3]), tensor([1.0]), tensor(0.3))
        assert float(single) == pytest.approx(0.3, abs=1e-15)


@EVERY
def test_batches_are_rows(divergence):
    rng = np.random.default_rng(0)
    values, p = tensor(rng.random((4, 1, 6))), tensor(rng.dirichlet(np.ones(6), size=(3,)))
    levels = tensor(rng.random((5, 1, 1)) + 0.01).minimum(tensor(1.0))
    for operator in (BALLS[divergence], PENALTIES[divergence]):
        table = operator(values, p, levels)
        assert table.shape == (5, 4, 3)
        for i, j, k in np.ndindex(5, 4, 3):
            row = operator(values[j, 0], p[k], levels[i, 0, 0])
            torch.testing.assert_close(table[i, j, k], row, atol=1e-12, rtol=0)


@EVERY
def test_the_order_of_states_does_not_matter(divergence):
    values, p = (tensor(part) for part in random_case(3, ties=True))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    for operator in (BALLS[divergence], PENALTIES[divergence]):
        straight, shuffled = operator(values, p, tensor(0.3)), operator(values[order], p[order], tensor(0.3))
        torch.testing.assert_close(straight, shuffled, atol=1e-13, rtol=0)


# ---------------------------------------------------------------------------------------------- coefficients


def estimates(divergence, values, c, level, cap, *, unseen="zero"):
    """The estimated ball and penalty."""
    if divergence == "tv":
        return (
            operators.estimated_tv_ball(values, c, level, cap=cap),
            operators.estimated_tv_penalty(values, c, level),
        )
    if divergence == "kl":
        return (
            operators.estimated_kl_ball(values, c, level, cap=cap, unseen=unseen),
            operators.estimated_kl_penalty(values, c, level, cap=cap, unseen=unseen),
        )
    return (
        operators.estimated_chi2_ball(values, c, level, cap=cap),
        operators.estimated_chi2_penalty(values, c, level, cap=cap),
    )


@EVERY
@pytest.mark.parametrize("unseen", ["zero", "cap"])
@pytest.mark.parametrize("seed", range(5))
def test_estimates_are_exact_where_the_coefficients_are_the_distribution(divergence, unseen, seed):
    values, p = (tensor(part) for part in random_case(seed))
    values = values - values.min()  # a fail state
    for level in (0.0, 1e-3, 0.1, 0.5, 1.0):
        ball, penalty = estimates(divergence, values, p, tensor(level), 6.0, unseen=unseen)
        torch.testing.assert_close(ball, BALLS[divergence](values, p, tensor(level)), atol=1e-7, rtol=1e-7)
        if level:
            torch.testing.assert_close(penalty, PENALTIES[divergence](values, p, tensor(level)), atol=1e-9, rtol=1e-9)


def noisy_case(seed, *, states=6, cap=2.0):
    rng = np.random.default_rng(seed)
    return tensor(rng.random(states) * cap), tensor(rng.dirichlet(np.ones(states)) * 0.9 + rng.normal(0, 0.2, states))


@pytest.mark.parametrize("seed", range(20))
def test_estimated_maxima_are_found_on_any_coefficients(seed):
    """Against a fine grid, and a finer one around its best point: the functions of a are not concave here."""
    cap, rho = 2.0, 0.35
    values, c = noisy_case(seed, cap=cap)

    def duals(a):
        cut = values.minimum(a[:, None])
        z, z2 = cut @ c, cut.square() @ c
        variance = z2 - z.square()
        return {
            "tv ball": z - rho * a,
            "chi2 ball": z - (rho * variance.clamp(min=0)).sqrt(),
            "chi2 penalty": z - variance / (4 * rho),
        }

    found = {
        "tv ball": operators.estimated_tv_ball(values, c, tensor(rho), cap=cap),
        "chi2 ball": operators.estimated_chi2_ball(values, c, tensor(rho), cap=cap),
        "chi2 penalty": operators.estimated_chi2_penalty(values, c, tensor(rho), cap=cap),
    }
    coarse = torch.cat([torch.linspace(0, cap, 100_001, dtype=torch.float64), values])
    for name, grid in duals(coarse).items():
        near = coarse[grid.argmax()] + torch.linspace(-2e-5, 2e-5, 100_001, dtype=torch.float64)
        best = duals(near.clamp(0, cap))[name].max().maximum(grid.max())
        assert float(found[name]) == pytest.approx(float(best), abs=1e-4), name
        assert best <= found[name] + 1e-7, name


@pytest.mark.parametrize("seed", range(20))
def test_estimated_kl_is_no_worse_than_a_grid(seed):
    cap, rho = 2.0, 0.2
    values, c = noisy_case(seed, cap=cap)
    c = c / c.clamp(min=0).sum()
    b = torch.logspace(np.log10(2e-4), 1, 20_001, dtype=torch.float64)
    for unseen, w in (
        ("zero", 1 + torch.expm1(-values / b[:, None]) @ c),
        ("cap", torch.exp(-values / b[:, None]) @ c),
    ):
        log_w = w.clamp(min=0).log().maximum(-cap / b)
        if unseen == "zero":
            log_w = log_w.clamp(max=0)
        best = (-b * log_w - b * rho).max()
        found = operators.estimated_kl_ball(values, c, tensor(rho), cap=cap, unseen=unseen)
        assert found >= best - 1e-3
        assert found <= max(best, tensor(0.0)) + 1e-3


@EVERY
def test_without_data_nothing_is_promised_unless_asked_for(divergence):
    values, nothing = tensor([0.0, 0.5, 1.0]), torch.zeros(3, dtype=torch.float64)
    for estimate in estimates(divergence, values, nothing, tensor(0.3), 4.0):
        assert float(estimate) == pytest.approx(0, abs=1e-12)
    if divergence == "kl":
        ball, penalty = estimates("kl", values, nothing, tensor(0.3), 4.0, unseen="cap")
        assert float(penalty) == pytest.approx(4.0)
        assert float(ball) == pytest.approx(4.0, abs=1e-3)


def test_radius_zero_is_the_estimate_and_not_its_maximum():
    values, c = tensor([0.0, 1.0, 2.0]), tensor([0.2, 0.9, -0.3])
    plain = float(values @ c)
    for divergence in DIVERGENCES:
        ball, _ = estimates(divergence, values, c, tensor(0.0), 2.0)
        assert float(ball) == pytest.approx(plain, abs=1e-15)
    assert operators.estimated_tv_ball(values, c, tensor(1e-12), cap=2.0) > plain + 0.1


def test_values_above_the_cap_count_as_the_cap():
    values, c, rho = tensor([0.0, 1.0, 50.0]), tensor([0.2, 0.3, 0.4]), tensor(0.1)
    low = values.clamp(max=3.0)
    for operator in (operators.estimated_tv_ball, operators.estimated_chi2_ball):
        torch.testing.assert_close(operator(values, c, rho, cap=3.0), operator(low, c, rho, cap=3.0))


def test_estimated_tv_is_nonincreasing_and_convex_in_the_radius():
    values, c = noisy_case(5)
    radii = torch.linspace(1e-6, 1, 201, dtype=torch.float64)
    worst = operators.estimated_tv_ball(values, c, radii, cap=2.0)
    assert (worst.diff() <= 1e-12).all()
    assert (worst.diff().diff() >= -1e-12).all()


def test_negative_values_and_a_minimum_of_their_own():
    """Regularized values can be below 0; then a reaches below 0 too, and no price is paid below the minimum."""
    values, p = tensor([-0.4, 0.1, 0.9]), tensor([0.3, 0.4, 0.3])
    for rho in (0.1, 0.5, 1.0):
        estimate = operators.estimated_tv_ball(values, p, tensor(rho), cap=2.0, minimum=-0.4)
        torch.testing.assert_close(estimate, operators.tv_ball(values, p, tensor(rho)), atol=1e-14, rtol=0)


# --------------------------------------------------------------------------------------------- ambiguity sets


@EVERY
def test_ambiguity_sets_pick_their_stage(divergence):
    rng = np.random.default_rng(1)
    values, factors = tensor(rng.random(6)), tensor(rng.dirichlet(np.ones(6), size=4))
    levels = tensor(rng.random((3, 4)) * 0.9 + 0.05)
    c = factors * 0.9
    for kind, name, known in ((Ball, "radius", BALLS), (Penalty, "weight", PENALTIES)):
        each = kind(**{name: levels}, divergence=divergence)
        ball, penalty = estimates(divergence, values, c, levels[2], 2.0)
        torch.testing.assert_close(each.worst(1, values, factors), known[divergence](values, factors, levels[1]))
        estimate = each.estimate(2, values, c, cap=2.0)
        torch.testing.assert_close(estimate, ball if kind is Ball else penalty)
        single = kind(**{name: 0.3}, divergence=divergence)
        torch.testing.assert_close(single.worst(7, values, factors), known[divergence](values, factors, tensor(0.3)))


def test_ambiguity_over_batches():
    rng = np.random.default_rng(2)
    values = tensor(rng.random((5, 6)))
    factors = tensor(rng.dirichlet(np.ones(6), size=(4,)))
    ball = Ball(radius=tensor([0.0, 0.2, 0.5, 0.7, 1.0])[:, None, None])
    assert ball.worst(2, values, factors).shape == (5, 4)
    caps = tensor([1.0, 2.0, 1.0, 2.0, 1.0])
    together = ball.estimate(0, values, factors, cap=caps)
    alone = Ball(radius=0.2).estimate(0, values[1], factors, cap=2.0)
    torch.testing.assert_close(together[1], alone)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ball(radius=1.2), r"^radius = 1.2; valid: in \[0, 1\]"),
        (lambda: Ball(radius=-0.1, divergence="kl"), r"^radius = -0.1; valid: in \[0, inf\)"),
        (lambda: Ball(radius=torch.tensor([[0.1, 0.2], [0.3, 1.5]])), r"^radius\[1, 1\] = 1.5"),
        (lambda: Ball(radius=float("nan"), divergence="chi2"), r"^radius = nan"),
        (lambda: Penalty(weight=0.0), r"^weight = 0; valid: in \(0, inf\)"),
        (lambda: Penalty(weight=torch.tensor([1.0, -2.0])), r"^weight\[1\] = -2"),
    ],
)
def test_levels_out_of_range(make, message):
    with pytest.raises(RadiusError, match=message):
        make()


@pytest.mark.parametrize("field", ["divergence", "reach", "unseen"])
def test_unknown_choices(field):
    with pytest.raises(ValueError, match=f"^{field} = 'total'; valid: "):
        Ball(radius=0.1, **{field: "total"})
