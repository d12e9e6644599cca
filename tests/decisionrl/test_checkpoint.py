import pickle
import random
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from torch import nn

from decisionrl import checkpoint

TENSOR_DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.uint32,
]
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
array_dtypes = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
)
arrays = array_dtypes.flatmap(lambda dtype: hnp.arrays(dtype, shapes))
tensors = st.builds(
    lambda dtype, shape, seed: torch.randint(
        0, 2 if dtype is torch.bool else 100, shape, generator=torch.Generator().manual_seed(seed)
    ).to(dtype),
    st.sampled_from(TENSOR_DTYPES),
    shapes,
    st.integers(0, 100),
)
keys = st.one_of(st.text(), st.integers(), st.sampled_from(["$tensor", "$items", "a/b", ""]))
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    tensors,
    arrays,
    arrays.map(lambda a: a.flat[:1]),
    st.floats(width=32).map(np.float32),
)
states = st.dictionaries(
    keys,
    st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(keys, inner, max_size=3),
        ),
        max_leaves=12,
    ),
    max_size=4,
)


def assert_identical(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        assert [type(k) for k in ours] == [type(k) for k in theirs]
        for key, value in theirs.items():
            assert_identical(ours[key], value)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            assert_identical(*pair)
    elif isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, np.ndarray | np.generic):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()
    else:
        assert repr(ours) == repr(theirs)  # also tells -0.0 from 0.0, and knows nan


@settings(max_examples=150, deadline=None)
@given(state=states)
def test_round_trip(state: dict[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.safetensors"
    checkpoint.save(path, state)
    assert_identical(checkpoint.load(path), state)


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    python, legacy = random.Random(3), np.random.RandomState(3)
    new, twister, own = np.random.default_rng(3), np.random.Generator(np.random.MT19937(3)), torch.Generator()

    def draw() -> list[float]:
        numbers = [python.random(), legacy.random(), legacy.randn(), new.random(), twister.random()]
        return [*numbers, float(torch.rand((), generator=own))]

    draw()
    state = {
        "python": python.getstate(),
        "legacy": legacy.get_state(),
        "new": new.bit_generator.state,
        "twister": twister.bit_generator.state,
        "own": own.get_state(),
    }
    checkpoint.save(tmp_path / "state.safetensors", state)
    expected = draw()
    state = checkpoint.load(tmp_path / "state.safetensors")
    python.setstate(state["python"])
    legacy.set_state(state["legacy"])
    new.bit_generator.state = state["new"]
    twister.bit_generator.state = state["twister"]
    own.set_state(state["own"])
    assert draw() == expected


def test_views_and_shared_memory(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tied = nn.Parameter(torch.ones(2))
    state = {
        "column": base[:, 1],
        "transposed": base.T,
        "one": tied,
        "other": tied,
        "reversed": np.arange(3)[::-1],
    }
    checkpoint.save(tmp_path / "a.safetensors", state)
    loaded = checkpoint.load(tmp_path / "a.safetensors")
    for name in ("column", "transposed", "one", "other"):
        assert torch.equal(loaded[name], state[name])
    np.testing.assert_array_equal(loaded["reversed"], [2, 1, 0])
    assert (tmp_path / "a.safetensors").stat().st_size < 2000  # a view does not bring all of its memory


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "state/a/0 is a set"),
        (torch.Generator(), "state/a/0 is a Generator"),
        (np.array(["x"]), "state/a/0 has the dtype <U1"),
        (np.array([1], dtype=">i4"), "state/a/0 is >i4"),
        (torch.zeros(1, dtype=torch.complex64), "torch.complex64"),
        (torch.eye(2).to_sparse(), "torch.sparse_coo"),
        ({(1, 2): 3}, r"state/a/0: the key \(1, 2\) is a tuple"),
        ({True: 3}, "state/a/0: the key True is a bool"),
    ],
)
def test_what_cannot_be_saved_is_named(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=message):
        checkpoint.save(tmp_path / "a.safetensors", {"a": [value]})
    assert not list(tmp_path.iterdir())


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"x": torch.zeros(64), "name": "abc"})
    whole = path.read_bytes()
    for length in (0, 4, 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(checkpoint.CheckpointError, match=r"a\.safetensors"):
            checkpoint.load(path)
    for position in (whole.index(b"abc"), len(whole) - 10):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(checkpoint.CheckpointError, match=r"a\.safetensors is damaged"):
            checkpoint.load(path)
    path.write_bytes(whole)
    assert checkpoint.load(path)["name"] == "abc"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"x": 1})
    before = path.read_bytes()
    with path.open("rb") as old:
        checkpoint.save(path, {"x": 2})
        assert old.read() == before  # it was not written into, but gave its name away
    assert checkpoint.load(path) == {"x": 2}


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (touched,)

    path = tmp_path / "a.safetensors"
    for write in (lambda: path.write_bytes(pickle.dumps(Evil())), lambda: torch.save({"a": Evil()}, path)):
        write()
        with pytest.raises(checkpoint.CheckpointError, match=r"a\.safetensors cannot be read"):
            checkpoint.load(path)
    assert not touched.exists()
    safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(checkpoint.CheckpointError, match=r"a\.safetensors is not a decisionrl checkpoint"):
        checkpoint.load(path)
    with pytest.raises(checkpoint.CheckpointError, match=r"missing\.safetensors"):
        checkpoint.load(tmp_path / "missing.safetensors")


def test_newest_is_loaded_and_old_ones_go(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path / "none") is None
    for step in (5, 100, 20):
        checkpoint.save_step(tmp_path, step, {"step": step}, keep=2)
    assert checkpoint.steps(tmp_path) == [20, 100]
    assert checkpoint.load_newest(tmp_path) == {"step": 100}
    (tmp_path / "step-000000000100.safetensors").write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match="step-000000000100"):  # never silently an older one
        checkpoint.load_newest(tmp_path)


def test_weights_alone(tmp_path: Path) -> None:
    policy, other = nn.Linear(2, 3), nn.Linear(2, 3)
    checkpoint.save_weights(policy, tmp_path / "w.safetensors", {"step": "7"})
    assert checkpoint.load_weights(other, tmp_path / "w.safetensors")["step"] == "7"
    assert torch.equal(policy.weight, other.weight)
    assert safetensors.torch.load_file(tmp_path / "w.safetensors").keys() == policy.state_dict().keys()
    with pytest.raises(checkpoint.CheckpointError, match=r"w\.safetensors does not fit the policy"):
        checkpoint.load_weights(nn.Linear(2, 4), tmp_path / "w.safetensors")
