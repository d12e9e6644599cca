"""The transformer of in-context learning: causality, asides, the cache, positions, and what it refuses."""

import itertools

import pytest
import torch
from torch.nn import functional

from decisionrl.policies.in_context_network import (
    SIZES,
    Branches,
    CausalTransformer,
    ContextLengthError,
    InContextSizes,
    KeyValueCache,
)

CONTEXT, TOKENS, BATCH = 6, 5, 2
BLOCKS = ("llama", "gpt")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=dtype)


def network(block: str = "llama", *, context: int = CONTEXT, **sizes: object) -> CausalTransformer:
    small = InContextSizes(**{"width": 8, "layers": 3, "heads": 2, "feedforward": 12, "block": block, **sizes})
    return CausalTransformer(small, context=context, generator=rng()).double().eval()


def stepped(net: CausalTransformer, tokens: torch.Tensor) -> torch.Tensor:
    cache, outputs = net.empty_cache(len(tokens)), []
    for token in tokens.unbind(1):
        output, cache = net.step(token, cache)
        outputs.append(output)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("block", BLOCKS)
def test_outputs_do_not_depend_on_later_tokens(block: str) -> None:
    net, tokens = network(block), normal(BATCH, TOKENS, 8)
    changed = tokens.clone()
    changed[:, 3:] += 1
    before, after = net(tokens), net(changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert ((before - after)[:, 3:].abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@torch.no_grad()
def test_steps_are_the_whole_pass(block: str, dtype: torch.dtype, tolerance: float) -> None:
    for preset in (
        InContextSizes(block=block),
        InContextSizes(width=8, heads=2, layers=1, block=block, last_norm=True),
    ):
        net = CausalTransformer(preset, context=CONTEXT, generator=rng()).to(dtype).eval()
        for batch, count in ((BATCH, CONTEXT), (1, TOKENS), (BATCH, 1)):
            tokens = normal(batch, count, preset.width, dtype=dtype)
            torch.testing.assert_close(stepped(net, tokens), net(tokens), atol=tolerance, rtol=0)


@pytest.mark.parametrize("block", BLOCKS)
@torch.no_grad()
def test_rows_of_different_lengths_are_stepped_together(block: str) -> None:
    net, tokens = network(block), normal(3, CONTEXT, 8)
    length = torch.tensor([0, 2, 5])
    entries = net.cached(tokens, length)
    row = torch.arange(3)
    output, cache = net.step(tokens[row, length], KeyValueCache(entries, length))
    torch.testing.assert_close(output, net(tokens)[row, length], atol=1e-10, rtol=0)
    assert cache.length.tolist() == [1, 3, 6]
    torch.testing.assert_close(cache.entries, net.cached(tokens, length + 1), atol=1e-10, rtol=0)


@pytest.mark.parametrize("block", BLOCKS)
def test_keys_of_tokens_that_stay_depend_on_those_that_went(block: str) -> None:
    """Why a shortened window is worked out anew."""
    net, tokens = network(block), normal(1, TOKENS, 8)
    full, whole = torch.tensor([TOKENS - 1]), torch.tensor([TOKENS])
    values_after_loss, values_before = net.cached(tokens[:, 1:], full), net.cached(tokens, whole)
    difference = (values_after_loss[:, :, 1] - values_before[:, :, 1, :, 1:]).abs().amax((0, 2, 3, 4))
    assert difference[1:].min() > 1e-4
    if block == "llama":  # values of the first layer are those of the tokens alone
        assert difference[0] < 1e-12


@pytest.mark.parametrize("block", BLOCKS)
@torch.no_grad()
def test_an_aside_is_the_last_token_of_its_own_sequence(block: str) -> None:
    net, tokens, asides = network(block), normal(BATCH, TOKENS, 8), normal(BATCH, TOKENS, 8, seed=2)
    outputs, aside_outputs = net.with_asides(tokens, asides)
    torch.testing.assert_close(outputs, net(tokens), atol=1e-10, rtol=0)

    for t in range(TOKENS):
        x = torch.cat([tokens[:, : t + 1], asides[:, t : t + 1]], 1)
        position = torch.tensor([*range(t + 1), t])
        x = net._placed(x, position)
        for block_ in net.blocks:
            x = block_(x, net._turn(position), torch.ones(t + 2, t + 2, dtype=torch.bool).tril())
        torch.testing.assert_close(aside_outputs[:, t], net.last_norm(x)[:, -1], atol=1e-10, rtol=0)

        length = torch.full((BATCH,), t + 1)
        padded = functional.pad(tokens, (0, 0, 0, CONTEXT - TOKENS))
        cache = KeyValueCache(net.cached(padded, length), length)
        both, _ = net.branched(torch.stack([asides[:, t], normal(BATCH, 8, seed=9)], 1)[:, None], Branches.of(cache))
        torch.testing.assert_close(both[:, 0, 0], aside_outputs[:, t], atol=1e-10, rtol=0)


@pytest.mark.parametrize("block", BLOCKS)
@torch.no_grad()
def test_branches_are_windows_of_their_own(block: str) -> None:
    """Trunks of 2, 3, ... tokens, three branches, of which the second is chosen twice after two tokens."""
    net, trunk, chosen = network(block), normal(BATCH, 4, 8), torch.tensor([[1, 1, 2]]).expand(BATCH, -1)
    length = 2 + torch.arange(BATCH) % 3
    padded = functional.pad(trunk, (0, 0, 0, CONTEXT - 4))
    branches = Branches.of(KeyValueCache(net.cached(padded, length), length)).chosen(torch.zeros_like(chosen))
    asides, steps = normal(BATCH, 3, 2, 8, seed=5), normal(3, BATCH, 3, 8, seed=6)
    own = steps[:0]
    for t, token in enumerate(steps):
        if t == 2:
            branches, own = branches.chosen(chosen), own[:, :, chosen[0]]
        outputs, branches = net.branched(asides, branches, token)
        own = torch.cat([own, token[None]])
        for row, branch in itertools.product(range(BATCH), range(3)):
            window = torch.cat([trunk[row, : length[row]], own[:, row, branch]])[None]
            for k in range(2):
                last = asides[row, branch, k].expand_as(window)
                expected = net.with_asides(window, last)[1][0, -1]
                torch.testing.assert_close(outputs[row, branch, k], expected, atol=1e-10, rtol=0)


def test_a_llama_block_in_plain_loops() -> None:
    """RMSNorm, rotary positions, causal attention, and SwiGLU, of one row and one head."""
    net, tokens = network(layers=1, heads=1, width=4, feedforward=3), normal(1, 3, 4)
    block, x = net.blocks[0], tokens[0]

    def rms(v: torch.Tensor) -> torch.Tensor:
        return v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    def rotated(v: torch.Tensor) -> torch.Tensor:
        rows = []
        for t, (a, b, c, d) in enumerate(v.tolist()):
            angle = torch.tensor([t * 1.0, t * 0.01], dtype=torch.float64)
            pair = torch.tensor([complex(a, c), complex(b, d)], dtype=torch.complex128) * torch.exp(1j * angle)
            rows.append(torch.cat([pair.real, pair.imag]))
        return torch.stack(rows)

    q, k, v = block.attention.query_key_value(rms(x)).chunk(3, -1)
    q, k = rotated(q), rotated(k)
    read = []
    for t in range(3):
        weight = torch.stack([(q[t] * k[i]).sum() / 2 for i in range(t + 1)]).softmax(0)
        read.append(sum(weight[i] * v[i] for i in range(t + 1)))
    x = x + block.attention.output(torch.stack(read))
    gate, value = block.feedforward.gate_and_value(rms(x)).chunk(2, -1)
    x = x + block.feedforward.output(gate * gate.sigmoid() * value)
    torch.testing.assert_close(net(tokens)[0], x, atol=1e-7, rtol=0)


def test_presets_and_biases() -> None:
    paper, cpu = (CausalTransformer(name, context=CONTEXT, generator=rng()) for name in ("paper", "cpu"))
    assert SIZES["paper"] == InContextSizes(width=32, layers=4, heads=4, feedforward=128)
    assert (paper.sizes.dropout, paper.sizes.attention_dropout) == (0.1, 0.1)
    # A block: two norms, queries, keys, values and output with biases, three matrices without.
    assert sum(p.numel() for p in paper.parameters()) == 4 * (2 * 32 + 4 * (32 * 32 + 32) + 3 * 32 * 128)
    mlp = 2 * 32 * 128 + 128 + 32
    assert sum(p.numel() for p in cpu.parameters()) == 2 * (4 * 32 + 4 * (32 * 32 + 32) + mlp) + 64 + CONTEXT * 32
    assert paper.position is None
    assert isinstance(paper.last_norm, torch.nn.Identity)


def test_seeds_decide_the_weights() -> None:
    first, again = network(), network()
    for one, two in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    tokens = normal(1, 3, 8)
    other = CausalTransformer(first.sizes, context=CONTEXT, generator=rng(1)).double().eval()
    assert not torch.allclose(first(tokens), other(tokens))


@pytest.mark.parametrize("block", BLOCKS)
def test_more_tokens_than_the_context_are_refused(block: str) -> None:
    net, tokens = network(block), normal(BATCH, CONTEXT + 1, 8)
    with pytest.raises(ContextLengthError, match=r"7 tokens; valid: at most context = 6"):
        net(tokens)
    with pytest.raises(ContextLengthError, match=r"7 tokens"):
        net.with_asides(tokens, tokens)
    with pytest.raises(ContextLengthError, match=r"a row has context = 6 tokens"), torch.no_grad():
        stepped(net, tokens)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 9}, r"width = 9; valid: a multiple of heads = 2"),
        ({"width": 6}, r"width = 6; valid with rotary positions"),
        ({"layers": 0}, r"layers = 0; valid: at least 1"),
        ({"context": 0}, r"context = 0; valid: at least 1"),
        ({"dropout": 1.0}, r"dropout = 1.0; valid: at least 0 and below 1"),
        ({"block": "bert"}, r"block = 'bert'; valid: llama, gpt"),
    ],
)
def test_options_without_meaning_are_refused(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**sizes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sizes = 'huge'; valid: paper, light, cpu"):
        CausalTransformer("huge", context=CONTEXT)
