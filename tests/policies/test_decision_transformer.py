"""DecisionTransformer: returns that rewards bring down, and acting that equals whole windows."""

from types import SimpleNamespace

import gymnasium
import pytest
import torch
from gymnasium import spaces

from decisionrl.envs.make import make_world
from decisionrl.experience.episodes import Task, play
from decisionrl.policies.decision_transformer import DecisionTransformer
from decisionrl.policies.hindsight import HindsightPolicy, HindsightSizes
from decisionrl.policies.sequence import TransformerSizes

TINY = TransformerSizes(width=8, layers=2, heads=2, feedforward=8)
OBSERVATIONS, ACTIONS = spaces.Box(-5, 5, (3,)), spaces.Box(-2, 2, (2,))
WINDOW, TARGET, SCALE = 4, 30.0, 10.0


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def make(**options: object) -> DecisionTransformer:
    settings = {"sizes": TINY, "window": WINDOW, "timesteps": 50, "target_return": TARGET, "return_scale": SCALE}
    policy = DecisionTransformer(OBSERVATIONS, ACTIONS, generator=rng(), **{**settings, **options}).double().eval()
    policy.update_normalizer(normal(100, 3) * 2 + 1)
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(0.2 * normal(*parameter.shape, seed=i))
    return policy


def batch(**changes: torch.Tensor) -> SimpleNamespace:
    fields = {
        "observation": normal(3, 5, 3),
        "action": normal(3, 5, 2, seed=2).clamp(-2, 2),
        "mask": torch.ones(3, 5, dtype=torch.bool),
        "extras": {"return_to_go": normal(3, 5, seed=3), "timestep": torch.arange(5).expand(3, 5) + 6},
        "state": None,
        "start": None,
    }
    return SimpleNamespace(**{**fields, **changes})


@pytest.mark.parametrize("constant", [False, True])
@torch.no_grad()
def test_acting_equals_the_whole_window_with_returns_that_rewards_bring_down(constant):
    policy = make(constant_return=constant)
    observation, reward = normal(2, 9, 3, seed=8), 5 * normal(2, 9, seed=9)
    state, actions = policy.initial_state(2), []
    for t in range(9):
        action, state = policy.act(observation[:, t], state)
        state = policy.hear(state, reward[:, t])
        actions.append(action)
        first = max(0, t + 1 - WINDOW)
        for row in range(2):
            earned = [0.0 if constant else float(reward[row, :s].sum()) for s in range(first, t + 1)]
            seen = batch(
                observation=observation[row : row + 1, first : t + 1],
                action=torch.stack(actions, 1)[row : row + 1, first:],
                mask=torch.ones(1, t + 1 - first, dtype=torch.bool),
                extras={"timestep": torch.arange(first, t + 1)[None]},
            )
            to_go = torch.tensor([[[(TARGET - each) / SCALE] for each in earned]], dtype=torch.float64)
            predicted = policy.contextual(policy.reader(seen), to_go).action[0, -1]
            torch.testing.assert_close(action[row], 2 * predicted)


@torch.no_grad()
def test_rows_are_reset_one_by_one():
    policy, observation = make(), normal(2, 6, 3)
    state = policy.initial_state(2)
    for t in range(3):
        _, state = policy.act(observation[:, t], state)
        state = policy.hear(state, torch.tensor([1.0, 2.0], dtype=torch.float64))
    state = state.index_copy(0, torch.tensor([0]), policy.initial_state(2)[[0]])
    fresh, kept = policy.initial_state(1), state[[1]]
    for t in range(3, 6):
        action, state = policy.act(observation[:, t], state)
        begun, fresh = policy.act(observation[[0], t], fresh)
        went_on, kept = policy.act(observation[[1], t], kept)
        torch.testing.assert_close(action, torch.cat([begun, went_on]))


@torch.no_grad()
def test_log_prob_is_the_negative_squared_error_given_the_returns():
    policy, data = make(), batch()
    predicted = policy.contextual(policy.reader(data), data.extras["return_to_go"][..., None]).action
    log_prob = policy.evaluate(data).log_prob
    for row in range(3):
        for t in range(5):
            wanted = -sum(
                (float(a) - float(b) / 2) ** 2 for a, b in zip(predicted[row, t], data.action[row, t], strict=True)
            )
            assert float(log_prob[row, t]) == pytest.approx(wanted)
    other = batch(extras={**data.extras, "return_to_go": data.extras["return_to_go"] + 1})
    assert not torch.allclose(policy.evaluate(other).log_prob, log_prob)


@torch.no_grad()
def test_a_constant_return_is_that_of_the_first_step():
    policy, data = make(constant_return=True, return_name="future_return"), batch()
    first = data.extras["return_to_go"][:, :1]
    given, same = (
        policy.evaluate(batch(extras={"timestep": data.extras["timestep"], "future_return": values})).log_prob
        for values in (data.extras["return_to_go"], first.expand(3, 5))
    )
    assert torch.equal(given, same)


@torch.no_grad()
def test_masked_steps_are_zero_and_do_not_matter():
    policy, data = make(), batch()
    mask = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
    clean = policy.evaluate(batch(mask=mask)).log_prob
    for tensor in (data.observation, data.action, data.extras["return_to_go"]):
        tensor[~mask] = torch.nan
    data.mask = mask
    assert torch.equal(policy.evaluate(data).log_prob, clean)
    assert (clean[~mask] == 0).all()
    torch.testing.assert_close(clean[mask], policy.evaluate(batch()).log_prob[mask])


def test_it_learns_to_do_what_the_return_says():
    policy = make(sizes=TransformerSizes(width=16, layers=1, heads=2, feedforward=16, dropout=0.0), window=5).train()
    returns = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, 5)
    action = returns[..., None].expand(2, 5, 2)  # half of the Box up or down, as the return says
    observation = normal(1, 5, 3).expand(2, 5, 3)
    data = batch(
        observation=observation,
        action=action,
        mask=torch.ones(2, 5, dtype=torch.bool),
        extras={"return_to_go": returns},
    )
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        (-policy.evaluate(data).log_prob.mean()).backward()
        optimizer.step()
    for target in (1.0, -1.0):
        policy.target_return = target * SCALE
        acted, _ = policy.act(observation[:1, 0])
        torch.testing.assert_close(acted, torch.full_like(acted, target), atol=0.2, rtol=0)


def test_errors_name_the_field():
    with pytest.raises(ValueError, match=r"extras has \['timestep'\]; valid: with 'return_to_go'"):
        make().evaluate(batch(extras={"timestep": torch.zeros(3, 5, dtype=torch.long)}))
    with pytest.raises(ValueError, match="return_scale = 0; valid: positive"):
        make(return_scale=0)
    with pytest.raises(ValueError, match="window = 0; valid: at least 1"):
        make(window=0)


def test_there_is_neither_noise_nor_a_critic_and_states_travel():
    one, other = make(), make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    seen = normal(2, 3)
    assert one.sample_noise((4,)).shape == (4, 0)
    assert one.value(seen) is None
    assert not torch.equal(one.act(seen)[0], other.act(seen)[0])
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.act(seen)[0], other.act(seen)[0])


class Counter(gymnasium.Env):
    """Episodes of 3 to 8 steps; a reward that grows with the steps and depends on the action."""

    observation_space, action_space = OBSERVATIONS, ACTIONS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(3, 9))
        return self.see(), {}

    def step(self, action):
        self.left -= 1
        return self.see(), float(self.left + action.sum()), self.left == 0, False, {}

    def see(self):
        return self.np_random.normal(size=3).astype("float32")


@pytest.mark.parametrize("kind", ["decision transformer", "hindsight"])
def test_episodes_played_side_by_side_equal_those_played_alone(kind):
    if kind == "hindsight":
        sizes = HindsightSizes(encoder=TINY, policy=TINY, context=3, window=WINDOW)
        policy = HindsightPolicy(OBSERVATIONS, ACTIONS, sizes=sizes, timesteps=50, generator=rng()).eval()
    else:
        policy = make().float()
    tasks = [Task(seed) for seed in range(5)]
    together = play(make_world(Counter, num_envs=2), policy, tasks, generator=None)
    for row, task in enumerate(tasks):
        alone = play(make_world(Counter, num_envs=1), policy, [task], generator=None)
        steps = alone.action.shape[1]
        assert int(together.mask[row].sum()) == steps
        torch.testing.assert_close(together.action[row, :steps], alone.action[0])
