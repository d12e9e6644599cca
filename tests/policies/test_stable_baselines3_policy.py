"""Wrapped and rebuilt Stable-Baselines3 policies say what the originals say."""

import io
import pickle
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from decisionrl.policies.evaluation import Observation
from decisionrl.policies.stable_baselines3 import from_stable_baselines3, load_stable_baselines3

sb3 = pytest.importorskip("stable_baselines3")

N = 6
VECTOR = spaces.Box(-2, 2, (3,))
MIXED = spaces.Dict({"b": spaces.Discrete(3), "a": VECTOR})
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 0.5], np.float32)),
    "multi discrete": spaces.MultiDiscrete([3, 2]),
    "multi binary": spaces.MultiBinary(2),
}


@dataclass(frozen=True)
class Experience:
    observation: Observation
    action: torch.Tensor
    mask: torch.Tensor
    state: None = None
    start: None = None


class World(gymnasium.Env):
    """Random observations; nothing here is learned from."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def build(kind: str, observation_space: spaces.Space, action_space: spaces.Space, **options: object):
    policy = {spaces.Dict: "MultiInputPolicy"}.get(type(observation_space), "MlpPolicy")
    if observation_space is IMAGE:
        policy = "CnnPolicy"
    model = getattr(sb3, kind)(policy, World(observation_space, action_space), seed=1, device="cpu", **options)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return model


def samples(space: spaces.Space) -> tuple[Observation, object]:
    """Observations as tensors, and as SB3's ``predict`` wants them."""
    space.seed(3)
    drawn = [space.sample() for _ in range(N)]
    if isinstance(space, spaces.Dict):
        arrays = {key: np.stack([each[key] for each in drawn]) for key in space.spaces}
        return {key: torch.as_tensor(value) for key, value in arrays.items()}, arrays
    return torch.as_tensor(np.stack(drawn)), np.stack(drawn)


def _as_stored(action: torch.Tensor) -> torch.Tensor:
    """SB3 keeps bits as floats."""
    return action.float() if action.dtype == torch.int8 else action


def assert_equal_to_sb3(policy, model, space: spaces.Space) -> None:
    observation, arrays = samples(space)
    mode, _ = policy.act(observation)
    predicted, _ = model.predict(arrays, deterministic=True)
    clipped = mode.detach().numpy()
    if isinstance(model.action_space, spaces.Box):
        clipped = clipped.clip(model.action_space.low, model.action_space.high)
    np.testing.assert_allclose(clipped, predicted, atol=1e-6)
    action, _ = policy.act(observation, noise=policy.sample_noise((N,), torch.Generator().manual_seed(2)))
    theirs = observation.permute(0, 3, 1, 2) if space is IMAGE else observation
    value, log_prob, entropy = model.policy.evaluate_actions(theirs, _as_stored(action))
    rows = (
        {key: x[:, None] for key, x in observation.items()} if isinstance(observation, dict) else observation[:, None]
    )
    evaluation = policy.evaluate(Experience(rows, action[:, None], torch.ones(N, 1, dtype=torch.bool)))
    for ours, expected in ((evaluation.value, value), (evaluation.log_prob, log_prob), (evaluation.entropy, entropy)):
        torch.testing.assert_close(ours.flatten(), expected.flatten(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(policy.value(observation), value.flatten(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["PPO", "A2C"])
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("space", [VECTOR, MIXED], ids=["vector", "dict"])
def test_on_policy_models_wrapped_and_rebuilt(kind, action, space, tmp_path):
    model = build(kind, space, ACTIONS[action])
    assert_equal_to_sb3(from_stable_baselines3(model), model, space)
    model.save(tmp_path / "model.zip")
    assert_equal_to_sb3(load_stable_baselines3(tmp_path / "model.zip", space, ACTIONS[action]), model, space)


def test_a_model_with_images_is_wrapped_in_the_layout_of_its_world():
    model = build("PPO", IMAGE, ACTIONS["discrete"])
    assert_equal_to_sb3(from_stable_baselines3(model), model, IMAGE)


def test_separate_feature_extractors_and_unequal_widths_are_wrapped():
    options = {"share_features_extractor": False, "net_arch": {"pi": [8], "vf": [5, 4]}}
    model = build("PPO", VECTOR, ACTIONS["box"], policy_kwargs=options)
    assert_equal_to_sb3(from_stable_baselines3(model), model, VECTOR)


@pytest.mark.parametrize("arch", [[], [7], [8, 6, 4]], ids=str)
def test_other_networks_are_rebuilt(arch, tmp_path):
    options = {"net_arch": arch, "activation_fn": torch.nn.ReLU}
    model = build("PPO", VECTOR, ACTIONS["box"], policy_kwargs=options)
    model.save(tmp_path / "model.zip")
    rebuilt = load_stable_baselines3(tmp_path / "model.zip", VECTOR, ACTIONS["box"], activation="relu")
    assert_equal_to_sb3(rebuilt, model, VECTOR)


def test_wrapped_weights_are_the_models_own():
    model = build("PPO", VECTOR, ACTIONS["box"])
    policy = from_stable_baselines3(model)
    own = {id(parameter) for parameter in model.policy.parameters()}
    assert {id(parameter) for parameter in policy.parameters()} == own


@pytest.mark.parametrize(("kind", "action"), [("DQN", "discrete"), ("SAC", "box"), ("TD3", "box"), ("DDPG", "box")])
def test_off_policy_models_act_and_cannot_be_evaluated(kind, action):
    model = build(kind, VECTOR, ACTIONS[action], buffer_size=10)
    policy = from_stable_baselines3(model)
    observation, arrays = samples(VECTOR)
    mode, _ = policy.act(observation)
    np.testing.assert_allclose(mode.detach().numpy(), model.predict(arrays, deterministic=True)[0], atol=1e-6)
    noise = policy.sample_noise((2, N), torch.Generator().manual_seed(2))
    noisy, _ = policy.act(observation, noise=noise[0])
    assert torch.equal(noisy, mode) == (kind != "SAC")
    assert policy.value(observation) is None
    with pytest.raises(NotImplementedError, match="can only act; valid for evaluate: the policy of PPO or A2C"):
        policy.evaluate(Experience(observation[:, None], mode[:, None], torch.ones(N, 1, dtype=torch.bool)))


def test_samples_of_sac_are_those_of_sb3():
    model = build("SAC", VECTOR, ACTIONS["box"], buffer_size=10)
    policy = from_stable_baselines3(model)
    observation, _ = samples(VECTOR)
    noise = policy.sample_noise((N,), torch.Generator().manual_seed(2))
    mean, log_std, _ = model.actor.get_action_dist_params(observation)
    expected = model.policy.unscale_action(torch.tanh(mean + log_std.exp() * noise).detach().numpy())
    np.testing.assert_allclose(policy.act(observation, noise=noise)[0].detach().numpy(), expected, atol=1e-6)


def test_what_cannot_be_wrapped_is_refused():
    with pytest.raises(ValueError, match="use_sde = True"):
        from_stable_baselines3(build("PPO", VECTOR, ACTIONS["box"], use_sde=True))
    with pytest.raises(TypeError, match="a model with a Linear; valid: one with a ActorCriticPolicy"):
        from_stable_baselines3(type("Model", (), {"policy": torch.nn.Linear(1, 1)})())


@pytest.mark.parametrize(
    ("kind", "space", "action", "options", "message"),
    [
        ("DQN", VECTOR, "discrete", {"buffer_size": 10}, "has q_net.*valid: the model of a PPO or A2C"),
        ("PPO", IMAGE, "discrete", {}, "has features_extractor"),
        (
            "PPO",
            VECTOR,
            "box",
            {"policy_kwargs": {"net_arch": {"pi": [8], "vf": [5]}}},
            r"hidden layers \[8\] and \[5\]",
        ),
        ("PPO", VECTOR, "box", {"use_sde": True}, "does not fit"),
    ],
)
def test_files_that_cannot_be_rebuilt_are_refused(kind, space, action, options, message, tmp_path):
    build(kind, space, ACTIONS[action], **options).save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=message):
        load_stable_baselines3(tmp_path / "model.zip", space, ACTIONS[action])


def test_files_that_do_not_fit_are_refused(tmp_path):
    build("PPO", VECTOR, ACTIONS["box"]).save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="does not fit"):
        load_stable_baselines3(tmp_path / "model.zip", spaces.Box(-1, 1, (4,)), ACTIONS["box"])
    with pytest.raises(ValueError, match="does not fit"):
        load_stable_baselines3(tmp_path / "model.zip", VECTOR, ACTIONS["discrete"])
    (tmp_path / "other.zip").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no policy"):
        load_stable_baselines3(tmp_path / "other.zip", VECTOR, ACTIONS["box"])


SPRUNG: list[int] = []


def spring() -> None:
    SPRUNG.append(1)


class Trap:
    """Unpickling one leaves a trace."""

    def __reduce__(self) -> tuple[object, ...]:
        return spring, ()


def test_nothing_is_unpickled(tmp_path):
    """Neither the pickles in ``data``, which are never read, nor one that stands where the tensors should."""
    build("PPO", VECTOR, ACTIONS["box"]).save(tmp_path / "model.zip")
    buffer = io.BytesIO()
    torch.save({"weight": Trap()}, buffer)
    traps = {"data": pickle.dumps(Trap()), "policy.pth": buffer.getvalue()}

    def rewritten(name: str) -> Path:
        path = tmp_path / f"{name}.zip"
        with zipfile.ZipFile(tmp_path / "model.zip") as source, zipfile.ZipFile(path, "w") as target:
            for entry in source.namelist():
                target.writestr(entry, traps[entry] if entry == name else source.read(entry))
        return path

    load_stable_baselines3(rewritten("data"), VECTOR, ACTIONS["box"])
    with pytest.raises(ValueError, match="something other than tensors"):
        load_stable_baselines3(rewritten("policy.pth"), VECTOR, ACTIONS["box"])
    assert not SPRUNG
    pickle.loads(traps["data"])
    assert SPRUNG


def test_the_missing_package_is_named(monkeypatch):
    model = build("PPO", VECTOR, ACTIONS["box"])
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.policies", None)
    with pytest.raises(ImportError, match=r"install decisionrl\[sb3\]"):
        from_stable_baselines3(model)
