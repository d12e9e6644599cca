"""What is remembered of a prompt: the tracked value of single-stream SPO, the visits of DCPO."""

import math
from typing import Any

import pytest
import torch
from advantage_batches import answers
from hypothesis import given, settings
from hypothesis import strategies as st

from decisionrl.experience.trajectories import Trajectories
from decisionrl.learner import Update
from decisionrl.pipeline import PipelineStep
from decisionrl.pipeline.group_advantages import GroupNormalized
from decisionrl.pipeline.returns import whitened
from decisionrl.pipeline.trackers import Memory, SingleStream, SmoothStandardized
from decisionrl.policies.evaluation import Evaluation


def visits(ids: list[int], outcome: list[float], **fields: Any) -> Trajectories:
    return answers(outcome, start_id=torch.tensor(ids, dtype=torch.int64), **fields)


def first(step: PipelineStep, batch: Trajectories) -> list[float]:
    advantage = step(batch).advantage
    assert advantage is not None
    return list(advantage[:, 0].tolist())


def value(step: SingleStream, prompt: int) -> float:
    return step.value(torch.tensor([prompt])).item()


def test_a_large_id_takes_no_more_memory_than_a_small_one() -> None:
    memory = Memory(0.5, 2.0)
    memory.write(torch.tensor([2**60, 7]), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    memory.write(torch.tensor([9, 7]), torch.tensor([5.0, 6.0]), torch.tensor([7.0, 8.0]))
    other = Memory(0.5, 2.0)
    other.load_state_dict(memory.state_dict())
    for each in (memory, other):
        first, second = each.read(torch.tensor([-1, 7, 8, 9, 2**60, 2**61, 0]))
        assert first.tolist() == [0.5, 6.0, 0.5, 5.0, 1.0, 0.5, 0.5]
        assert second.tolist() == [2.0, 8.0, 2.0, 7.0, 3.0, 2.0, 2.0]
        assert each.state_dict()["table"].shape == (3, 2)
    earlier = Memory(0.5, 2.0)
    earlier.load_state_dict({"table": torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)})
    assert earlier.read(torch.tensor([1, 2, -1]))[0].tolist() == [0.3, 0.5, 0.5]


def test_the_tracker_is_a_forgetting_beta_belief() -> None:
    """a = b = 4, rho = 0.9, r = 1: (4.6, 3.6); and on, with other outcomes."""
    step = SingleStream(rho_min=0.9, rho_max=0.9, prior=8.0, normalize=False)
    step.initialize(torch.tensor([2]), torch.tensor([0.5]))
    assert first(step, visits([2], [1.0])) == [0.5]
    assert value(step, 2) == pytest.approx(0.5609756, abs=1e-7)
    a, b = 4.6, 3.6
    for outcome in (0.0, 1.0, 0.25):
        assert first(step, visits([2], [outcome])) == [pytest.approx(outcome - a / (a + b))]
        a, b = 0.9 * a + outcome, 0.9 * b + 1 - outcome
        assert value(step, 2) == pytest.approx(a / (a + b))
    assert value(step, 0) == 0.5


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 1.0])), min_size=1, max_size=12),
    kl=st.floats(0, 0.05),
)
@settings(max_examples=40, deadline=None)
def test_repeated_prompts_by_a_plain_loop(rows: list[tuple[int, float]], kl: float) -> None:
    step = SingleStream(normalize=False)
    belief = {prompt: [4.0, 4.0] for prompt in range(4)}
    unseen = dict.fromkeys(range(4), 0.0)
    for _ in range(2):
        step.add_kl(kl)
        unseen = {prompt: each + kl for prompt, each in unseen.items()}
        before = {prompt: a / (a + b) for prompt, (a, b) in belief.items()}
        result = first(step, visits([row[0] for row in rows], [row[1] for row in rows]))
        assert result == pytest.approx([outcome - before[prompt] for prompt, outcome in rows])
        for prompt, outcome in rows:
            rho = min(max(2 ** (-unseen[prompt] / 0.1), 0.875), 0.96)
            a, b = belief[prompt]
            belief[prompt] = [rho * a + outcome, rho * b + 1 - outcome]
            unseen[prompt] = 0.0
        tracked = step.value(torch.arange(4)).tolist()
        assert tracked == pytest.approx([a / (a + b) for a, b in belief.values()])


def test_the_further_the_policy_moved_the_more_is_forgotten() -> None:
    still, moved = SingleStream(), SingleStream()
    moved.add_kl(torch.tensor(0.05))
    moved.add_kl(10.0)
    for step in (still, moved):
        step(visits([0], [1.0]))
    assert value(still, 0) == pytest.approx((0.96 * 4 + 1) / (0.96 * 8 + 1))
    assert value(moved, 0) == pytest.approx((0.875 * 4 + 1) / (0.875 * 8 + 1))


def test_hears_of_the_kl_from_updates() -> None:
    told, heard = SingleStream(), SingleStream()
    told.add_kl(2**-7)
    heard.observe(Update({"approx_kl": torch.tensor(2**-7)}))
    for step in (told, heard):
        step(visits([0], [1.0]))
    assert value(heard, 0) == value(told, 0) != pytest.approx((0.96 * 4 + 1) / (0.96 * 8 + 1), rel=1e-6)


class Moved:
    """A policy that finds every action ``by`` nats likelier than when it was collected."""

    def __init__(self, by: float) -> None:
        self.by = by

    def evaluate(self, batch: Trajectories) -> Evaluation:
        return Evaluation(log_prob=batch.log_prob + torch.where(batch.mask, self.by, torch.nan))


def test_measures_the_kl_after_the_update() -> None:
    told, measured = SingleStream(), SingleStream(policy=Moved(0.1))
    batch = visits([0], [1.0])
    for step in (told, measured):
        step(batch)
    told.add_kl(math.exp(0.1) - 1 - 0.1)
    measured.observe(Update({"approx_kl": torch.tensor(10.0)}))
    for step in (told, measured):
        step(batch)
    assert value(measured, 0) == pytest.approx(value(told, 0), rel=1e-6)
    assert value(told, 0) != pytest.approx(value(SingleStream(), 0))


def test_kl_before_initialization_does_not_count() -> None:
    step = SingleStream()
    step.add_kl(10.0)
    step.initialize(torch.tensor([0]), torch.tensor([0.25]))
    step(visits([0], [1.0]))
    assert value(step, 0) == pytest.approx((0.96 * 2 + 1) / (0.96 * 8 + 1))


def test_never_forgetting_from_nothing_is_the_running_mean() -> None:
    step = SingleStream(rho_min=1.0, rho_max=1.0, prior=0.0)
    seen = [1.0, 0.0, 5.0, -2.0, 0.5]
    for n, outcome in enumerate(seen, 1):
        step(visits([0], [outcome]))
        assert value(step, 0) == pytest.approx(sum(seen[:n]) / n)


def test_forgetting_everything_is_the_last_outcome() -> None:
    step = SingleStream(rho_min=0.0, rho_max=0.0)
    step(visits([0, 0, 1], [1.0, 0.25, 0.75]))
    assert step.value(torch.tensor([0, 1])).tolist() == [0.25, 0.75]


def test_a_value_of_zero_is_batch_normalized_reinforce() -> None:
    outcome = [1.0, 0.0, 1.0, 1.0, 3.0]
    expected = whitened(torch.tensor(outcome, dtype=torch.float64), torch.ones(5, dtype=torch.bool))
    result = first(SingleStream(v0=0.0), visits([0, 1, 2, 3, -1], outcome))
    assert result == pytest.approx(expected.tolist())
    assert sum(result) == pytest.approx(0, abs=1e-12)


def test_the_window_of_the_tracker() -> None:
    """N = a + b tends to 1 / (1 - rho), here 25: one outcome then moves v by 1 / (0.96 * 25 + 1)."""
    step = SingleStream()
    for _ in range(400):
        step(visits([0], [0.0]))
    step(visits([0], [1.0]))
    assert value(step, 0) == pytest.approx(1 / 25, abs=1e-4)


def test_what_is_not_remembered() -> None:
    step = SingleStream(normalize=False)
    mask = torch.tensor([[True], [True], [False]])
    assert first(step, visits([-1, 5, 6], [1.0, 1.0, 1.0], mask=mask)) == [0.5, 0.5, 0.0]
    assert step.value(torch.tensor([-1, 6, 7])).tolist() == [0.5, 0.5, 0.5]
    assert value(step, 5) > 0.5


def test_prompt_weights() -> None:
    step = SingleStream()
    step.initialize(torch.arange(4), torch.tensor([0.0, 1.0, 0.1, 0.25]))
    assert step.weights(torch.arange(5)).tolist() == pytest.approx([0.05, 0.05, 0.35, 0.4830, 0.55], abs=1e-4)


@pytest.mark.parametrize("make", [SingleStream, SmoothStandardized])
def test_resumes_bit_for_bit(make: type[SingleStream] | type[SmoothStandardized]) -> None:
    step, resumed = make(), make()
    batches = [
        visits([3, 3, 0, 0], each, group=[0, 0, 1, 1]) for each in ([1.0, 0, 0, 0], [1.0, 1, 1, 0], [0.0, 1, 0, 1])
    ]
    if isinstance(step, SingleStream):
        step.add_kl(0.03)
    step(batches[0])
    state = step.state_dict()
    step(batches[1])
    resumed.load_state_dict(state)
    resumed(batches[1])
    assert first(resumed, batches[2]) == first(step, batches[2])
    assert first(make(), batches[2]) != first(step, batches[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho_min": 0.9, "rho_max": 0.8}, r"rho_min = 0.9, rho_max = 0.8; valid: 0 <= rho_min <= rho_max <= 1"),
        ({"half_life": 0.0}, r"half_life = 0.0; valid: a positive KL"),
        ({"rho_min": 1.0, "rho_max": 1.0}, r"rho_min = 1 never forgets and needs a prior"),
        ({"prior": -1.0}, r"prior = -1.0; valid: 0 or more"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SingleStream(**arguments)  # type: ignore[arg-type]


def test_smooth_standardization_over_three_visits() -> None:
    step = SmoothStandardized()
    for outcome, expected in (
        ([1.0, 0.0, 0.0, 0.0], [1.5, -0.5, -0.5, -0.5]),
        ([1.0, 1.0, 1.0, 1.0], [0.363803] * 4),
        ([1.0, 1.0, 0.0, 1.0], [0.549629, 0.549629, -1.365181, 0.549629]),
    ):
        assert first(step, visits([7] * 4, outcome)) == pytest.approx(expected, abs=1e-6)


def test_smooth_standardization_by_plain_arithmetic() -> None:
    """Two prompts of different group sizes, several visits, against the formulas in Python numbers."""
    generator = torch.Generator().manual_seed(0)
    step, memory = SmoothStandardized(), {0: (0.0, 0.0), 4: (0.0, 0.0)}
    ids = torch.tensor([4, 0, 0, 4, 4])
    for i in range(1, 6):
        outcome = torch.randn(5, generator=generator, dtype=torch.float64)
        result = first(step, visits(ids.tolist(), outcome.tolist(), group=ids.tolist()))
        for prompt in (0, 4):
            mine = outcome[ids == prompt]
            mean, variance = memory[prompt]
            new_mean, new_variance = mine.mean().item(), mine.var().item()
            share = (i - 1) / i
            variance = ((i - 1) * variance + new_variance + share * (new_mean - mean) ** 2) / i
            mean = ((i - 1) * mean + new_mean) / i
            memory[prompt] = mean, variance
            for place in (ids == prompt).nonzero().flatten().tolist():
                new = (outcome[place].item() - new_mean) / new_variance**0.5
                total = (outcome[place].item() - mean) / variance**0.5
                expected = min(share * new + total / i, new / i + share * total, key=abs)
                assert result[place] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("ids", [[3, 3, 3, 1, 1], [-1] * 5])
def test_the_first_visit_is_grpo(ids: list[int]) -> None:
    batch = visits(ids, [1.0, 0.0, 0.25, 0.5, 0.0], group=[8, 8, 8, 2, 2])
    assert first(SmoothStandardized(), batch) == pytest.approx(first(GroupNormalized(eps=0.0), batch))


def test_fresh_starts_are_never_a_second_visit() -> None:
    step = SmoothStandardized()
    batch = visits([-1] * 4, [1.0, 0.0, 0.0, 0.0])
    step(visits([-1] * 4, [5.0, 1.0, 0.0, 0.0]))
    assert first(step, batch) == pytest.approx([1.5, -0.5, -0.5, -0.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_always_the_same_outcome_has_no_advantage_at_all(dtype: torch.dtype) -> None:
    step = SmoothStandardized()
    batch = visits([0] * 3, [0.1] * 3)
    batch = batch.replace(reward=batch.reward.to(dtype))
    for _ in range(7):
        assert first(step, batch) == [0.0, 0.0, 0.0]


def test_a_group_without_any_answer_is_no_visit() -> None:
    step = SmoothStandardized()
    step(visits([2] * 4, [9.0] * 4, mask=torch.zeros(4, 1, dtype=torch.bool)))
    assert first(step, visits([2] * 4, [1.0, 0.0, 0.0, 0.0])) == pytest.approx([1.5, -0.5, -0.5, -0.5])
