"""What is recorded of responses goes along with them."""

import pytest
import torch

from decisionrl.experience.trajectories import Trajectories, joined
from decisionrl.llm.record import FIELDS, Provenance, counted, recorded


def batch(own: list[list[int]], prompt: list[list[int]], hinted: list[list[int]] | None = None) -> Trajectories:
    mask = torch.tensor(own).bool()
    zeros = torch.zeros(mask.shape)
    return Trajectories(
        observation=torch.ones(mask.shape, dtype=torch.int64),
        action=torch.ones(mask.shape, dtype=torch.int64),
        reward=zeros,
        mask=mask,
        log_prob=zeros,
        terminated=~mask,
        truncated=~mask,
        state=torch.tensor(prompt),
        sampling_state=None if hinted is None else torch.tensor(hinted),
    )


def test_counters_are_of_whole_trajectories() -> None:
    rows = batch([[1, 1, 0, 1], [1, 0, 0, 0], [1, 0, 1, 0]], [[5], [5], [6]])
    alone = counted(rows)
    assert alone.extras["tokens"].tolist() == [3, 1, 2]
    assert alone.extras["turns"].tolist() == [2, 1, 2]
    parts = counted(recorded(rows, trajectory=torch.tensor([7, 3, 7]), segment=torch.tensor([0, 0, 1])))
    assert parts.extras["tokens"].tolist() == [5, 1, 5]
    assert parts.extras["turns"].tolist() == [4, 1, 4]


def test_what_it_was_sampled_after_goes_along() -> None:
    one = batch([[1, 1]], [[5]], hinted=[[5, 9, 9]])
    two = batch([[1, 0], [1, 1]], [[6, 7], [8, -1]], hinted=[[6], [8]])
    one = recorded(one, provenance=torch.tensor([Provenance.HINTED]))
    two = recorded(two, provenance=torch.tensor([Provenance.ON_POLICY, Provenance.REPLAY]))
    both = joined([one, two])
    assert both.state is not None
    assert both.sampling_state is not None
    assert both.state.tolist() == [[5, -1], [6, 7], [8, -1]]
    assert both.sampling_state.tolist() == [[5, 9, 9], [6, -1, -1], [8, -1, -1]]
    kept = both.rows(torch.tensor([2, 0]))
    assert kept.sampling_state is not None
    assert kept.sampling_state.tolist() == [[8, -1, -1], [5, 9, 9]]
    assert kept.extras["provenance"].tolist() == [1, 2]


def test_fields_without_meaning_are_refused() -> None:
    rows = batch([[1]], [[5]])
    with pytest.raises(ValueError, match="field 'trajectories'; valid: problem, trajectory"):
        recorded(rows, trajectories=torch.tensor([0]))
    with pytest.raises(ValueError, match=r"mode has the shape \(2,\); valid: \(1,\), one a row"):
        recorded(rows, mode=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"turns is torch\.float32; valid: an integer"):
        recorded(rows, turns=torch.tensor([0.0]))
    with pytest.raises(ValueError, match=r"kl_scale is torch\.int64; valid: a floating-point number"):
        recorded(rows, kl_scale=torch.tensor([1]))
    assert all(FIELDS.values())
