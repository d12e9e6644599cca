"""The decoder layer of diffusion policies is torch's."""

import pytest
import torch
from torch import nn

from decisionrl.policies.diffusion_network import Attention, DecoderLayer

WIDTH, HEADS, BATCH, TOKENS, SEEN = 8, 2, 3, 5, 4


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair() -> tuple[DecoderLayer, nn.TransformerDecoderLayer]:
    """Ours and torch's with equal weights, none of them as it is at the beginning."""
    ours = DecoderLayer(WIDTH, heads=HEADS, dropout=0.0).double()
    theirs = nn.TransformerDecoderLayer(
        WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    with torch.no_grad():
        for i, parameter in enumerate(ours.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=rng(i), dtype=parameter.dtype))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("causal", [True, False])
def test_outputs_and_gradients_are_those_of_torch(causal: bool) -> None:
    x = torch.randn(BATCH, TOKENS, WIDTH, generator=rng(1), dtype=torch.float64)
    memory = torch.randn(BATCH, SEEN, WIDTH, generator=rng(2), dtype=torch.float64)
    after = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1) & causal
    seen = torch.ones(TOKENS, SEEN, dtype=torch.bool).tril(1)
    ours, theirs = pair()
    found = ours(x, memory, seen, causal=causal)
    expected = theirs(x, memory, tgt_mask=after, memory_mask=~seen)
    torch.testing.assert_close(found, expected)
    for each in (found, expected):
        each.square().sum().backward()
    for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, msg=name)


def test_every_residual_part_is_dropped() -> None:
    layer, _ = pair()
    layer.dropout = nn.Dropout(1.0)
    x, memory = (torch.randn(BATCH, n, WIDTH, generator=rng(n), dtype=torch.float64) for n in (TOKENS, SEEN))
    seen = torch.ones(TOKENS, SEEN, dtype=torch.bool)
    torch.testing.assert_close(layer(x, memory, seen, causal=True), x)
    assert not torch.allclose(layer.eval()(x, memory, seen, causal=True), x)


def test_attention_drops_weights_in_training_only() -> None:
    """Their mean is kept, so over many rows the output is that without dropout."""
    attention = Attention(WIDTH, heads=HEADS, dropout=0.3)
    with torch.no_grad():
        for i, parameter in enumerate(attention.parameters()):
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=rng(i)))
    x, memory = (torch.randn(1, n, WIDTH, generator=rng(n)).expand(20_000, -1, -1) for n in (TOKENS, SEEN))
    torch.manual_seed(0)
    with torch.no_grad():
        dropped, whole = attention(x, memory), attention.eval()(x[:1], memory[:1])
    assert (dropped[0] != dropped[1]).any()
    torch.testing.assert_close(dropped.mean(0, keepdim=True), whole, atol=0.03, rtol=0.0)
