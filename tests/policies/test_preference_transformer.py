"""PreferenceTransformer: rewards of the past, scores as weighted sums, and learning from preferences."""

from types import SimpleNamespace

import pytest
import torch
from gymnasium import spaces
from torch.nn import functional

from decisionrl.policies.preference_transformer import REFERENCE, PreferenceTransformer
from decisionrl.policies.sequence import TransformerSizes

TINY = TransformerSizes(width=8, layers=2, heads=2, feedforward=8, dropout=0.0)
OBSERVATIONS, ACTIONS = spaces.Box(-5, 5, (3,)), spaces.Box(-2, 2, (2,))
BATCH, STEPS = 3, 5
PADDED = torch.arange(STEPS) < torch.tensor([5, 3, 1])[:, None]
VARIANTS = pytest.mark.parametrize("weighted", [True, False], ids=["weighted sum", "plain"])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def make(**options: object) -> PreferenceTransformer:
    settings = {"sizes": TINY, "timesteps": 50, "generator": rng(), **options}
    model = PreferenceTransformer(OBSERVATIONS, ACTIONS, **settings).double()
    model.update_normalizer(normal(100, 3) * 2 + 1)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.2 * normal(*parameter.shape, seed=i))
    return model


def batch(**changes: torch.Tensor) -> SimpleNamespace:
    fields = {
        "observation": normal(BATCH, STEPS, 3),
        "action": normal(BATCH, STEPS, 2, seed=2).clamp(-2, 2),
        "mask": torch.ones(BATCH, STEPS, dtype=torch.bool),
        "extras": {"timestep": torch.arange(STEPS).expand(BATCH, STEPS) + 6},
        "state": None,
        "start": None,
    }
    return SimpleNamespace(**{**fields, **changes})


@VARIANTS
@pytest.mark.parametrize("score", ["mean", "sum"])
@torch.no_grad()
def test_a_score_is_a_weighted_sum_of_the_rewards(weighted, score):
    model, data = make(weighted_sum=weighted, score=score), batch(mask=PADDED)
    rewards, scores = model.rewards(data), model.segment_scores(data)
    hidden = model._hidden(model.reader(data))
    for row, length in enumerate(PADDED.sum(1).tolist()):
        parts = []
        for i in range(length):
            if not weighted:
                parts.append(float(rewards[row, i]))
                continue
            query = model.query(hidden[row, i])
            logits = torch.stack([query @ model.key(hidden[row, t]) / 8**0.5 for t in range(length)])
            parts.append(float(logits.softmax(0) @ rewards[row, :length]))
        assert float(scores[row]) == pytest.approx(sum(parts) / (length if score == "mean" else 1))


@VARIANTS
@torch.no_grad()
def test_a_reward_depends_on_the_past_and_not_on_the_future(weighted):
    model, data = make(weighted_sum=weighted), batch()
    before = model.rewards(data)
    for t in range(STEPS):
        for field in ("observation", "action"):
            changed = getattr(data, field).clone()
            changed[:, t] += 0.5
            after = model.rewards(batch(**{field: changed}))
            torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-12)
            assert ((after - before)[:, t:].abs() > 1e-9).all()


@VARIANTS
@torch.no_grad()
def test_padding_does_not_matter(weighted):
    model, garbage = make(weighted_sum=weighted), batch(mask=PADDED)
    clean_rewards, clean_scores = model.rewards(garbage), model.segment_scores(garbage)
    garbage.observation[~PADDED], garbage.action[~PADDED] = torch.nan, torch.inf
    assert torch.equal(model.rewards(garbage), clean_rewards)
    assert torch.equal(model.segment_scores(garbage), clean_scores)
    assert (clean_rewards[~PADDED] == 0).all()
    whole = batch()
    for row, length in enumerate(PADDED.sum(1).tolist()):
        alone = batch(
            observation=whole.observation[row : row + 1, :length],
            action=whole.action[row : row + 1, :length],
            mask=torch.ones(1, length, dtype=torch.bool),
            extras={"timestep": whole.extras["timestep"][row : row + 1, :length]},
        )
        torch.testing.assert_close(model.segment_scores(alone)[0], clean_scores[row])
        torch.testing.assert_close(model.rewards(alone)[0], clean_rewards[row, :length])


@VARIANTS
@torch.no_grad()
def test_a_constant_added_to_the_rewards_is_added_to_the_mean_score(weighted):
    model, data = make(weighted_sum=weighted), batch(mask=PADDED)
    before = model.segment_scores(data)
    (model.head if weighted else model.head[-1]).bias.add_(3)
    torch.testing.assert_close(model.segment_scores(data), before + 3)


@VARIANTS
def test_a_row_without_steps_gives_no_nan(weighted):
    model = make(weighted_sum=weighted)
    mask = PADDED.clone()
    mask[2] = False
    scores = model.segment_scores(batch(mask=mask))
    scores.sum().backward()
    assert float(scores[2].detach()) == 0
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@VARIANTS
def test_it_learns_a_preference_that_depends_on_the_past(weighted):
    """Segments are preferred whose first action is up; later actions say nothing."""
    model = make(weighted_sum=weighted)
    action = normal(64, STEPS, 2, seed=4).clamp(-2, 2)
    data = batch(
        observation=normal(64, STEPS, 3),
        action=action,
        mask=torch.ones(64, STEPS, dtype=torch.bool),
        extras={},
    )
    label = (action[32:, 0, 0] > action[:32, 0, 0]).double()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        first, second = model.segment_scores(data).chunk(2)
        loss = functional.binary_cross_entropy_with_logits(second - first, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3


def test_the_reference_has_the_released_sizes():
    model = PreferenceTransformer(spaces.Box(-5, 5, (11,)), spaces.Box(-1, 1, (3,)), sizes=REFERENCE)
    block = 4 * 256 * 256 + 4 * 256 + 2 * 256 * 1024 + 1024 + 256 + 4 * 256
    embeddings = 14 * 256 + 2 * 256 + 1000 * 256 + 2 * 256
    assert sum(p.numel() for p in model.parameters()) == block + embeddings + 2 * 256 + 2 * (256 * 256 + 256) + 257


def test_errors_and_state():
    with pytest.raises(ValueError, match="score = 'last'; valid: mean, sum"):
        make(score="last")
    one, other = make(), make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    assert not torch.equal(one.rewards(batch()), other.rewards(batch()))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.rewards(batch()), other.rewards(batch()))
