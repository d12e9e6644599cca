"""The speed of preference learning: the plain loop agrees with the library, and the rows say what was measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.nn.functional import logsigmoid

from decisionrl.benchmarks.speed import preferences
from decisionrl.benchmarks.speed.plain_preferences import PlainLearner, Segments
from decisionrl.benchmarks.speed.preferences import Case, Profile, both, losses, main, measure
from decisionrl.benchmarks.speed.report import Report
from decisionrl.objectives.preference_methods import build

TINY = Profile(rounds=2, steps=1, segments=12, pairs=5, cases=(Case((8, 6), 0.25, 1.3), Case((8,), 0.0, None)))


def test_plain_loss_is_the_one_of_the_paper() -> None:
    drawn = np.random.default_rng(0)
    segments = Segments(
        observation=drawn.normal(size=(4, 3, 2)).astype(np.float32),
        action=drawn.uniform(-1, 1, size=(4, 3, 1)).astype(np.float32),
        score=np.array([0.0, 2.0, 2.0, 1.0], np.float32),
    )
    plain = PlainLearner(segments, hidden=(5,), dropout=0.0, pairs=3, alpha=0.3, bias=0.5)
    observation, action, label = segments.batch(np.array([0, 1, 1]), np.array([1, 2, 3]))
    assert label.tolist() == [1.0, 0.5, 0.0]
    with torch.no_grad():
        found = plain.loss(observation, action, label)
        scores = [-0.3 * (plain.network(x) - a).square().sum() for x, a in zip(observation, action, strict=True)]
    first, second = scores[:3], scores[3:]
    one, two = (
        [-logsigmoid(plus - 0.5 * minus) for plus, minus in zip(*sides, strict=True)]
        for sides in ((second, first), (first, second))
    )
    torch.testing.assert_close(found, (one[0] + (one[1] + two[1]) / 2 + two[2]) / 3)


def test_losses_and_gradients_agree() -> None:
    pairs, case = preferences.preferences(TINY, device="cpu"), Case((8, 6), 0.0, None)
    ours, theirs = losses(pairs, case, size=5)
    torch.testing.assert_close(ours, theirs)
    plain, policy = both(pairs, case, size=5)
    index = torch.arange(5)
    plain.loss(*plain.segments.batch(pairs.first[:5].numpy(), pairs.second[:5].numpy())).backward()
    build("cpl")(policy, pairs.batch(index)).value.backward()
    for own, other in zip(
        [*policy.hidden.parameters(), *policy.last.parameters()], plain.network.parameters(), strict=True
    ):
        torch.testing.assert_close(own.grad, other.grad)


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preferences, "build", lambda name: build(name, bias=0.6))
    with pytest.raises(RuntimeError, match=r"cpl: the loss differs: library .*, plain loop"):
        losses(preferences.preferences(TINY, device="cpu"), TINY.cases[0], size=5)


def test_plain_steps_learn() -> None:
    pairs = preferences.preferences(TINY, device="cpu")
    plain, _ = both(pairs, TINY.cases[0], size=5)
    before = [parameter.detach().clone() for parameter in plain.network.parameters()]
    plain.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, plain.network.parameters(), strict=True))


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def fixed(runners, rounds, device):
        for run in runners.values():
            run()
        return {"plain": [3.0] * rounds, "ours": [2.0] * rounds}

    monkeypatch.setattr(preferences, "race", fixed)
    report = Report(preferences.SUITE, "cpu", Console(quiet=True))
    measure(report, TINY, device="cpu")
    rows = {(row.case, row.metric): row for row in report.rows}
    assert len(rows) == 4
    for name, target in (("8x6-dropout-0.25", 1.3), ("8-dropout-0", None)):
        assert rows[name, "loss"].value == pytest.approx(rows[name, "loss"].reference, rel=1e-5)
        speedup = rows[name, "speedup"]
        assert (speedup.value, speedup.reference, speedup.n) == (1.5, target, 2)


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--quick" in capsys.readouterr().out
