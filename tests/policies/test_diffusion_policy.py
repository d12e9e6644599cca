"""Diffusion policies: the way back from noise, memory, chunks, self-verification, reproducible episodes."""

import copy
import dataclasses
import itertools
import sys
from typing import Any

import pytest
import torch
from gymnasium import spaces

from decisionrl.envs.make import make_world
from decisionrl.envs.point import PointReachEnv
from decisionrl.experience.episodes import Task, play
from decisionrl.policies.context import Context
from decisionrl.policies.diffusion import CPU, PAPER, DiffusionPolicy, DiffusionSettings, most_consistent
from decisionrl.policies.diffusion_network import DiffusionTransformerSizes
from decisionrl.policies.diffusion_sampling import DiffusionSchedule, content_seed, row_normals, row_seeds
from decisionrl.policies.diffusion_unet import DiffusionUnetSizes

diffusers = pytest.importorskip("diffusers")

DO, DA = 3, 2
SETTINGS = dataclasses.replace(
    CPU, network=DiffusionTransformerSizes(width=8, layers=1, heads=2, dropout=0.0), inference_steps=2
)
STRIDED = Context(observations=3, future=2, stride=2)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def seeds(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-(2**62), 2**62, shape, generator=rng(seed))


def policy(context: Context = STRIDED, *, settings: DiffusionSettings = SETTINGS, **options: Any) -> DiffusionPolicy:
    made = DiffusionPolicy(
        spaces.Box(-torch.inf, torch.inf, (DO,)),
        spaces.Box(-4, 4, (DA,)),
        context=context,
        settings=settings,
        generator=rng(),
        **options,
    ).double()
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):  # so that observations matter from the beginning
            parameter.add_(0.3 * normal(*parameter.shape, seed=i))
    return made.eval()


def episode(made: DiffusionPolicy, observations: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """Actions [rows, steps, ...] for observations [rows, steps, ...]."""
    state, actions = made.initial_state(len(observations)), []
    with torch.no_grad():
        for t in range(observations.shape[1]):
            action, state = made.act(observations[:, t], state, noise=None if noise is None else noise[:, t])
            actions.append(action)
    return torch.stack(actions, 1)


class Scripted(DiffusionPolicy):
    """Samples what a list says, one tensor [n, candidates, tokens, Da] for each call, and notes what it was asked."""

    script: list[torch.Tensor]
    asked: list[tuple[torch.Tensor, int]]

    def sample(self, features: torch.Tensor, seed: torch.Tensor, candidates: int = 1) -> torch.Tensor:
        self.asked.append((features, candidates))
        return self.script.pop(0)[:, :candidates]


def scripted(script: list[torch.Tensor], context: Context, *, high: Any = 1.0, **options: Any) -> Scripted:
    made = Scripted(
        spaces.Box(-torch.inf, torch.inf, (DO,)),
        spaces.Box(-torch.as_tensor(high).expand(DA).float().numpy(), torch.as_tensor(high).expand(DA).float().numpy()),
        context=context,
        settings=SETTINGS,
        generator=rng(),
        **options,
    ).double()
    made.script, made.asked = script, []
    return made


# The schedule.


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_ddpm_is_that_of_diffusers(prediction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ancestral sampling with the same noise leads through the same states."""
    from diffusers.schedulers import scheduling_ddpm

    reference = diffusers.DDPMScheduler(
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        variance_type="fixed_small",
        clip_sample=True,
        prediction_type=prediction,
    )
    noise = normal(101, 2, 4, DA)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **options: noise[100 - int(now)])

    def predict(noisy: torch.Tensor, step: int) -> torch.Tensor:
        return 1.5 * torch.tanh(noisy) + step / 100

    expected = noise[0]
    for now in reference.set_timesteps(100) or reference.timesteps:
        expected = reference.step(predict(expected, int(now)), now, expected).prev_sample
    found = DiffusionSchedule(prediction=prediction, sampler="ddpm").sample(predict, lambda stream: noise[stream])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 10), ("ddim", 100), ("ddpm", 100)])
def test_who_knows_the_actions_gets_them_back(prediction: Any, sampler: Any, steps: int) -> None:
    schedule = DiffusionSchedule(prediction=prediction, sampler=sampler, inference_steps=steps)
    actions = normal(1, 4, DA).clamp(-1, 1)
    reference = diffusers.DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")

    def oracle(noisy: torch.Tensor, step: int) -> torch.Tensor:
        abar = reference.alphas_cumprod[step].double()
        return actions if prediction == "sample" else (noisy - abar.sqrt() * actions) / (1 - abar).sqrt()

    found = schedule.sample(oracle, lambda stream: normal(1, 4, DA, seed=10 + stream))
    torch.testing.assert_close(found, actions, rtol=0, atol=1e-3)


def test_steps_of_the_way_back() -> None:
    assert DiffusionSchedule(inference_steps=10).timesteps == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
    assert DiffusionSchedule().timesteps == list(range(99, -1, -1))


def test_noise_is_little_at_the_first_step_and_all_at_the_last() -> None:
    schedule, actions, noise = DiffusionSchedule(), normal(2, 4, DA), normal(2, 4, DA, seed=2)
    noisy = schedule.add_noise(actions, noise, torch.tensor([0, 99]))
    expected = 0.99937**0.5 * actions[0] + (1 - 0.99937) ** 0.5 * noise[0]
    torch.testing.assert_close(noisy[0], expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(noisy[1], noise[1], rtol=0, atol=2e-3)


def test_row_normals_are_standard_normal_and_belong_to_rows() -> None:
    seed = torch.arange(400)
    first = row_normals(seed, (50,), stream=0, dtype=torch.float64)
    assert float(first.mean()) == pytest.approx(0, abs=0.03)
    assert float(first.std()) == pytest.approx(1, abs=0.02)
    assert float((first**4).mean()) == pytest.approx(3, abs=0.2)
    second = row_normals(seed, (50,), stream=1, dtype=torch.float64)
    for other in (second, first.roll(1, 0), first.roll(1, 1)):
        assert float((first * other).mean()) == pytest.approx(0, abs=0.03)
    assert torch.equal(row_normals(seed[7:9], (5, 10), stream=0, dtype=torch.float64).flatten(1), first[7:9])
    assert torch.equal(row_seeds(seed, 3), row_seeds(seed, 8)[:, :3])
    assert len(row_seeds(seed, 8).unique()) == 3200


def test_the_first_numbers_of_splitmix() -> None:
    """Those of the published generator with seed 0."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(each) % 2**64 for each in row_seeds(torch.zeros(1, dtype=torch.int64), 4)[0, 1:]] == expected


def test_the_seed_of_what_was_seen() -> None:
    values = normal(3, 5)
    again = values.clone()
    again[1, 2] += 1e-12
    found = content_seed(values) == content_seed(again)
    assert found.tolist() == [True, False, True]
    assert content_seed(values)[0] != content_seed(values.flip(1))[0]


# Acting.


@pytest.mark.parametrize(
    "context", [Context(observations=1, future=2), Context(observations=4, future=2), STRIDED,
                Context(observations=4, future=3, stride=3, spread="mixed")]
)  # fmt: skip
def test_the_policy_sees_what_training_windows_show(context: Context) -> None:
    observations, steps = normal(2, 11, DO), 11
    tokens = torch.zeros(2, 1, context.tokens, DA, dtype=torch.float64)
    made = scripted([tokens] * steps, context)
    episode(made, observations)
    kept = context.kept().tolist()
    for t, (features, _) in enumerate(made.asked):
        frames = [max(0, t - context.frames + 1 + i) for i in kept]
        torch.testing.assert_close(features, observations[:, frames], rtol=0, atol=0)


@pytest.mark.parametrize("noise", [None, seeds(4, 7)])
def test_rows_are_independent_of_each_other(noise: torch.Tensor | None) -> None:
    made, observations = policy(action_steps=2, candidates=3), normal(4, 7, DO)
    whole = episode(made, observations, noise)
    for i in range(4):
        alone = episode(made, observations[[i]], None if noise is None else noise[[i]])
        torch.testing.assert_close(whole[[i]], alone, rtol=1e-9, atol=1e-9)


def test_a_row_begins_anew_without_the_others() -> None:
    made, observations, noise = policy(action_steps=2), normal(2, 8, DO), seeds(2, 8)
    state, found = made.initial_state(2), []
    for t in range(8):
        if t == 3:
            state = state.index_copy(0, torch.tensor([1]), made.initial_state(1))
        action, state = made.act(observations[:, t], state, noise=noise[:, t])
        found.append(action.detach())
    actions = torch.stack(found, 1)
    torch.testing.assert_close(actions[:1], episode(made, observations[:1], noise[:1]))
    torch.testing.assert_close(actions[1:, 3:], episode(made, observations[1:, 3:], noise[1:, 3:]))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_episodes_are_functions_of_their_noise(sampler: Any) -> None:
    made, observations = policy(settings=dataclasses.replace(SETTINGS, sampler=sampler)), normal(2, 4, DO)
    noise = made.sample_noise((2, 4), rng(5))
    assert noise.dtype == torch.int64
    assert torch.equal(noise, made.sample_noise((2, 4), rng(5)))
    torch.manual_seed(0)
    first = episode(made, observations, noise)
    torch.manual_seed(1)
    assert torch.equal(first, episode(made, observations, noise))
    assert not torch.equal(first, episode(made, observations, noise + 1))
    assert torch.equal(episode(made, observations), episode(made, observations))
    assert not torch.equal(first, episode(made, observations))


def test_chunks_are_executed_before_the_next_is_sampled() -> None:
    context = Context(observations=2, future=3)
    script = [0.1 * (i + 1) * torch.arange(4.0, dtype=torch.float64)[None, None, :, None].expand(2, 1, 4, DA)
              for i in range(2)]  # fmt: skip
    made = scripted(script, context, action_steps=2)
    actions = episode(made, normal(2, 4, DO))
    assert actions[0, :, 0].tolist() == pytest.approx([0.1, 0.2, 0.2, 0.4])
    assert len(made.asked) == 2


def test_played_episodes_do_not_depend_on_the_copies_beside_them() -> None:
    world = make_world(PointReachEnv, num_envs=3, max_steps=7)
    made = DiffusionPolicy(
        world.observation_space,
        world.action_space,
        context=STRIDED,
        settings=dataclasses.replace(SETTINGS, prediction="epsilon"),
        action_steps=2,
        candidates=2,
        generator=rng(),
    ).eval()
    tasks = [Task(seed) for seed in range(5)]
    together = play(world, made, tasks, generator=None)
    assert together.action.std() > 0.1
    for i, task in enumerate(tasks):
        alone = play(make_world(PointReachEnv, num_envs=1, max_steps=7), made, [task], generator=None)
        torch.testing.assert_close(together.action[i], alone.action[0], rtol=1e-3, atol=1e-4)
    drawn = [play(world, made, tasks, generator=rng(seed)).action for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_actions_stay_in_the_box_and_in_its_units() -> None:
    made = policy()
    low, high = made.low, made.high
    actions = episode(made, 10 * normal(5, 6, DO))
    assert ((actions >= low) & (actions <= high)).all()
    tokens = made.sample(normal(5, 3, DO), seeds(5))
    assert tokens.abs().max() <= 1
    assert actions.abs().max() > 1
    made.fit_normalizers(normal(50, DO), torch.rand(50, DA, generator=rng(), dtype=torch.float64))
    assert (episode(made, normal(5, 6, DO)) >= 0).all()


def test_without_past_tokens_or_with_a_unet_it_acts_as_well() -> None:
    unet = DiffusionUnetSizes(channels=(4, 8), kernel=3, groups=2, step_width=8)
    attentive = dataclasses.replace(unet, conditioning="attention")
    for options in (
        {"past_tokens": "absent"},
        {"past_tokens": "unsupervised"},
        {"settings": dataclasses.replace(SETTINGS, network=unet)},
        {"settings": dataclasses.replace(SETTINGS, network=attentive), "candidates": 2},
        {"head": "regression"},
    ):
        made = policy(**options)
        assert episode(made, normal(2, 7, DO), seeds(2, 7)).shape == (2, 7, DA)
        chunk = made.predict_action_chunk(normal(2, 3, DO))
        assert chunk.shape == (2, 2, DA)


def test_regression_says_what_the_network_makes_of_zeros() -> None:
    made, context = policy(head="regression"), normal(2, 3, DO)
    tokens = made.network(
        torch.zeros(2, 4, DA).double(), torch.zeros(2, dtype=torch.long), made.network.encode(context)
    )
    torch.testing.assert_close(made.predict_action_chunk(context), (4 * tokens[:, 2:]).clamp(-4, 4).detach())
    observations = normal(2, 3, DO)
    assert torch.equal(episode(made, observations, seeds(2, 3)), episode(made, observations))


def test_selecting_actions_is_acting_with_memory_inside() -> None:
    made, observations = policy(action_steps=2).train(), normal(2, 5, DO)
    for _ in range(2):
        made.reset()
        assert torch.equal(
            torch.stack([made.select_action(observations[:, t]) for t in range(5)], 1), episode(made, observations)
        )
    made.reset()
    generator, again = rng(3), rng(3)
    found = torch.stack([made.select_action(observations[:, t], generator=generator) for t in range(5)], 1)
    noise = torch.stack([made.sample_noise((2,), again) for _ in range(5)], 1)
    assert torch.equal(found, episode(made, observations, noise))


def test_a_chunk_is_what_acting_samples() -> None:
    made, observations, noise = policy(Context(observations=3, future=4), action_steps=4), normal(2, 3, DO), seeds(2)
    chunk = made.predict_action_chunk(observations, noise=noise)
    state = made.initial_state(2)
    for t in range(3):
        made_state = made.act(observations[:, t], state, noise=noise)[1]
        state = made_state.clone()
        state[:, -1] = 0  # sample again at every step
    rest = [made.act(observations[:, -1], made_state, noise=noise)[0]]
    torch.testing.assert_close(rest[0].detach(), chunk[:, 1])


def test_observations_of_other_kinds_and_actions_of_other_shapes() -> None:
    space = spaces.Dict({"at": spaces.Box(-9, 9, (2,)), "room": spaces.Discrete(4)})
    made = DiffusionPolicy(space, spaces.Box(-1, 1, (2, 3)), context=STRIDED, settings=SETTINGS, generator=rng())
    seen = {"at": normal(5, 2).float(), "room": torch.arange(5) % 4}
    action, state = made.act(seen, None)
    assert action.shape == (5, 2, 3)
    assert made.act(seen, state)[0].shape == (5, 2, 3)
    contexts = {"at": normal(5, 3, 2).float(), "room": torch.zeros(5, 3, dtype=torch.long)}
    assert made.predict_action_chunk(contexts).shape == (5, 2, 2, 3)
    single = DiffusionPolicy(space, spaces.Box(-1, 1, ()), context=STRIDED, settings=SETTINGS, generator=rng())
    assert single.act(seen, None)[0].shape == (5,)


def test_copies_and_saved_weights_act_the_same() -> None:
    made, observations = policy(), normal(2, 4, DO)
    made.fit_normalizers(normal(20, DO), normal(20, DA))
    other = policy(past_steps=1)
    other.load_state_dict(made.state_dict())
    for each in (other, copy.deepcopy(made)):
        assert torch.equal(episode(each, observations), episode(made, observations))


# Self-verification.

PLAIN = Context(observations=3, future=1)


def candidates(past: list[list[float]], present: list[float]) -> torch.Tensor:
    """One row: candidates whose past tokens and present action are these numbers in both dimensions."""
    tokens = torch.tensor([[*before, now] for before, now in zip(past, present, strict=True)], dtype=torch.float64)
    return tokens[None, :, :, None].expand(1, len(past), tokens.shape[1], DA)


def test_the_candidate_that_remembers_best_is_executed_in_each_row() -> None:
    warm = [torch.full((2, 1, 3, DA), value, dtype=torch.float64) for value in (0.5, -0.5)]
    first = candidates([[0.0, 0.0], [0.5, -0.4], [0.5, 0.5]], [0.1, 0.2, 0.3])
    second = candidates([[0.5, -0.5], [0.5, -0.4], [0.0, 0.0]], [0.1, 0.2, 0.3])
    made = scripted([*warm, torch.cat([first, second])], PLAIN, candidates=3)
    actions = episode(made, normal(2, 3, DO))
    assert actions[:, -1, 0].tolist() == pytest.approx([0.2, 0.1])
    assert [asked for _, asked in made.asked] == [1, 1, 3]


def test_of_equal_candidates_the_first_and_the_future_does_not_matter() -> None:
    warm = [torch.full((1, 1, 3, DA), 0.5, dtype=torch.float64)] * 2
    for present in ([0.1, 0.2, 0.3], [-0.9, 0.7, 0.0]):
        made = scripted([*warm, candidates([[0.0, 0.0], [0.5, 0.4], [0.4, 0.5]], present)], PLAIN, candidates=3)
        assert float(episode(made, normal(1, 3, DO))[0, -1, 0]) == pytest.approx(present[1])


def test_errors_are_those_in_normalized_units() -> None:
    """The executed actions are (50, 0.5); one candidate is off by 0.1 of 100, the other by 0.2 of 1."""
    warm = [torch.full((1, 1, 3, DA), 0.5, dtype=torch.float64)] * 2
    tokens = torch.full((1, 2, 3, DA), 0.5, dtype=torch.float64)
    tokens[0, 0, :2, 1] = 0.7
    tokens[0, 1, :2, 0] = 0.4
    tokens[0, :, 2, 0] = torch.tensor([-0.5, 0.5], dtype=torch.float64)
    made = scripted([*warm, tokens], PLAIN, candidates=2, high=[100.0, 1.0])
    assert float(episode(made, normal(1, 3, DO))[0, -1, 0]) == pytest.approx(50)


def test_rows_in_their_warm_up_use_their_first_candidate() -> None:
    made = scripted([], PLAIN, candidates=2)
    made.script = [torch.zeros(2, 1, 3, DA, dtype=torch.float64)] * 2
    state = made.initial_state(2)
    for _ in range(2):
        _, state = made.act(normal(2, DO), state)
    state = state.index_copy(0, torch.tensor([1]), made.initial_state(1))
    both = candidates([[0.9, 0.9], [0.0, 0.0]], [0.1, 0.2])
    made.script = [torch.cat([both, both])]
    action, _ = made.act(normal(2, DO), state)
    assert action[:, 0].tolist() == pytest.approx([0.2, 0.1])


def test_history_is_strided_as_the_past_tokens_are() -> None:
    """With To = 3 and s = 2 the present step t is compared at t - 4 and t - 2, from t = 4 on."""
    executed = [0.1, 0.2, 0.3, 0.4]
    warm = []
    for value in executed:
        tokens = torch.zeros(1, 1, 4, DA, dtype=torch.float64)
        tokens[:, :, 2] = value
        warm.append(tokens)
    strided, latest, earliest = [executed[0], executed[2]], executed[2:], [0.0, executed[0]]
    last = torch.zeros(1, 3, 4, DA, dtype=torch.float64)
    last[:, :, :3] = candidates([latest, earliest, strided], [0.6, 0.7, 0.8])
    made = scripted([*warm, last], STRIDED, candidates=3)
    assert float(episode(made, normal(1, 5, DO))[0, -1, 0]) == pytest.approx(0.8)
    assert [asked for _, asked in made.asked] == [1, 1, 1, 1, 3]


def test_all_actions_of_a_chunk_are_remembered() -> None:
    context = Context(observations=3, future=2)
    chunk = torch.zeros(1, 1, 4, DA, dtype=torch.float64)
    chunk[:, :, 2], chunk[:, :, 3] = 0.3, 0.6
    last = torch.zeros(1, 2, 4, DA, dtype=torch.float64)
    last[:, 0, :2], last[:, 1, 0], last[:, 1, 1] = 0.3, 0.3, 0.6
    last[:, :, 2, 0] = torch.tensor([0.1, 0.2], dtype=torch.float64)
    made = scripted([chunk, last], context, candidates=2, action_steps=2)
    assert episode(made, normal(1, 3, DO))[0, :, 0].tolist() == pytest.approx([0.3, 0.6, 0.2])


def test_only_trained_past_tokens_are_compared() -> None:
    warm = [torch.full((1, 1, 3, DA), 0.5, dtype=torch.float64)]
    tokens = candidates([[0.5, 0.4], [-1.0, 0.5]], [0.1, 0.2])
    made = scripted([*warm, tokens], PLAIN, candidates=2, past_steps=1)
    assert float(episode(made, normal(1, 2, DO))[0, -1, 0]) == pytest.approx(0.2)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_more_candidates_contain_the_fewer_and_remember_no_worse(sampler: Any) -> None:
    made = policy(PLAIN, settings=dataclasses.replace(SETTINGS, sampler=sampler))
    features, noise, executed = normal(6, 3, DO), seeds(6), normal(6, 2, DA)
    with torch.no_grad():
        pool = made.sample(features, noise, 8)
        torch.testing.assert_close(made.sample(features, noise)[:, 0], pool[:, 0])
    rows, errors = torch.arange(6), []
    for n in (1, 2, 4, 8):
        best = most_consistent(pool[:, :n, :2], executed)
        errors.append((pool[rows, best, :2] - executed).square().sum((1, 2)))
    assert all((after <= before).all() for before, after in itertools.pairwise(errors))
    assert (errors[-1] < errors[0]).any()


def test_one_candidate_is_plain_sampling_bit_for_bit() -> None:
    made, observations, noise = policy(PLAIN, candidates=1), normal(2, 5, DO), seeds(2, 5)
    actions = episode(made, observations, noise)
    frames = torch.stack([observations[:, [max(0, t - 2), max(0, t - 1), t]] for t in range(5)], 1)
    for t in range(5):
        assert torch.equal(made.predict_action_chunk(frames[:, t], noise=noise[:, t])[:, 0], actions[:, t])


# Errors.


def test_errors_name_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="a Box of floats"):
        DiffusionPolicy(spaces.Discrete(3), spaces.Discrete(2))
    for options, message in (
        ({"past_tokens": "ignored"}, "past_tokens = 'ignored'; valid: predict, unsupervised, absent"),
        ({"head": "flow"}, "head = 'flow'; valid: diffusion, regression"),
        ({"action_steps": 3}, "action_steps = 3; valid: 1 to future = 2"),
        ({"past_steps": 3}, "past_steps = 3; valid: None, or with past_tokens = 'predict' 1 to 2"),
        ({"past_steps": 1, "past_tokens": "unsupervised"}, "past_steps = 1; valid: None"),
        ({"candidates": 0}, "candidates = 0; valid: 1, or more with"),
        ({"candidates": 2, "past_tokens": "absent"}, "candidates = 2; valid: 1, or more with"),
        ({"candidates": 2, "head": "regression"}, "candidates = 2; valid: 1, or more with"),
    ):
        with pytest.raises(ValueError, match=message):
            policy(**options)
    with pytest.raises(ValueError, match="prediction = 'v'; valid: epsilon, sample"):
        DiffusionSchedule(prediction="v")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inference_steps = 101; valid: 1 to train_steps = 100"):
        DiffusionSchedule(inference_steps=101)
    with pytest.raises(ValueError, match="observation: 2 in a context; valid: 3"):
        policy().features(torch.zeros(3, 2, 2))
    with pytest.raises(TypeError, match="no log-probabilities"):
        policy().evaluate(None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'decisionrl\[robotics\]'"):
        policy()
    policy(head="regression")


def test_presets() -> None:
    assert (PAPER.prediction, PAPER.sampler, PAPER.inference_steps) == ("epsilon", "ddpm", 100)
    assert isinstance(PAPER.network, DiffusionTransformerSizes)
    assert (PAPER.network.width, PAPER.network.layers, PAPER.network.heads, PAPER.network.dropout) == (256, 8, 4, 0.3)
    made = DiffusionPolicy(spaces.Box(-1, 1, (DO,)), spaces.Box(-1, 1, (DA,)), settings=CPU)
    assert (made.tokens, made.present, made.first_trained) == (32, 15, 0)
    groups = made.parameter_groups()
    assert sum(len(group["params"]) for group in groups) == len(list(made.parameters()))
    assert [group["weight_decay"] for group in groups] == [1e-3, 0.0]
