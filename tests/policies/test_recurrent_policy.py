"""RecurrentActorCritic: a whole batch of sequences at once equals one step at a time."""

from dataclasses import dataclass, replace

import pytest
import torch
from gymnasium import spaces

from decisionrl.policies.recurrent import GRU, RecurrentActorCritic

BOX, CHOICE = spaces.Box(-1, 1, (3,)), spaces.Discrete(4)
BATCH, STEPS = 5, 7


@dataclass(frozen=True)
class Experience:
    observation: torch.Tensor
    action: torch.Tensor
    mask: torch.Tensor
    state: torch.Tensor | None = None
    start: torch.Tensor | None = None


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(**options: object) -> RecurrentActorCritic:
    policy = RecurrentActorCritic(BOX, CHOICE, memory=6, hidden=(5,), generator=rng(), **options).double()
    with torch.no_grad():
        policy.decision.actor.weight.mul_(100)
    return policy


def batch(**changes: object) -> Experience:
    observation = torch.randn(BATCH, STEPS, 3, generator=rng(1), dtype=torch.float64)
    action = torch.randint(0, 4, (BATCH, STEPS), generator=rng(2))
    return replace(Experience(observation, action, torch.ones(BATCH, STEPS, dtype=torch.bool)), **changes)


def one_step_at_a_time(policy: RecurrentActorCritic, batch: Experience) -> tuple[torch.Tensor, torch.Tensor]:
    """log_prob and value [batch, step] of one observation of one row after the other; masked steps 0."""
    log_prob, value = torch.zeros(2, *batch.mask.shape, dtype=torch.float64)
    for b in range(len(batch.mask)):
        state = policy.initial_state(1) if batch.state is None else batch.state[b : b + 1]
        for t in range(batch.mask.shape[1]):
            if batch.start is not None and batch.start[b, t]:
                state = policy.initial_state(1)
            if not batch.mask[b, t]:
                continue
            observation = batch.observation[b : b + 1, t]
            value[b, t] = policy.value(observation, state)
            action = batch.action[b : b + 1, t : t + 1]
            single = Experience(observation[None], action, torch.ones(1, 1, dtype=torch.bool), state)
            log_prob[b, t] = policy.evaluate(single).log_prob
            _, state = policy.act(observation, state)
    return log_prob, value


STARTS = torch.rand(BATCH, STEPS, generator=rng(3)) < 0.3
MASK = torch.rand(BATCH, STEPS, generator=rng(4)) < 0.7
STATE = torch.randn(BATCH, 12, generator=rng(5), dtype=torch.float64)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("start", [None, STARTS], ids=["no starts", "starts"])
@pytest.mark.parametrize("mask", [torch.ones_like(MASK), MASK], ids=["complete", "masked"])
@pytest.mark.parametrize("given", [False, True], ids=["from zero", "from a state"])
@torch.no_grad()
def test_a_batch_equals_one_step_at_a_time(layers, start, mask, given):
    policy = make(layers=layers)
    experience = batch(start=start, mask=mask, state=STATE[:, : 6 * layers] if given else None)
    evaluation = policy.evaluate(experience)
    log_prob, value = one_step_at_a_time(policy, experience)
    torch.testing.assert_close(evaluation.log_prob, log_prob)
    torch.testing.assert_close(evaluation.value, value)


@torch.no_grad()
def test_the_cells_are_those_of_torch():
    ours, theirs = GRU(3, 6, layers=2, generator=rng()).double(), torch.nn.GRU(3, 6, 2, batch_first=True).double()
    for layer, cell in enumerate(ours.cells):
        for name, value in cell.named_parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=rng(layer), dtype=torch.float64))
            getattr(theirs, f"{name}_l{layer}").copy_(value)
    x = batch().observation
    expected, _ = theirs(x, torch.stack(STATE.split(6, 1)).contiguous())
    torch.testing.assert_close(ours(x, STATE, torch.ones_like(MASK)), expected)


def test_the_past_matters_but_not_that_of_another_episode():
    policy, experience = make(), batch()
    changed = experience.observation.clone()
    changed[:, 0] += 1
    start = torch.zeros_like(STARTS)
    start[:, 3] = True

    def values(observation: torch.Tensor, start: torch.Tensor | None) -> torch.Tensor:
        return policy.evaluate(replace(experience, observation=observation, start=start)).value

    assert not torch.isclose(values(changed, None), values(experience.observation, None)).any()
    torch.testing.assert_close(values(changed, start)[:, 3:], values(experience.observation, start)[:, 3:])


def test_garbage_at_masked_steps_changes_neither_values_nor_gradients():
    policy = make()
    clean = batch(mask=MASK, start=STARTS)
    dirty = replace(
        clean,
        observation=torch.where(MASK[..., None], clean.observation, torch.nan),
        action=torch.where(MASK, clean.action, 99),
    )
    padded = Experience(
        *(torch.cat([each, each[:, :2]], 1) for each in (dirty.observation, dirty.action)),
        mask=torch.cat([MASK, torch.zeros(BATCH, 2, dtype=torch.bool)], 1),
        start=torch.cat([STARTS, torch.ones(BATCH, 2, dtype=torch.bool)], 1),
    )

    def results(experience: Experience) -> list[torch.Tensor]:
        policy.zero_grad()
        evaluation = policy.evaluate(experience)
        (evaluation.log_prob + evaluation.value + evaluation.entropy).sum().backward()
        return [evaluation.log_prob[:, :STEPS], evaluation.value[:, :STEPS]] + [
            p.grad.clone() for p in policy.parameters()
        ]

    expected = results(clean)
    torch.testing.assert_close(results(dirty), expected)
    torch.testing.assert_close(results(padded), expected)


def test_acting_without_a_state_is_acting_from_zeros_and_follows_the_noise():
    policy = make()
    observation = batch().observation[:, 0]
    noise = policy.sample_noise((3, BATCH), rng(7))[0]
    action, state = policy.act(observation, noise=noise)
    same, same_state = policy.act(observation, policy.initial_state(BATCH), noise=noise)
    assert torch.equal(action, same)
    assert torch.equal(state, same_state)
    assert policy.initial_state(BATCH).shape == state.shape == (BATCH, 6)
    assert noise.dtype == torch.float64


def test_seeds_decide_the_weights():
    first, same, other = (RecurrentActorCritic(BOX, CHOICE, generator=rng(i)).state_dict() for i in (1, 1, 2))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["memory.cells.0.weight_hh"], other["memory.cells.0.weight_hh"])


@pytest.mark.parametrize("option", ["memory", "layers"])
def test_options_are_checked(option):
    with pytest.raises(ValueError, match=f"{option} = 0; valid: at least 1"):
        RecurrentActorCritic(BOX, CHOICE, **{option: 0})
