"""Episodes with embeddings in place of frames: the same as encoding live, and files that know what they are of."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional

from decisionrl import checkpoint
from decisionrl.experience.context_windows import ContextWindows
from decisionrl.experience.embeddings import (
    StaleCacheError,
    cached_embeddings,
    data_fingerprint,
    embedded,
    fingerprint,
    load_embeddings,
    save_embeddings,
)
from decisionrl.experience.store import DatasetError, EpisodeStore
from decisionrl.learner import GradientLearner
from decisionrl.objectives.denoising import denoising
from decisionrl.policies.context import Context
from decisionrl.policies.diffusion import CPU, DiffusionPolicy
from decisionrl.policies.diffusion_network import DiffusionTransformerSizes
from decisionrl.policies.encoders import Concatenated, Encoder, Flat, encoder_for
from decisionrl.policies.image_encoders import ConvEncoder, context_encoder
from decisionrl.recording.demonstrations import record_demonstrations

CONTEXT = Context(observations=3, future=2, stride=2)
SETTINGS = dataclasses.replace(CPU, network=DiffusionTransformerSizes(width=8, layers=1, heads=2, dropout=0.0))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pixels() -> EpisodeStore:
    return record_demonstrations(env_options={"pixels": True}, episodes=4, seed=3)


def conv(**options: Any) -> ConvEncoder:
    return ConvEncoder((1, 32, 32), features=6, **{"crop": 28, "generator": rng(), **options})


def pictures(side: int = 12, *, extra: int = 0) -> EpisodeStore:
    """Two episodes of Dict observations with images of that size."""
    steps, rows = 7, 9
    camera = torch.randint(256, (rows, 1, side, side), generator=rng(), dtype=torch.uint8)
    return EpisodeStore(
        observation={"camera": camera, "hand": torch.randn(rows, 2, generator=rng(1)) + extra},
        action=torch.rand(steps, 2, generator=rng(2)),
        reward=torch.arange(7.0),
        terminated=torch.zeros(steps, dtype=torch.bool),
        truncated=torch.ones(steps, dtype=torch.bool),
        length=torch.tensor([3, 4]),
        observation_space=spaces.Dict(
            {"camera": spaces.Box(0, 255, (1, side, side), np.uint8), "hand": spaces.Box(-np.inf, np.inf, (2,))}
        ),
        action_space=spaces.Box(-1, 1, (2,)),
        extras={"success": torch.arange(7) > 5},
        info={"env": "some"},
    )


# Embeddings.


@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.float64, 1e-5)], ids=str
)
@pytest.mark.parametrize("batch_size", [1, 64, 1000])
def test_embeddings_are_those_of_every_frame_by_itself(
    pixels: EpisodeStore, dtype: torch.dtype, within: float, batch_size: int
) -> None:
    encoder = conv()
    store = embedded(pixels, encoder, batch_size=batch_size, dtype=dtype)
    encoder.eval()
    expected = torch.stack([encoder(frame[None])[0].detach() for frame in pixels.observation])
    assert store.observation.dtype == dtype
    assert expected.std() > 10 * within
    torch.testing.assert_close(store.observation.to(expected), expected, rtol=0, atol=within)


def test_embeddings_do_not_depend_on_the_frames_beside(pixels: EpisodeStore) -> None:
    order = torch.tensor([2, 0, 3, 1])
    first, last = embedded(pixels, conv()).select(order), embedded(pixels.select(order), conv(), batch_size=7)
    torch.testing.assert_close(first.observation, last.observation, rtol=0, atol=1e-5)


def test_all_else_is_as_it_was(pixels: EpisodeStore) -> None:
    encoder = conv()
    store = embedded(pixels, encoder)
    assert store.observation_space == spaces.Box(-np.inf, np.inf, (6,), np.float32)
    assert store.info == {**pixels.info, "embeddings": fingerprint(encoder)}
    for name in ("action", "reward", "terminated", "truncated", "length", "action_space"):
        assert getattr(store, name) is getattr(pixels, name)
    assert store.extras["success"] is pixels.extras["success"]
    assert not store.observation.requires_grad


def test_the_encoder_is_left_in_its_mode_and_crops_are_off(pixels: EpisodeStore) -> None:
    encoder = conv().train()
    encoder.layers[1].eval()
    before = [module.training for module in encoder.modules()]
    first = embedded(pixels, encoder).observation
    assert [module.training for module in encoder.modules()] == before
    assert torch.equal(first, embedded(pixels, encoder.eval()).observation)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in encoder.parameters())


def test_dict_observations_with_their_statistics() -> None:
    recorded = pictures()
    encoder = context_encoder(recorded.observation_space, features=4, generator=rng())
    encoder.update(recorded.observation)
    store = embedded(recorded, encoder, batch_size=2)
    torch.testing.assert_close(store.observation, encoder(recorded.observation).detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(store.observation[:, 4:].mean(0), torch.zeros(2), rtol=0, atol=1e-6)


def test_an_encoder_without_weights() -> None:
    recorded = record_demonstrations(episodes=2)
    assert torch.equal(embedded(recorded, Flat((2,))).observation, recorded.observation)


def test_options_that_are_not_valid(pixels: EpisodeStore) -> None:
    with pytest.raises(DatasetError, match="batch_size = 0; valid: at least 1"):
        embedded(pixels, conv(), batch_size=0)
    with pytest.raises(DatasetError, match=r"dtype = torch.int8; valid: torch.float16, torch.float32"):
        embedded(pixels, conv(), dtype=torch.int8)
    encoder = conv()
    with torch.no_grad():
        encoder.layers[-1].bias.fill_(1e6)
    with pytest.raises(DatasetError, match="observation is not finite in episode 0, step 0"):
        embedded(pixels, encoder, dtype=torch.float16)


# Training on embeddings.


def on_images(recorded: EpisodeStore, encoder: Encoder) -> DiffusionPolicy:
    made = DiffusionPolicy(
        recorded.observation_space, recorded.action_space, context=CONTEXT, settings=SETTINGS, encoder=encoder
    )
    with torch.no_grad():
        for i, parameter in enumerate(made.network.parameters()):  # so that observations matter from the beginning
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng(i)))
    return made


def on_embeddings(store: EpisodeStore) -> DiffusionPolicy:
    return on_images(store, Flat(store.observation_space.shape))


def test_the_loss_is_that_without_a_cache(pixels: EpisodeStore) -> None:
    pytest.importorskip("diffusers")
    encoder = conv().eval()
    store = embedded(pixels, encoder, batch_size=5)
    whole, head = on_images(pixels, encoder), on_embeddings(store)

    def loss(policy: DiffusionPolicy, episodes: EpisodeStore) -> Tensor:
        return denoising(policy, ContextWindows(episodes=episodes, context=CONTEXT, size=32)(rng(5))).value

    expected, found = loss(whole, pixels), loss(head, store)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (loss(head, embedded(pixels, conv(generator=rng(1)))) - found).abs() > 1e-3
    expected.backward()
    found.backward()
    for ours, theirs in zip(head.network.parameters(), whole.network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_an_update_of_the_head_knows_nothing_of_images() -> None:
    """Neither what it reads nor its parameters depend on the size of the images."""
    pytest.importorskip("diffusers")
    seen = []
    for side in (12, 40):
        recorded = pictures(side)
        encoder = context_encoder(recorded.observation_space, features=4, generator=rng())
        store = embedded(recorded, encoder)
        head = on_embeddings(store)
        batch = ContextWindows(episodes=store, context=CONTEXT, size=8)(rng())
        learner = GradientLearner(head, denoising, torch.optim.AdamW(head.parameters()))
        frozen = fingerprint(encoder)
        for _ in range(3):
            learner.update(batch)
        assert fingerprint(encoder) == frozen == store.info["embeddings"]
        assert isinstance(batch.observation, Tensor)
        assert batch.observation.shape == (8, 3, 6)
        seen.append([parameter.shape for parameter in head.parameters()])
    assert seen[0] == seen[1]


# Fingerprints.


def changed(change: Callable[[ConvEncoder], Any]) -> ConvEncoder:
    encoder = conv()
    with torch.no_grad():
        change(encoder)
    return encoder


@pytest.mark.parametrize(
    "other",
    [
        conv(crop=24, pool="spatial_softmax"),
        conv(crop=27),
        conv(generator=rng(1)),
        changed(lambda encoder: encoder.layers[3].weight[0, 0, 0, 0].add_(1e-6)),
        changed(lambda encoder: setattr(encoder.layers[1], "eps", 1e-4)),
        changed(lambda encoder: encoder.layers.__setitem__(2, nn.ELU())),
        changed(lambda encoder: setattr(encoder, "channels_first", False)),
        changed(lambda encoder: encoder.double()),
    ],
)
def test_any_other_encoder_has_another_fingerprint(other: ConvEncoder) -> None:
    assert fingerprint(other) != fingerprint(conv())


def test_equal_encoders_have_one_fingerprint() -> None:
    made = conv()
    assert len(fingerprint(made)) == 64
    for same in (conv(), conv().eval(), copy.deepcopy(made), conv().requires_grad_(False)):
        assert fingerprint(same) == fingerprint(made)


def test_statistics_and_settings_outside_of_weights_count() -> None:
    space = spaces.Dict({"at": spaces.Box(-9, 9, (2,)), "room": spaces.Discrete(4)})
    plain = encoder_for(space, normalize=True)
    told = [fingerprint(plain), fingerprint(encoder_for(space))]
    plain.update({"at": torch.ones(3, 2), "room": torch.zeros(3, dtype=torch.long)})
    told.append(fingerprint(plain))
    plain.encoders[0].normalizer.clip = 5.0
    told.append(fingerprint(plain))
    plain.encoders[1].value.add_(1)  # not a part of state_dict
    told.append(fingerprint(plain))
    told.append(fingerprint(Concatenated({key: Flat((1,)) for key in ("a", "b")})))
    told.append(fingerprint(Concatenated({key: Flat((1,)) for key in ("b", "a")})))
    assert len(set(told)) == len(told)


class Odd(Encoder):
    def __init__(self, setting: Any) -> None:
        super().__init__()
        self.features, self._setting = 2, setting

    def forward(self, observation: Tensor) -> Tensor:
        return observation


def test_what_settings_may_be() -> None:
    settings = [
        None, 1, 1.5, "1", "a", [1, 2], {"a": (1, None)}, {"b": (1, None)}, torch.float16, functional.relu,
        torch.tanh, nn.ReLU, torch.tensor(1), torch.tensor(1.0), torch.tensor([1.0]), [torch.tensor([2.0])],
    ]  # fmt: skip
    told = [fingerprint(Odd(setting)) for setting in settings]
    assert len(set(told)) == len(told)
    assert told == [fingerprint(Odd(copy.deepcopy(setting))) for setting in settings]
    for unknown in (object(), lambda x: x, [nn.ReLU()], np.zeros(3)):
        with pytest.raises(TypeError, match=r"^_setting.* is a \w+; valid in an encoder: modules"):
            fingerprint(Odd(unknown))


def test_fingerprints_of_data(pixels: EpisodeStore) -> None:
    frames = pixels.observation.clone()
    frames[-1, 0, 0, 0] += 1
    others = [
        dataclasses.replace(pixels, observation=frames),
        dataclasses.replace(pixels, length=pixels.length.flip(0) + torch.tensor([1, 0, 0, -1])),
        pixels.select(torch.arange(3)),
        pictures(),
        pictures(extra=1),
    ]
    told = [data_fingerprint(each) for each in [pixels, *others]]
    assert len(set(told)) == len(told)
    again = dataclasses.replace(pixels, action=pixels.action + 1, observation=pixels.observation.clone())
    assert data_fingerprint(again) == told[0]


# Files.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_files_hold_what_was_made(tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    path, recorded = tmp_path / "new" / "embeddings.safetensors", pictures()
    encoder = context_encoder(recorded.observation_space, features=4, generator=rng())
    made = cached_embeddings(path, recorded, encoder, dtype=dtype)
    assert torch.equal(made.observation, embedded(recorded, encoder, dtype=dtype).observation)
    monkeypatch.setattr(type(encoder), "forward", None)  # nothing is encoded again
    for found in (cached_embeddings(path, recorded, encoder, dtype=dtype), load_embeddings(path, encoder, recorded)):
        assert found.observation.dtype == dtype
        assert torch.equal(found.observation, made.observation)
        assert found.observation_space == made.observation_space
        assert found.info == made.info
        assert found.action is recorded.action
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_files_of_others_are_refused_by_name(tmp_path: Path, pixels: EpisodeStore) -> None:
    path, encoder = tmp_path / "embeddings.safetensors", conv()
    cached_embeddings(path, pixels, encoder)
    with torch.no_grad():
        encoder.layers[0].weight[0, 0, 0, 0] += 1e-6
    own, now = fingerprint(conv())[:12], fingerprint(encoder)[:12]
    wanted = f"{path} was made with encoder {own}, not {now}; valid: the encoder it was made with, or delete the file"
    with pytest.raises(StaleCacheError, match=wanted):
        cached_embeddings(path, pixels, encoder)
    with pytest.raises(StaleCacheError, match="was made with encoder"):
        load_embeddings(path, conv(crop=27), pixels)
    fewer = pixels.select(torch.arange(3))
    with pytest.raises(StaleCacheError, match=f"was made with observations {data_fingerprint(pixels)[:12]}, not"):
        cached_embeddings(path, fewer, conv())
    with pytest.raises(StaleCacheError, match=r"with encoder .* and observations .*; valid: the encoder and observat"):
        cached_embeddings(path, fewer, encoder)
    with pytest.raises(StaleCacheError, match=r"holds torch.float32, not torch.float16; valid: dtype = torch.float32"):
        cached_embeddings(path, pixels, conv(), dtype=torch.float16)
    assert cached_embeddings(path, pixels, conv()).num_episodes == 4


def test_only_what_belongs_together_is_written(tmp_path: Path, pixels: EpisodeStore) -> None:
    path, store = tmp_path / "embeddings.safetensors", embedded(pixels, conv())
    with pytest.raises(StaleCacheError, match="embeddings that this encoder made, as it is now"):
        save_embeddings(path, store, conv(crop=27), pixels)
    with pytest.raises(StaleCacheError, match="info\\['embeddings'\\] = None"):
        save_embeddings(path, pixels, conv(), pixels)
    with pytest.raises(DatasetError, match=r"store.length differs from episodes.length"):
        save_embeddings(path, store, conv(), pixels.select(torch.arange(3)))
    assert not path.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "weights"])
def test_damaged_files_are_named(tmp_path: Path, pixels: EpisodeStore, damage: str) -> None:
    path, encoder = tmp_path / "embeddings.safetensors", conv()
    save_embeddings(path, embedded(pixels, encoder), encoder, pixels)
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    match damage:
        case "cut":
            path.write_bytes(raw[:-9])
        case "flipped":
            path.write_bytes(raw)
        case "empty":
            path.write_bytes(b"")
        case "other":
            checkpoint.save(path, {"learner": 1})
        case "weights":
            checkpoint.save_weights(encoder, path)
    with pytest.raises(DatasetError, match=str(path)) as caught:
        cached_embeddings(path, pixels, encoder)
    assert not isinstance(caught.value, StaleCacheError)


def test_a_file_that_is_not_there(tmp_path: Path, pixels: EpisodeStore) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_embeddings(tmp_path / "nowhere", conv(), pixels)
