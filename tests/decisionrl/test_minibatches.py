"""MinibatchLearner: what each minibatch holds, when it stops, and that it goes on where it was."""

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_policies import Drawn

from decisionrl import checkpoint
from decisionrl.callbacks import Checkpoint
from decisionrl.envs.make import make_world
from decisionrl.experience.rollouts import RolloutSource
from decisionrl.experience.trajectories import Trajectories
from decisionrl.learner import GradientLearner, Loss
from decisionrl.minibatches import MinibatchLearner
from decisionrl.trainer import Trainer


class Seen:
    """An objective that keeps the numbers of the steps it was shown."""

    def __init__(self, approx_kl=None):
        self.numbers, self.sequences, self.approx_kl = [], [], approx_kl

    def __call__(self, policy, batch):
        self.numbers.append(batch.reward[batch.mask].tolist())
        self.sequences.append(batch.reward.tolist())
        metrics = {"mean": batch.reward[batch.mask].mean()}
        if self.approx_kl is not None:
            metrics["approx_kl"] = torch.tensor(self.approx_kl[len(self.numbers) - 1])
        weight = batch.reward[batch.mask].sum() / 1000
        return Loss((policy.bias * torch.arange(2.0)).sum() * weight, metrics)


def batch(rows, columns, seed=0, masked=True):
    step = torch.arange(float(rows * columns)).view(rows, columns)
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < (0.7 if masked else 2)
    nothing = torch.zeros_like(mask)
    return Trajectories(
        observation=step[..., None],
        action=step.long(),
        reward=step,
        mask=mask,
        log_prob=-step,
        terminated=nothing,
        truncated=nothing,
        metrics={"episode_return": torch.tensor(7.0)},
    )


def learner(objective, **keywords):
    policy = Drawn([0, 1])
    return MinibatchLearner(GradientLearner(policy, objective, torch.optim.Adam(policy.parameters())), **keywords)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.integers(1, 3), st.integers(0, 9))
def test_every_step_is_used_once_in_each_epoch(rows, columns, size, epochs, seed):
    one, seen = batch(rows, columns, seed), Seen()
    learner(seen, epochs=epochs, size=size).update(one)
    count = int(one.mask.sum())
    sizes = [size] * (count // size) + ([count % size] if count % size else [])
    assert [len(numbers) for numbers in seen.numbers] == sizes * epochs
    for epoch in range(epochs):
        numbers = list(chain(*seen.numbers[epoch * len(sizes) : (epoch + 1) * len(sizes)]))
        assert sorted(numbers) == one.reward[one.mask].tolist()


def test_epochs_are_shuffled_differently():
    seen = Seen()
    learner(seen, epochs=3, size=5).update(batch(4, 5, masked=False))
    assert len({tuple(chain(*seen.numbers[4 * e : 4 * e + 4])) for e in range(3)}) == 3


def test_sequences_are_kept_whole():
    one, seen = batch(5, 4), Seen()
    learner(seen, epochs=2, size=2, unit="sequence").update(one)
    assert [len(rows) for rows in seen.sequences] == [2, 2, 1] * 2
    for epoch in (0, 1):
        rows = list(chain(*seen.sequences[3 * epoch : 3 * epoch + 3]))
        assert sorted(rows) == one.reward.tolist()


def test_without_a_size_the_batch_is_one_minibatch():
    one, seen = batch(3, 4), Seen()
    learner(seen, epochs=2).update(one)
    assert seen.numbers == [one.reward[one.mask].tolist()] * 2
    assert learner(Seen(), size=3).update(one.replace(mask=torch.zeros_like(one.mask))).metrics == one.metrics


def test_metrics_are_means_over_the_minibatches():
    seen = Seen()
    metrics = learner(seen, epochs=2, size=4).update(batch(3, 3, masked=False)).metrics
    means = [sum(numbers) / len(numbers) for numbers in seen.numbers]
    assert metrics["mean"] == pytest.approx(sum(means) / len(means))
    assert metrics["episode_return"] == 7
    assert {"loss", "gradient_norm"} <= metrics.keys()


def test_a_large_divergence_ends_the_update():
    seen = Seen(approx_kl=[0.0, 0.014, 0.016, 0.0, 0.0])
    metrics = learner(seen, epochs=4, size=4, target_kl=0.01).update(batch(2, 4, masked=False)).metrics
    assert len(seen.numbers) == 3
    assert metrics["approx_kl"] == pytest.approx(0.01)
    with pytest.raises(
        ValueError, match=r"target_kl needs a metric 'approx_kl'; the objective reports \['gradient_norm'"
    ):
        learner(Seen(), target_kl=0.01).update(batch(2, 4))


def test_a_resumed_learner_goes_on_bit_for_bit(tmp_path):
    one, seen, others = batch(4, 5), Seen(), Seen()
    first, second = learner(seen, size=3, epochs=2, seed=5), learner(others, size=3, epochs=2, seed=5)
    first.update(one)
    checkpoint.save(tmp_path / "learner", first.state_dict())
    second.load_state_dict(checkpoint.load(tmp_path / "learner"))
    seen.numbers.clear()
    assert first.update(one).metrics == second.update(one).metrics
    assert seen.numbers == others.numbers
    assert torch.equal(first.policy.bias, second.policy.bias)
    assert first.optimizer.state_dict()["state"][0]["step"] == second.optimizer.state_dict()["state"][0]["step"]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"epochs": 0}, "epochs = 0; valid: a whole number >= 1"),
        ({"size": 0}, "size = 0; valid: a whole number >= 1, or None"),
        ({"unit": "token"}, "unit = 'token'; valid: step, sequence"),
        ({"target_kl": 0.0}, "target_kl = 0.0; valid: a positive number, or None"),
    ],
)
def test_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        learner(Seen(), **keywords)


def test_steps_of_a_policy_with_memory_are_not_cut_apart():
    with pytest.raises(
        ValueError, match='unit = "step" forgets what a policy with memory remembers; valid: "sequence"'
    ):
        learner(Seen()).update(batch(2, 2).replace(state=torch.zeros(2, 1)))


def reinforce(policy, batch):
    log_prob = policy.evaluate(batch).log_prob
    return Loss(-(log_prob * batch.mask * batch.reward).mean())


@pytest.mark.parametrize("env", ["CartPole-v1", "inventory/one_store_lost"])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(env, tmp_path):
    def trainer(out, resume=False):
        actions = [0, 1] if env == "CartPole-v1" else [[-0.9], [0.1]]
        policy = Drawn(actions)
        inner = GradientLearner(policy, reinforce, torch.optim.Adam(policy.parameters(), 0.05), clip_norm=1.0)
        source = RolloutSource(make_world(env, num_envs=3), policy, horizon=11, seed=2)
        return Trainer(
            MinibatchLearner(inner, epochs=2, size=10, seed=3),
            source,
            callbacks=[Checkpoint(every=33)],
            out=out,
            resume=resume,
        )

    whole = trainer(tmp_path / "whole")
    whole.fit(33 * 9)
    trainer(tmp_path / "parts").fit(33 * 4)
    parts = trainer(tmp_path / "parts", resume=True)
    parts.fit(33 * 9)
    assert torch.equal(whole.learner.policy.bias, parts.learner.policy.bias)
    assert whole.metrics == parts.metrics
    first, second = whole.source.sample(), parts.source.sample()
    assert torch.equal(first.observation, second.observation)
    assert torch.equal(first.action, second.action)
    assert not torch.equal(whole.learner.policy.bias, torch.zeros(2))
