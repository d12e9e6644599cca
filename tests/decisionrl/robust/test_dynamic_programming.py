"""Exact robust dynamic programming: the closed forms of the literature's instances, and what must hold for all."""

import math

import numpy as np
import pytest
import torch

from decisionrl.envs.linear_mdp import (
    LinearMDP,
    american_put,
    five_state,
    five_state_radius,
    frozen_lake,
    put_prices,
    random_linear,
    random_tabular,
    tabular,
)
from decisionrl.robust.ambiguity import Ball, Penalty
from decisionrl.robust.dynamic_programming import evaluate, optimal, regret
from decisionrl.robust.reference import Reference, ReferencePolicyError


def tensor(*numbers):
    return torch.tensor(*numbers, dtype=torch.float64)


def common(*levels):
    """Levels [n, 1, 1], the same for all stages and factors."""
    return tensor(levels)[:, None, None]


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, tensor(expected), atol=tolerance, rtol=0)


# ------------------------------------------------------------------------------------------- five-state MDP

RADII = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0]
FIVE_STATE = {
    0.1: [1.42323, 1.34323, 1.26323, 1.18323, 1.10323, 1.03098, 0.99098, 0.91098, 0.83098],
    0.2: [1.62425, 1.52425, 1.42425, 1.32425, 1.24365, 1.22365, 1.20365, 1.16365, 1.12365],
    0.3: [1.77533, 1.65533, 1.53533] + [1.43832] * 6,
}
BY_NORM = pytest.mark.parametrize("xi_norm", sorted(FIVE_STATE))


@BY_NORM
def test_robust_optimum_of_the_five_state_mdp(xi_norm):
    mdp = five_state(xi_norm=xi_norm)
    best = optimal(mdp, Ball(radius=five_state_radius(tensor(RADII))))
    close(best.start, FIVE_STATE[xi_norm])
    c, p = 0.3 + xi_norm, 0.001
    second = 2 * c + (1 - p) * (1 - c) * c
    close(best.values[0, 2, 2], c, 1e-12)
    close(best.values[0, 1, 1], second, 1e-12)
    flip = 1 - (1 - p) * second / 2
    lowest, highest = 0, 15  # the actions of smallest and largest <xi, a>
    for rho, policy in zip(RADII, best.policy, strict=True):
        assert policy[0, 0, lowest if rho > flip else highest] == 1


@pytest.mark.parametrize(
    ("xi_norm", "expected"),
    [
        (0.1, [1.42323, 1.21032, 0.83155, 0.5155, 0.26216, 0]),
        (0.2, [1.62425, 1.38305, 0.95315, 0.59325, 0.30335, 0]),
        (0.3, [1.77533, 1.51353, 1.0461, 0.65354, 0.33587, 0]),
    ],
)
def test_one_radius_for_all_factors(xi_norm, expected):
    close(optimal(five_state(xi_norm=xi_norm), Ball(radius=common(0, 0.1, 0.3, 0.5, 0.7, 1))).start, expected)


@pytest.mark.parametrize(
    ("xi_norm", "greedy", "cautious", "crossing"),
    [
        (
            0.1,
            [1.4239, 1.2639, 1.1039, 0.9439, 0.7839, 0.6239],
            [1.2318, 1.1518, 1.0718, 0.9918, 0.9118, 0.8318],
            0.48012,
        ),
        (
            0.2,
            [1.6249, 1.4249, 1.2249, 1.0249, 0.8249, 0.6249],
            [1.3248, 1.2848, 1.2448, 1.2048, 1.1648, 1.1248],
            0.37513,
        ),
        (0.3, [1.7759, 1.5359, 1.2959, 1.0559, 0.8159, 0.5759], [1.4398] * 6, 0.28012),
    ],
)
def test_perturbed_targets(xi_norm, greedy, cautious, crossing):
    source = five_state(xi_norm=xi_norm)
    targets = five_state(xi_norm=xi_norm, perturbation=torch.linspace(0, 1, 6))
    policies = torch.stack([optimal(source, Ball(radius=five_state_radius(rho))).policy for rho in (0.0, 1.0)])
    close(evaluate(targets, policies[:, None]).start, [greedy, cautious], 1e-4)
    below, above = five_state(xi_norm=xi_norm, perturbation=tensor([crossing - 1e-5, crossing + 1e-5])).factors
    for factors, sign in ((below, 1), (above, -1)):
        target = LinearMDP(features=source.features, factors=factors, rewards=source.rewards, initial=source.initial)
        first, second = evaluate(target, policies).start
        assert sign * (first - second) > 0


def test_uniform_policy_in_perturbed_targets():
    uniform = torch.full((3, 5, 16), 1 / 16, dtype=torch.float64)
    for xi_norm in (0.1, 0.2, 0.3):
        targets = five_state(xi_norm=xi_norm, perturbation=torch.linspace(0, 1, 5))
        close(evaluate(targets, uniform).start, [1.16685, 1.01685, 0.86685, 0.71685, 0.56685])


LEVELS = (0, 0.01, 0.05, 0.1, 0.2, 0.5)
WEIGHTS = (0.05, 0.1, 0.3, 1, 3, 100)


@pytest.mark.parametrize(
    ("divergence", "balls", "penalties"),
    [
        (
            "tv",
            [1.70976, 1.68317, 1.57866, 1.45224, 1.21344, 0.60936],
            [0.048, 0.096, 0.288, 0.96, 1.70976, 1.70976],
        ),
        (
            "kl",
            [1.70976, 1.68061, 1.64118, 1.60972, 1.56317, 1.46685],
            [1.24605, 1.2921, 1.46594, 1.65567, 1.69534, 1.70937],
        ),
        (
            "chi2",
            [1.70976, 1.69026, 1.6664, 1.64869, 1.62391, 1.5756],
            [1.38, 1.5258, 1.64663, 1.69063, 1.70337, 1.70957],
        ),
    ],
)
def test_all_divergences_where_failing_is_likelier(divergence, balls, penalties):
    mdp = five_state(xi_norm=0.3, p=0.1)
    close(optimal(mdp, Ball(radius=common(*LEVELS), divergence=divergence)).start, balls)
    close(optimal(mdp, Penalty(weight=common(*WEIGHTS), divergence=divergence)).start, penalties)


@pytest.mark.parametrize(
    ("xi_norm", "expected"),
    [
        (0.1, [0.86946, 0.88196, 0.92261, 0.99622]),
        (0.2, [0.87892, 0.92638, 1.04327, 1.1633]),
        (0.3, [0.89442, 0.99353, 1.18906, 1.37193]),
    ],
)
def test_soft_optimum(xi_norm, expected):
    reference = Reference(eta=tensor([1, 5, 20, 100]))
    close(
        optimal(five_state(xi_norm=xi_norm), Ball(radius=five_state_radius(0.5)), reference=reference).start, expected
    )


def test_soft_optimal_policy_in_perturbed_targets():
    soft = optimal(
        five_state(xi_norm=0.3), Ball(radius=five_state_radius(0.5)), reference=Reference(eta=tensor([5, 20, 100]))
    )
    targets = five_state(xi_norm=0.3, perturbation=torch.linspace(0, 1, 5))
    close(
        evaluate(targets, soft.policy[:, None]).start,
        [
            [1.404028, 1.253507, 1.102987, 0.952466, 0.801946],
            [1.53136, 1.43519, 1.33902, 1.24285, 1.14668],
            [1.440597, 1.43985, 1.439103, 1.438356, 1.43761],
        ],
    )


def test_the_reference_pins_the_policy_as_eta_falls():
    eta = tensor([1e-3, 0.1, 1, 10, 100, 1e4])
    mdp, ball = five_state(xi_norm=0.2), Ball(radius=five_state_radius(0.5))
    soft = optimal(mdp, ball, reference=Reference(eta=eta))
    close(soft.start, [0.8663, 0.86756, 0.87892, 0.97608, 1.1633, 1.223])
    away = (soft.policy * 16 - 1).abs().amax((1, 2, 3))
    close(away[:2], [4.0e-4, 0.0406], 1e-4)
    assert (away <= (2 * eta * mdp.horizon).exp() - 1).all()
    gap = optimal(mdp, ball).start - soft.start
    assert (gap >= 0).all()
    assert (gap <= mdp.horizon * math.log(16) / eta).all()


# --------------------------------------------------------------------------------------------- other instances


def test_frozen_lake():
    lake = frozen_lake()
    close(
        optimal(lake, Ball(radius=common(0, 0.01, 0.05, 0.1, 0.2))).start, [0.34787, 0.26902, 0.09205, 0.02123, 0.00054]
    )
    close(optimal(lake, Ball(radius=common(0.01, 0.05, 0.1), divergence="kl")).start, [0.1469, 0.03002, 0.00562])
    close(optimal(lake, Ball(radius=common(0.01, 0.1, 0.3), divergence="chi2")).start, [0.19506, 0.02631, 0.00028])


@pytest.mark.parametrize(
    ("make", "robust", "gap"), [(random_tabular, 2.87665997, 2.87665997 - 1.22325017), (random_linear, 2.4503, 1.5345)]
)
def test_random_instances(make, robust, gap):
    mdp, radius = make()
    ball, nominal = Ball(radius=radius), optimal(mdp)
    digits = 1e-8 if make is random_tabular else 5e-5
    close(optimal(mdp, ball).start, robust, digits)
    close(regret(mdp, nominal.policy, ball), gap, digits)
    if make is random_tabular:
        close(nominal.start, 3.01954747, 1e-8)


def test_american_put_oracle():
    put = american_put(up_probability=tensor([0.2, 0.4, 0.5, 0.6, 0.8]))
    close(optimal(put).start, [10.34602, 4.57221, 2.45963, 1.3731, 0.49917])
    long = american_put(horizon=20, start_price=99.17022, up_probability=tensor([0.2, 0.4, 0.5, 0.6, 0.8, 1]))
    close(optimal(long).start, [21.1598, 8.8327, 3.9054, 1.9257, 0.8298, 0.8298], 5e-5)
    ball = Ball(radius=common(0, 0.05, 0.1, 0.2, 0.3))
    close(optimal(american_put(), ball).start, [2.45963, 1.60924, 1.15219, 0.73513, 0.45182])


def test_american_put_within_its_two_prices_is_a_put_of_higher_up_probability():
    """The worse price is the higher one, and all that total variation can do there is to make it likelier."""
    worst = optimal(american_put(), Ball(radius=common(0, 0.05, 0.2), reach="support"))
    shifted = optimal(american_put(up_probability=tensor([0.5, 0.55, 0.7])))
    torch.testing.assert_close(worst.start, shifted.start, atol=1e-12, rtol=0)


def test_american_put_by_recursion_over_prices():
    prices = put_prices(horizon=4, start_price=97.0)
    value = [0.0] * 5
    for h in reversed(range(4)):
        value = [max(0.3 * value[i + 1] + 0.7 * value[i], 100 - float(prices[h, i])) for i in range(h + 1)] + [0.0] * 4
    found = optimal(american_put(horizon=4, start_price=97.0, up_probability=0.3))
    assert float(found.start) == pytest.approx(value[0], abs=1e-12)


# ------------------------------------------------------------------------------------------------- properties


def small(seed, *, fail=True):
    """A random linear MDP with S = 5, A = 3, H = 4, d = 3."""
    rng = np.random.default_rng(seed)
    features, factors = rng.dirichlet(np.ones(3), size=(5, 3)), rng.dirichlet(np.ones(5) * 0.5, size=(4, 3))
    rewards = rng.random((4, 5, 3))
    if fail:
        features[-1], features[-1, :, -1] = 0, 1
        factors[:, -1], factors[:, -1, -1] = 0, 1
        rewards[:, -1] = 0
    return LinearMDP(
        features=tensor(features),
        factors=tensor(factors),
        rewards=tensor(rewards),
        initial=tensor(rng.dirichlet(np.ones(5))),
        fail_state=4 if fail else None,
    )


@pytest.mark.parametrize("divergence", ["tv", "kl", "chi2"])
def test_robust_values_fall_with_the_radius_and_rise_with_the_weight(divergence):
    mdp, nominal = small(0), optimal(small(0)).start
    balls = optimal(mdp, Ball(radius=common(*np.linspace(0, 1, 21)), divergence=divergence)).start
    assert (balls.diff() <= 1e-12).all()
    torch.testing.assert_close(balls[0], nominal, atol=1e-12, rtol=0)
    penalties = optimal(mdp, Penalty(weight=common(*np.geomspace(1e-3, 1e6, 21)), divergence=divergence)).start
    assert (penalties.diff() >= -1e-12).all()
    torch.testing.assert_close(penalties[-1], nominal, atol=1e-5, rtol=0)


def test_with_radius_one_only_the_first_reward_is_left():
    mdp = small(1)
    best = optimal(mdp, Ball(radius=1.0))
    torch.testing.assert_close(best.start, mdp.initial @ mdp.rewards[0].amax(-1), atol=1e-14, rtol=0)
    assert float(optimal(five_state(), Ball(radius=1.0)).start) == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rho", [0.1, 0.4, 0.9])
def test_range_shrinks(seed, rho):
    """max V_h - min V_h <= (1 - (1 - rho)^(H - h)) / rho (arXiv 2403.09621, Lemma 5.1)."""
    values = optimal(small(seed, fail=seed % 2 == 0), Ball(radius=rho)).values
    spans = values.amax(-1) - values.amin(-1)
    bound = tensor([(1 - (1 - rho) ** (4 - h)) / rho for h in range(5)])
    assert (spans <= bound + 1e-12).all()


@pytest.mark.parametrize("ambiguity", [None, Ball(radius=0.3), Penalty(weight=0.5, divergence="kl")])
@pytest.mark.parametrize("eta", [math.inf, 3.0])
def test_the_optimal_policy_evaluates_to_the_optimum_and_others_to_less(ambiguity, eta):
    mdp, reference = small(2), Reference(eta=eta)
    best = optimal(mdp, ambiguity, reference=reference)
    again = evaluate(mdp, best.policy, ambiguity, reference=reference)
    for field in ("q", "values", "start", "factor_values"):
        torch.testing.assert_close(getattr(again, field), getattr(best, field), atol=1e-12, rtol=0)
    others = tensor(np.random.default_rng(0).dirichlet(np.ones(3), size=(20, 4, 5)))
    others[0] = tensor([1, 0, 0])  # certain actions have a finite KL
    lost = regret(mdp, others, ambiguity, reference=reference)
    assert lost.shape == (20,)
    assert (lost >= -1e-12).all()
    torch.testing.assert_close(regret(mdp, others, ambiguity, reference=reference, best=best.start), lost)


def test_evaluation_by_enumerating_a_worst_model():
    """One (s, a), two next states: the worst model moves rho to the worse one."""
    kernel, rewards = torch.zeros(2, 3, 1, 3, dtype=torch.float64), torch.zeros(2, 3, 1, dtype=torch.float64)
    kernel[:, 0, 0] = tensor([0.0, 0.6, 0.4])
    kernel[:, 1, 0, 1] = kernel[:, 2, 0, 2] = 1
    rewards[1, :, 0] = tensor([0.0, 1.0, 0.25])
    mdp = tabular(kernel, rewards, tensor([1.0, 0, 0]))
    policy = torch.ones(2, 3, 1, dtype=torch.float64)
    found = evaluate(mdp, policy, Ball(radius=common(0.0, 0.2, 0.7), reach="support")).start
    close(found, [0.7, 0.55, 0.25], 1e-12)
    # anywhere: to state 0, which is worth 0; first from state 1, then from state 2
    close(evaluate(mdp, policy, Ball(radius=common(0.2, 0.7))).start, [0.4 + 0.1, 0.25 * 0.3], 1e-12)


def test_a_given_policy_may_have_values_below_zero():
    """A reference that differs from the policy costs more than there is to earn; mass then moves to the worst value."""
    mdp = small(3)
    certain = torch.zeros(4, 5, 3, dtype=torch.float64)
    certain[..., 0] = 1
    reference = Reference(eta=0.5)
    solution = evaluate(mdp, certain, Ball(radius=0.3), reference=reference)
    assert (solution.values[:4].amin(-1) < 0).all()
    value = torch.zeros(5, dtype=torch.float64)
    for h in reversed(range(4)):
        nu = [0.0] * 3
        for i in range(3):
            mass, left = mdp.factors[h, i].tolist(), 0.3
            for s in sorted(range(5), key=lambda s: -float(value[s])):
                moved = min(left, mass[s])
                mass[s], left = mass[s] - moved, left - moved
            mass[int(value.argmin())] += 0.3 - left
            nu[i] = sum(m * float(v) for m, v in zip(mass, value, strict=True))
        value = mdp.rewards[h, :, 0] + mdp.features[h, :, 0] @ tensor(nu) - math.log(3) / 0.5
        torch.testing.assert_close(solution.values[h], value, atol=1e-12, rtol=0)


def test_batches_broadcast():
    sources = five_state(perturbation=torch.linspace(0, 1, 3))
    ball = Ball(radius=five_state_radius(tensor([0.1, 0.5]))[:, None])
    table = optimal(sources, ball, reference=Reference(eta=tensor([1.0, 5.0, 20.0, math.inf])[:, None, None]))
    assert table.start.shape == (4, 2, 3)
    assert table.q.shape == (4, 2, 3, 3, 5, 16)
    assert table.policy.shape == table.q.shape
    assert table.values.shape == (4, 2, 3, 4, 5)
    for k, eta in enumerate([1.0, 5.0, 20.0, math.inf]):
        one = five_state(perturbation=0.5)
        alone = optimal(one, Ball(radius=five_state_radius(0.5)), reference=Reference(eta=eta))
        torch.testing.assert_close(table.start[k, 1, 1], alone.start, atol=1e-13, rtol=0)


def test_one_hot_features_are_the_rectangular_robust_mdp():
    """The same kernel with features s A + a and with any other order of the factors."""
    mdp, radius = random_tabular()
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    shuffled = LinearMDP(
        features=mdp.features[..., order], factors=mdp.factors[:, order], rewards=mdp.rewards, initial=mdp.initial
    )
    for ambiguity in (lambda r: Ball(radius=r), lambda r: Ball(radius=r, divergence="chi2")):
        first, second = optimal(mdp, ambiguity(radius)), optimal(shuffled, ambiguity(radius[:, order]))
        torch.testing.assert_close(first.q, second.q, atol=1e-12, rtol=0)


# ----------------------------------------------------------------------------------------- reference policies


def test_one_stage_without_uncertainty_is_the_regularized_bandit():
    """pi = pi_ref exp(eta r) / Z, the optimum of KL-regularized reward of language models with 1 / eta = beta."""
    rng = np.random.default_rng(0)
    rewards, reference = tensor(rng.random((1, 4, 3))), tensor(rng.dirichlet(np.ones(3), size=(1, 4)))
    kernel = torch.full((1, 4, 3, 4), 0.25, dtype=torch.float64)
    mdp = tabular(kernel, rewards, tensor([0.25] * 4))
    soft = optimal(mdp, reference=Reference(eta=7.0, policy=reference))
    expected = reference * (7 * rewards).exp()
    torch.testing.assert_close(soft.policy, expected / expected.sum(-1, keepdim=True), atol=1e-12, rtol=0)
    torch.testing.assert_close(soft.values[0], expected.sum(-1)[0].log() / 7, atol=1e-12, rtol=0)


def test_a_reference_per_stage_or_for_all():
    mdp = small(4)
    table = tensor(np.random.default_rng(1).dirichlet(np.ones(3), size=(4, 5)))
    soft = optimal(mdp, reference=Reference(eta=1e-9, policy=table))
    torch.testing.assert_close(soft.policy, table, atol=1e-7, rtol=0)
    row = tensor([0.2, 0.3, 0.5])
    soft = optimal(mdp, reference=Reference(eta=1e-9, policy=row))
    torch.testing.assert_close(soft.policy, row.expand(4, 5, 3), atol=1e-7, rtol=0)


def test_bad_references():
    with pytest.raises(ReferencePolicyError, match=r"policy\[1, 0\] = \[0.0, 1.0\]; valid: positive probabilities"):
        Reference(policy=tensor([[[0.5, 0.5]], [[0.0, 1.0]]]))
    with pytest.raises(ReferencePolicyError, match=r"policy = \[0.4, 0.5\]"):
        Reference(policy=tensor([0.4, 0.5]))
    for eta in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"^eta = .*; valid: a positive number"):
            Reference(eta=eta)
