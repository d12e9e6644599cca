"""OPPO's losses against hand-computed values and loops, what each step trains, and a toy set with two behaviors."""

import copy
import dataclasses

import pytest
import torch
from gymnasium import spaces

from decisionrl.composition import ChainedLearner
from decisionrl.experience.datasets import DatasetSource, Pairs, Windows
from decisionrl.experience.hindsight import (
    FutureReturnPairs,
    LabeledAndUnlabeled,
    NoisyWindows,
    with_future_returns,
)
from decisionrl.experience.preferences import PreferenceBatch, PreferencePairs, sample_segments
from decisionrl.experience.store import EpisodeStore, store_episodes
from decisionrl.experience.trajectories import Trajectories
from decisionrl.learner import GradientLearner
from decisionrl.objectives.hindsight import (
    STRICT,
    WITH_TIES,
    ContextObjective,
    HindsightObjective,
    MatchingObjective,
    OnPart,
    PreferenceTerm,
    hindsight_matching,
    hinge_norm,
    soft_norm,
    triplet,
)
from decisionrl.policies.hindsight import HindsightPolicy, HindsightSizes
from decisionrl.policies.sequence import TransformerSizes

TINY = TransformerSizes(width=8, layers=1, heads=2, feedforward=8, dropout=0.0)
SIZES = HindsightSizes(encoder=TINY, policy=TINY, context=3, window=4)
OBSERVATIONS, ACTIONS = spaces.Box(-5, 5, (2,)), spaces.Box(-1, 1, (1,))
PAIRS, STEPS = 4, 5


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def make(sizes: HindsightSizes = SIZES, **options: object) -> HindsightPolicy:
    return HindsightPolicy(OBSERVATIONS, ACTIONS, sizes=sizes, timesteps=50, generator=rng(), **options).double()


def batch(label: list[float], weight: list[float] | None = None) -> PreferenceBatch:
    mask = torch.arange(STEPS) < torch.tensor([5, 3, 1, 5, 2, 5, 5, 4])[:, None]
    reward = torch.zeros(2 * PAIRS, STEPS, dtype=torch.float64)
    segments = Trajectories(
        observation=torch.where(mask[..., None], normal(2 * PAIRS, STEPS, 2), torch.nan),
        action=torch.where(mask[..., None], normal(2 * PAIRS, STEPS, 1, seed=2).clamp(-1, 1), torch.nan),
        reward=reward,
        mask=mask,
        log_prob=reward,
        terminated=torch.zeros_like(mask),
        truncated=torch.zeros_like(mask),
    )
    return PreferenceBatch(
        segments=segments,
        first=torch.arange(PAIRS),
        second=torch.arange(PAIRS) + PAIRS,
        label=torch.tensor(label, dtype=torch.float64),
        weight=None if weight is None else torch.tensor(weight, dtype=torch.float64),
    )


def doubles(*values: object) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]


def test_the_gradient_of_a_triplet_is_that_computed_by_hand():
    """d+ = |(3, 4)| = 5, d- = |(0, -2)| = 2: loss 4, gradients (3, 4)/5 and (0, -1)."""
    context, preferred, other = doubles([0.0, 0.0], [[-3.0, -4.0]], [[0.0, 2.0]])
    loss = triplet(context, preferred, other)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([4.0])
    assert context.grad.tolist() == pytest.approx([0.6, 1.8])
    assert preferred.grad.tolist() == [pytest.approx([-0.6, -0.8])]
    assert other.grad.tolist() == [pytest.approx([0.0, -1.0])]


def test_a_triplet_that_keeps_its_margin_has_neither_loss_nor_gradient():
    context, preferred, other = doubles([0.0, 0.0], [[1.0, 0.0]], [[0.0, 2.5]])
    loss = triplet(context, preferred, other)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert context.grad.tolist() == [0.0, 0.0]
    assert triplet(context, preferred, other, margin=2.0).tolist() == pytest.approx([0.5])


def test_a_triplet_on_the_vector_itself_has_a_finite_gradient():
    context, preferred, other = doubles([1.0, 1.0], [[1.0, 1.0]], [[1.0, 1.0]])
    triplet(context, preferred, other).sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (context, preferred, other))


def test_norms_vanish_where_they_should():
    on, inside, outside = (radius * torch.nn.functional.normalize(normal(6, 3), dim=1) for radius in (1.0, 0.5, 3.0))
    assert float(soft_norm(on)) == pytest.approx(0)
    assert float(soft_norm(inside)) == pytest.approx(0.25)
    assert float(soft_norm(outside)) == pytest.approx(4)
    assert [float(hinge_norm(z)) for z in (on, inside, outside)] == pytest.approx([0, 0, 2], abs=1e-12)


def test_matching_is_the_mean_over_valid_steps_and_features():
    predicted, target = normal(2, 3, 4), normal(2, 3, 4, seed=2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    errors = [
        (float(predicted[i, t, d]) - float(target[i, t, d])) ** 2 for i, t in mask.nonzero().tolist() for d in range(4)
    ]
    predicted[~mask] = torch.nan
    assert float(hindsight_matching(predicted, target, mask)) == pytest.approx(sum(errors) / len(errors))


def distances(policy: HindsightPolicy, z: torch.Tensor) -> list[float]:
    context = policy.context.tolist()
    return [sum((a - b) ** 2 for a, b in zip(context, row, strict=True)) ** 0.5 for row in z.tolist()]


@pytest.mark.parametrize("weight", [None, [1.0, 0.0, 1.0, 0.5]])
@pytest.mark.parametrize("tie_margin", [None, 0.0, 0.3])
def test_the_preference_term_equals_a_loop(weight, tie_margin):
    pairs, policy, z = batch([0.0, 1.0, 0.5, 1.0], weight), make(), normal(2 * PAIRS, 3)
    far, total, count = distances(policy, z), 0.0, 0.0
    for i, label in enumerate(pairs.label.tolist()):
        w = 1.0 if weight is None else weight[i]
        plus, minus = (far[PAIRS + i], far[i]) if label > 0.5 else (far[i], far[PAIRS + i])
        if label == 0.5 and tie_margin is None:
            continue
        total += w * max(0.0, plus - minus + (tie_margin if label == 0.5 else 1.0))
        count += w
    wanted = total / (count if tie_margin is None else PAIRS)
    found = PreferenceTerm(tie_margin=tie_margin)(policy.context, z, pairs)
    assert float(found.detach()) == pytest.approx(wanted)


@pytest.mark.parametrize(("label", "weight"), [([0.5] * 4, None), ([0.0] * 4, [0.0] * 4)], ids=["ties", "weights"])
def test_a_batch_of_ties_teaches_no_preference(label, weight):
    policy, pairs = make(), batch(label, weight)
    context = ContextObjective()(policy, pairs)
    context.value.backward()
    assert float(context.value.detach()) == 0
    assert policy.context.grad.tolist() == [0.0, 0.0, 0.0]
    loss = HindsightObjective(norm_weight=0.0)(policy, pairs)
    loss.value.backward()
    assert torch.equal(loss.value, loss.metrics["matching"])
    assert float(loss.metrics["accuracy"]) == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


@pytest.mark.parametrize("norm", [soft_norm, hinge_norm])
@pytest.mark.parametrize("reconstruct", [False, True])
@torch.no_grad()
def test_the_objective_is_the_sum_of_its_terms_over_single_windows(norm, reconstruct):
    policy, pairs = make(reconstruct_observations=reconstruct), batch([0.0, 1.0, 1.0, 0.0])
    z, matching = [], 0.0
    for side in range(2):
        action_errors, observation_errors = [], []
        for row in range(side * PAIRS, (side + 1) * PAIRS):
            length = int(pairs.segments.mask[row].sum())
            alone = pairs.segments.rows(slice(row, row + 1)).map(lambda each, n=length: each[:, :n])
            window = policy.reader(alone)
            z.append(policy.encoder(window))
            predicted = policy.contextual(window, z[-1])
            action_errors += (predicted.action - window.action).square().flatten().tolist()
            if reconstruct:
                observation_errors += (predicted.observation - window.observation).square().flatten().tolist()
        matching += sum(action_errors) / len(action_errors)
        if reconstruct:
            matching += sum(observation_errors) / len(observation_errors)
    encoded = torch.cat(z)
    preference = float(STRICT(policy.context, encoded, pairs))
    norms = float(norm(encoded[:PAIRS]) + norm(encoded[PAIRS:]))
    loss = HindsightObjective(preference_weight=0.3, norm_weight=0.7, norm=norm)(policy, pairs)
    assert float(loss.value) == pytest.approx(matching + 0.3 * preference + 0.7 * norms)
    assert float(loss.metrics["matching"]) == pytest.approx(matching)
    far = distances(policy, encoded)
    closer = [far[i] < far[PAIRS + i] for i in range(PAIRS)]
    right = [closer[0], not closer[1], not closer[2], closer[3]]
    assert float(loss.metrics["accuracy"]) == pytest.approx(sum(right) / PAIRS)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def learners(policy: HindsightPolicy, rate: float = 1e-3) -> ChainedLearner:
    networks = [*policy.encoder.parameters(), *policy.contextual.parameters()]
    model = GradientLearner(policy, HindsightObjective(), torch.optim.AdamW(networks, rate))
    context = GradientLearner(policy, ContextObjective(), torch.optim.AdamW([policy.context], 10 * rate))
    return ChainedLearner({"model": model, "context": context})


def test_each_step_leaves_to_the_other_what_is_the_others():
    policy, pairs = make(), batch([0.0, 1.0, 1.0, 0.0])
    chain = learners(policy)
    before = weights(policy)
    chain.learners["model"].update(pairs)
    between = weights(policy)
    chain.learners["context"].update(pairs)
    after = weights(policy)
    assert torch.equal(before["context"], between["context"])
    assert not torch.equal(between["context"], after["context"])
    for part in ("encoder.head.weight", "contextual.action_head.weight"):
        assert not torch.equal(before[part], between[part])
    assert all(torch.equal(between[name], after[name]) for name in between if name != "context")


def test_one_learner_for_all_has_the_gradients_of_both():
    policy, pairs = make(), batch([0.0, 1.0, 1.0, 0.5])
    names = dict(policy.named_parameters())
    apart = {}
    for objective in (HindsightObjective(), ContextObjective()):
        policy.zero_grad()
        objective(policy, pairs).value.backward()
        apart |= {name: p.grad.clone() for name, p in names.items() if p.grad is not None}
    policy.zero_grad()
    HindsightObjective(learn_context=True)(policy, pairs).value.backward()
    for name, gradient in apart.items():
        torch.testing.assert_close(names[name].grad, gradient)


def two_behaviors(episodes: int = 20, steps: int = 12) -> EpisodeStore:
    """Every other episode acts near +0.5, the others near -0.5; the reward is the action."""
    rows = []
    for number in range(episodes):
        mode = 0.5 if number % 2 == 0 else -0.5
        action = mode + 0.05 * torch.randn(steps, 1, generator=rng(number))
        over = torch.arange(steps) == steps - 1
        rows.append(
            {
                "observation": torch.randn(steps + 1, 2, generator=rng(100 + number)),
                "action": action,
                "reward": action[:, 0],
                "terminated": torch.zeros(steps, dtype=torch.bool),
                "truncated": over,
            }
        )
    return store_episodes(rows, observation_space=OBSERVATIONS, action_space=ACTIONS)


def labeled(episodes: EpisodeStore, sign: float) -> EpisodeStore:
    return with_future_returns(dataclasses.replace(episodes, reward=sign * episodes.reward), 4)


TOY = HindsightSizes(
    encoder=TransformerSizes(width=16, layers=1, heads=2, feedforward=32),
    policy=TransformerSizes(width=16, layers=1, heads=1, feedforward=32),
    context=4,
    window=4,
)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["true labels", "reversed labels"])
def test_it_does_what_is_preferred(sign):
    torch.manual_seed(0)  # of dropout
    episodes = labeled(two_behaviors(), sign)
    policy = HindsightPolicy(OBSERVATIONS, ACTIONS, sizes=TOY, timesteps=12, generator=rng())
    policy.update_normalizer(episodes.observation)
    chain = learners(policy, 3e-3)
    source = DatasetSource(FutureReturnPairs(episodes=episodes, size=16, length=TOY.window))
    for _ in range(150):
        chain.update(source.sample())
    policy.eval()
    with torch.no_grad():
        held_out = labeled(two_behaviors(40).select(torch.arange(20, 40)), sign)
        pairs = FutureReturnPairs(episodes=held_out, size=200, length=TOY.window)(rng(1))
        mode = pairs.segments.action[:, 0, 0].sign() * sign
        far = (policy.encode(pairs.segments) - policy.context).norm(dim=1)
        differ = mode[pairs.first] != mode[pairs.second]
        good_first = mode[pairs.first] > 0
        near = torch.where(good_first, far[pairs.first], far[pairs.second])
        other = torch.where(good_first, far[pairs.second], far[pairs.first])
        assert float((near < other)[differ].double().mean()) > 0.9

        state, observation = policy.initial_state(50), torch.randn(5, 50, 2, generator=rng(3))
        for seen in observation:
            action, state = policy.act(seen, state)
            assert float((action - sign * 0.5).abs().mean()) < 0.15

        window = policy.reader(pairs.segments)
        z = policy.encoder(window)
        shuffled = z[torch.randperm(len(z), generator=rng(4))]
        own, others = (
            hindsight_matching(policy.contextual(window, each).action, window.action, pairs.segments.mask)
            for each in (z, shuffled)
        )
        assert float(own) < 0.2 * float(others)


def human_labels() -> LabeledAndUnlabeled:
    episodes = two_behaviors()
    segments = sample_segments(episodes, 8, 5, generator=rng())
    rows = torch.arange(4)
    pairs = PreferencePairs(segments=segments, first=rows, second=rows + 4, label=torch.tensor([0.0, 1.0, 0.5, 1.0]))
    windows = Windows(episodes=episodes, size=6, length=5)
    return LabeledAndUnlabeled(pairs=Pairs(pairs=pairs, size=6), windows=NoisyWindows(windows=windows))


def human_learners(policy: HindsightPolicy) -> ChainedLearner:
    encoder = list(policy.encoder.parameters())
    networks = [*encoder, *policy.contextual.parameters()]
    labeled = HindsightObjective(preference_weight=10.0, preference=WITH_TIES, norm=hinge_norm)
    return ChainedLearner(
        {
            "matching": GradientLearner(
                policy, OnPart("windows", MatchingObjective()), torch.optim.AdamW(networks, 1e-3)
            ),
            "encoder": GradientLearner(policy, OnPart("pairs", labeled), torch.optim.AdamW(encoder, 1e-3)),
            "context": GradientLearner(
                policy,
                OnPart("pairs", ContextObjective(preference=WITH_TIES)),
                torch.optim.AdamW([policy.context], 1e-2),
            ),
        },
        every={"matching": 2},
    )


def human_policy() -> HindsightPolicy:
    return make(timed_context=False, reconstruct_observations=True, context_std=1.0).float()


def test_with_human_labels_the_policy_learns_on_every_second_batch():
    policy = human_policy()
    chain, source = human_learners(policy), DatasetSource(human_labels())
    for update in range(4):
        before = weights(policy)
        chain.update(source.sample())
        after = weights(policy)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert {"context", "encoder.head.weight"} <= moved
        assert ("contextual.action_head.weight" in moved) == (update % 2 == 0)
        assert ("contextual.observation_head.weight" in moved) == (update % 2 == 0)


@torch.no_grad()
def test_the_policy_alone_sees_the_noise_and_reconstructs_what_is_without():
    policy = human_policy()
    windows = human_labels()(rng()).windows
    window = policy.reader(windows)
    noisy = dataclasses.replace(window, observation=window.observation + windows.extras["observation_noise"])
    predicted = policy.contextual(noisy, policy.encoder(window))
    wanted = hindsight_matching(predicted.action, window.action, window.mask)
    wanted = wanted + hindsight_matching(predicted.observation, window.observation, window.mask)
    torch.testing.assert_close(MatchingObjective()(policy, windows).value, wanted)
    quiet = windows.replace(extras={})
    assert float((MatchingObjective()(policy, quiet).value - wanted).abs()) > 1e-6


def test_a_chain_goes_on_from_where_it_was_saved():
    policy, source = human_policy(), DatasetSource(human_labels())
    chain = human_learners(policy)
    batches = [source.sample() for _ in range(4)]
    chain.update(batches[0])
    saved = copy.deepcopy(chain.state_dict())
    for each in batches[1:]:
        chain.update(each)
    resumed = human_learners(human_policy())
    resumed.load_state_dict(saved)
    for each in batches[1:]:
        resumed.update(each)
    for name, tensor in chain.policy.state_dict().items():
        assert torch.equal(tensor, resumed.policy.state_dict()[name])
