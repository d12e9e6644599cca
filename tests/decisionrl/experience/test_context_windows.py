"""Context windows against plain loops over the episodes."""

import pytest
import torch
from gymnasium import spaces
from recorded import LENGTHS, store

from decisionrl.experience.context_windows import ContextWindows
from decisionrl.experience.datasets import DatasetSource
from decisionrl.experience.store import DatasetError, EpisodeStore, store_episodes
from decisionrl.policies.context import Context

STRIDED = Context(observations=3, future=2, stride=2)
CONTEXTS = [
    Context(observations=1, future=1),
    Context(observations=1, future=3),
    Context(observations=4, future=3),
    STRIDED,
    Context(observations=4, future=2, stride=3, spread="mixed"),
]


def counted(lengths: tuple[int, ...] = LENGTHS) -> EpisodeStore:
    """Observation and action of step t of episode e are 100 e + t."""
    episodes = [
        {
            "observation": 100.0 * e + torch.arange(steps + 1.0)[:, None],
            "action": 100.0 * e + torch.arange(float(steps))[:, None],
            "reward": torch.zeros(steps),
            "terminated": torch.zeros(steps, dtype=torch.bool),
            "truncated": torch.zeros(steps, dtype=torch.bool),
        }
        for e, steps in enumerate(lengths)
    ]
    box = spaces.Box(-1e9, 1e9, (1,))
    return store_episodes(episodes, observation_space=box, action_space=box)


def expected(
    lengths: tuple[int, ...], context: Context, before: int, after: int
) -> tuple[list[list[float]], list[list[float]]]:
    """All windows, frame by frame."""
    seen, acted = [], []
    to, stride, future = context.observations, context.stride, context.future
    span = to * stride + future - 1
    before, after = min(before, span - 1), min(after, span - 1)
    for e, steps in enumerate(lengths):
        for start in range(-before, steps - span + after + 1):
            frames = [100.0 * e + min(max(start + i, 0), steps - 1) for i in range(span)]
            past = frames[: to * stride]
            kept = [past[stride * (i + 1) - 1] for i in range(to)]
            if context.spread == "mixed":
                dense = -(-to // 2)
                kept = kept[: to - 1][len(kept[: to - 1]) - to // 2 :] + past[-dense:]
            seen.append(kept)
            acted.append(kept + frames[to * stride :])
    return seen, acted


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("pads", [(0, 0), (2, 1), (1000, 1000), (None, None)])
def test_windows_are_those_of_plain_loops(context: Context, pads: tuple[int | None, int | None]) -> None:
    lengths = (*LENGTHS, 14)
    windows = ContextWindows(episodes=counted(lengths), context=context, size=1, pad_before=pads[0], pad_after=pads[1])
    before = context.observations * context.stride - 1 if pads[0] is None else pads[0]
    after = context.future - 1 if pads[1] is None else pads[1]
    seen, acted = expected(lengths, context, before, after)
    observation, action = windows.windows(torch.arange(len(windows)))
    assert observation.squeeze(2).tolist() == seen
    assert action.squeeze(2).tolist() == acted


@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 1), (6, 6), (99, 99)])
def test_the_number_of_windows(before: int, after: int) -> None:
    span = 7
    windows = ContextWindows(episodes=counted((10, 7, 3)), context=STRIDED, size=1, pad_before=before, pad_after=after)
    clipped = min(before, span - 1) + min(after, span - 1)
    assert windows.count.tolist() == [max(0, steps - span + 1 + clipped) for steps in (10, 7, 3)]
    assert len(windows) == windows.count.sum()


def test_by_default_every_step_is_the_present_one_of_one_window() -> None:
    episodes = counted()
    for context in CONTEXTS:
        windows = ContextWindows(episodes=episodes, context=context, size=1)
        observation, action = windows.windows(torch.arange(len(windows)))
        assert torch.equal(action[:, context.past], episodes.action)
        assert torch.equal(observation[:, -1], episodes.observations_before())


def test_the_first_and_the_last_window_repeat_the_ends() -> None:
    context = Context(observations=4, future=3)
    windows = ContextWindows(episodes=counted((5, 6)), context=context, size=1)
    observation, action = windows.windows(torch.tensor([0, 4, 5]))
    assert observation.squeeze(2).tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [100] * 4]
    assert action.squeeze(2).tolist() == [[0, 0, 0, 0, 1, 2], [1, 2, 3, 4, 4, 4], [100, 100, 100, 100, 101, 102]]


def test_kept_frames() -> None:
    assert Context(observations=3, stride=4).kept().tolist() == [3, 7, 11]
    assert Context(observations=4, stride=5, spread="mixed").kept().tolist() == [9, 14, 18, 19]
    assert Context(observations=5, stride=3, spread="mixed").kept().tolist() == [8, 11, 12, 13, 14]
    assert STRIDED.acted().tolist() == [1, 3, 5, 6]
    assert (STRIDED.past, STRIDED.tokens, STRIDED.frames, STRIDED.span) == (2, 4, 6, 7)


def test_dicts_of_observations_and_actions_of_any_shape() -> None:
    episodes = store(named=True)
    windows = ContextWindows(episodes=episodes, context=STRIDED, size=5)
    batch = windows(torch.Generator().manual_seed(0))
    assert isinstance(batch.observation, dict)
    assert batch.observation["at"].shape == (5, 3, 2)
    assert batch.observation["room"].shape == (5, 3)
    assert batch.action.shape == batch.noise.shape == (5, 4, 3)


def test_a_source_draws_again_what_its_state_says() -> None:
    windows = ContextWindows(episodes=store(), context=STRIDED, size=6)
    source, other = DatasetSource(windows, seed=3), DatasetSource(windows, seed=4)
    source.sample()
    other.load_state_dict(source.state_dict())
    first, second = source.sample(), other.sample()
    for name in ("observation", "action", "noise", "level"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert ((first.level >= 0) & (first.level < 1)).all()
    assert not torch.equal(first.noise, source.sample().noise)


def test_all_windows_are_drawn_equally_often() -> None:
    windows = ContextWindows(episodes=counted((3, 2)), context=Context(observations=2, future=1), size=5000)
    present = windows(torch.Generator().manual_seed(0)).action[:, 1, 0]
    shares = [float((present == value).double().mean()) for value in (0, 1, 2, 100, 101)]
    assert shares == pytest.approx([0.2] * 5, abs=0.03)


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(DatasetError, match="size = 0; valid: at least 1"):
        ContextWindows(episodes=store(), context=STRIDED, size=0)
    with pytest.raises(DatasetError, match="pad_after = -1; valid: at least 0, or None"):
        ContextWindows(episodes=store(), context=STRIDED, size=1, pad_after=-1)
    with pytest.raises(DatasetError, match=r"spans 7 steps.*the longest episode, of 6 steps"):
        ContextWindows(episodes=store(), context=STRIDED, size=1, pad_before=0, pad_after=0)
    with pytest.raises(ValueError, match="future = 0; valid: at least 1"):
        Context(future=0)
    with pytest.raises(ValueError, match="spread = 'odd'; valid: even, mixed"):
        Context(spread="odd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stride = 2; valid with spread = 'mixed' and 6 observations: at least 3"):
        Context(observations=6, stride=2, spread="mixed")
