"""Segments, pairs and all pairs of a batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from recorded import LENGTHS, store
from torch import Tensor

from decisionrl.experience.preferences import PreferencePairs, Segments, all_pairs, sample_segments
from decisionrl.experience.store import DatasetError


def segments(score: list[float] | None = None) -> Segments:
    """Four segments of three steps."""
    return Segments(
        episodes=store(),
        episode=torch.tensor([0, 2, 2, 3]),
        start=torch.tensor([1, 0, 3, 0]),
        length=3,
        score=None if score is None else torch.tensor(score, dtype=torch.float64),
    )


def pairs(**changes: Any) -> PreferencePairs:
    fields = {"first": torch.tensor([0, 1, 2]), "second": torch.tensor([3, 0, 0]), "label": torch.tensor([0.0, 1, 0.5])}
    return PreferencePairs(segments=segments(), **{**fields, **changes})


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("observation", "action", "reward", "mask"))


def test_segments_are_windows_of_their_episodes() -> None:
    own = segments([1, 2, 3, 4])
    assert len(own) == 4
    index = torch.tensor([3, 1])
    assert same(own.rows(index), own.episodes.windows(torch.tensor([3, 2]), torch.tensor([0, 0]), 3))
    taken = own.take(index)
    assert same(taken.rows(torch.tensor([0, 1])), own.rows(index))
    assert taken.score is not None
    assert taken.score.tolist() == [4, 2]
    assert segments().take(index).score is None
    rescored = segments().scored(torch.arange(4.0))
    assert rescored.score is not None
    assert rescored.score.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length = 0; valid: a whole number >= 1"),
        ({"length": 4}, "segment 0: steps 1 to 4 of episode 0, which has 4 steps"),
        ({"start": torch.tensor([0, 0, 4, 0])}, "segment 2: steps 4 to 6 of episode 2, which has 6 steps"),
        ({"start": torch.tensor([0, -1, 0, 0])}, "segment 1: steps -1 to 1 of episode 2"),
        ({"episode": torch.tensor([0, 2, 2, 4])}, "segment 3: episode = 4; valid: 0 to 3"),
        ({"episode": torch.tensor([-1, 2, 2, 3])}, "segment 0: episode = -1; valid: 0 to 3"),
        ({"start": torch.tensor([0, 0])}, r"episode \(4,\) and start \(2,\) must be \[n\]"),
        ({"score": torch.zeros(3)}, "score: valid are 4 finite numbers, one for each segment"),
        ({"score": torch.tensor([0.0, 1, torch.nan, 0])}, "score: valid are 4 finite numbers"),
    ],
)
def test_segments_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        dataclasses.replace(segments(), **changes)


@pytest.mark.parametrize("length", [1, 3])
def test_every_place_of_a_segment_is_equally_likely(length: int) -> None:
    count = 20_000
    drawn = sample_segments(store(), count, length, generator=torch.Generator().manual_seed(0))
    places = [(e, t) for e, steps in enumerate(LENGTHS) for t in range(steps - length + 1)]
    found = dict.fromkeys(places, 0)
    for place in zip(drawn.episode.tolist(), drawn.start.tolist(), strict=True):
        found[place] += 1
    expected = count / len(places)
    chi_squared = sum((each - expected) ** 2 / expected for each in found.values())
    degrees = len(places) - 1
    assert chi_squared < degrees + 5 * (2 * degrees) ** 0.5
    again = sample_segments(store(), count, length, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.start, drawn.start)


def test_segments_longer_than_every_episode() -> None:
    assert set(sample_segments(store(), 50, 6).episode.tolist()) == {2}
    with pytest.raises(DatasetError, match="length = 7; valid: at most 6, the longest episode"):
        sample_segments(store(), 50, 7)


def test_a_batch_holds_the_first_and_then_the_second_segments() -> None:
    own, index = pairs(), torch.tensor([2, 0])
    batch = own.batch(index)
    assert batch.first.tolist() == [0, 1]
    assert batch.second.tolist() == [2, 3]
    assert batch.label.tolist() == [0.5, 0]
    assert batch.weight is None
    assert same(batch.segments.rows(batch.first), own.segments.rows(own.first[index]))
    assert same(batch.segments.rows(batch.second), own.segments.rows(own.second[index]))
    taken = own.take(index)
    assert len(taken) == 2
    assert same(taken.batch(torch.arange(2)).segments, batch.segments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": torch.tensor([0.0, 1, 1.5])}, r"pair 2: label = 1.5; valid: 0 to 1, or 0.5 for a tie"),
        ({"label": torch.tensor([0.0, -1, 1])}, r"pair 1: label = -1.0; valid: 0 to 1"),
        ({"label": torch.tensor([torch.nan, 0, 1])}, "pair 0: label = nan; valid: 0 to 1"),
        ({"label": torch.tensor([[1.0, 0]] * 3)}, r"first, second and label must be \[pairs\]"),
        ({"second": torch.tensor([3, 0])}, r"first, second and label must be \[pairs\]"),
        ({"second": torch.tensor([3, 0, 4])}, "second has rows outside 0 to 3, the segments there are"),
        ({"first": torch.tensor([3, 0, -1])}, "first has rows outside 0 to 3"),
    ],
)
def test_pairs_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        pairs(**changes)


def test_there_may_be_no_pairs() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert len(pairs(first=nothing, second=nothing, label=torch.zeros(0))) == 0


def strict(first: Tensor, second: Tensor, label: Tensor, weight: Tensor) -> set[tuple[int, int]]:
    """(worse, better) of every pair that counts."""
    rows = zip(first.tolist(), second.tolist(), label.tolist(), weight.tolist(), strict=True)
    return {(i, j) if label == 1 else (j, i) for i, j, label, weight in rows if weight}


def test_all_pairs_are_those_of_a_double_loop() -> None:
    score = torch.tensor([0.5, 2, -1, 2, 0.5, 7], dtype=torch.float64)
    batch = all_pairs(segments().rows(torch.tensor([0, 1, 2, 3, 0, 1])), score)
    assert len(batch.label) == 15
    assert batch.weight is not None
    assert batch.score is score
    assert set(batch.label.tolist()) <= {0, 1}
    found = strict(batch.first, batch.second, batch.label, batch.weight)
    assert found == {(i, j) for i in range(6) for j in range(6) if score[i] < score[j]}
    assert int(batch.weight.sum()) == len(found) == 13
    ties = {
        (int(i), int(j)) for i, j in zip(batch.first[batch.weight == 0], batch.second[batch.weight == 0], strict=True)
    }
    assert ties == {(0, 4), (1, 3)}
    assert batch.label.dtype == batch.weight.dtype == torch.float64
