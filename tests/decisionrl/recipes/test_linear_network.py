"""The softmax-linear policy in the recipes on environments."""

import pytest

from decisionrl.envs.linear_mdp import five_state
from decisionrl.policies.linear import SoftmaxLinear
from decisionrl.recipes import recipe
from decisionrl.robust.dynamic_programming import evaluate, optimal
from decisionrl.trainer import Trainer

ENV = {"env": "decisionrl/FiveState-v0", "env_options": {"delta": 0.3, "xi_norm": 0.3, "p": 0.1}, "network": "linear"}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ppo", {"horizon": 60, "minibatch": 120, "epochs": 5, "learning_rate": 0.05}),
        ("reinforce", {"episodes": 32, "baseline": True, "gamma": 1.0, "learning_rate": 0.3}),
        ("grpo", {"groups": 8, "group_size": 16, "aggregate": "token-mean", "learning_rate": 0.3}),
    ],
)
def test_policy_gradients_find_the_exact_optimum(name, arguments):
    experiment = recipe(name)(steps=12_000, clip_norm=None, **ENV, **arguments)
    policy = experiment.policy
    assert isinstance(policy, SoftmaxLinear)
    mdp = five_state(delta=0.3, xi_norm=0.3, p=0.1)
    optimum = float(optimal(mdp).start)
    before = float(evaluate(mdp, policy.probabilities().detach().double()).start)
    Trainer(experiment).fit(12_000)
    after = float(evaluate(mdp, policy.probabilities().detach().double()).start)
    assert before < 0.9 * optimum
    assert after > 0.97 * optimum


def test_other_environments_have_no_features():
    with pytest.raises(
        ValueError, match=r"network = 'linear'; valid with .*linear_mdp in this process, not with CartPole-v1"
    ):
        recipe("ppo")(env="CartPole-v1", network="linear")
    with pytest.raises(ValueError, match="network = 'tree'; valid: mlp, linear"):
        recipe("ppo")(env="CartPole-v1", network="tree")
