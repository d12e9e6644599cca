"""The softmax-linear policy: its formula, its place among the policies, and a little learning."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from decisionrl.envs.linear_mdp import five_state, five_state_radius
from decisionrl.envs.make import make_world
from decisionrl.experience.rollouts import RolloutSource
from decisionrl.learner import GradientLearner
from decisionrl.minibatches import MinibatchLearner
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.regularizers import ValueLoss
from decisionrl.objectives.surrogates import Clip
from decisionrl.pipeline.advantages import GAE
from decisionrl.policies.linear import SoftmaxLinear
from decisionrl.robust.ambiguity import Ball
from decisionrl.robust.dynamic_programming import evaluate, optimal
from decisionrl.trainer import Trainer


def random_policy(*, eta=1.0, dtype=torch.float64, **options):
    rng = np.random.default_rng(0)
    policy = SoftmaxLinear(torch.tensor(rng.random((3, 5, 4, 2))), eta=eta, dtype=dtype, **options)
    with torch.no_grad():
        policy.weight.copy_(torch.tensor(rng.normal(size=(3, 2))))
        if policy.values is not None:
            policy.values.copy_(torch.tensor(rng.normal(size=(3, 5))))
    return policy


def every_state(stages=3):
    return torch.tensor([[h, s] for h in range(stages) for s in range(5)])


def test_probabilities_are_the_softmax_of_scaled_linear_scores():
    policy = random_policy(eta=2.5)
    table = policy.probabilities()
    for h, s in np.ndindex(3, 5):
        score = torch.stack([2.5 * policy.features[h, s, a] @ policy.weight[h] for a in range(4)])
        torch.testing.assert_close(table[h, s], score.softmax(0))


def test_evaluate_agrees_with_the_table_and_ignores_masked_steps():
    policy, table = random_policy(), random_policy().probabilities()
    observation = torch.stack([every_state(), every_state().flip(0)])
    action = torch.arange(30).reshape(2, 15) % 4
    mask = torch.ones(2, 15, dtype=torch.bool)
    mask[1, 7:] = False
    observation[1, 7:] = 10**6  # garbage
    found = policy.evaluate(SimpleNamespace(observation=observation, action=action, mask=mask, state=None, start=None))
    for b, t in mask.nonzero().tolist():
        h, s = observation[b, t].tolist()
        p = table[h, s]
        torch.testing.assert_close(found.log_prob[b, t], p[action[b, t]].log())
        torch.testing.assert_close(found.entropy[b, t], -(p * p.log()).sum())
        torch.testing.assert_close(found.value[b, t], policy.values[h, s])
    for part in (found.log_prob, found.entropy, found.value):
        assert (part[~mask] == 0).all()
    assert found.head is None


def test_score_is_the_centered_feature():
    """d log pi(a | s) / d w_h = eta (phi(s, a) - E_pi phi(s, .)), and 0 for the other stages."""
    policy = random_policy(eta=2.5)
    batch = SimpleNamespace(
        observation=torch.tensor([[[1, 3]]]), action=torch.tensor([[2]]), mask=torch.ones(1, 1, dtype=torch.bool)
    )
    policy.evaluate(batch).log_prob.sum().backward()
    mean = policy.probabilities()[1, 3] @ policy.features[1, 3]
    torch.testing.assert_close(policy.weight.grad[1], 2.5 * (policy.features[1, 3, 2] - mean).detach())
    assert policy.weight.grad[[0, 2]].eq(0).all()


def test_acting_samples_its_own_probabilities():
    policy = random_policy(eta=3.0)
    rows = every_state().repeat_interleave(4000, 0)
    noise = policy.sample_noise((len(rows),), torch.Generator().manual_seed(0))
    assert noise.shape == (len(rows), 4)
    action, state = policy.act(rows, noise=noise)
    assert state is None
    share = torch.stack([torch.bincount(each, minlength=4) / 4000 for each in action.split(4000)])
    torch.testing.assert_close(share.double(), policy.probabilities().flatten(0, 1).detach(), atol=0.035, rtol=0)
    best, _ = policy.act(every_state())
    assert best.equal(policy.probabilities().flatten(0, 1).argmax(-1))


def test_the_end_of_an_episode_is_worth_nothing():
    policy = random_policy()
    end = torch.tensor([[3, 0], [3, 4]])
    assert policy.value(end).eq(0).all()
    policy.act(end)
    assert random_policy(critic=False).value(end) is None
    assert policy.initial_state(2) is None


def test_state_dict_holds_the_weights_alone():
    policy, other = random_policy(), random_policy()
    assert set(policy.state_dict()) == {"weight", "values"}
    with torch.no_grad():
        other.weight.zero_()
    assert other.probabilities().eq(0.25).all()
    other.load_state_dict(policy.state_dict())
    assert other.probabilities().equal(policy.probabilities())


def test_stationary_features_and_defaults():
    policy = SoftmaxLinear(torch.rand(5, 4, 2, dtype=torch.float64), horizon=6)
    assert policy.weight.shape == (6, 2)
    assert policy.weight.dtype == torch.float32
    assert policy.probabilities().eq(0.25).all()


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((5, 4, 2), {}, r"features \[5, 4, 2\] with horizon = None; valid: \[H, S, A, d\]"),
        ((3, 5, 4, 2), {"horizon": 4}, r"with horizon = 4"),
        ((4, 2), {"horizon": 4}, r"features \[4, 2\]"),
        ((3, 5, 4, 2), {"eta": 0.0}, "eta = 0.0; valid: a positive number"),
    ],
)
def test_bad_arguments(shape, options, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxLinear(torch.rand(shape), **options)


def test_any_softmax_linear_optimum_can_be_set():
    """With the exact soft optimum's weights the policy is that optimum: logits eta Q = eta phi . (theta + nu)."""
    from decisionrl.robust.reference import Reference

    mdp, eta = five_state(xi_norm=0.3), 20.0
    soft = optimal(mdp, Ball(radius=five_state_radius(0.5)), reference=Reference(eta=eta))
    policy = SoftmaxLinear(mdp.features, eta=eta, dtype=torch.float64)
    with torch.no_grad():
        policy.weight.copy_(soft.factor_values)
        policy.weight[1:, 3] += 1  # theta
    torch.testing.assert_close(policy.probabilities().detach(), soft.policy, atol=1e-12, rtol=0)


def test_proximal_policy_optimization_learns_the_five_state_mdp():
    mdp = five_state(xi_norm=0.3)
    policy = SoftmaxLinear(mdp.features, eta=5.0)
    source = RolloutSource(
        make_world("decisionrl/FiveState-v0", num_envs=16, options={"xi_norm": 0.3}),
        policy,
        horizon=24,
        pipeline=[GAE(gamma=1.0, lam=1.0)],
        seed=0,
    )
    objective = PolicyGradient(
        surrogate=Clip(low=0.2, high=0.2), value_loss=ValueLoss(coefficient=0.5), normalize_advantage=True
    )
    learner = GradientLearner(policy, objective, torch.optim.Adam(policy.parameters(), 0.05))

    def value():
        return float(evaluate(mdp, policy.probabilities().detach().double()).start)

    before, best = value(), float(optimal(mdp).start)
    Trainer(MinibatchLearner(learner, epochs=4, size=96, unit="step", seed=0), source).fit(24 * 16 * 25)
    assert value() - before > 0.6 * (best - before)
