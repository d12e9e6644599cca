"""The speed of diffusion policies: the plain loops agree with the library, and the rows say what was measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from rich.console import Console

pytest.importorskip("diffusers")

from decisionrl.benchmarks.speed import robotics
from decisionrl.benchmarks.speed.plain_diffusion import PlainLearner, PlainWindows
from decisionrl.benchmarks.speed.report import Report
from decisionrl.benchmarks.speed.robotics import (
    Profile,
    Size,
    SmallCNN,
    averaged,
    contexts,
    encoded_anew,
    encoded_once,
    losses,
    made,
    main,
    measure,
    plain_policy,
    plain_windows,
    recorded,
)
from decisionrl.experience.context_windows import ContextBatch, ContextWindows
from decisionrl.objectives.denoising import denoising

SIZE = Size("tiny", 8, 1, 3, 2)
TINY = Profile(rounds=2, steps=1, batch=5, sizes=(SIZE,), sides=(8,), copies=(2,), episodes=2)


def learners() -> tuple[robotics.DiffusionPolicy, PlainLearner, ContextWindows]:
    store, policy = recorded("cpu"), made(SIZE, "cpu")
    windows = ContextWindows(episodes=store, context=policy.context, size=TINY.batch)
    return policy, PlainLearner(plain_policy(policy, SIZE), plain_windows(store, SIZE), batch=TINY.batch), windows


def test_plain_windows_repeat_the_ends_of_an_episode() -> None:
    steps = np.arange(5, dtype=np.float32)
    windows = PlainWindows(steps, steps + 10, [3, 5], observations=2, future=2)
    found = [(each["observation"].tolist(), each["action"].tolist()) for each in windows]
    assert found == [
        ([0, 0], [10, 10, 11]),
        ([0, 1], [10, 11, 12]),
        ([1, 2], [11, 12, 12]),
        ([3, 3], [13, 13, 14]),
        ([3, 4], [13, 14, 14]),
    ]


def test_losses_and_gradients_agree() -> None:
    policy, plain, windows = learners()
    torch.testing.assert_close(*losses(policy, plain, windows))
    observation, action = plain.drawn()
    noise, step = torch.randn(action.shape), torch.arange(TINY.batch) * 20
    plain.policy.loss(observation, action, noise, step).backward()
    denoising(policy, ContextBatch(observation, action, noise, (step + 0.5) / 100)).value.backward()
    theirs = dict(plain.policy.network.named_parameters())
    for name, own in policy.network.named_parameters():
        torch.testing.assert_close(own.grad, theirs[name].grad)


def test_a_difference_is_found() -> None:
    policy, plain, windows = learners()
    with torch.no_grad():
        plain.policy.network.head.bias.add_(1)
    with pytest.raises(RuntimeError, match="losses differ: library"):
        losses(policy, plain, windows)
    plain.windows.observation = plain.windows.observation + 1
    with pytest.raises(RuntimeError, match="windows of the observation differ"):
        losses(policy, plain, windows)


def test_steps_of_both_learn() -> None:
    policy, plain, windows = learners()
    learner = averaged(policy)
    for network, step in (
        (plain.policy.network, plain.step),
        (policy.network, lambda: learner.update(windows(torch.Generator()))),
    ):
        before = [parameter.detach().clone() for parameter in network.parameters()]
        step()
        assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_images_are_encoded_once_or_anew_with_equal_samples() -> None:
    space = spaces.Box(0, 255, (1, 8, 8), np.uint8)
    policy = made(SIZE, "cpu", space=space, encoder=SmallCNN(1, 8))
    observation, seed = contexts(space, SIZE, 2, "cpu"), torch.arange(2)
    once = encoded_once(policy, observation, seed)
    torch.testing.assert_close(once, encoded_anew(policy, observation, seed))
    assert not torch.allclose(once, encoded_once(policy, 255 - observation, seed))


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def fixed(runners, rounds, device):
        for run in runners.values():
            run()
        slow = {"plain", "anew", "several", "one by one"}
        return {name: [3.0 if name in slow else 2.0] * rounds for name in runners}

    monkeypatch.setattr(robotics, "race", fixed)
    report = Report(robotics.SUITE, "cpu", Console(quiet=True))
    measure(report, TINY, device="cpu")
    rows = {(row.case, row.method, row.metric): row for row in report.rows}
    assert len(rows) == len(report.rows) == 9
    loss = rows["tiny", "update", "loss"]
    assert loss.value == pytest.approx(loss.reference, rel=1e-4)
    for case, method in (
        ("tiny", "update"),
        ("vector", "encode_once"),
        ("image-8", "encode_once"),
        ("episodes-2", "candidates_5"),
        ("return_side-2", "rollout"),
    ):
        row = rows[case, method, "speedup"]
        assert (row.value, row.reference, row.n) == (1.5, None, 2)
    assert rows["episodes-2", "candidates_5", "ratio"].value == 1.5
    for candidates in (1, 5):
        assert rows[f"one-robot-candidates-{candidates}", "rollout", "latency_ms"].value == 2000


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--quick" in capsys.readouterr().out
