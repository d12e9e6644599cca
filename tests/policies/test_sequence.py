"""The transformer against torch's own layers, the order of tokens, what windows and memories hold."""

from types import SimpleNamespace

import pytest
import torch
from gymnasium import spaces
from torch import nn

from decisionrl.policies.sequence import (
    RecentSteps,
    StepTransformer,
    Transformer,
    TransformerSizes,
    Window,
    WindowReader,
    squared_error,
)

BATCH, TOKENS, WIDTH = 3, 7, 8
MASK = torch.arange(TOKENS) < torch.tensor([7, 4, 1])[:, None]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def transformer(**options: object) -> Transformer:
    settings = {"layers": 2, "heads": 2, "feedforward": 12, "causal": True, "dropout": 0.0, **options}
    made = Transformer(WIDTH, generator=rng(), **settings).double()
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):  # larger than they begin, LayerNorms and biases too
            parameter.add_(0.3 * normal(*parameter.shape, seed=i))
    return made


def torch_layer(block: nn.Module, *, norm: str, activation: str) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(
        WIDTH, 2, 12, 0.0, activation, batch_first=True, norm_first=norm == "before", dtype=torch.float64
    )
    pairs = {
        layer.self_attn.in_proj_weight: block.query_key_value.weight,
        layer.self_attn.in_proj_bias: block.query_key_value.bias,
        layer.self_attn.out_proj.weight: block.attended.weight,
        layer.self_attn.out_proj.bias: block.attended.bias,
        layer.linear1.weight: block.hidden.weight,
        layer.linear1.bias: block.hidden.bias,
        layer.linear2.weight: block.output.weight,
        layer.linear2.bias: block.output.bias,
        layer.norm1.weight: block.attention_norm.weight,
        layer.norm1.bias: block.attention_norm.bias,
        layer.norm2.weight: block.feedforward_norm.weight,
        layer.norm2.bias: block.feedforward_norm.bias,
    }
    for theirs, ours in pairs.items():
        theirs.data.copy_(ours)
    return layer


@pytest.mark.parametrize("norm", ["before", "after"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["complete", "padded"])
@torch.no_grad()
def test_blocks_are_those_of_torch(norm, causal, activation, mask):
    ours = transformer(norm=norm, causal=causal, activation=activation)
    x = tokens = normal(BATCH, TOKENS, WIDTH)
    future = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1) if causal else None
    for block in ours.blocks:
        layer = torch_layer(block, norm=norm, activation=activation)
        x = layer(x, src_mask=future, src_key_padding_mask=None if mask is None else ~mask)
    counted = torch.ones_like(MASK) if mask is None else mask
    torch.testing.assert_close(ours(tokens, mask)[counted], ours.last_norm(x)[counted])


@pytest.mark.parametrize("norm", ["before", "after"])
@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_padding_does_not_matter(norm, causal):
    model, tokens = transformer(norm=norm, causal=causal), normal(BATCH, TOKENS, WIDTH)
    garbage = torch.where(MASK[..., None], tokens, 1e6)
    torch.testing.assert_close(model(tokens, MASK)[MASK], model(garbage, MASK)[MASK])
    for row, length in enumerate(MASK.sum(1).tolist()):
        torch.testing.assert_close(model(tokens, MASK)[row, :length], model(tokens[row : row + 1, :length])[0])


@pytest.mark.parametrize("mask", [None, MASK], ids=["complete", "padded"])
@torch.no_grad()
def test_only_a_bidirectional_token_sees_later_ones(mask):
    tokens = normal(BATCH, TOKENS, WIDTH)
    changed = tokens.clone()
    changed[:, 2, 0] += 1
    causal, both = transformer(causal=True), transformer(causal=False)
    torch.testing.assert_close(causal(tokens, mask)[:, :2], causal(changed, mask)[:, :2])
    assert (causal(tokens, mask)[0, 2:] != causal(changed, mask)[0, 2:]).all()
    assert (both(tokens, mask)[0] != both(changed, mask)[0]).all()


def test_a_row_without_tokens_gives_no_nan():
    model = transformer(causal=False)
    model(normal(2, 3, WIDTH), torch.tensor([[True, True, False], [False, False, False]]))[0, :2].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_dropout_is_for_training_only():
    model, tokens = transformer(dropout=0.5), normal(BATCH, TOKENS, WIDTH)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_weights_come_from_the_generator():
    one, same, other = (
        Transformer(8, layers=1, heads=2, feedforward=8, causal=True, generator=rng(s)) for s in (0, 0, 1)
    )
    for a, b in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.blocks[0].hidden.weight, other.blocks[0].hidden.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads = 3; valid: a divisor of width = 8"),
        ({"layers": 0}, "layers = 0; valid: at least 1"),
        ({"dropout": 1.0}, "dropout = 1.0; valid"),
        ({"norm": "both"}, "norm = 'both'; valid: before, after"),
        ({"activation": "tanh"}, "activation = 'tanh'; valid: relu, gelu"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        transformer(**options)


PARTS = {"a": 2, "b": 3, "c": 1}


def steps(**options: object) -> StepTransformer:
    sizes = TransformerSizes(width=WIDTH, layers=1, heads=2, feedforward=8, dropout=0.0)
    return StepTransformer(PARTS, sizes, timesteps=6, causal=True, generator=rng(), **options).double()


@torch.no_grad()
def test_tokens_stand_in_the_order_of_steps_and_parts():
    model = steps()
    parts = {name: normal(1, 4, size, seed=i) for i, (name, size) in enumerate(PARTS.items())}
    timestep = torch.arange(4)[None]
    order = [(t, name) for t in range(4) for name in PARTS]
    for place, (t, name) in enumerate(order):
        changed = {key: value.clone() for key, value in parts.items()}
        changed[name][0, t] += 1
        before, after = model(parts, timestep), model(changed, timestep)
        differs = [not torch.allclose(before[key][0, s], after[key][0, s]) for s, key in order]
        assert differs == [False] * place + [True] * (len(order) - place)


@torch.no_grad()
def test_time_is_added_to_the_timed_parts_and_ends_with_the_table():
    parts = {name: normal(1, 1, size, seed=i) for i, (name, size) in enumerate(PARTS.items())}
    late, later, last = (torch.tensor([[t]]) for t in (3, 7, 5))
    model = steps(untimed=["a"])
    assert torch.equal(model(parts, late)["a"], model(parts, last)["a"])
    assert not torch.equal(model(parts, late)["b"], model(parts, last)["b"])
    assert torch.equal(model(parts, later)["b"], model(parts, last)["b"])
    with pytest.raises(ValueError, match=r"untimed = \['d'\]; valid: some of a, b, c"):
        steps(untimed=["d"])


BOX = spaces.Box(-5, 5, (2,))
ACTIONS = spaces.Box(torch.tensor([-2.0, 0.0]).numpy(), torch.tensor([4.0, 1.0]).numpy())


def batch(
    observation: torch.Tensor, action: torch.Tensor, mask: torch.Tensor, **extras: torch.Tensor
) -> SimpleNamespace:
    return SimpleNamespace(observation=observation, action=action, mask=mask, state=None, start=None, extras=extras)


def test_a_window_is_standardized_scaled_and_zero_outside_the_mask():
    reader = WindowReader(BOX, ACTIONS).double()
    seen = normal(200, 2) * 3 + 1
    reader.update(seen)
    mask = torch.tensor([[True, True, False]])
    observation, action = normal(1, 3, 2), torch.tensor([[[-2.0, 0.5], [4.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    observation[0, 2], action[0, 2] = torch.nan, torch.inf
    window = reader(batch(observation, action, mask, timestep=torch.tensor([[4, 5, 0]])))
    wanted = (observation - seen.mean(0)) / seen.std(0, correction=0)
    torch.testing.assert_close(window.observation[mask], wanted[mask], rtol=1e-6, atol=1e-6)
    assert window.action.tolist() == [[[-1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]]
    assert window.observation[0, 2].tolist() == [0, 0]
    assert window.timestep.tolist() == [[4, 5, 0]]
    torch.testing.assert_close(reader.action(window.action[0, :2]), action[0, :2])


def test_a_complete_window_needs_no_mask_and_begins_at_the_first_step():
    whole = torch.ones(2, 3, dtype=torch.bool)
    window = WindowReader(BOX, ACTIONS)(batch(torch.zeros(2, 3, 2), torch.zeros(2, 3, 2), whole))
    assert window.mask is None
    assert window.timestep.tolist() == [[0, 1, 2]] * 2


def test_the_error_of_a_masked_step_is_zero():
    window = Window(
        observation=torch.zeros(1, 2, 1),
        action=torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]),
        timestep=torch.zeros(1, 2, dtype=torch.long),
        mask=torch.tensor([[True, False]]),
    )
    assert squared_error(torch.full((1, 2, 2), 3.0), window).tolist() == [[5.0, 0.0]]


def test_spaces_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match=r"action_space = Discrete\(3\); valid: a Box"):
        WindowReader(BOX, spaces.Discrete(3))
    with pytest.raises(TypeError, match="observation_space"):
        WindowReader(spaces.Discrete(3), ACTIONS)
    with pytest.raises(ValueError, match="finite bounds"):
        WindowReader(BOX, spaces.Box(-torch.inf, torch.inf, (2,)))
    with pytest.raises(TypeError, match=r"observation has the keys \['eye'\]; valid: one tensor"):
        WindowReader(BOX, ACTIONS).update({"eye": torch.zeros(2)})


def test_recent_steps_equal_lists_that_are_cut_and_reset():
    window, features, copies = 3, 2, 4
    state = torch.zeros(copies, window * features + 1)
    lists: list[list[list[float]]] = [[] for _ in range(copies)]
    for t in range(12):
        step = torch.randn(copies, features, generator=rng(t))
        recent = RecentSteps.unpacked(state, window).followed_by(step)
        recent = recent.with_newest(step[:, 1:] * 2, 1)
        for row in range(copies):
            lists[row].append([float(step[row, 0]), float(step[row, 1] * 2)])
            kept = lists[row][-window:]
            assert recent.steps[row].tolist() == kept + [[0.0] * features] * (window - len(kept))
            first = len(lists[row]) - len(kept)
            assert recent.timestep[row, : len(kept)].tolist() == list(range(first, len(lists[row])))
            assert recent.newest(recent.steps)[row].tolist() == kept[-1]
        state = recent.packed()
        over = [row for row in range(copies) if (t + 1) % (row + 2) == 0]
        state = state.index_copy(0, torch.tensor(over, dtype=torch.long), torch.zeros(len(over), state.shape[1]))
        for row in over:
            lists[row] = []
