"""RolloutSource: every recorded transition against environments stepped by hand, in every kind of world."""

import gymnasium
import numpy as np
import pytest
import torch
from counting_envs import Counting, Noisy
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stub_policies import Drawn, Remembering

from decisionrl import checkpoint
from decisionrl.envs.make import make_world
from decisionrl.experience.rollouts import RolloutSource
from decisionrl.experience.trajectories import joined
from decisionrl.policies.recurrent import RecurrentActorCritic
from decisionrl.seeding import generator

SEEDS = (5, 6, 7, 2)
FIELDS = ("observation", "action", "reward", "mask", "log_prob", "terminated", "truncated", "value", "next_value")


def sync(mode, kind=SyncVectorEnv):
    return make_world(kind([Counting] * 4, autoreset_mode=mode))


WORLDS = {
    "copies": lambda: make_world(Counting, num_envs=4),
    "workers": lambda: make_world(Counting, num_envs=4, workers=4),
    "async": lambda: sync(AutoresetMode.DISABLED, AsyncVectorEnv),
    "disabled": lambda: sync(AutoresetMode.DISABLED),
    "next step": lambda: sync(AutoresetMode.NEXT_STEP),
    "same step": lambda: sync(AutoresetMode.SAME_STEP),
}


class Source(RolloutSource):
    """Copies begin with SEEDS, later episodes with 100, 101, ... whatever the seed."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.next = 100

    def _seeds(self, count):
        if self._observation is None:
            return list(SEEDS[:count])
        self.next += count
        return list(range(self.next - count, self.next))


def window(source, windows):
    """The next windows of a source as one."""
    batches = [source.sample() for _ in range(windows)]
    return {name: torch.cat([getattr(batch, name) for batch in batches], 1) for name in FIELDS}


FAST = ("copies", "disabled", "next step", "same step")


@pytest.mark.parametrize(
    ("kind", "horizon"), [*((kind, horizon) for kind in FAST for horizon in (1, 7, 30)), ("workers", 7), ("async", 7)]
)
def test_every_transition_is_that_of_a_single_environment(kind, horizon):
    world, policy = WORLDS[kind](), Drawn([0, 1, 2])
    data = window(Source(world, policy, horizon=horizon, seed=3), -(-30 // horizon))
    seeds, kept = iter(range(100, 200)), [0] * 4
    envs, drawn = [Counting() for _ in SEEDS], [False] * 4
    rows = [env.reset(seed=seed)[0] for env, seed in zip(envs, SEEDS, strict=True)]
    for t in range(30):
        over = []
        for i, env in enumerate(envs):
            if drawn[i] and kind == "next step":
                assert not data["mask"][i, t]
                rows[i], drawn[i] = env.reset()[0], False
                continue
            assert data["mask"][i, t]
            kept[i] += 1
            np.testing.assert_array_equal(data["observation"][i, t], rows[i])
            assert data["value"][i, t] == np.square(rows[i]).sum()
            rows[i], reward, terminated, truncated, _ = env.step(int(data["action"][i, t]))
            assert (data["reward"][i, t], data["terminated"][i, t], data["truncated"][i, t]) == (
                reward,
                terminated,
                truncated,
            )
            if not terminated:
                assert data["next_value"][i, t] == np.square(rows[i]).sum()
            if terminated or truncated:
                over.append(i)
        for i in over:
            if kind == "next step":
                drawn[i] = True
            else:
                rows[i] = envs[i].reset(seed=None if kind == "same step" else next(seeds))[0]
    assert min(kept) >= 20
    assert data["truncated"].any()
    assert data["terminated"].any()
    torch.testing.assert_close(data["log_prob"], torch.full_like(data["log_prob"], -np.log(3)))
    assert len(data["action"][:, :30].unique()) == 3
    world.close()


def test_all_modes_give_the_same_steps_once_skipped_ones_are_dropped():
    worlds = [make_world(SyncVectorEnv([Counting], autoreset_mode=mode)) for mode in ("NextStep", "SameStep")]
    fixed = Drawn([1])
    first, second = (window(Source(world, fixed, horizon=40), 1) for world in worlds)
    assert not first["mask"].all()
    count = int(first["mask"].sum()) - 1
    for name, value in first.items():
        ended = second["terminated"][second["mask"]][:count]
        a, b = value[first["mask"]][:count], second[name][second["mask"]][:count]
        if name == "next_value":  # means nothing where an episode terminated
            a, b = a[~ended], b[~ended]
        assert torch.equal(a, b)


def test_native_vector_environments():
    env = gymnasium.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point", max_episode_steps=15)
    data = window(RolloutSource(make_world(env), Drawn([0, 1]), horizon=50, seed=4), 2)
    env = gymnasium.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point", max_episode_steps=15)
    seed = int(torch.randint(2**31, (4,), generator=generator(4, "starts"))[0])
    row, skipped = env.reset(seed=seed)[0], np.zeros(4, bool)
    for t in range(100):
        np.testing.assert_array_equal(data["observation"][:, t], row)
        np.testing.assert_array_equal(data["mask"][:, t], ~skipped)
        row, reward, terminated, truncated, _ = env.step(data["action"][:, t].numpy())
        np.testing.assert_array_equal(data["reward"][:, t], reward)
        np.testing.assert_array_equal(data["terminated"][:, t], terminated)
        np.testing.assert_array_equal(data["truncated"][:, t], truncated)
        value = torch.from_numpy(row).double().square().sum(-1)
        well = torch.from_numpy(~terminated & ~skipped)
        assert torch.equal(data["next_value"][well, t], value[well])
        skipped = terminated | truncated
    assert data["truncated"].any()
    assert not data["mask"].all()


def test_the_batch_can_be_learned_from():
    policy = Drawn([0, 1])
    batch = RolloutSource(make_world("CartPole-v1", num_envs=2), policy, horizon=5).sample()
    policy.evaluate(batch).log_prob.sum().backward()
    assert not any(tensor.is_inference() for tensor in (batch.observation, batch.action, batch.reward, batch.mask))


def test_windows_are_not_overwritten_by_later_ones():
    source = RolloutSource(make_world("CartPole-v1", num_envs=2), Drawn([0, 1]), horizon=5)
    batch = source.sample()
    before = batch.map(torch.clone)
    source.sample()
    assert torch.equal(batch.observation, before.observation)
    assert torch.equal(batch.next_value, before.next_value)


@pytest.mark.parametrize("kind", ["copies", "next step", "same step"])
def test_recurrent_state_is_forgotten_where_episodes_begin(kind):
    source = Source(WORLDS[kind](), Remembering(), horizon=4)
    batches = [source.sample() for _ in range(6)]
    time = torch.cat([batch.observation[..., 1] for batch in batches], 1)
    mask = torch.cat([batch.mask for batch in batches], 1)
    value, following = (torch.cat([getattr(batch, name) for batch in batches], 1) for name in ("value", "next_value"))
    start, action = (torch.cat([getattr(batch, name) for batch in batches], 1) for name in ("start", "action"))
    assert torch.equal(value[mask], time[mask])
    assert torch.equal(start[mask], time[mask] == 0)
    assert torch.equal(action[mask], time[mask].long() % 3)
    terminated = torch.cat([batch.terminated for batch in batches], 1)
    assert torch.equal(following[mask & ~terminated], time[mask & ~terminated] + 1)
    assert any((batch.state > 0).any() for batch in batches[1:])


def test_a_recurrent_network_sees_every_episode_from_its_start():
    world = make_world(Counting, num_envs=3)
    policy = RecurrentActorCritic(
        world.observation_space, world.action_space, generator=torch.Generator().manual_seed(0)
    ).double()
    source = RolloutSource(world, policy, horizon=4)
    batches = [source.sample() for _ in range(5)]
    whole = batches[0].replace(
        **{name: torch.cat([getattr(batch, name) for batch in batches], 1) for name in (*FIELDS, "start")}
    )
    starts = whole.start.nonzero().tolist()
    assert len(starts) > 9
    for row, first in starts:
        last = first + int(whole.start[row, first + 1 :].long().argmax()) if whole.start[row, first + 1 :].any() else 19
        one = whole.map(lambda tensor: tensor[row : row + 1, first : last + 1] if tensor.ndim > 1 else tensor)  # noqa: B023
        alone = policy.evaluate(one.replace(state=policy.initial_state(1), start=None))
        torch.testing.assert_close(alone.value, one.value)
        torch.testing.assert_close(alone.log_prob, one.log_prob)


def test_episode_statistics():
    source = Source(make_world(Counting, num_envs=4), Drawn([0]), horizon=4)
    returns, lengths, running = [], [], np.zeros((4, 2))
    assert "episode_return" not in RolloutSource(make_world(Noisy), Drawn([[0.0]]), horizon=4).sample().metrics
    for _ in range(5):
        batch = source.sample()
        for t in range(4):
            running += np.stack([batch.reward[:, t], np.ones(4)], 1)
            for i in (batch.terminated | batch.truncated)[:, t].nonzero().flatten().tolist():
                returns.append(running[i, 0])
                lengths.append(running[i, 1])
                running[i] = 0
        assert batch.metrics["episode_return"] == pytest.approx(np.mean(returns))
        assert batch.metrics["episode_length"] == pytest.approx(np.mean(lengths))


# --------------------------------------------------------------------------------------------------- resuming


def same(first, second):
    for name in FIELDS:
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert first.metrics == second.metrics
    assert (first.start is None and second.start is None) or torch.equal(first.start, second.start)
    assert (first.state is None and second.state is None) or torch.equal(first.state, second.state)


@pytest.mark.parametrize(
    ("name", "options", "policy"),
    [
        ("CartPole-v1", {}, lambda: Drawn([0, 1])),
        ("Pendulum-v1", {}, lambda: Drawn([[-2.0], [0.5], [3.0]])),
        ("FrozenLake-v1", {"is_slippery": True}, lambda: Drawn([0, 1, 2, 3])),
        (Counting, {}, Remembering),
        pytest.param("HalfCheetah-v5", {}, lambda: Drawn(torch.randn(5, 6).tolist()), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("windows", [0, 1, 7])
def test_a_resumed_source_goes_on_bit_for_bit(name, options, policy, windows, tmp_path):
    def source():
        torch.manual_seed(0)
        return RolloutSource(make_world(name, num_envs=3, options=options), policy(), horizon=13, seed=1)

    first, second = source(), source()
    for _ in range(windows):
        first.sample()
    checkpoint.save(tmp_path / "source", first.state_dict())
    second.load_state_dict(checkpoint.load(tmp_path / "source"))
    for _ in range(8):
        same(first.sample(), second.sample())


def test_worlds_that_cannot_be_saved_begin_anew_with_a_warning():
    def source():
        return RolloutSource(sync(AutoresetMode.NEXT_STEP), Remembering(), horizon=3)

    first, second = source(), source()
    first.sample()
    state = first.state_dict()
    with pytest.warns(
        RuntimeWarning, match="SyncVectorEnv: its state cannot be saved; the resumed run goes on with new"
    ):
        second.load_state_dict(state)
    batch = second.sample()
    assert batch.observation[:, 0, 1].tolist() == [0] * 4
    assert batch.start[:, 0].all()
    assert not batch.state.any()
    assert second._starts.get_state().tolist() != source()._starts.get_state().tolist()


def test_the_pipeline_runs_in_order_and_is_saved():
    class Added:
        count = 0

        def __call__(self, batch):
            self.count += 1
            return batch.replace(metrics={**batch.metrics, "count": torch.tensor(self.count)})

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    def source():
        doubled = lambda batch: batch.replace(reward=batch.reward * 2)  # noqa: E731
        return RolloutSource(make_world(Counting), Drawn([0]), horizon=3, pipeline=[doubled, Added()])

    first, second = source(), source()
    plain = RolloutSource(make_world(Counting), Drawn([0]), horizon=3)
    for count in (1, 2, 3):
        batch = first.sample()
        assert batch.metrics["count"] == count
        assert torch.equal(batch.reward, 2 * plain.sample().reward)
    assert batch.metrics["episode_return"] == plain._episodes.metrics()["episode_return"]
    second.load_state_dict(first.state_dict())
    assert second.sample().metrics["count"] == 4


def test_the_normalizer_hears_of_a_window_after_the_update():
    heard = []
    policy = Drawn([0])
    policy.update_normalizer = lambda *parts: heard.append(parts)
    source = RolloutSource(make_world(Counting), policy, horizon=3)
    batch = source.sample()
    assert not heard
    source.observe(None)
    source.observe(None)
    assert len(heard) == 1
    assert heard[0][0] is batch.observation


def test_seeds_and_sizes():
    def batch(seed):
        return RolloutSource(make_world("CartPole-v1", num_envs=2), Drawn([0, 1]), horizon=40, seed=seed).sample()

    assert torch.equal(batch(1).observation, batch(1).observation)
    assert not torch.equal(batch(1).observation, batch(2).observation)
    source = RolloutSource(make_world("CartPole-v1", num_envs=2), Drawn([0, 1]), horizon=40)
    assert source.steps_per_sample == 80
    assert joined([source.sample(), source.sample()]).mask.shape == (4, 40)
    with pytest.raises(ValueError, match="horizon = 0; valid: a whole number >= 1"):
        RolloutSource(make_world("CartPole-v1"), Drawn([0]), horizon=0)
