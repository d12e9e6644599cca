"""Trajectories: indexing, flattening and joining keep every step and nothing else."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decisionrl.experience.trajectories import Trajectories, joined


def batch(rows, columns, seed, *, hidden=3, keys=False):
    """Every step is numbered: its row and column can be read off any field."""
    step = torch.arange(rows * columns, dtype=torch.float64).view(rows, columns) + 1000 * seed
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.7
    observation = step[..., None].expand(rows, columns, 2)
    return Trajectories(
        observation={"a": observation, "b": step.long()} if keys else observation,
        action=step.long(),
        reward=step,
        mask=mask,
        log_prob=-step,
        terminated=mask & (step % 3 == 0),
        truncated=torch.zeros_like(mask),
        value=step,
        start=mask,
        state=step[:, :1].expand(rows, hidden),
        group=torch.arange(rows) + 10 * seed,
        extras={"row": step[:, 0], "step": step},
        metrics={"score": torch.tensor(1.0)},
    )


sizes = st.integers(1, 5)


@settings(max_examples=50, deadline=None)
@given(sizes, sizes, st.integers(0, 50), st.booleans(), st.booleans())
def test_flat_keeps_the_policys_own_steps_in_order(rows, columns, seed, keys, whole):
    one = batch(rows, columns, seed, keys=keys)
    one = one.replace(mask=torch.ones_like(one.mask)) if whole else one
    flat = one.flat()
    kept = one.reward[one.mask]
    assert flat.reward.tolist() == kept[:, None].tolist()
    assert flat.mask.shape == (len(kept), 1)
    assert flat.mask.all()
    observation = flat.observation["a"] if keys else flat.observation
    assert torch.equal(observation, kept[:, None, None].expand(-1, 1, 2))
    row = one.mask.nonzero()[:, 0]
    assert torch.equal(flat.group, one.group[row])
    assert torch.equal(flat.extras["row"], one.extras["row"][row])
    assert torch.equal(flat.extras["step"], kept[:, None])
    assert flat.state is None
    assert flat.start is None
    assert flat.returns is None
    assert flat.metrics == one.metrics


@settings(max_examples=50, deadline=None)
@given(sizes, sizes, st.data())
def test_rows_are_rows_of_every_field(rows, columns, data):
    one = batch(rows, columns, 1, keys=True)
    index = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=6)))
    some = one.rows(index)
    assert some.metrics == {}
    for name in ("action", "reward", "mask", "log_prob", "value", "state", "group", "start"):
        assert torch.equal(getattr(some, name), getattr(one, name)[index])
    assert torch.equal(some.observation["b"], one.observation["b"][index])
    assert torch.equal(some.extras["row"], one.extras["row"][index])
    assert torch.equal(one.rows(slice(0, 1)).reward, one.reward[:1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=4), st.booleans(), sizes)
def test_joined_batches_come_apart_again(shapes, keys, hidden):
    parts = [batch(*shape, seed, hidden=hidden, keys=keys) for seed, shape in enumerate(shapes)]
    whole = joined(parts)
    assert whole.num_columns == max(columns for _, columns in shapes)
    assert whole.num_sequences == sum(rows for rows, _ in shapes)
    assert whole.metrics == {}
    assert whole.state.shape == (whole.num_sequences, hidden)
    assert whole.entropy is None
    first = 0
    for part in parts:
        again = whole.rows(slice(first, first + part.num_sequences))
        first += part.num_sequences
        assert not again.mask[:, part.num_columns :].any()
        assert torch.equal(again.group, part.group)
        assert torch.equal(again.state, part.state)
        for field in ("action", "reward", "mask", "log_prob", "terminated", "value", "start"):
            assert torch.equal(getattr(again, field)[:, : part.num_columns], getattr(part, field))
        for value, old in zip(tensors(again.observation), tensors(part.observation), strict=True):
            assert torch.equal(value[:, : part.num_columns], old)
        assert torch.equal(again.extras["row"], part.extras["row"])
        assert torch.equal(again.extras["step"][:, : part.num_columns], part.extras["step"])


def tensors(observation):
    return list(observation.values()) if isinstance(observation, dict) else [observation]


def test_map_and_to_leave_metrics_alone():
    one = batch(2, 3, 0, keys=True)
    half = one.map(lambda tensor: tensor[:1])
    assert half.num_sequences == 1
    assert half.observation["a"].shape == (1, 3, 2)
    assert half.metrics == one.metrics
    moved = one.to("cpu")
    assert torch.equal(moved.extras["step"], one.extras["step"])
