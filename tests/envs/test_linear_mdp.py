"""Linear MDPs: what they accept, their instances, their sampler and their Gymnasium environments."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import decisionrl.envs  # noqa: F401 - registers the ids
from decisionrl.envs.linear_mdp import (
    FactorError,
    FeatureError,
    LinearMDP,
    RewardError,
    american_put,
    draw_noise,
    five_state,
    five_state_radius,
    frozen_lake,
    inverse_cdf,
    linear_rewards,
    put_features,
    put_prices,
    random_linear,
    random_tabular,
    rollout,
    tabular,
)
from decisionrl.envs.linear_mdp.gymnasium import ActionError, LinearMDPEnv, LinearMDPVectorEnv
from decisionrl.envs.make import make_world

IDS = sorted(name for name, spec in gymnasium.registry.items() if "linear_mdp" in str(spec.entry_point))
FIVE = "decisionrl/FiveState-v0"


def tensor(*numbers):
    return torch.tensor(*numbers, dtype=torch.float64)


def parts(**changes):
    """A valid MDP with H = 2, S = 3, A = 2, d = 2, as arguments, some of them changed."""
    features = tensor([[[0.5, 0.5], [1.0, 0.0]], [[0.2, 0.8], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    factors = tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 1.0]]).expand(2, 2, 3)
    rewards = tensor([[0.1, 0.9], [1.0, 0.5], [0.0, 0.0]]).expand(2, 3, 2)
    return {
        "features": features,
        "factors": factors,
        "rewards": rewards,
        "initial": tensor([0.5, 0.5, 0.0]),
        "fail_state": 2,
    } | changes


def changed(tensor_, entry, value):
    copy = tensor_.clone()
    copy[entry] = value
    return copy


# ----------------------------------------------------------------------------------------------------- data


def test_kernel_is_features_times_factors():
    mdp = LinearMDP(**parts())
    assert (mdp.horizon, mdp.num_states, mdp.num_actions, mdp.num_features) == (2, 3, 2, 2)
    assert mdp.batch_shape == ()
    assert mdp.features.shape == (2, 3, 2, 2)
    for h, s, a in np.ndindex(2, 3, 2):
        row = sum(mdp.features[h, s, a, i] * mdp.factors[h, i] for i in range(2))
        torch.testing.assert_close(mdp.kernel[h, s, a], row, atol=1e-15, rtol=0)


def test_batches_broadcast():
    plain = parts()
    mdp = LinearMDP(**parts(factors=plain["factors"].expand(4, 1, 2, 2, 3), initial=plain["initial"].expand(5, 3)))
    assert mdp.batch_shape == (4, 5)
    assert mdp.kernel.shape == (4, 1, 2, 3, 2, 3)
    assert mdp.to("cpu").batch_shape == (4, 5)
    with pytest.raises(ValueError, match="leading dimensions do not broadcast"):
        LinearMDP(**parts(factors=plain["factors"].expand(4, 2, 2, 3), initial=plain["initial"].expand(5, 3)))


@pytest.mark.parametrize(
    ("field", "entry", "value", "error", "message"),
    [
        (
            "features",
            (1, 0),
            0.3,
            FeatureError,
            r"features\[0, 1, 0\] = \[0.3, 0.3\], which sums to 0.6; valid: non-neg",
        ),
        (
            "features",
            (0, 1),
            tensor([1.5, -0.5]),
            FeatureError,
            r"features\[0, 0, 1\] = \[1.5, -0.5\], which sums to 1;",
        ),
        ("features", (0, 0, 0), torch.nan, FeatureError, r"features\[0, 0, 0\] = \[nan, 0.5\]"),
        (
            "factors",
            (1, 0, 2),
            0.4,
            FactorError,
            r"factors\[1, 0\] = \[0.2, 0.5, 0.4\], which sums to 1.1; valid: a prob",
        ),
        ("factors", (0, 1), tensor([0.5, -0.5, 1]), FactorError, r"factors\[0, 1\] = \[0.5, -0.5, 1.0\]"),
        ("initial", (0,), 0.6, FactorError, r"initial = \[0.6, 0.5, 0.0\], which sums to 1.1"),
        ("rewards", (1, 0, 1), 1.2, RewardError, r"rewards\[1, 0, 1\] = 1.2; valid: in \[0, 1\]"),
        ("rewards", (0, 1, 0), -0.1, RewardError, r"rewards\[0, 1, 0\] = -0.1"),
        ("rewards", (0, 1, 0), torch.nan, RewardError, r"rewards\[0, 1, 0\] = nan"),
        ("rewards", (1, 2, 1), 0.5, RewardError, r"rewards\[1, 1\] of fail_state 2 is not 0"),
        ("factors", (0, 1), tensor([0.5, 0.0, 0.5]), FactorError, r"fail_state 2 is left with probability 0.5"),
    ],
)
def test_wrong_entries_are_named(field, entry, value, error, message):
    with pytest.raises(error, match=message):
        LinearMDP(**parts(**{field: changed(parts()[field], entry, value)}))


def test_wrong_shapes_and_types():
    with pytest.raises(ValueError, match=r"factors ends in \(2, 2, 2\); valid .*\(2, 3, 2, 2\): \(2, 2, 3\)"):
        LinearMDP(**parts(factors=torch.full((2, 2, 2), 0.5, dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"rewards is torch.float32; valid: torch.float64"):
        LinearMDP(**parts(rewards=parts()["rewards"].float()))
    with pytest.raises(ValueError, match=r"fail_state = 3; valid: a state in 0, ..., 2"):
        LinearMDP(**parts(fail_state=3))
    with pytest.raises(ValueError, match=r"rewards \[3, 2\].*; valid: features"):
        LinearMDP(**parts(rewards=parts()["rewards"][0]))


def test_rewards_in_other_units_say_so():
    assert LinearMDP(**parts(rewards=parts()["rewards"] * 50, max_reward=50.0)).max_reward == 50


# ------------------------------------------------------------------------------------------------- instances


def test_five_state_mdp_is_the_published_one():
    mdp = five_state(delta=0.3, xi_norm=0.2, p=0.01)
    assert mdp.features.shape == (3, 5, 16, 4)
    actions = np.array(np.meshgrid(*[[-1, 1]] * 4, indexing="ij")).reshape(4, -1).T  # the order of itertools.product
    for a, action in enumerate(actions):
        u = 0.3 + 0.05 * action.sum()
        expected = [[1 - u, 0, 0, u], [0, 1 - u, 0, u], [0, 0, 1 - u, u], [0, 0, 1, 0], [0, 0, 0, 1]]
        torch.testing.assert_close(mdp.features[0, :, a], tensor(expected), atol=1e-15, rtol=0)
    assert mdp.rewards[0].eq(0).all()
    assert mdp.rewards[1].equal(mdp.features[0, ..., 3])
    assert mdp.rewards[2].equal(mdp.rewards[1])
    torch.testing.assert_close(mdp.kernel[0, 0, 0], tensor([0, 0.9 * 0.99, 0, 0.9 * 0.01, 0.1]), atol=1e-15, rtol=0)
    torch.testing.assert_close(mdp.kernel[1, 1, 15], tensor([0, 0, 0.5 * 0.99, 0.5 * 0.01, 0.5]), atol=1e-15, rtol=0)
    target = five_state(xi_norm=0.2, perturbation=tensor([0.0, 0.4]))
    assert target.factors[:, 0, 0].equal(tensor([[0, 1.0, 0, 0, 0]] * 2))
    assert target.factors[:, 0, 3].equal(tensor([[0, 0, 0, 0, 1.0], [0, 0, 0, 0.4, 0.6]]))
    assert target.factors[1, 1].equal(five_state().factors[1])
    radius = five_state_radius(tensor([0.1, 0.2]))
    assert radius.shape == (2, 3, 4)
    assert radius.sum((1, 2)).equal(radius[:, 0, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"xi_norm": 0.4}, "xi_norm = 0.4 with delta = 0.3; valid: 0 <= xi_norm"),
        ({"delta": 0.9, "xi_norm": 0.2}, "xi_norm = 0.2 with delta = 0.9"),
        ({"p": 1.5}, r"p = 1.5; valid: in \[0, 1\]"),
        ({"perturbation": 1.5}, r"perturbation = 1.5; valid: in \[0, 1\]"),
    ],
)
def test_five_state_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        five_state(**options)


def test_put_lattice():
    prices = put_prices(horizon=3, start_price=tensor([100.0, 95.0]))
    assert prices.shape == (2, 4, 4)
    assert float(prices[0, 0, 0]) == 100
    assert float(prices[1, 3, 2]) == pytest.approx(95 * 1.02**2 * 0.98, abs=1e-12)
    put = american_put(horizon=3, up_probability=0.3, start_price=tensor([100.0, 95.0]))
    assert put.batch_shape == (2,)
    assert put.rewards[..., 0].eq(0).all()
    torch.testing.assert_close(put.rewards[:, :, :4, 1], (100 - prices[:, :3]).clamp(min=0), atol=0, rtol=0)
    assert put.kernel[1, 1, 0].equal(tensor([0, 0.7, 0.3, 0, 0]))
    assert put.kernel[1, 1, 1].equal(tensor([0, 0, 0, 0, 1.0]))
    for wrong in ({"up_probability": 1.2}, {"start_price": -1.0}, {"horizon": 0}, {"down": 1.1}):
        with pytest.raises(ValueError, match="valid"):
            american_put(**wrong)


def test_put_features_interpolate_prices():
    features, prices = put_features(20, horizon=10), put_prices(horizon=10, start_price=100.0)[:10]
    assert features.shape == (10, 12, 2, 20)
    assert features[:, :, 1].eq(0).all()
    assert features[:, 11].eq(0).all()
    held, anchors = features[:, :11, 0], 80 + 5 * torch.arange(20, dtype=torch.float64)
    inside = (prices >= 80) & (prices <= 175)
    torch.testing.assert_close(held.sum(-1)[inside], torch.ones_like(prices[inside]))
    torch.testing.assert_close((held @ anchors)[inside], prices[inside])  # a hat basis represents lines
    assert put_features(10, horizon=5, start_price=tensor([96.0, 104.0])).shape == (2, 5, 7, 2, 10)


def test_frozen_lake_has_gymnasiums_kernel():
    lake, table = frozen_lake(horizon=3), gymnasium.make("FrozenLake-v1").unwrapped.P
    assert (lake.horizon, lake.num_states, lake.num_features) == (4, 17, 68)
    for s, a in np.ndindex(15, 4):
        row = np.zeros(17)
        for probability, following, _, _ in table[s][a]:
            row[following] += probability
        np.testing.assert_allclose(lake.kernel[0, s, a].numpy(), row, atol=1e-15)
    assert lake.kernel[0, 15, 0, 16] == 1
    assert lake.rewards[0].nonzero().tolist() == [[15, a] for a in range(4)]
    with pytest.raises(ValueError, match="horizon = 0"):
        frozen_lake(horizon=0)


def test_random_instances_are_those_of_their_seed():
    mdp, radius = random_tabular()
    assert mdp.kernel.shape == (4, 6, 3, 6)
    assert radius.shape == (4, 18)
    assert set(radius.unique().tolist()) == {0.0, 0.6}
    torch.testing.assert_close(mdp.kernel.flatten(1, 2), mdp.factors, atol=0, rtol=0)
    assert not random_tabular(1)[0].factors.equal(mdp.factors)
    mdp, radius = random_linear()
    assert mdp.kernel.shape == (5, 12, 6, 12)
    assert radius.sum(-1).eq(1.4).all()


def test_tabular_is_one_hot():
    kernel = tensor(np.random.default_rng(0).dirichlet(np.ones(3), size=(2, 3, 2)))
    mdp = tabular(kernel, torch.zeros(2, 3, 2, dtype=torch.float64), tensor([1.0, 0, 0]))
    torch.testing.assert_close(mdp.kernel, kernel, atol=0, rtol=0)
    assert mdp.features[0, 1, 1].tolist() == [0, 0, 0, 1, 0, 0]


def test_linear_rewards():
    rng = np.random.default_rng(0)
    features, theta = tensor(rng.random((3, 2, 4))), tensor(rng.random((5, 4)))
    found = linear_rewards(features, theta)
    torch.testing.assert_close(found, linear_rewards(features.expand(5, 3, 2, 4), theta))
    assert float(found[1, 2, 0]) == pytest.approx(float(features[2, 0] @ theta[1]))


# -------------------------------------------------------------------------------------------------- sampling


def test_inverse_cdf_is_the_quantile():
    p = tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    u = tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 1e-16])
    assert inverse_cdf(p.expand(6, 6), u).tolist() == [1, 1, 3, 3, 4, 4]
    tenths = torch.full((10,), 0.1, dtype=torch.float64)  # their running sum ends below 1
    assert int(inverse_cdf(tenths, tensor(1 - 2**-53))) == 9


def test_rollouts_follow_kernel_policy_and_rewards():
    mdp, _ = random_tabular()
    policy = tensor(np.random.default_rng(0).dirichlet(np.ones(3), size=(4, 6)))
    episodes = rollout(mdp, policy, draw_noise(40_000, 4, generator=torch.Generator().manual_seed(0)))
    assert episodes.states.shape == (40_000, 5)
    law = mdp.initial
    for h in range(4):
        s, a = episodes.states[:, h], episodes.actions[:, h]
        assert episodes.rewards[:, h].equal(mdp.rewards[h, s, a])
        taken = torch.einsum("s,sa->sa", law, policy[h])
        joint = torch.einsum("sa,sat->sat", taken, mdp.kernel[h])
        index = (s * 3 + a) * 6 + episodes.states[:, h + 1]
        share = torch.bincount(index, minlength=108).reshape(6, 3, 6) / 40_000
        assert (share[joint == 0] == 0).all()
        torch.testing.assert_close(share.double(), joint, atol=0.012, rtol=0)
        law = joint.sum((0, 1))


def test_a_copy_does_the_same_alone_and_in_a_batch():
    targets = five_state(xi_norm=0.3, perturbation=torch.linspace(0, 1, 6))
    policies = tensor(np.random.default_rng(0).dirichlet(np.ones(16), size=(6, 3, 5)))
    noise = draw_noise(6, 3, generator=torch.Generator().manual_seed(1))
    together = rollout(targets, policies, noise)
    for i in range(6):
        one = five_state(xi_norm=0.3, perturbation=i / 5)
        alone = rollout(one, policies[i], noise[i : i + 1])
        for field in ("states", "actions", "rewards"):
            assert getattr(together, field)[i].equal(getattr(alone, field)[0])


# ------------------------------------------------------------------------------------------------- Gymnasium


def test_every_instance_has_an_id():
    assert [name.removeprefix("decisionrl/") for name in IDS] == [
        "AmericanPut-v0",
        "FiveState-v0",
        "RandomLinear-v0",
        "RandomTabular-v0",
        "RobustFrozenLake-v0",
    ]


@pytest.mark.parametrize("name", IDS)
def test_gymnasium_checks(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(name).unwrapped)


def test_stable_baselines_checks():
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(gymnasium.make(FIVE).unwrapped)


def test_single_episodes_have_h_steps_and_the_rewards_of_their_states():
    env = gymnasium.make(FIVE, xi_norm=0.3).unwrapped
    assert env.observation_space.nvec.tolist() == [4, 5]
    observation, _ = env.reset(seed=0)
    for h in range(3):
        assert observation.tolist()[0] == h
        following, reward, terminated, truncated, info = env.step(15)
        assert reward == float(env.mdp.rewards[h, observation[1], 15])
        assert env.mdp.kernel[h, observation[1], 15, following[1]] > 0
        assert (terminated, truncated, info) == (h == 2, False, {})
        observation = following
    assert env.observation_space.contains(observation)
    with pytest.raises(gymnasium.error.ResetNeeded, match="the episode is over"):
        env.step(0)


def test_vector_env_draws_what_the_kernel_says_and_restarts():
    envs = gymnasium.make_vec(FIVE, num_envs=20_000, xi_norm=0.3).unwrapped
    assert isinstance(envs, LinearMDPVectorEnv)
    observation, _ = envs.reset(seed=0)
    assert observation.tolist()[0] == [0, 0]
    actions = np.full(20_000, 3)
    observation, reward, terminated, truncated, _ = envs.step(actions)
    share = np.bincount(observation[:, 1], minlength=5) / 20_000
    np.testing.assert_allclose(share, envs.mdp.kernel[0, 0, 3].numpy(), atol=0.02)
    assert not terminated.any()
    for _ in range(2):
        before = observation
        observation, reward, terminated, truncated, _ = envs.step(actions)
    np.testing.assert_array_equal(reward, envs.mdp.rewards[2][before[:, 1], 3].numpy())
    assert terminated.all()
    assert not truncated.any()
    observation, reward, terminated, _, _ = envs.step(actions)  # resets
    assert (observation == 0).all()
    assert not reward.any()
    assert not terminated.any()
    envs.reset(seed=0)
    first = envs.step(actions)[0]
    envs.reset(seed=0)
    np.testing.assert_array_equal(first, envs.step(actions)[0])


def test_vector_env_of_many_instances_and_same_step_reset():
    targets = five_state(xi_norm=0.3, perturbation=torch.linspace(0, 1, 4))
    envs = LinearMDPVectorEnv(targets, num_envs=4, autoreset_mode=AutoresetMode.SAME_STEP, seed=3)
    envs.reset()
    for _ in range(2):
        envs.step(np.zeros(4, dtype=np.int64))
    observation, _, terminated, _, info = envs.step(np.zeros(4, dtype=np.int64))
    assert terminated.all()
    assert (observation == 0).all()
    assert [row[0] for row in info["final_obs"]] == [3] * 4


def test_worlds_of_both_kinds():
    for world in (make_world(FIVE, num_envs=3), make_world(LinearMDPVectorEnv("five_state", num_envs=3))):
        observation = world.reset([0, 1, 2])
        assert observation.tolist() == [[0, 0]] * 3
        assert world.step(torch.tensor([0, 1, 2])).observation[:, 0].tolist() == [1] * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearMDPEnv("five_states"), "mdp = 'five_states'; valid: a LinearMDP, or one of five_state"),
        (lambda: LinearMDPEnv(five_state(), p=0.1), r"options = \['p'\]; valid: none"),
        (lambda: LinearMDPEnv("five_state", perturbation=torch.zeros(2)), r"its batch is \(2,\); valid: one instance"),
        (
            lambda: LinearMDPVectorEnv("five_state", num_envs=3, perturbation=torch.zeros(2)),
            r"valid: \(\) or \(num_envs,\) = \(3,\)",
        ),
        (lambda: LinearMDPVectorEnv("five_state", autoreset_mode="Disabled"), "autoreset_mode = DISABLED"),
    ],
)
def test_bad_environments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_actions():
    env = LinearMDPEnv("five_state")
    env.reset(seed=0)
    with pytest.raises(ActionError, match=r"action = 16; valid: a whole number in Discrete\(16\)"):
        env.step(16)
    envs = LinearMDPVectorEnv("five_state", num_envs=2)
    envs.reset(seed=0)
    for wrong in ([0, 16], [0]):
        with pytest.raises(ActionError, match=r"valid: 2 whole numbers in 0, \.\.\., 15"):
            envs.step(np.array(wrong))
