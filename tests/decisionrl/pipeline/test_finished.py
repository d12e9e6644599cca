"""Whole episodes beside the windows in which they ended, against a plain loop over single steps."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decisionrl.experience.trajectories import Trajectories
from decisionrl.objectives.regularizers import ValueLoss
from decisionrl.objectives.terms import Terms
from decisionrl.pipeline.finished import FinishedEpisodes
from decisionrl.policies.evaluation import Evaluation

GAMMA = 0.9


def stream(seed: int, copies: int, steps: int, *, ends: float = 0.3, own: float = 0.8) -> Trajectories:
    """A long window whose actions are different numbers; garbage at steps that are not the policy's own."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> torch.Tensor:
        return torch.randn(copies, steps, generator=generator, dtype=torch.float64)

    def flags(share: float) -> torch.Tensor:
        return torch.rand(copies, steps, generator=generator) < share

    mask, terminated = flags(own), flags(ends / 2)
    return Trajectories(
        observation={"a": normal().unsqueeze(-1).expand(-1, -1, 3), "b": normal()},
        action=torch.arange(copies * steps).view(copies, steps),
        reward=torch.where(mask, normal(), torch.nan),
        mask=mask,
        log_prob=normal(),
        terminated=terminated | ~mask,
        truncated=flags(ends / 2) & ~terminated,
        value=normal(),
        next_value=torch.where(mask, normal(), torch.nan),
        advantage=normal(),
        returns=normal(),
        metrics={"episode_return": torch.tensor(1.0)},
    )


def windows(batch: Trajectories, width: int) -> list[Trajectories]:
    return [batch.map(lambda tensor, i=i: tensor[:, i : i + width]) for i in range(0, batch.num_columns, width)]  # type: ignore[misc]


@dataclass
class Reference:
    """Episodes of single steps (copy, column), as they end."""

    batch: Trajectories

    def ended_by(self, begin: int, end: int) -> list[list[tuple[int, int]]]:
        """The episodes that ended in these columns, by copy and then by time."""
        found = []
        for copy in range(self.batch.num_sequences):
            episode: list[tuple[int, int]] = []
            for t in range(end):
                if not self.batch.mask[copy, t]:
                    continue
                episode.append((copy, t))
                if self.batch.terminated[copy, t] or self.batch.truncated[copy, t]:
                    if t >= begin:
                        found.append(episode)
                    episode = []
        return found

    def targets(self, episode: list[tuple[int, int]]) -> list[float]:
        """The discounted returns to the episode's end, and what comes behind a truncation."""
        last = episode[-1]
        total = 0.0 if self.batch.terminated[last] else float(self.batch.next_value[last])  # type: ignore[index]
        targets = []
        for step in reversed(episode):
            total = float(self.batch.reward[step]) + GAMMA * total
            targets.append(total)
        return targets[::-1]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    copies=st.integers(1, 4),
    width=st.sampled_from([1, 2, 5, 30]),
    ends=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
)
def test_against_a_plain_loop(seed: int, copies: int, width: int, ends: float) -> None:
    whole = stream(seed, copies, 30, ends=ends)
    reference, step = Reference(whole), FinishedEpisodes(gamma=GAMMA)
    flat = whole.action.flatten().tolist()
    place = {action: divmod(i, 30) for i, action in enumerate(flat)}
    trained: list[int] = []
    for i, window in enumerate(windows(whole, width)):
        batch = step(window)
        kept, valued = batch.extras["kept"], batch.extras["valued"]
        trained += batch.action[kept].tolist()
        assert torch.equal(batch.mask, kept | valued)
        assert not (kept & valued).any()
        assert batch.advantage is not None
        assert batch.returns is not None
        assert torch.equal(batch.advantage[:copies, :width][window.mask], window.advantage[window.mask])  # type: ignore[index]
        assert (batch.advantage[valued] == 0).all()
        assert batch.metrics == window.metrics

        expected = reference.ended_by(i * width, (i + 1) * width)
        assert batch.num_sequences == copies + len(expected)
        for row, episode in enumerate(expected, copies):
            own = batch.mask[row]
            assert [place[action] for action in batch.action[row][own].tolist()] == episode
            assert own[: len(episode)].all(), "episodes begin at the left"
            assert batch.returns[row][own].tolist() == pytest.approx(reference.targets(episode))
            for name in ("log_prob", "reward", "terminated", "truncated"):
                field, source = getattr(batch, name)[row][own], getattr(whole, name)
                assert field.tolist() == [source[each].item() for each in episode]
            assert isinstance(batch.observation, dict)
            assert isinstance(whole.observation, dict)
            for key, seen in batch.observation.items():
                assert torch.equal(seen[row][own], torch.stack([whole.observation[key][each] for each in episode]))
    assert sorted(trained) == whole.action[whole.mask].sort().values.tolist(), "every step is in one policy update"


def test_value_targets_are_those_of_finished_episodes_only() -> None:
    whole = stream(1, 3, 12, ends=0.0, own=1.0)
    whole.terminated[1, 7] = True
    step = FinishedEpisodes(gamma=GAMMA)
    first, second, third = (step(window) for window in windows(whole, 4))
    assert not first.extras["valued"].any()
    assert not third.extras["valued"].any()
    assert second.action[second.extras["valued"]].tolist() == whole.action[1, :8].tolist()

    def value_loss(batch: Trajectories) -> torch.Tensor:
        evaluation = Evaluation(batch.log_prob, value=torch.zeros_like(batch.log_prob))
        return ValueLoss(coefficient=1.0, key="valued")(Terms(evaluation, batch, batch.log_prob, batch.mask))

    assert value_loss(first) == 0
    targets = Reference(whole).targets([(1, t) for t in range(8)])
    assert value_loss(second).item() == pytest.approx(sum(target**2 for target in targets) / 8)


def test_memory_begins_anew_with_an_episode() -> None:
    whole = stream(2, 2, 6, ends=0.0, own=1.0)
    whole.terminated[0, 2] = True
    start = torch.zeros_like(whole.mask)
    start[:, 0] = start[0, 3] = True
    batch = FinishedEpisodes()(whole.replace(start=start, state=torch.ones(2, 5)))
    assert batch.start is not None
    assert batch.state is not None
    assert batch.start[2].tolist() == [True] + [False] * 5
    assert batch.state.tolist() == [[1.0] * 5] * 2 + [[0.0] * 5]


def test_goes_on_from_a_saved_state() -> None:
    parts = windows(stream(3, 2, 12), 4)
    step, resumed = FinishedEpisodes(), FinishedEpisodes()
    resumed.load_state_dict(step.state_dict())
    for window in parts[:2]:
        step(window)
    resumed.load_state_dict(step.state_dict())
    expected, found = step(parts[2]), resumed(parts[2])
    assert expected.num_sequences > 2
    for name in ("action", "mask", "returns", "advantage", "log_prob"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage": None}, "FinishedEpisodes needs trajectories with advantage"),
        ({"next_value": None}, "needs trajectories with next_value"),
    ],
)
def test_what_it_needs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinishedEpisodes()(stream(0, 2, 5, ends=1.0, own=1.0).replace(**changes))


def test_other_copies_are_refused() -> None:
    step = FinishedEpisodes()
    step(stream(0, 2, 5))
    with pytest.raises(ValueError, match="the batch has 3 rows; valid: 2"):
        step(stream(0, 3, 5))
