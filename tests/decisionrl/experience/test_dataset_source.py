"""Batches of recorded data: what is drawn, from which seed, and going on where a source stood."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recorded import LENGTHS, store
from torch import Tensor

from decisionrl.experience.datasets import DatasetSource, DensePairs, Pairs, Windows
from decisionrl.experience.preferences import PreferenceBatch, PreferencePairs, Segments, sample_segments
from decisionrl.experience.store import DatasetError
from decisionrl.experience.trajectories import Trajectories
from decisionrl.learner import Update


def segments(count: int = 12) -> Segments:
    drawn = sample_segments(store(), count, 3, generator=torch.Generator().manual_seed(0))
    return drawn.scored(torch.arange(count).double())


def pairs() -> PreferencePairs:
    return PreferencePairs(
        segments=segments(), first=torch.arange(6), second=torch.arange(6) + 6, label=torch.linspace(0, 1, 6)
    )


DRAWS = {
    "windows": Windows(episodes=store(), size=5, length=3),
    "pairs": Pairs(pairs=pairs(), size=5),
    "dense": DensePairs(segments=segments(), size=5),
}


def action(batch: Any) -> Tensor:
    return (batch if isinstance(batch, Trajectories) else batch.segments).action  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", DRAWS)
def test_a_seed_decides_the_batches(name: str) -> None:
    source, again, other = (DatasetSource(DRAWS[name], seed=seed) for seed in (1, 1, 2))
    first = [action(source.sample()) for _ in range(4)]
    assert all(torch.equal(action(again.sample()), each) for each in first)
    assert not any(torch.equal(action(other.sample()), each) for each in first)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("name", DRAWS)
def test_a_restored_source_goes_on_with_the_same_batches(name: str) -> None:
    source = DatasetSource(DRAWS[name], seed=1)
    for _ in range(3):
        source.observe(Update({}, None))
        source.sample()
    state = source.state_dict()
    expected = [action(source.sample()) for _ in range(3)]
    other = DatasetSource(DRAWS[name], seed=7)
    other.sample()
    other.load_state_dict(state)
    assert all(torch.equal(action(other.sample()), each) for each in expected)
    assert source.steps_per_sample == 1


def test_windows_begin_at_every_step_equally_often() -> None:
    windows = Windows(episodes=store(), size=14_000, length=2)
    batch = windows(torch.Generator().manual_seed(0))
    assert isinstance(batch.observation, Tensor)
    before = store().observations_before()
    assert isinstance(before, Tensor)
    begun = (batch.observation[:, 0, None] == before).all(-1)
    assert (begun.sum(1) == 1).all()
    found = begun.sum(0).double()
    assert float(((found - 1000) ** 2 / 1000).sum()) < 13 + 5 * 26**0.5
    lasts = torch.tensor(LENGTHS).cumsum(0) - 1
    assert torch.equal(batch.mask[:, 1], ~begun[:, lasts].any(1))
    assert batch.mask[:, 0].all()


def test_windows_with_what_follows() -> None:
    batch = Windows(episodes=store(), size=30, following=True)(torch.Generator().manual_seed(0))
    assert batch.mask.shape == (30, 1)
    assert batch.complete
    assert batch.extras["next_observation"].shape == (30, 1, 2)


def test_pairs_keep_their_labels() -> None:
    own = pairs()
    batch = Pairs(pairs=own, size=200)(torch.Generator().manual_seed(0))
    assert isinstance(batch, PreferenceBatch)
    everything = own.batch(torch.arange(6))
    which = (batch.label[:, None] == own.label).nonzero()[:, 1]
    assert set(which.tolist()) == set(range(6))
    for side in ("first", "second"):
        drawn = batch.segments.action[getattr(batch, side)]
        assert torch.equal(drawn, everything.segments.action[getattr(everything, side)][which])


def test_dense_pairs_are_of_different_segments() -> None:
    own = segments()
    draw = DensePairs(segments=own, size=12)
    batch = draw(torch.Generator().manual_seed(0))
    assert batch.score is not None
    assert sorted(batch.score.tolist()) == list(range(12))
    assert batch.score.tolist() != list(range(12))
    assert torch.equal(batch.segments.action, own.rows(batch.score.long()).action)
    assert len(batch.label) == 66


def test_draws_that_cannot_be() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(DatasetError, match="pairs is empty; valid: at least one pair"):
        Pairs(pairs=pairs().take(nothing), size=2)
    with pytest.raises(DatasetError, match=r"segments have no score; valid: segments.scored\(...\)"):
        DensePairs(segments=sample_segments(store(), 4, 2), size=2)
    for size in (1, 13):
        with pytest.raises(DatasetError, match=f"size = {size}; valid: 2 to 12, the segments there are"):
            DensePairs(segments=segments(), size=size)
