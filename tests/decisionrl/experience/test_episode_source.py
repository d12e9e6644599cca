"""EpisodeSource and play: groups, greedy episodes, truncation, any number of copies, resuming."""

import numpy as np
import pytest
import torch
from counting_envs import Counting, Noisy
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stub_policies import Drawn, Remembering

from decisionrl import checkpoint
from decisionrl.envs.inventory.world import InventoryWorld
from decisionrl.envs.make import make_world
from decisionrl.envs.world import EnvironmentFault
from decisionrl.experience.episodes import EpisodeSource, Task, play


class Listed:
    """Proposes given rounds of starts, the same ones for every batch, and keeps the scores."""

    def __init__(self, *rounds):
        self.rounds, self.position, self.scores = rounds, 0, []

    def propose(self, generator):
        self.position = (self.position + 1) % (len(self.rounds) + 1)
        return torch.tensor(self.rounds[self.position - 1]) if self.position else None

    def observe(self, start_ids, scores):
        assert start_ids.tolist() == list(self.rounds[self.position - 1])
        self.scores.append(scores)

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def source(*rounds, env=Counting, policy=None, num_envs=3, **keywords):
    world = make_world(env, num_envs=num_envs) if not hasattr(env, "num_envs") else env
    return EpisodeSource(world, policy or Drawn([0, 1, 2]), starts=Listed(*rounds), **keywords)


def test_every_transition_is_that_of_a_single_environment():
    one = source([0, 0, 0, 7, 7, 3], [7, 11])
    batch = one.sample()
    assert batch.start_id.tolist() == [0, 0, 0, 7, 7, 3, 7, 11]
    assert batch.group.tolist() == [0, 0, 0, 2, 2, 1, 2, 3]
    kinds = set()
    for row, start in enumerate(batch.start_id.tolist()):
        env = Counting()
        observation, over = env.reset(seed=one.seed_of(start))[0], False
        for t in range(batch.num_columns):
            assert batch.mask[row, t] == (not over)
            if over:
                assert not batch.reward[row, t]
                assert not batch.terminated[row, t] | batch.truncated[row, t]
                continue
            np.testing.assert_array_equal(batch.observation[row, t], observation)
            assert batch.value[row, t] == np.square(observation).sum()
            observation, reward, terminated, truncated, _ = env.step(int(batch.action[row, t]))
            assert batch.reward[row, t] == reward
            assert (batch.terminated[row, t], batch.truncated[row, t]) == (terminated, truncated)
            if not terminated:
                assert batch.next_value[row, t] == np.square(observation).sum()
            over = terminated or truncated
            kinds.add((terminated, truncated))
        assert over
    assert kinds == {(False, False), (True, False), (False, True)}
    assert one.steps_per_sample == batch.mask.sum()
    returns = batch.reward.sum(1)
    assert torch.equal(torch.cat(one.starts.scores), returns)
    assert batch.metrics["episode_return"] == pytest.approx(float(returns.mean()))
    assert batch.metrics["episode_length"] == pytest.approx(float(batch.mask.sum(1).double().mean()))


def test_groups_share_their_start_over_the_whole_run():
    one = source([4, 4, 9], env="CartPole-v1", policy=Drawn([0, 1]))
    first, second = one.sample(), one.sample()
    assert torch.equal(first.observation[0, 0], first.observation[1, 0])
    assert not torch.equal(first.observation[0, 0], first.observation[2, 0])
    assert torch.equal(first.observation[:, 0], second.observation[:, 0])
    assert not torch.equal(first.reward.sum(1), second.reward.sum(1))
    other = source([4], env="CartPole-v1", policy=Drawn([0, 1]), seed=1)
    assert not torch.equal(first.observation[0, 0], other.sample().observation[0, 0])


@pytest.mark.parametrize("num_envs", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("kind", ["copies", "disabled", "workers"])
def test_any_number_of_copies_plays_the_same_episodes(num_envs, kind):
    if kind == "disabled":
        world = make_world(SyncVectorEnv([Counting] * num_envs, autoreset_mode=AutoresetMode.DISABLED))
    else:
        world = make_world(
            Counting, num_envs=num_envs, workers=min(num_envs, 3) if kind == "workers" and num_envs <= 3 else 0
        )
    tasks = [Task(seed) for seed in (3, 0, 0, 2, 5, 1, 0)]
    played = play(world, Drawn([1]), tasks, generator=None)
    steps = [min(5, 3 + task.seed % 4) for task in tasks]
    assert played.mask.sum(1).tolist() == steps
    assert played.observation[:, 0].tolist() == [[task.seed, 0, 0] for task in tasks]
    assert played.outcome.tolist() == [
        sum(task.seed + 10 * t + 1 for t in range(1, n + 1)) for task, n in zip(tasks, steps, strict=True)
    ]
    assert played.final_observation.tolist() == [[task.seed, n, 1] for task, n in zip(tasks, steps, strict=True)]
    assert (played.terminated | played.truncated).sum(1).tolist() == [1] * 7
    world.close()


@pytest.mark.parametrize("num_envs", [1, 2, 5])
def test_recurrent_state_begins_with_the_episode(num_envs):
    batch = source([0, 1, 2, 3, 3], policy=Remembering(), num_envs=num_envs).sample()
    assert torch.equal(batch.action[batch.mask], (batch.observation[..., 1].long() % 3)[batch.mask])
    assert batch.state.tolist() == [[0.0]] * 5
    going = batch.mask & ~batch.terminated
    assert torch.equal(batch.next_value[going], batch.observation[..., 1][going] + 1)


def test_greedy_returns_are_those_of_the_deterministic_actions():
    one = source([4, 4, 9, 2], greedy=True, num_envs=2)
    batch = one.sample()
    wanted = {}
    for start in (2, 4, 9):
        env, total, over = Counting(), 0.0, False
        env.reset(seed=one.seed_of(start))
        while not over:
            _, reward, terminated, truncated, _ = env.step(2)
            total, over = total + reward, terminated or truncated
        wanted[start] = total
    assert batch.extras["greedy_return"].tolist() == [wanted[start] for start in (4, 4, 9, 2)]
    assert one.steps_per_sample == batch.mask.sum() + sum(batch.mask[row].sum() for row in (0, 2, 3))
    assert batch.metrics["episode_return"] == pytest.approx(float(batch.reward.sum(1).mean()))


def test_max_steps_truncates():
    batch = source([0, 1, 2, 3], max_steps=4).sample()
    seeds = batch.observation[:, 0, 0].long() % 4
    assert batch.mask.sum(1).tolist() == (3 + seeds).clamp(max=4).tolist()
    last = batch.mask.sum(1) - 1
    rows = torch.arange(4)
    assert torch.equal(batch.terminated[rows, last], seeds <= 1)
    assert torch.equal(batch.truncated[rows, last], seeds > 1)
    assert batch.next_value[rows, last][seeds > 1].tolist() == [
        float((observation[0] ** 2 + 16 + action**2).double())
        for observation, action in zip(batch.observation[seeds > 1, 3], batch.action[seeds > 1, 3], strict=True)
    ]
    batch = source([0, 1], env=Noisy, policy=Drawn([[0.0]]), max_steps=1).sample()
    assert batch.mask.tolist() == [[True], [True]]
    assert batch.truncated.all()


def test_scores_are_what_starts_hear():
    one = source([0, 1], score=lambda returns: (returns > 0).float())
    one.sample()
    assert one.starts.scores[0].tolist() == [1.0, 1.0]


def test_more_values_and_the_pipeline_see_the_whole_batch():
    def values(batch, source):
        again = source.play([Task(source.seed_of(start)) for start in batch.start_id.tolist()], greedy=True)
        return batch.replace(extras={"again": again.outcome})

    def checked(batch):
        assert batch.num_sequences == 5
        return batch.replace(metrics={"again": batch.extras["again"].mean()})

    batch = source([0, 1, 2], [3, 3], values=values, greedy=True, pipeline=[checked]).sample()
    assert batch.metrics["again"] == batch.extras["again"].mean()


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("CartPole-v1", lambda: Drawn([0, 1])),
        ("FrozenLake-v1", lambda: Drawn([0, 1, 2, 3])),
        (Noisy, lambda: Drawn([[-2.0], [0.5]])),
    ],
)
def test_a_resumed_source_goes_on_bit_for_bit(name, policy, tmp_path):
    first, second = (source([4, 4, 9], [1], env=name, policy=policy(), greedy=True) for _ in range(2))
    for _ in range(3):
        first.sample()
    checkpoint.save(tmp_path / "source", first.state_dict())
    second.load_state_dict(checkpoint.load(tmp_path / "source"))
    for _ in range(3):
        a, b = first.sample(), second.sample()
        for field in ("observation", "action", "reward", "mask", "log_prob", "next_value", "group", "start_id"):
            assert torch.equal(getattr(a, field), getattr(b, field)), field
        assert torch.equal(a.extras["greedy_return"], b.extras["greedy_return"])
        assert a.metrics == b.metrics


def test_worlds_whose_copies_share_a_clock():
    world = InventoryWorld("one_store_lost", num_envs=3, periods=6)
    one = source([8, 8, 5, 2, 2], env=world, policy=Drawn([[-0.5], [0.0]]), greedy=True)
    batch = one.sample()
    assert batch.mask.shape == (5, 6)
    assert batch.mask.all()
    assert batch.truncated.sum(1).tolist() == [1] * 5
    first = batch.observation[:, 0]
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[3], first[4])
    assert not torch.equal(first[0], first[2])
    alone = InventoryWorld("one_store_lost", num_envs=1, periods=6)
    for row, start in enumerate((8, 8, 5, 2, 2)):
        alone.reset([one.seed_of(start)])
        rewards = [float(alone.step(batch.action[row, t][None]).reward) for t in range(6)]
        assert rewards == pytest.approx(batch.reward[row].tolist())
        alone.reset([one.seed_of(start)])
        rewards = [float(alone.step(torch.zeros(1, 1)).reward) for t in range(6)]
        assert sum(rewards) == pytest.approx(float(batch.extras["greedy_return"][row]), rel=1e-5)


def test_what_cannot_be_played():
    with pytest.raises(ValueError, match="max_steps = 0; valid: a whole number >= 1, or None"):
        source([0], max_steps=0)
    with pytest.raises(RuntimeError, match="starts proposed no episode"):
        source().sample()
    world = make_world(SyncVectorEnv([Counting], autoreset_mode=AutoresetMode.NEXT_STEP))
    with pytest.raises(ValueError, match="SyncVectorEnv: episodes from chosen starts need a world that heeds a seed"):
        source([0], env=world).sample()
    with pytest.raises(ValueError, match="tasks is empty"):
        play(make_world(Counting), Drawn([0]), [], generator=None)
    world = make_world(SyncVectorEnv([Counting], autoreset_mode=AutoresetMode.DISABLED))
    with pytest.raises(ValueError, match=r"going back to a state needs copies in this process \(workers = 0\)"):
        play(world, Drawn([0]), [Task(0, prefix=torch.zeros(1, dtype=torch.long))], generator=None)


def test_an_episode_that_never_ends(monkeypatch):
    monkeypatch.setattr("decisionrl.experience.episodes.ENDLESS", 20)
    world = make_world(Counting, options={"limit": 1000})
    monkeypatch.setattr(Counting, "step", lambda self, action: (self.observed(action), 0.0, False, False, {}))
    with pytest.raises(EnvironmentFault, match=r"copy 0: its episode has not ended in 20 steps; .* a limit, max_steps"):
        play(world, Drawn([0]), [Task(1)], generator=None)
    assert play(world, Drawn([0]), [Task(1)], generator=None, max_steps=4).mask.sum() == 4
