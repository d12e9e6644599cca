"""HindsightPolicy: what depends on what, acting step by step equals whole windows, the released code's padding."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from gymnasium import spaces

from decisionrl.policies.hindsight import HUMAN, REFERENCE, SMALL, HindsightPolicy, HindsightSizes
from decisionrl.policies.sequence import TransformerSizes

TINY = TransformerSizes(width=8, layers=2, heads=2, feedforward=8)
SIZES = HindsightSizes(encoder=TINY, policy=TINY, context=3, window=4)
OBSERVATIONS, ACTIONS = spaces.Box(-5, 5, (3,)), spaces.Box(-2, 2, (2,))
BATCH, STEPS = 3, 5


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def make(**options: object) -> HindsightPolicy:
    settings = {"sizes": SIZES, "timesteps": 50, "generator": rng(), **options}
    policy = HindsightPolicy(OBSERVATIONS, ACTIONS, **settings).double().eval()
    policy.update_normalizer(normal(100, 3) * 2 + 1)
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(0.2 * normal(*parameter.shape, seed=i))
    return policy


def batch(mask: torch.Tensor | None = None, **changes: torch.Tensor) -> SimpleNamespace:
    fields = {
        "observation": normal(BATCH, STEPS, 3),
        "action": normal(BATCH, STEPS, 2, seed=2).clamp(-2, 2),
        "mask": torch.ones(BATCH, STEPS, dtype=torch.bool) if mask is None else mask,
        "extras": {"timestep": torch.tensor([[0], [7], [30]]) + torch.arange(STEPS)},
        "state": None,
        "start": None,
    }
    return SimpleNamespace(**{**fields, **changes})


PADDED = torch.arange(STEPS) < torch.tensor([5, 3, 1])[:, None]


def transformer_parameters(inputs: int, sizes: TransformerSizes, *, last_norm: bool, parts: int, timesteps: int) -> int:
    width, hidden = sizes.width, sizes.feedforward
    block = 4 * width * width + 4 * width + 2 * width * hidden + hidden + width + 4 * width
    embeddings = inputs * width + parts * width + timesteps * width + 2 * width
    return sizes.layers * block + embeddings + 2 * width * last_norm


@pytest.mark.parametrize("sizes", [REFERENCE, HUMAN, SMALL])
def test_the_number_of_parameters_is_that_of_the_formula(sizes):
    hopper = spaces.Box(-5, 5, (11,)), spaces.Box(-1, 1, (3,))
    policy = HindsightPolicy(*hopper, sizes=sizes, timesteps=1000)
    z = sizes.context
    encoder = transformer_parameters(14, sizes.encoder, last_norm=False, parts=2, timesteps=1000)
    encoder += sizes.encoder.width * z + z
    contextual = transformer_parameters(14 + z, sizes.policy, last_norm=True, parts=3, timesteps=1000)
    contextual += sizes.policy.width * 3 + 3
    assert sum(p.numel() for p in policy.parameters()) == encoder + contextual + z
    if sizes is REFERENCE:
        assert encoder + contextual - 1000 * 128 == pytest.approx(1.32e6, rel=0.01)  # with a common table of times


@torch.no_grad()
def test_an_action_depends_on_z_and_on_what_was_seen_before_it_alone():
    policy, data = make(), batch()
    window, z = policy.reader(data), normal(BATCH, 3, seed=5)
    before = policy.contextual(window, z).action
    for t in range(STEPS):
        for field, first in (("observation", t), ("action", t + 1)):
            changed = getattr(window, field).clone()
            changed[:, t] += 0.5
            after = policy.contextual(replace(window, **{field: changed}), z).action
            torch.testing.assert_close(after[:, :first], before[:, :first], rtol=0, atol=1e-12)
            assert ((after - before)[:, first:].abs() > 1e-9).all()
    assert ((policy.contextual(window, z + 1).action - before).abs() > 1e-9).all()


@torch.no_grad()
def test_the_encoding_depends_on_every_step_of_the_mask_and_on_nothing_else():
    policy, data = make(), batch(PADDED)
    z = policy.encode(data)
    for field in ("observation", "action"):
        garbage = torch.where(PADDED[..., None], getattr(data, field), torch.nan)
        torch.testing.assert_close(policy.encode(batch(PADDED, **{field: garbage})), z, rtol=0, atol=0)
        for t in range(STEPS):
            changed = getattr(data, field).clone()
            changed[:, t] += 0.5
            moved = (policy.encode(batch(PADDED, **{field: changed})) - z).abs().amax(1) > 1e-9
            assert moved.tolist() == PADDED[:, t].tolist()
    for row, length in enumerate(PADDED.sum(1).tolist()):
        alone = batch(
            torch.ones(1, length, dtype=torch.bool),
            observation=data.observation[row : row + 1, :length],
            action=data.action[row : row + 1, :length],
            extras={"timestep": data.extras["timestep"][row : row + 1, :length]},
        )
        torch.testing.assert_close(policy.encode(alone)[0], z[row])


@torch.no_grad()
def test_the_released_pooling_counts_the_padding():
    policy, data = make(pooling="sum"), batch()
    whole = policy.encode(data)
    outputs = policy.encoder.steps(
        {"observation": policy.reader(data).observation, "action": policy.reader(data).action}, data.extras["timestep"]
    )
    torch.testing.assert_close(whole, policy.encoder.head(sum(tokens.sum(1) for tokens in outputs.values())))
    wider = batch(
        torch.arange(STEPS + 2)[None].expand(BATCH, -1) < STEPS,
        observation=torch.cat([data.observation, torch.zeros(BATCH, 2, 3)], 1),
        action=torch.cat([data.action, torch.zeros(BATCH, 2, 2)], 1),
        extras={"timestep": torch.cat([data.extras["timestep"], torch.zeros(BATCH, 2, dtype=torch.long)], 1)},
    )
    assert ((policy.encode(wider) - whole).abs() > 1e-3).any(1).all()


@torch.no_grad()
def test_log_prob_is_the_negative_squared_error_of_a_row_by_itself():
    policy, data = make(), batch(PADDED)
    data.observation[~PADDED] = torch.nan
    log_prob = policy.evaluate(data).log_prob
    for row in range(BATCH):
        for t in range(STEPS):
            if not PADDED[row, t]:
                assert log_prob[row, t] == 0
                continue
            length = int(PADDED[row].sum())
            alone = batch(
                torch.ones(1, length, dtype=torch.bool),
                observation=data.observation[row : row + 1, :length],
                action=data.action[row : row + 1, :length],
                extras={"timestep": data.extras["timestep"][row : row + 1, :length]},
            )
            predicted = policy.contextual(policy.reader(alone), policy.encode(alone)).action[0, t]
            wanted = -sum((float(a) - float(b) / 2) ** 2 for a, b in zip(predicted, data.action[row, t], strict=True))
            assert float(log_prob[row, t]) == pytest.approx(wanted)


def contexts(policy: HindsightPolicy, steps: int, legacy: bool) -> torch.Tensor:
    repeated = policy.context.expand(1, steps, -1).clone()
    if legacy:
        repeated[:, :-1] = 0
    return repeated


@pytest.mark.parametrize("legacy", [False, True])
@torch.no_grad()
def test_acting_equals_the_whole_window_with_its_own_actions(legacy):
    policy = make(legacy_context_padding=legacy)
    observation = normal(2, 9, 3, seed=8)
    state, actions = policy.initial_state(2), []
    for t in range(9):
        action, state = policy.act(observation[:, t], state)
        actions.append(action)
        first = max(0, t + 1 - SIZES.window)
        for row in range(2):
            taken = torch.stack(actions, 1)[row : row + 1, first:]
            seen = batch(
                torch.ones(1, t + 1 - first, dtype=torch.bool),
                observation=observation[row : row + 1, first : t + 1],
                action=taken,
                extras={"timestep": torch.arange(first, t + 1)[None]},
            )
            window = policy.reader(seen)
            predicted = policy.contextual(window, contexts(policy, t + 1 - first, legacy)).action[0, -1]
            torch.testing.assert_close(action[row], 2 * predicted)  # the Box is [-2, 2]
    assert (torch.stack(actions).abs() <= 2).all()


@torch.no_grad()
def test_rows_are_reset_one_by_one():
    policy = make()
    observation = normal(3, 8, 3, seed=8)
    state = policy.initial_state(3)
    for t in range(5):
        _, state = policy.act(observation[:, t], state)
    state = state.index_copy(0, torch.tensor([1]), policy.initial_state(3)[[1]])
    fresh = policy.initial_state(1)
    alone = state[[2]]
    for t in range(5, 8):
        action, state = policy.act(observation[:, t], state)
        begun, fresh = policy.act(observation[[1], t], fresh)
        went_on, alone = policy.act(observation[[2], t], alone)
        torch.testing.assert_close(action[1], begun[0])
        torch.testing.assert_close(action[2], went_on[0])


@torch.no_grad()
def test_the_released_padding_differs_from_the_second_step_on():
    repeated, padded = make(), make(legacy_context_padding=True)
    states = [repeated.initial_state(2), padded.initial_state(2)]
    for t in range(3):
        (one, states[0]), (other, states[1]) = (
            policy.act(normal(2, 3, seed=t), state) for policy, state in zip((repeated, padded), states, strict=True)
        )
        if t == 0:
            torch.testing.assert_close(one, other)
        else:
            assert ((one - other).abs() > 1e-6).all()
        states[1] = states[0]


@torch.no_grad()
def test_z_without_time_does_not_move_with_it():
    policy = make(timed_context=False)
    data = batch()
    parts = {"context": normal(BATCH, STEPS, 3), "observation": data.observation, "action": data.action}
    early, late = (policy.contextual.steps(parts, torch.full((BATCH, STEPS), t)) for t in (0, 9))
    torch.testing.assert_close(early["context"][:, 0], late["context"][:, 0])
    assert not torch.allclose(early["observation"][:, 0], late["observation"][:, 0])


@torch.no_grad()
def test_an_observation_is_reconstructed_from_itself_and_its_action():
    policy, data = make(reconstruct_observations=True), batch()
    window, z = policy.reader(data), normal(BATCH, 3)
    before = policy.contextual(window, z).observation
    assert before.shape == (BATCH, STEPS, 3)
    action = window.action.clone()
    action[:, 2] += 0.5
    after = policy.contextual(replace(window, action=action), z).observation
    torch.testing.assert_close(after[:, :2], before[:, :2], rtol=0, atol=1e-12)
    assert ((after - before)[:, 2:].abs() > 1e-9).all()
    assert make().contextual(window, z).observation is None


def test_there_is_neither_noise_nor_a_critic():
    policy = make()
    assert policy.sample_noise((4, 2)).shape == (4, 2, 0)
    assert policy.value(normal(2, 3)) is None
    seen = normal(2, 3)
    without, with_noise = (policy.act(seen, noise=noise)[0] for noise in (None, policy.sample_noise((2,))))
    assert torch.equal(without, with_noise)


def test_a_state_dict_brings_everything_along():
    one, other = make(), make(generator=rng(9))
    other.update_normalizer(normal(50, 3, seed=6))
    data = batch()
    assert not torch.equal(one.act(data.observation[:, 0])[0], other.act(data.observation[:, 0])[0])
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.act(data.observation[:, 0])[0], other.act(data.observation[:, 0])[0])
    assert torch.equal(one.encode(data), other.encode(data))


def test_z_begins_as_wide_as_told():
    sizes = replace(SIZES, context=20_000)
    for std in (1.0, 2.0):
        context = HindsightPolicy(OBSERVATIONS, ACTIONS, sizes=sizes, context_std=std, generator=rng()).context
        assert float(context.detach().std()) == pytest.approx(std, rel=0.03)


def test_errors_name_the_option():
    with pytest.raises(ValueError, match="pooling = 'max'; valid: mean, sum"):
        make(pooling="max")
    with pytest.raises(ValueError, match=r"sizes.window = 0; valid: at least 1"):
        make(sizes=replace(SIZES, window=0))
