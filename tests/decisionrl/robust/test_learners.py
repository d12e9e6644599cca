"""Least squares from statistics against plain loops, and what the learners must do whatever they learn."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decisionrl.benchmarks.speed.plain_robust import PlainLeastSquares, Step, play
from decisionrl.envs.linear_mdp import (
    Episodes,
    LinearMDP,
    american_put,
    draw_noise,
    five_state,
    five_state_radius,
    inverse_cdf,
    put_features,
    random_linear,
    random_tabular,
    rollout,
)
from decisionrl.experience.linear_mdp import OnlineEpisodes
from decisionrl.learner import NonFiniteError
from decisionrl.policies.tabular import TabularPolicy
from decisionrl.robust.ambiguity import Ambiguity, Ball, Penalty
from decisionrl.robust.dynamic_programming import evaluate, optimal
from decisionrl.robust.learners import LeastSquaresLearner, VarianceWeights
from decisionrl.robust.planning import Bonus, Greedy, Proximal, by_stage, plan
from decisionrl.robust.reference import Reference
from decisionrl.robust.regression import CountedLeastSquares, Estimates, Problem, RecursiveLeastSquares


def uniform_episodes(mdp: LinearMDP, runs: int, episodes: int, seed: int = 0) -> Episodes:
    """[runs, episodes, ...] of the uniform policy."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.full((mdp.horizon, mdp.num_states, mdp.num_actions), 1 / mdp.num_actions, dtype=torch.float64)
    played = [rollout(mdp, table, draw_noise(runs, mdp.horizon, generator=generator)) for _ in range(episodes)]
    fields = {
        name: torch.stack([getattr(each, name) for each in played], 1) for name in ("states", "actions", "rewards")
    }
    return Episodes(**fields)


def episode(batch: Episodes, index: int) -> Episodes:
    return Episodes(states=batch.states[:, index], actions=batch.actions[:, index], rewards=batch.rewards[:, index])


def make(
    mdp: LinearMDP,
    *,
    runs: int,
    counted: bool = False,
    learn_rewards: bool = False,
    ridge: float = 0.1,
    problem: Problem | None = None,
    **options: Any,
) -> LeastSquaresLearner:
    problem = problem or Problem.of(mdp, learn_rewards=learn_rewards)
    kind = CountedLeastSquares if counted else RecursiveLeastSquares
    policy = TabularPolicy((runs, mdp.horizon, mdp.num_states, mdp.num_actions))
    options.setdefault("bonus", Bonus())
    return LeastSquaresLearner(policy, kind(problem, runs=runs, ridge=ridge), **options)


def train(learner: LeastSquaresLearner, mdp: LinearMDP, episodes: int, seeds: Any) -> OnlineEpisodes:
    source = OnlineEpisodes(mdp, learner.policy, seeds=seeds)
    for _ in range(episodes):
        learner.update(source.sample())
    return source


def random_instance(name: str) -> tuple[LinearMDP, Tensor]:
    if name == "five-state":
        return five_state(xi_norm=0.3), five_state_radius(0.5)
    return random_tabular() if name == "one-hot" else random_linear()


def put(runs: int = 2) -> tuple[LinearMDP, Problem]:
    start = torch.linspace(97.0, 103.0, runs, dtype=torch.float64)
    mdp = american_put(horizon=5, start_price=start)
    problem = Problem(
        features=put_features(10, horizon=5, start_price=start),
        rewards=mdp.rewards,
        caps=torch.tensor([100.0] * 5 + [0.0], dtype=torch.float64),
        fail_state=mdp.fail_state,
    )
    return mdp, problem


# ------------------------------------------------------------------------------------------------ regressions


def brute_force(
    problem: Problem, batch: Episodes, run: int, h: int, ridge: float, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Lambda, sum phi onehot(s')^T and sum phi r, step by step."""
    _, states, _, d = problem.shape
    features = problem.features if problem.features.dim() == 4 else problem.features[run]
    gram, moved, paid = (
        ridge * torch.eye(d, dtype=torch.float64),
        torch.zeros(d, states).double(),
        torch.zeros(d).double(),
    )
    for k in range(batch.states.shape[1]):
        s, a, following = int(batch.states[run, k, h]), int(batch.actions[run, k, h]), int(batch.states[run, k, h + 1])
        phi = features[h, s, a]
        w = 1.0 if weights is None else float(weights[run, h, s, a])
        gram += w * torch.outer(phi, phi)
        moved[:, following] += w * phi
        paid += w * phi * batch.rewards[run, k, h]
    return gram, moved, paid


def assert_estimates(
    estimates: Estimates, problem: Problem, batch: Episodes, ridge: float, weights: Any = None
) -> None:
    for run in range(len(batch.states)):
        for h in range(problem.shape[0]):
            gram, moved, paid = brute_force(problem, batch, run, h, ridge, weights)
            torch.testing.assert_close(estimates.inverse[run, h], gram.inverse(), atol=1e-10, rtol=0)
            torch.testing.assert_close(estimates.transitions[run, h], gram.inverse() @ moved, atol=1e-10, rtol=0)
            torch.testing.assert_close(estimates.rewards[run, h], gram.inverse() @ paid, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["five-state", "one-hot", "random-linear", "put"])
def test_both_regressions_are_those_of_the_history(name: str) -> None:
    if name == "put":
        mdp, problem = put()
    else:
        mdp = random_instance(name)[0]
        problem = Problem.of(mdp, learn_rewards=True)
    batch = uniform_episodes(mdp, 2, 25)
    recursive = RecursiveLeastSquares(problem, runs=2, ridge=0.1)
    for k in range(25):
        recursive.add(episode(batch, k))
    assert_estimates(recursive.estimates(), problem, batch, 0.1)
    for run in range(2):
        for h in range(mdp.horizon):
            gram = brute_force(problem, batch, run, h, 0.1)[0]
            volume = torch.logdet(gram) - len(gram) * np.log(0.1)
            torch.testing.assert_close(recursive.log_volume[run, h], volume, atol=1e-10, rtol=0)

    counted = CountedLeastSquares(problem, runs=2, ridge=0.1)
    for part in (slice(0, 1), slice(1, 20), slice(20, 25)):
        counted.add(
            Episodes(states=batch.states[:, part], actions=batch.actions[:, part], rewards=batch.rewards[:, part])
        )
    assert_estimates(counted.estimates(), problem, batch, 0.1)
    weights = torch.rand(2, mdp.horizon, mdp.num_states, mdp.num_actions, dtype=torch.float64) + 0.5
    assert_estimates(counted.estimates(weights=weights, ridge=0.3), problem, batch, 0.3, weights)


def test_statistics_do_not_grow() -> None:
    mdp = five_state()
    learner = make(mdp, runs=2, ambiguity=Ball(radius=0.1))
    before = [tensor.shape for tensor in learner.regression.state_dict().values()]
    train(learner, mdp, 50, range(2))
    assert [tensor.shape for tensor in learner.regression.state_dict().values()] == before


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("inf"), float("nan")])
def test_ridge_out_of_range(ridge: float) -> None:
    for kind in (RecursiveLeastSquares, CountedLeastSquares):
        with pytest.raises(ValueError, match=r"ridge = .*; valid: a positive number"):
            kind(Problem.of(five_state()), runs=1, ridge=ridge)


# ---------------------------------------------------------------------------------- against the plain loops


def plain(mdp: LinearMDP, *, radius: Tensor | None, **options: Any) -> PlainLeastSquares:
    assert mdp.fail_state is not None
    return PlainLeastSquares(
        features=mdp.features.numpy(),
        rewards=mdp.rewards.numpy(),
        caps=[mdp.max_reward * (mdp.horizon - h) for h in range(mdp.horizon + 1)],
        fail_state=mdp.fail_state,
        radius=None if radius is None else radius.numpy(),
        **options,
    )


def steps(batch: Episodes, run: int, k: int) -> list[Step]:
    states, actions, rewards = (
        batch.states[run, k].tolist(),
        batch.actions[run, k].tolist(),
        batch.rewards[run, k].tolist(),
    )
    return list(zip(states[:-1], actions, rewards, states[1:], strict=True))


@pytest.mark.parametrize("name", ["five-state", "one-hot", "random-linear"])
@pytest.mark.parametrize("bonus", ["full", "d1", "d2"])
@pytest.mark.parametrize("pessimistic", [False, True])
@pytest.mark.parametrize("robust", [False, True])
def test_action_values_are_those_of_the_plain_loop(name: str, bonus: Any, pessimistic: bool, robust: bool) -> None:
    mdp, radius = random_instance(name)
    batch = uniform_episodes(mdp, 1, 12)
    reference = plain(
        mdp,
        radius=radius if robust else None,
        learn_rewards=not robust,
        bonus=bonus,
        beta=0.3,
        sign=-1 if pessimistic else 1,
        history=[steps(batch, 0, k) for k in range(12)],
    )
    learner = make(
        mdp,
        runs=1,
        counted=pessimistic,
        learn_rewards=not robust,
        bonus=Bonus(kind=bonus, beta=0.3, pessimistic=pessimistic),
        ambiguity=Ball(radius=radius) if robust else None,
    )
    if pessimistic:
        learner.update(batch)
    else:
        for k in range(12):
            learner.update(episode(batch, k))
    stages, states, actions, _ = learner.regression.problem.shape
    expected = [[[reference.q(h, s, a) for a in range(actions)] for s in range(states)] for h in range(stages)]
    torch.testing.assert_close(learner.plan.q[0], torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("robust", [False, True])
def test_whole_runs_are_those_of_the_plain_loop(robust: bool) -> None:
    mdp, radius = random_tabular()
    learner = make(
        mdp,
        runs=2,
        learn_rewards=not robust,
        ambiguity=Ball(radius=radius) if robust else None,
        improvement=Greedy(ties="first"),
    )
    loops = [plain(mdp, radius=radius if robust else None, learn_rewards=not robust) for _ in range(2)]
    generator = torch.Generator().manual_seed(5)
    for _ in range(15):
        noise = draw_noise(2, mdp.horizon, generator=generator)
        batch = rollout(mdp, learner.policy.probabilities(), noise)
        for run, loop in enumerate(loops):
            own = play(loop, mdp.kernel.numpy(), mdp.initial.numpy(), noise[run].numpy())
            assert [step[0] for step in own] == batch.states[run, :-1].tolist()
            assert [step[1] for step in own] == batch.actions[run].tolist()
            loop.add(own)
        learner.update(batch)


def test_the_plain_loop_draws_as_the_library_does() -> None:
    mdp = five_state(xi_norm=0.3)
    loop = plain(mdp, radius=None)
    noise = torch.rand(1, 7, dtype=torch.float64)
    own = play(loop, mdp.kernel.numpy(), mdp.initial.numpy(), noise[0].numpy())
    state = inverse_cdf(mdp.initial.expand(1, -1), noise[:, 0])
    for h, (s, a, r, following) in enumerate(own):
        assert s == int(state)
        assert r == float(mdp.rewards[h, s, a])
        state = inverse_cdf(mdp.kernel[h, s, a].unsqueeze(0), noise[:, 2 + 2 * h])
        assert following == int(state)


def test_variance_weights_are_those_of_a_plain_loop() -> None:
    mdp, problem = put(runs=1)
    batch = uniform_episodes(mdp, 1, 60)
    options: dict[str, Any] = {"bonus": Bonus(kind="d1", beta=0.1, pessimistic=True), "ambiguity": Ball(radius=0.05)}
    first = make(mdp, runs=1, counted=True, problem=problem, **options)
    first.update(batch)
    sigma = torch.ones_like(problem.rewards)
    for h in range(mdp.horizon):
        gram, moved, _ = brute_force(problem, batch, 0, h, 0.1)
        value = first.plan.values[0, h + 1]
        z1, z2 = gram.inverse() @ moved @ value, gram.inverse() @ moved @ value**2
        cap = float(problem.caps[h + 1])
        for s in range(mdp.num_states):
            for a in range(mdp.num_actions):
                phi = problem.features[0, h, s, a]
                variance = min(max(float(phi @ z2), 0), cap**2) - min(max(float(phi @ z1), 0), cap) ** 2
                sigma[0, h, s, a] = max(1.0, variance)
    assert (sigma > 1).any()
    regression = CountedLeastSquares(problem, runs=1, ridge=0.1)
    regression.add(batch)
    expected = plan(
        problem,
        regression.estimates(weights=1 / sigma, ridge=1 / 25),
        bonus=options["bonus"],
        improvement=Greedy(),
        ambiguities=[options["ambiguity"]] * mdp.horizon,
        previous=torch.zeros_like(sigma),
    )
    weights = VarianceWeights(ridge=1 / 25)
    aware = make(mdp, runs=1, counted=True, problem=problem, variance=weights, **options)
    aware.update(batch)
    torch.testing.assert_close(aware.plan.q, expected.q, atol=1e-10, rtol=0)
    assert not torch.equal(aware.plan.q, first.plan.q)


# ----------------------------------------------------------------------------------------- reductions, bounds


def test_stages_without_a_radius_need_no_dual() -> None:
    radius = five_state_radius(torch.tensor([0.0, 0.5]).double())
    for ball in (Ball(radius=radius), Ball(radius=radius[1])):
        assert by_stage(ball, 3) == [ball, None, None]
    for ambiguity in (Ball(radius=0.1), Ball(radius=torch.tensor([0.0, 0.1]).double()), Penalty(weight=1.0)):
        assert by_stage(ambiguity, 3) == [ambiguity] * 3
    assert by_stage(Ball(radius=0.0), 3) == by_stage(None, 3) == [None] * 3


@pytest.mark.parametrize("name", ["five-state", "one-hot", "random-linear"])
@pytest.mark.parametrize("divergence", ["tv", "kl", "chi2"])
def test_radius_zero_is_the_nominal_method(name: str, divergence: Any) -> None:
    mdp = random_instance(name)[0]
    batch = uniform_episodes(mdp, 2, 20)
    learners = [make(mdp, runs=2, ambiguity=a) for a in (None, Ball(radius=0.0, divergence=divergence))]
    for learner in learners:
        for k in range(20):
            learner.update(episode(batch, k))
    torch.testing.assert_close(learners[1].plan.q, learners[0].plan.q, atol=1e-12, rtol=0)


def test_a_large_weight_is_the_nominal_method() -> None:
    mdp = random_instance("one-hot")[0]
    batch = uniform_episodes(mdp, 2, 200)
    bonus = Bonus(beta=0.1, pessimistic=True)
    nominal = make(mdp, runs=2, counted=True, bonus=bonus)
    nominal.update(batch)
    for divergence in ("tv", "kl", "chi2"):
        penalty = Penalty(weight=1e6, divergence=divergence)  # type: ignore[arg-type]
        robust = make(mdp, runs=2, counted=True, bonus=bonus, ambiguity=penalty)
        robust.update(batch)
        torch.testing.assert_close(robust.plan.q, nominal.plan.q, atol=1e-4, rtol=0)


def test_all_bonuses_are_one_on_one_hot_features() -> None:
    mdp, _ = random_tabular()
    learner = make(mdp, runs=3)
    train(learner, mdp, 20, range(3))
    estimates, rows = learner.regression.estimates(), learner.regression.problem.rows
    full, d1, d2 = (Bonus(kind=kind, beta=2.0)(rows, estimates.inverse) for kind in ("full", "d1", "d2"))
    torch.testing.assert_close(full, d1, atol=1e-12, rtol=0)
    torch.testing.assert_close(full, d2, atol=1e-12, rtol=0)


def test_d2_is_at_most_d1_and_the_formulas_hold() -> None:
    mdp, _ = random_linear()
    learner = make(mdp, runs=2)
    train(learner, mdp, 30, range(2))
    inverse, rows = learner.regression.estimates().inverse, learner.regression.problem.rows
    beta = torch.tensor([0.5, 2.0], dtype=torch.float64)
    full, d1, d2 = (Bonus(kind=kind, beta=beta)(rows, inverse) for kind in ("full", "d1", "d2"))
    assert (d2 <= d1 + 1e-12).all()
    for run, h, row in [(0, 0, 3), (1, 4, 40), (1, 2, 0)]:
        phi, matrix = rows[h, row], inverse[run, h]
        assert float(full[run, h, row]) == pytest.approx(float(beta[run] * (phi @ matrix @ phi).sqrt()))
        assert float(d1[run, h, row]) == pytest.approx(float(beta[run] * (phi * matrix.diag().sqrt()).sum()))
        assert float(d2[run, h, row]) == pytest.approx(float(beta[run] * (phi**2 * matrix.diag()).sum().sqrt()))
    pessimistic = Bonus(kind="d1", beta=beta, pessimistic=True)(rows, inverse)
    assert torch.equal(pessimistic, -d1)


@pytest.mark.parametrize("name", ["five-state", "one-hot"])
def test_optimistic_values_bound_the_optimum_from_above(name: str) -> None:
    mdp, radius = random_instance(name)
    ball = Ball(radius=radius)
    best = optimal(mdp, ball).start
    learner = make(mdp, runs=10, ambiguity=ball, bonus=Bonus(kind="d1"))
    source = OnlineEpisodes(mdp, learner.policy, seeds=range(10))
    for _ in range(60):
        learner.update(source.sample())
        assert (learner.plan.values[:, 0, 0] >= best - 1e-9).all()


@pytest.mark.parametrize("name", ["five-state", "one-hot", "random-linear"])
def test_pessimistic_values_bound_those_of_their_policy_from_below(name: str) -> None:
    mdp, radius = random_instance(name)
    ball = Ball(radius=radius)
    learner = make(mdp, runs=10, counted=True, ambiguity=ball, bonus=Bonus(kind="d1", pessimistic=True))
    for episodes in (1, 10, 100):
        learner.update(uniform_episodes(mdp, 10, episodes))
        own = evaluate(mdp, learner.policy.probabilities(), ball)
        assert (learner.plan.values <= own.values + 1e-9).all()


@pytest.mark.parametrize(
    "ambiguity",
    [
        Ball(radius=0.2),
        Ball(radius=0.2, divergence="kl"),
        Ball(radius=0.2, divergence="chi2"),
        Penalty(weight=0.5),
        Penalty(weight=0.5, divergence="kl"),
        Penalty(weight=0.5, divergence="chi2"),
    ],
    ids=lambda a: f"{type(a).__name__} {a.divergence}",
)
def test_with_all_data_the_plan_is_the_exact_one(ambiguity: Ambiguity) -> None:
    """N visits of every (s, a) with their expected next states leave an error of the order of lambda / N."""
    mdp, _ = random_tabular()
    for improvement, reference in ((Greedy(), None), (Proximal(reference=Reference(eta=3.0)), Reference(eta=3.0))):
        found = exact_plan(mdp, ambiguity, improvement, visits=1e9)
        exact = optimal(mdp, ambiguity, reference=reference)
        torch.testing.assert_close(found.q[0], exact.q, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.values[0, 0], exact.values[0], atol=1e-6, rtol=0)
        if reference is not None:
            torch.testing.assert_close(found.log_policy[0].exp(), exact.policy, atol=1e-6, rtol=0)


def exact_plan(mdp: LinearMDP, ambiguity: Ambiguity | None, improvement: Any, *, visits: float) -> Any:
    problem = Problem.of(mdp)
    rows, kernel = problem.rows, mdp.kernel.flatten(-3, -2)
    d = rows.shape[-1]
    inverse = torch.linalg.inv(visits * rows.mT @ rows + 0.1 * torch.eye(d, dtype=torch.float64))
    transitions = inverse @ (visits * rows.mT @ kernel)
    estimates = Estimates(
        inverse=inverse.unsqueeze(0), transitions=transitions.unsqueeze(0), rewards=torch.zeros_like(rows[None, :, 0])
    )
    return plan(
        problem,
        estimates,
        bonus=Bonus(beta=0.0),
        improvement=improvement,
        ambiguities=by_stage(ambiguity, mdp.horizon),
        previous=torch.zeros(1, *mdp.rewards.shape, dtype=torch.float64),
    )


# --------------------------------------------------------------------------------------- policy optimization


def q_values(seed: int, runs: int = 3) -> tuple[Tensor, Tensor]:
    """Q [runs, S, A] and the log-probabilities of an old policy."""
    generator = torch.Generator().manual_seed(seed)
    q = 3 * torch.rand(runs, 4, 5, dtype=torch.float64, generator=generator)
    return q, torch.randn(runs, 4, 5, dtype=torch.float64, generator=generator).log_softmax(-1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), eta=st.floats(0.01, 100), alpha=st.floats(0.01, 100))
def test_the_update_is_the_weighted_geometric_mean(seed: int, eta: float, alpha: float) -> None:
    q, old = q_values(seed)
    target = torch.rand(5, dtype=torch.float64) + 0.1
    target = target / target.sum()
    log_policy, value = Proximal(reference=Reference(eta=eta, policy=target), alpha=alpha)(0, q, old)
    share = (1 / eta) / (1 / eta + 1 / alpha)
    step = 1 / (1 / eta + 1 / alpha)
    expected = target**share * old.exp() ** (1 - share) * ((q - q.amax(-1, keepdim=True)) * step).exp()
    torch.testing.assert_close(log_policy.exp(), expected / expected.sum(-1, keepdim=True), atol=1e-12, rtol=0)
    policy = log_policy.exp()
    kl = (policy * (log_policy - target.log())).sum(-1)
    torch.testing.assert_close(value, (policy * q).sum(-1) - kl / eta, atol=1e-12, rtol=1e-12)


def test_the_update_maximizes_its_objective() -> None:
    q, old = q_values(1)
    reference, alpha = Reference(eta=2.0), 0.7
    rule = Proximal(reference=reference, alpha=alpha)

    def objective(log_policy: Tensor) -> Tensor:
        policy = log_policy.exp()
        return reference.value(0, q, policy) - (policy * (log_policy - old)).sum(-1) / alpha

    best, _ = rule(0, q, old)
    for seed in range(20):
        noise = 0.1 * torch.randn(q.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert (objective((best + noise).log_softmax(-1)) <= objective(best) + 1e-12).all()


def test_limits_of_the_step_and_of_eta() -> None:
    q, old = q_values(2)
    soft, value = Proximal(reference=Reference(eta=4.0))(0, q, old)
    expected, optimum = Reference(eta=4.0).best(0, q)
    torch.testing.assert_close(soft.exp(), expected, atol=1e-13, rtol=0)
    torch.testing.assert_close(value, optimum, atol=1e-13, rtol=0)
    mirror, value = Proximal(reference=Reference(), alpha=0.5)(0, q, old)
    torch.testing.assert_close(mirror.exp(), (old + 0.5 * q).softmax(-1), atol=1e-13, rtol=0)
    torch.testing.assert_close(value, (mirror.exp() * q).sum(-1), atol=1e-13, rtol=0)
    for eta in (1e-3, 0.1):
        pinned, _ = Proximal(reference=Reference(eta=eta))(0, q, old)
        assert ((pinned.exp() * 5 - 1).abs() <= np.exp(2 * eta * 3) - 1).all()
    sharp, value = Proximal(reference=Reference(eta=1e4))(0, q, old)
    greedy, best = Greedy()(0, q, old)
    torch.testing.assert_close(sharp.exp(), greedy.exp(), atol=1e-9, rtol=0)
    assert ((best - value >= 0) & (best - value <= np.log(5) / 1e4 + 1e-12)).all()


def test_eta_and_step_may_differ_by_run() -> None:
    q, old = q_values(3)
    eta, alpha = torch.tensor([1.0, torch.inf, 10.0]).double(), torch.tensor([0.5, 2.0, torch.inf]).double()
    together = Proximal(reference=Reference(eta=eta), alpha=alpha)(0, q, old)
    for run in range(3):
        rule = Proximal(reference=Reference(eta=float(eta[run])), alpha=float(alpha[run]))
        alone = rule(0, q[run : run + 1], old[run : run + 1])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[run : run + 1], b, atol=1e-14, rtol=0)


def test_the_old_policy_may_be_the_one_that_is_evaluated() -> None:
    q, old = q_values(4)
    reference = Reference(eta=2.0)
    new = Proximal(reference=reference, alpha=0.5)(0, q, old)
    late = Proximal(reference=reference, alpha=0.5, order="evaluate_old")(0, q, old)
    assert torch.equal(late[0], new[0])
    torch.testing.assert_close(late[1], reference.value(0, q, old.exp()), atol=1e-13, rtol=0)


def test_one_stage_without_uncertainty_is_the_regularized_bandit() -> None:
    """pi proportional to pi_ref exp(eta r), the solution of KL-regularized rewards with 1 / eta as its coefficient."""
    rewards = torch.rand(1, 2, 4, dtype=torch.float64)
    target = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    mdp = LinearMDP(
        features=torch.eye(8, dtype=torch.float64).view(2, 4, 8),
        factors=torch.full((1, 8, 2), 0.5, dtype=torch.float64),
        rewards=rewards,
        initial=torch.tensor([0.5, 0.5], dtype=torch.float64),
    )
    rule = Proximal(reference=Reference(eta=3.0, policy=target))
    learner = make(mdp, runs=1, bonus=Bonus(beta=0.0), ambiguity=Ball(radius=0.0), improvement=rule)
    train(learner, mdp, 3, range(1))
    expected = target * (3.0 * rewards).exp()
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(learner.policy.probabilities()[0], expected, atol=1e-12, rtol=0)


def test_mirror_descent_keeps_probabilities_that_underflow() -> None:
    mdp = five_state(xi_norm=0.3)
    rule = Proximal(reference=Reference(), alpha=1000.0)
    learner = make(mdp, runs=1, ambiguity=Ball(radius=five_state_radius(0.5)), improvement=rule)
    train(learner, mdp, 30, range(1))
    assert (learner.policy.probabilities() == 0).any()
    assert learner.plan.log_policy.isfinite().all()


def test_ties() -> None:
    q = torch.tensor([[[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]]).double()
    drawn, value = Greedy()(0, q, q)
    torch.testing.assert_close(
        drawn.exp(), torch.tensor([[[0, 0.5, 0.5], [1 / 3] * 3]], dtype=torch.float64), atol=1e-15, rtol=0
    )
    first, _ = Greedy(ties="first")(0, q, q)
    assert first.exp().tolist() == [[[0, 1, 0], [1, 0, 0]]]
    assert value.tolist() == [[3, 2]]


# ------------------------------------------------------------------------------------------- runs in a batch


def test_a_run_does_in_a_batch_what_it_does_alone() -> None:
    mdp = five_state(xi_norm=0.3)
    rho = torch.tensor([0.0, 0.3, 0.5, 1.0], dtype=torch.float64)
    eta = torch.tensor([1.0, 5.0, 20.0, 100.0], dtype=torch.float64)
    seeds = [3, 3, 7, 11]
    together = make(
        mdp,
        runs=4,
        ambiguity=Ball(radius=five_state_radius(rho)),
        improvement=Proximal(reference=Reference(eta=eta)),
    )
    train(together, mdp, 20, seeds)
    for run in range(4):
        alone = make(
            mdp,
            runs=1,
            ambiguity=Ball(radius=five_state_radius(float(rho[run]))),
            improvement=Proximal(reference=Reference(eta=float(eta[run]))),
        )
        train(alone, mdp, 20, seeds[run : run + 1])
        torch.testing.assert_close(alone.plan.q[0], together.plan.q[run], atol=1e-12, rtol=0)


def test_permuting_seeds_permutes_runs() -> None:
    mdp, radius = random_tabular()
    seeds, order = [1, 2, 3], [2, 0, 1]
    results = []
    for chosen in (seeds, [seeds[i] for i in order]):
        learner = make(mdp, runs=3, ambiguity=Ball(radius=radius))
        train(learner, mdp, 20, chosen)
        results.append(learner.plan.q)
    torch.testing.assert_close(results[1], results[0][order], atol=1e-12, rtol=0)


# ------------------------------------------------------------------------------------------------- switching


def test_rare_switching_changes_a_policy_only_when_a_determinant_has_doubled() -> None:
    mdp, radius = random_tabular()
    learner = make(mdp, runs=3, ambiguity=Ball(radius=radius), rare_switching=True)
    source = OnlineEpisodes(mdp, learner.policy, seeds=range(3))
    at_switch = torch.zeros(3, mdp.horizon, dtype=torch.float64)
    for _ in range(150):
        before, switches = learner.policy.probabilities().clone(), learner.switches.clone()
        learner.update(source.sample())
        volume = learner.regression.log_volume  # type: ignore[union-attr]
        due = (volume - at_switch >= np.log(2)).any(-1)
        assert torch.equal(learner.switches - switches, due.double())
        assert torch.equal(learner.policy.probabilities()[~due], before[~due])
        at_switch[due] = volume[due]
    bound = mdp.num_features * mdp.horizon * np.log2(1 + 150 / 0.1 / mdp.num_features)
    assert (learner.switches < min(150.0, bound)).all()
    assert (learner.switches > 0).all()


def test_a_switch_plans_with_all_data_so_far() -> None:
    mdp, radius = random_tabular()
    rare = make(mdp, runs=1, ambiguity=Ball(radius=radius), rare_switching=True)
    always = make(mdp, runs=1, ambiguity=Ball(radius=radius))
    source = OnlineEpisodes(mdp, rare.policy, seeds=[0])
    for _ in range(60):
        switches = float(rare.switches)
        batch = source.sample()
        rare.update(batch)
        always.update(batch)
        if float(rare.switches) > switches:
            assert torch.equal(rare.plan.q, always.plan.q)


# ----------------------------------------------------------------------------------------- states and errors


@pytest.mark.parametrize("counted", [False, True])
def test_state_round_trip(counted: bool) -> None:
    mdp = five_state(xi_norm=0.3)
    rule = Proximal(reference=Reference(eta=20.0), alpha=1.0)
    options: dict[str, Any] = {"counted": counted, "ambiguity": Ball(radius=0.1), "improvement": rule}
    batch = uniform_episodes(mdp, 2, 20)
    parts = [batch] * 4 if counted else [episode(batch, k) for k in range(4)]
    whole = make(mdp, runs=2, **options)
    for part in parts[:2]:
        whole.update(part)
    state = copy.deepcopy(whole.state_dict())
    other = make(mdp, runs=2, **options)
    other.load_state_dict(state)
    for part in parts[2:]:
        first, second = whole.update(part).metrics, other.update(part).metrics
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert other.steps == whole.steps == 4
    assert torch.equal(other.plan.q, whole.plan.q)
    assert torch.equal(other.policy.probabilities(), whole.policy.probabilities())
    assert torch.equal(other.plan.log_policy.exp(), other.policy.probabilities())


def test_a_plan_that_is_not_finite_is_not_saved() -> None:
    mdp = five_state()
    learner = make(mdp, runs=1)
    batch = episode(uniform_episodes(mdp, 1, 1), 0)
    learner.regression.state_dict()["solved"].fill_(torch.nan)
    learner.update(batch)
    with pytest.raises(NonFiniteError, match="update 1: Q is not finite"):
        learner.state_dict()


def test_what_the_learner_refuses() -> None:
    mdp = five_state()
    problem = Problem.of(mdp)
    recursive, counted = (kind(problem, runs=2, ridge=1.0) for kind in (RecursiveLeastSquares, CountedLeastSquares))
    policy = TabularPolicy((2, 3, 5, 16))
    with pytest.raises(ValueError, match="rare switching needs"):
        LeastSquaresLearner(policy, counted, bonus=Bonus(), rare_switching=True)
    with pytest.raises(ValueError, match="variance weights need"):
        LeastSquaresLearner(policy, recursive, bonus=Bonus(), variance=VarianceWeights(ridge=1.0))
    with pytest.raises(ValueError, match=r"is \[1, 3, 5, 16\]; valid: \[runs, H, S, A\] = \[2, 3, 5, 16\]"):
        LeastSquaresLearner(TabularPolicy((1, 3, 5, 16)), recursive, bonus=Bonus())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Bonus(kind="d3"), "bonus = 'd3'; valid: full, d1, d2"),  # type: ignore[arg-type]
        (lambda: Bonus(beta=-1.0), "beta = -1.0; valid: a number >= 0"),
        (lambda: Greedy(ties="last"), "ties = 'last'; valid: first, uniform"),  # type: ignore[arg-type]
        (lambda: Proximal(reference=Reference(eta=1.0), alpha=0.0), "alpha = 0.0; valid: a positive number"),
        (lambda: Proximal(reference=Reference()), "eta and alpha are both infinite"),
        (lambda: Proximal(reference=Reference(eta=1.0), order="old"), "order = 'old'; valid: evaluate_new"),  # type: ignore[arg-type]
    ],
)
def test_values_out_of_range(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
