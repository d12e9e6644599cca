"""The speed of language models: the yardsticks agree with the library, and the rows say what was measured."""

import pytest
import torch
from rich.console import Console

from decisionrl.benchmarks.speed import llm, prefix_sharing, token_log_probs
from decisionrl.benchmarks.speed.report import Report

pytest.importorskip("transformers")


def report(suite: str) -> Report:
    return Report(suite, "cpu", Console(quiet=True))


def found(rows: Report) -> dict[tuple[str, str], float]:
    return {(row.method, row.metric): row.value for row in rows.rows}


def test_prefix_sharing_is_timed_beside_the_repeated_forward() -> None:
    case = prefix_sharing.Case(6, 3, response=4, speedup_target=2.5)
    rows = report(prefix_sharing.SUITE)
    prefix_sharing.measure(rows, prefix_sharing.Profile([case], 2), device="cpu")
    assert found(rows).keys() >= {("shared", "speedup")}
    assert {row.case for row in rows.rows} == {"prompt-6-responses-3"}


def test_prefix_sharing_must_agree_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = prefix_sharing.made(prefix_sharing.Case(6, 3, response=4), "cpu")
    prefix_sharing.check(model, tokens)
    wrong = prefix_sharing.repeated
    monkeypatch.setitem(prefix_sharing.METHODS, "repeated", lambda *given: 1.001 * wrong(*given))
    with pytest.raises(RuntimeError, match="loss"):
        prefix_sharing.check(model, tokens)


def test_token_log_probs_must_agree_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = token_log_probs.inputs(token_log_probs.Case(5, 40, 8), "cpu")
    token_log_probs.check(0.3, *tensors)
    right = token_log_probs.plain

    def wrong(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_prob, entropy = right(*given)
        return log_prob, entropy + 1

    monkeypatch.setitem(token_log_probs.FORMS, "plain", wrong)
    with pytest.raises(RuntimeError, match="library"):
        token_log_probs.check(0.3, *tensors)


@pytest.mark.slow
def test_token_log_probs_are_timed_and_their_memory_is_measured() -> None:
    rows = report(token_log_probs.SUITE)
    case = token_log_probs.Case(8, 64, 8, frozen=True)
    token_log_probs.measure(rows, token_log_probs.Profile(2, (case,)), device="cpu")
    assert found(rows).keys() >= {("ours", "speedup"), ("ours", "memory_ratio"), ("plain", "peak_gb")}


@pytest.mark.slow
def test_a_step_is_timed_beside_trl_s() -> None:
    pytest.importorskip("trl")
    rows = report(llm.SUITE)
    llm.measure(rows, llm.Profile([llm.Case(4, 3, width=16, layers=1)], 1, 1), device="cpu")
    values = found(rows)
    for name in ("ours", "recomputed", "shared"):
        expected = values["trl", "step_ms"] / values[name, "step_ms"]
        assert values[name, "speedup"] == pytest.approx(expected)
