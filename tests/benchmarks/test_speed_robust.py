"""The speed of linear MDPs: the plain loop agrees with the library, and the rows say what was measured."""

from __future__ import annotations

import numpy as np
import pytest

from decisionrl.benchmarks.speed import robust
from decisionrl.benchmarks.speed.timing import Ratio


@pytest.mark.parametrize("method", robust.METHODS)
def test_both_agree(method: str) -> None:
    robust.check(method, episodes=8)


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = robust.plain_method
    monkeypatch.setattr(robust, "plain_method", lambda method: plain("lsvi_ucb"))
    with pytest.raises(RuntimeError, match=r"dr_lsvi_ucb: Q_.* differs"):
        robust.check("dr_lsvi_ucb", episodes=8)


def test_inverting_for_every_value_changes_no_value() -> None:
    once, always = (robust.plain_training("dr_lsvi_ucb", invert_always=each, episodes=6) for each in (False, True))
    assert once.history == always.history
    np.testing.assert_allclose(once.weight, always.weight, atol=1e-12)


def test_both_comparisons_measure_the_same_thing() -> None:
    sampled = robust.plain_comparison(episodes=60, test_episodes=150)
    exact = robust.comparison(runs=8, episodes=60)
    assert sampled.shape == (2, 21)
    assert exact.shape == (2, 8, 21)
    assert np.abs(sampled - exact.mean(1).numpy()).mean() < 0.15


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust, "EPISODES", 3)
    monkeypatch.setattr(robust, "RUNS", 2)
    monkeypatch.setattr(robust, "race", lambda runners, rounds: {name: [2.0] * rounds for name in runners})
    monkeypatch.setattr(robust, "growth", lambda episodes, rounds: Ratio(1.0, 0.9, 1.1, rounds))
    shown: list[object] = []
    rows = robust.measure(robust.Profile(rounds=3, episodes=20), shown.append)
    assert shown == rows
    found = {(row.case, row.method, row.metric): row for row in rows}
    assert found["training-2x3", "dr_lsvi_ucb", "speedup"].value == 2.0
    assert found["training-2x3", "lsvi_ucb-200", "speedup"].value == 200.0
    assert found["comparison-2x3", "all", "cpu_seconds"].reference == 1.0
    assert found["episodes", "dr_lsvi_ucb", "growth"].value == 1.0


def test_growth_compares_the_ends_of_one_training() -> None:
    found = robust.growth(20, rounds=2)
    assert found.rounds == 2
    assert found.low > 0
