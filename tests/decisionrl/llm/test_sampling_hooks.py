"""What decides how tokens are sampled and what stands before prompts: HAPO's temperature, XRPO's examples."""

import pytest
import torch

from decisionrl.experience.trajectories import Trajectories
from decisionrl.llm.examples import SolvedExamples
from decisionrl.llm.temperature import EntropyTemperature


def batch(entropy: list[list[float]] | None) -> Trajectories:
    shape = (1, 1) if entropy is None else (len(entropy), len(entropy[0]))
    zeros, ones = torch.zeros(shape), torch.ones(shape, dtype=torch.bool)
    return Trajectories(
        observation=zeros,
        action=zeros,
        reward=zeros,
        mask=ones,
        log_prob=zeros,
        terminated=~ones,
        truncated=~ones,
        entropy=None if entropy is None else torch.tensor(entropy),
    )


def test_the_temperature_follows_the_entropies_of_the_batch_before() -> None:
    heat = EntropyTemperature(tau=0.1, rho=0.8)
    entropy = torch.tensor([0.01, 0.05, 0.2, 0.5, 1.0, 1.5, 2.0, 0.02, 0.3, 0.8])
    assert heat.at(entropy).tolist() == [1.0] * 10
    seen = batch([entropy.tolist()])
    assert heat(seen) is seen
    # h~ of these entropies at rho = 0.8, worked out by hand from eq. 5-6
    signal = [-1, -0.651, -0.349, -0.151, 0, 0.585, 1, -0.849, -0.261, -0.048]
    torch.testing.assert_close(heat.at(entropy), 1 + 0.1 * torch.tensor(signal), atol=2e-4, rtol=0)
    assert heat.at(torch.tensor([1e-9, 50.0])).tolist() == pytest.approx([0.9, 1.1])
    assert EntropyTemperature(tau=0.0)(seen) is seen

    other = EntropyTemperature(tau=0.1, rho=0.8)
    other.load_state_dict(heat.state_dict())
    assert torch.equal(other.at(entropy), heat.at(entropy))
    fresh = EntropyTemperature()
    fresh.load_state_dict(EntropyTemperature().state_dict())
    assert fresh.at(entropy).tolist() == [1.0] * 10


def test_only_prompts_that_failed_are_shown_examples() -> None:
    examples = SolvedExamples(success=1.0, shown=2)
    prompts = {0: [5, 6, 7], 1: [5, 6, 8], 2: [9, 9, 9], 3: [6, 7, 5, 6]}
    assert examples.before(0, prompts[0]) == []
    examples.heard([0, 1, 2, 3], list(prompts.values()), [[1], [2], [3], [4]], [False, True, True, True])
    # prompt 3 shares the pairs 56 and 67 of 56, 67, 75; prompt 1 shares 56 of 56, 67, 68; prompt 2 none
    assert examples.before(0, prompts[0]) == [5, 6, 8, 2, 6, 7, 5, 6, 4]
    assert examples.before(1, prompts[1]) == []
    examples.heard([0, 0], [prompts[0]] * 2, [[1], [9]], [False, True])
    assert examples.before(0, prompts[0]) == [], "it was solved"
    step = examples(batch([[1.0]]))
    assert float(step.metrics["seeded"]) == pytest.approx(1 / 4)
    examples.heard([1], [prompts[1]], [[7]], [True])
    examples.heard([1, 1], [prompts[1]] * 2, [[7]] * 2, [False, False])
    assert examples.before(1, prompts[1]) == [], "one of its responses in this batch was right"
    examples(batch([[1.0]]))
    examples.heard([1], [prompts[1]], [[7]], [False])
    assert examples.before(1, prompts[1])[-4:] == [5, 6, 7, 9], "and is an example now"
    assert float(examples(batch([[1.0]])).metrics["seeded"]) == 1
    assert float(examples(batch([[1.0]])).metrics["seeded"]) == 0

    other = SolvedExamples(success=1.0, shown=2)
    other.load_state_dict(examples.state_dict())
    assert other.before(1, prompts[1]) == examples.before(1, prompts[1])


def test_what_does_not_fit_is_left_out() -> None:
    examples = SolvedExamples(success=1.0, shown=2, longest=4, capacity=2)
    examples.heard([0, 1, 2], [[5, 6, 7], [5, 6], [5, 6, 7, 8]], [[1], [2], [3]], [True, True, True])
    examples.heard([3], [[5, 6, 7]], [[9]], [False])
    assert examples.before(3, [5, 6, 7]) == [5, 6, 2], "0 was the oldest, and 2 is too long"


def test_options_without_meaning_are_refused() -> None:
    for name, value in (("tau", 1.0), ("tau", -0.1), ("rho", 1.5)):
        with pytest.raises(ValueError, match=f"{name} = {value}"):
            EntropyTemperature(**{name: value})
    with pytest.raises(ValueError, match="entropy is None"):
        EntropyTemperature()(batch(None))
    for name in ("shown", "capacity", "longest"):
        with pytest.raises(ValueError, match=f"{name} = 0; valid"):
            SolvedExamples(success=1.0, **{name: 0})
