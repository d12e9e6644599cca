"""Action predictability: demonstrations, copycats and noise, processes with known errors, HSIC in plain loops."""

import dataclasses
import itertools
import math
import statistics
from typing import Any

import pytest
import torch
from gymnasium import spaces
from stub_policies import Drawn

from decisionrl.envs.make import make_world
from decisionrl.evaluation import predictability
from decisionrl.evaluation.predictability import action_error, action_predictability, hsic
from decisionrl.experience.episodes import Played, Task, play
from decisionrl.experience.store import EpisodeStore, store_episodes
from decisionrl.policies.action_normalizer import LinearNormalizer
from decisionrl.recording.demonstrations import record_demonstrations


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does not depend on a judge that has learned all it can."""
    monkeypatch.setattr(predictability, "UPDATES_PER_EPOCH", 40)


def as_is(size: int) -> LinearNormalizer:
    """Leaves actions as they are."""
    return LinearNormalizer((size,))


def store(episodes: list[torch.Tensor]) -> EpisodeStore:
    """Episodes of these actions."""
    made = [
        {
            "observation": torch.zeros(len(action) + 1, 1),
            "action": action,
            "reward": torch.zeros(len(action)),
            "terminated": torch.zeros(len(action), dtype=torch.bool),
            "truncated": torch.zeros(len(action), dtype=torch.bool),
        }
        for action in episodes
    ]
    box = spaces.Box(-torch.inf, torch.inf, episodes[0].shape[1:])
    return store_episodes(made, observation_space=spaces.Box(-1, 1, (1,)), action_space=box)


def changed(episodes: EpisodeStore, share: float) -> EpisodeStore:
    """The same first actions, and of every change of the action that share."""
    slow = [a[:1] + share * (a - a[:1]) for a in episodes.action.split(episodes.length.tolist())]
    return store(slow)


def played(episodes: EpisodeStore) -> Played:
    """The same episodes, padded by what must not be read."""
    count = episodes.num_episodes
    batch = episodes.windows(torch.arange(count), torch.zeros(count, dtype=torch.long), int(episodes.length.max()))
    padding = ~batch.mask.view(*batch.mask.shape, *(1,) * (batch.action.dim() - 2))
    return Played(
        observation=batch.observation,
        action=batch.action.masked_fill(padding, torch.nan),
        reward=batch.reward,
        mask=batch.mask,
        terminated=batch.terminated,
        truncated=batch.truncated,
        final_observation=torch.zeros(count, 1),
        final_state=None,
        cut=torch.zeros(count, dtype=torch.bool),
    )


def autoregressive(rho: float, std: float, *, episodes: int, steps: int, seed: int = 0) -> torch.Tensor:
    """``a' = rho a + e``, ``e ~ N(0, std^2)``, stationary, [episodes, steps]."""
    noise = std * torch.randn(episodes, steps, generator=rng(seed))
    action = [noise[:, 0] / math.sqrt(1 - rho**2)]
    for t in range(1, steps):
        action.append(rho * action[-1] + noise[:, t])
    return torch.stack(action, 1)


# The ratio.


@pytest.mark.usefixtures("brief")
def test_demonstrations_are_as_predictable_as_others() -> None:
    expert, others = (record_demonstrations(episodes=400, seed=seed) for seed in (0, 1))
    found = action_predictability(expert, others)
    assert found.ratio == pytest.approx(1, abs=0.1)
    assert found.policy_hsic == pytest.approx(found.expert_hsic, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("env", ["decisionrl/ReturnSide-v0", "decisionrl/CountVisits-v0"])
def test_the_ratio_of_demonstrations_is_1_with_the_whole_training(env: str) -> None:
    stores = [record_demonstrations(env=env, episodes=200, seed=seed) for seed in range(6)]
    ratios = [action_predictability(a, b, seed=i).ratio for i, (a, b) in enumerate(itertools.pairwise(stores))]
    assert statistics.mean(map(math.log, ratios)) == pytest.approx(0, abs=0.06)


@pytest.mark.usefixtures("brief")
def test_noise_copycats_and_the_expert_itself() -> None:
    """Random actions that were really played; the expert with a tenth of its changes."""
    expert = record_demonstrations(episodes=200)
    world = make_world("decisionrl/ReturnSide-v0", num_envs=50)
    actions = 2 * torch.rand(1000, 2, generator=rng()) - 1
    noise = play(world, Drawn(actions), [Task(seed) for seed in range(100)], generator=rng(1))
    assert isinstance(noise, Played)
    random = action_predictability(expert, noise)
    assert random.ratio < 0.5
    assert random.policy_error == pytest.approx(1 / 3, rel=0.1)  # the variance of actions that fill [-1, 1]
    assert random.policy_hsic < 0.1 * random.expert_hsic
    itself = action_predictability(expert, played(expert))
    assert itself.ratio == 1
    assert itself.policy_hsic == itself.expert_hsic
    assert action_predictability(expert, changed(expert, 0.1)).ratio > 5


@pytest.mark.usefixtures("brief")
def test_constant_actions() -> None:
    """Of the policy: nothing is easier to predict. Of the expert in one dimension: that one is only moved."""
    expert = store([torch.cat([torch.rand(9, 1, generator=rng(i)), torch.full((9, 1), 7.0)], 1) for i in range(30)])
    constant = store([torch.full((9, 2), 0.5) for _ in range(30)])
    found = action_predictability(expert, constant, dimensions=[0])
    assert found.ratio > 1000
    assert found.policy_hsic == pytest.approx(0, abs=1e-6)
    both, first = (action_predictability(expert, expert, dimensions=which).expert_error for which in (None, [0]))
    assert both == pytest.approx(first / 2, rel=0.1)


@pytest.mark.usefixtures("brief")
def test_actions_of_any_shape_in_the_units_of_the_expert() -> None:
    """A unit of the actions is nobody's business; the policy's own range is not taken for the expert's."""
    expert = record_demonstrations(episodes=60)
    other = record_demonstrations(episodes=60, seed=1)
    found = action_predictability(expert, other)
    scaled = [
        dataclasses.replace(
            each,
            action=(100 * each.action + 3).view(-1, 2, 1).double(),
            action_space=spaces.Box(-torch.inf, torch.inf, (2, 1)),
        )
        for each in (expert, other)
    ]
    again = action_predictability(*scaled)
    assert dataclasses.astuple(again) == pytest.approx(dataclasses.astuple(found), rel=1e-2)
    wider = dataclasses.replace(other, action=2 * other.action)
    assert action_predictability(expert, wider).policy_error > 3 * found.policy_error


# The judge.


def test_of_a_linear_gaussian_process_the_innovation_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge's error is var(e), in normalized units scale^2 var(e), in each dimension."""
    monkeypatch.setattr(predictability, "UPDATES_PER_EPOCH", 1)  # there are enough pairs
    episodes, steps, std = 100, 300, (0.3, 2.0)
    first = autoregressive(0.9, std[0], episodes=episodes, steps=steps, seed=0)
    second = autoregressive(0.5, std[1], episodes=episodes, steps=steps, seed=1)
    actions = torch.stack([first, second], 2).flatten(0, 1)
    length = torch.full((episodes,), steps)
    normalizer = LinearNormalizer((2,))
    normalizer.fit(actions)
    expected = (normalizer.scale * torch.tensor(std)).square()
    for dimensions, value in (([1], expected[1]), (None, expected.mean())):
        found = action_error(actions, length, normalizer=normalizer, dimensions=dimensions)
        assert found == pytest.approx(float(value), rel=0.06)


def test_few_pairs_do_not_leave_the_judge_untrained() -> None:
    actions = autoregressive(0.9, 0.3, episodes=200, steps=10).double().reshape(-1, 1)
    error = action_error(actions, torch.full((200,), 10), normalizer=as_is(1).double())
    held_out = actions.view(200, 10)[:20]
    assert error == pytest.approx(float((held_out[:, 1:] - 0.9 * held_out[:, :-1]).square().mean()), rel=0.1)


@pytest.mark.usefixtures("brief")
def test_episodes_are_not_paired_across_their_ends() -> None:
    """An action that is new in each episode and kept: the next one is known, that of the next episode is not."""
    actions = (2 * torch.rand(300, 1, generator=rng()) - 1).repeat_interleave(2, 0)
    apart = action_error(actions, torch.full((300,), 2), normalizer=as_is(1))
    together = action_error(actions, torch.full((150,), 4), normalizer=as_is(1))
    assert apart < 1e-3
    assert together > 0.05


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("noisy", [range(4), range(4, 40)])
def test_the_first_tenth_of_the_episodes_is_held_out(noisy: range) -> None:
    """What is kept in the first tenth is changed in all others, or the reverse: the judge has learned what is wrong.
    With any other tenth held out it would have learned from episodes of its kind."""
    kept, flips = torch.tensor([[1.0], [1.0], [1.0]]), torch.tensor([[1.0], [0.0], [1.0]])
    actions = torch.cat([flips if i in noisy else kept for i in range(40)])
    assert action_error(actions, torch.full((40,), 3), normalizer=as_is(1)) > 0.4


def test_the_seed_decides_and_global_generators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictability, "UPDATES_PER_EPOCH", 2)
    expert, other = (record_demonstrations(episodes=120, seed=seed) for seed in (0, 1))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with torch.no_grad():
        first = action_predictability(expert, other, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert action_predictability(expert, other, seed=3) == first
    second = action_predictability(expert, other, seed=4)
    assert second.policy_error != first.policy_error
    assert second.policy_hsic != first.policy_hsic


# HSIC.


def plain_hsic(x: list[list[float]], y: list[list[float]]) -> float:
    """Entry by entry."""
    n = len(x)

    def kernel(rows: list[list[float]]) -> list[list[float]]:
        distance = [[math.dist(a, b) for b in rows] for a in rows]
        apart = sorted(d for row in distance for d in row if d > 0)
        width = apart[(len(apart) - 1) // 2]
        return [[math.exp(-(d**2) / (2 * width**2)) for d in row] for row in distance]

    def centered(k: list[list[float]]) -> list[list[float]]:
        of_row = [sum(row) / n for row in k]
        return [[k[i][j] - of_row[i] - of_row[j] + sum(of_row) / n for j in range(n)] for i in range(n)]

    left, right = centered(kernel(x)), centered(kernel(y))
    return sum(left[i][j] * right[j][i] for i in range(n) for j in range(n)) / (n - 1) ** 2


def test_hsic_entry_by_entry() -> None:
    x = torch.randn(17, 3, generator=rng(), dtype=torch.float64)
    x[5] = x[4]  # a distance of zero is none
    y = torch.cat([x[:, :1].square(), torch.rand(17, 1, generator=rng(1), dtype=torch.float64)], 1)
    assert hsic(x, y) == pytest.approx(plain_hsic(x.tolist(), y.tolist()))
    assert hsic(x.float(), y.float()) == pytest.approx(hsic(x, y), rel=1e-4)
    assert hsic(y, x) == pytest.approx(hsic(x, y))


def test_hsic_of_dependent_independent_and_constant_values() -> None:
    x, other = torch.randn(2, 1000, 1, generator=rng())
    independent = hsic(x, other)
    assert 0 <= independent < 1e-3
    assert hsic(x, x.square()) > 10 * independent  # uncorrelated, not independent
    assert hsic(x, x) > hsic(x, x + other) > 10 * independent
    assert hsic(x, torch.ones(1000, 2)) == pytest.approx(0, abs=1e-6)


def test_hsic_takes_at_most_a_thousand_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(predictability, "hsic", lambda x, y: asked.append((x, y)) or 0.0)
    monkeypatch.setattr(predictability, "UPDATES_PER_EPOCH", 1)
    ramps = store([torch.arange(100.0)[:, None] for _ in range(20)])
    action_predictability(ramps, store([torch.arange(10.0)[:, None] for _ in range(20)]))
    (x, y), (few, _) = asked
    assert (len(x), len(few)) == (1000, 180)
    torch.testing.assert_close(y - x, torch.full((1000, 1), 2 / 99))
    assert len(x.unique()) == 99  # of all steps


# What cannot be judged.


@pytest.mark.parametrize(
    ("length", "options", "message"),
    [
        ([10], {}, r"actions: 9 pairs .* first tenth of 1 episodes, 0 among the others; valid: at least one each"),
        ([1] * 10, {}, r"actions: 0 pairs .* first tenth of 10 episodes, 0 among the others"),
        ([1, 9], {}, r"actions: 0 pairs .* first tenth of 2 episodes, 8 among the others"),
        ([5, 4], {}, r"length: 9 steps in all; valid: 10, the rows of actions"),
        ([5, 5], {"dimensions": [0, 2]}, r"dimensions = \[0, 2\]; valid: some of 0 to 1, or None"),
        ([5, 5], {"dimensions": [-1]}, r"dimensions = \[-1\]; valid: some of 0 to 1, or None"),
        ([5, 5], {"dimensions": []}, r"dimensions = \[\]; valid: some of 0 to 1, or None"),
    ],
)
def test_errors_name_what_is_wrong(length: list[int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        action_error(torch.zeros(10, 2), torch.tensor(length), normalizer=as_is(2), **options)


def test_errors_name_whose_episodes_are_wrong() -> None:
    good = store([torch.rand(4, 2, generator=rng(i)) for i in range(12)])
    short = store([torch.rand(1, 2, generator=rng(i)) for i in range(12)])
    with pytest.raises(ValueError, match="expert: 0 pairs of consecutive actions"):
        action_predictability(short, good)
    with pytest.raises(ValueError, match="played: 0 pairs of consecutive actions"):
        action_predictability(good, played(short))
    diverged = played(good)
    diverged.action[3, 2] = torch.inf
    with pytest.raises(ValueError, match="played: actions are not finite; valid: finite numbers"):
        action_predictability(good, diverged)
    with pytest.raises(ValueError, match="played: actions have 3 dimensions; valid: 2, as the expert's have"):
        action_predictability(good, store([torch.rand(4, 3) for _ in range(12)]))
    with pytest.raises(ValueError, match="x has 3 rows, y has 4; valid: equally many, at least two"):
        hsic(torch.zeros(3, 1), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="x has 1 rows, y has 1"):
        hsic(torch.zeros(1, 1), torch.zeros(1, 1))
