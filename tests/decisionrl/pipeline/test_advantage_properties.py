"""What every advantage estimator must do, whatever its formula."""

from collections.abc import Callable

import pytest
import torch
from advantage_batches import padded, rich
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.pipeline import PipelineStep
from decisionrl.pipeline.advantages import GAE, GreedyBaseline, MonteCarlo, TruncatedGAE
from decisionrl.pipeline.group_advantages import GroupNormalized, LeaveOneOut, ProcessNormalized, TokenGroupAverage
from decisionrl.pipeline.risk import Risk
from decisionrl.pipeline.segments import SegmentMonteCarlo
from decisionrl.pipeline.shaped_advantages import EntropyShaped, Sharpened
from decisionrl.pipeline.trackers import SingleStream, SmoothStandardized
from decisionrl.pipeline.trees import TreeAdvantage

ESTIMATORS: dict[str, Callable[[], PipelineStep]] = {
    "monte-carlo": lambda: MonteCarlo(gamma=0.9),
    "monte-carlo-baseline": lambda: MonteCarlo(gamma=0.9, baseline=True, bootstrap=True),
    "gae": GAE,
    "gae-white": lambda: GAE(whiten=True),
    "truncated-gae": TruncatedGAE,
    "greedy": lambda: GreedyBaseline(difference_clip=1.0, discount=0.9),
    "grpo": GroupNormalized,
    "grpo-batch": lambda: GroupNormalized(scale="batch", gamma=0.9),
    "dr-grpo": lambda: GroupNormalized(scale="none"),
    "process": ProcessNormalized,
    "leave-one-out": LeaveOneOut,
    "token-average": TokenGroupAverage,
    "sharpened": lambda: Sharpened(threshold=-1.0),
    "entropy-shaped": EntropyShaped,
    "segments": SegmentMonteCarlo,
    "tree": lambda: TreeAdvantage(baseline="grpo"),
    "risk": lambda: Risk(bundle=1),
    "risk-release": lambda: Risk(bundle=1, form="release", credit="sum-mean"),
    "single-stream": SingleStream,
    "smooth": SmoothStandardized,
}
SHIFT_INVARIANT = [
    "grpo",
    "grpo-batch",
    "dr-grpo",
    "leave-one-out",
    "token-average",
    "entropy-shaped",
    "smooth",
    "risk",
]

every = pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)


def advantage(step: PipelineStep, batch: Trajectories) -> Tensor:
    result = step(batch).advantage
    assert result is not None
    return result


@every
def test_finite_detached_and_zero_where_masked(make: Callable[[], PipelineStep]) -> None:
    batch = rich()
    batch = batch.replace(
        reward=batch.reward.clone().requires_grad_(), log_prob=batch.log_prob.clone().requires_grad_()
    )
    result = advantage(make(), batch)
    assert not result.requires_grad
    assert result.isfinite().all()
    assert (result[~batch.mask] == 0).all()
    assert result.abs().sum() > 0


@every
@pytest.mark.parametrize("columns", [1, 5])
def test_padding_changes_nothing(make: Callable[[], PipelineStep], columns: int) -> None:
    batch = rich()
    result, wide = make()(batch), make()(padded(batch, columns))
    assert result.advantage is not None
    assert wide.advantage is not None
    torch.testing.assert_close(wide.advantage[:, : batch.num_columns], result.advantage, rtol=1e-12, atol=1e-12)
    assert (wide.advantage[:, batch.num_columns :] == 0).all()
    if result.returns is not None:
        assert wide.returns is not None
        torch.testing.assert_close(wide.returns[:, : batch.num_columns], result.returns, rtol=1e-12, atol=1e-12)


@every
def test_the_order_of_the_rows_does_not_matter(make: Callable[[], PipelineStep]) -> None:
    batch = rich(1)
    order = torch.randperm(batch.num_sequences, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(advantage(make(), batch.rows(order)), advantage(make(), batch)[order])


@every
def test_all_masked_is_all_zero(make: Callable[[], PipelineStep]) -> None:
    batch = rich()
    result = make()(batch.replace(mask=torch.zeros_like(batch.mask)))
    assert result.advantage is not None
    assert (result.advantage == 0).all()


@every
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (6, 1)])
def test_one_row_and_one_step(make: Callable[[], PipelineStep], rows: int, columns: int) -> None:
    batch = rich(rows=rows, columns=columns, groups=min(rows, 2))
    result = advantage(make(), batch)
    assert result.shape == (rows, columns)
    assert result.isfinite().all()


@every
def test_single_precision_stays_single(make: Callable[[], PipelineStep]) -> None:
    result = advantage(make(), rich(dtype=torch.float32))
    assert result.dtype == torch.float32
    torch.testing.assert_close(
        result.double(), advantage(make(), to_double(rich(dtype=torch.float32))), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("name", SHIFT_INVARIANT)
def test_the_same_reward_more_for_every_row_changes_nothing(name: str) -> None:
    batch = rich(2)
    more = batch.reward.clone()
    more[:, 0] += 5.0
    shifted = advantage(ESTIMATORS[name](), batch.replace(reward=more))
    if name == "grpo-batch":  # a discounted outcome moves by the same, as the first step is not discounted
        assert batch.mask[:, 0].all()
    torch.testing.assert_close(shifted, advantage(ESTIMATORS[name](), batch), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "make", [GroupNormalized, LeaveOneOut, ESTIMATORS["dr-grpo"], ESTIMATORS["tree"], SmoothStandardized]
)
def test_sums_to_zero_over_each_group(make: Callable[[], PipelineStep]) -> None:
    batch = rich(4)
    first = advantage(make(), batch)[:, 0]
    sums = torch.zeros(4, dtype=torch.float64).index_add(0, batch.group, first)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (GroupNormalized, "group"),
        (LeaveOneOut, "group"),
        (TokenGroupAverage, "group"),
        (SingleStream, "start_id"),
        (SmoothStandardized, "start_id"),
        (GAE, "value"),
        (GAE, "next_value"),
        (TruncatedGAE, "next_value"),
        (lambda: MonteCarlo(baseline=True), "value"),
        (lambda: MonteCarlo(bootstrap=True), "next_value"),
        (Sharpened, "advantage"),
        (EntropyShaped, "entropy"),
    ],
)
def test_a_missing_field_is_named(make: Callable[[], PipelineStep], field: str) -> None:
    with pytest.raises(ValueError, match=rf"needs trajectories with {field}"):
        make()(rich().replace(**{field: None}))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (GreedyBaseline, "greedy_return"),
        (ProcessNormalized, "step_end"),
        (SegmentMonteCarlo, "cut"),
        (SegmentMonteCarlo, "state_value"),
        (TreeAdvantage, "node"),
        (TreeAdvantage, "parent"),
        (TreeAdvantage, "leaf_reward"),
    ],
)
def test_a_missing_extra_is_named(make: Callable[[], PipelineStep], key: str) -> None:
    batch = rich()
    extras = {name: tensor for name, tensor in batch.extras.items() if name != key}
    with pytest.raises(ValueError, match=rf"needs extras\['{key}'\]"):
        make()(batch.replace(extras=extras))


def to_double(batch: Trajectories) -> Trajectories:
    return batch.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
