"""The suite of language models: its cases, a small run from a warm start to a report, and what its page says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from decisionrl.benchmarks.llm import AfterExamples, LanguageCase, cases
from decisionrl.benchmarks.llm_page import compared_methods, llm_sections
from decisionrl.benchmarks.suite import Case, run_suite
from decisionrl.cli import SUITES
from decisionrl.envs.text import TASKS, make_task
from decisionrl.evaluation.results import Row, read_results
from decisionrl.llm.responses import Demonstrations
from decisionrl.llm.world import TextWorld
from decisionrl.policies.language import LanguagePolicy
from decisionrl.policies.language_models import load_model
from decisionrl.recipes import ON_ENVIRONMENTS

pytest.importorskip("transformers")


def test_every_recipe_on_every_task() -> None:
    assert SUITES["llm"] == "decisionrl.benchmarks.llm"
    full = cases("full", None)
    assert len({(case.name, case.method) for case in full}) == len(full)
    methods: dict[str, set[str]] = {}
    budgets: dict[str, set[int]] = {}
    for case in full:
        assert isinstance(case.run, LanguageCase)
        assert case.run.task in TASKS
        methods.setdefault(case.name, set()).add(case.method)
        budgets.setdefault(case.name, set()).add(case.run.arguments["steps"])
    assert all(len(budget) == 1 for budget in budgets.values()), "equal budgets of tokens"
    assert budgets["modular-addition"] == {1_200_000}
    after_examples = methods.pop("modular-addition-examples")
    assert after_examples == {"grpo", "xrpo", "xrpo_shown", "xrpo_shown_sampling"}
    assert methods.pop("modular-addition") == {*ON_ENVIRONMENTS, "xrpo_shown"}
    assert methods.pop("key-token-chain") == {*ON_ENVIRONMENTS, "tppo_short", "gtpo_unfiltered"}
    assert all(each == set(ON_ENVIRONMENTS) for each in methods.values())


def test_the_variant_begins_with_a_model_that_has_read_examples(tmp_path: Path) -> None:
    made = AfterExamples(task="text/modular-addition", recipe="grpo", options={"modulus": 3})
    one, two = made._warm_started(tmp_path / "model", 0), made._warm_started(tmp_path / "model", 0)
    assert one == two == tmp_path / "model-examples2"
    plain, _ = load_model(
        LanguageCase(task=made.task, recipe="grpo", options={"modulus": 3})._warm_started(tmp_path / "model", 0)
    )
    model, tokenizer = load_model(one)
    assert model.config.max_position_embeddings == 3 * plain.config.max_position_embeddings
    assert not torch.equal(model.lm_head.weight, plain.lm_head.weight)
    batch = Demonstrations(world=TextWorld(make_task(made.task, modulus=3), tokenizer), size=32, examples=2)
    log_prob = LanguagePolicy(model).evaluate(batch(torch.Generator())).log_prob
    unread = LanguagePolicy(plain).evaluate(batch(torch.Generator())).log_prob
    assert log_prob.sum() > unread.sum(), "it has imitated such"


def test_a_small_run(tmp_path: Path) -> None:
    case = LanguageCase(
        task="text/modular-addition",
        recipe="grpo",
        options={"modulus": 5},
        arguments={"groups": 4, "group_size": 4, "num_envs": 64, "steps": 300},
    )
    out = tmp_path / "out"
    status = run_suite(
        "llm",
        [Case("modular-addition", "grpo", case)],
        profile="quick",
        only=(),
        seeds=1,
        jobs=1,
        device="cpu",
        data=None,
        out=out,
        json_output=False,
    )
    assert status == 0
    rows = {row.metric: row for row in read_results(out)}
    assert {"pass_1", "pass_8", "mean_reward", "warm_start", "entropy", "gradient_norm", "wall_seconds"} <= rows.keys()
    assert 0 <= rows["pass_1"].value <= rows["pass_8"].value <= 1  # type: ignore[operator]
    assert rows["pass_1"].value == rows["mean_reward"].value, "a reward is 0 or 1"
    assert rows["pass_1"].n == 25
    assert list((out / "data").iterdir())


def row(method: str, seed: int, value: float, metric: str = "pass_1") -> Row:
    return Row.build(
        suite="llm",
        case="sums",
        method=method,
        seed=seed,
        metric=metric,
        value=value,
        low=None,
        high=None,
        n=None,
        reference=None,
        reference_kind="none",
        better="higher",
        seconds=None,
        device="cpu",
        version="1",
    )


def test_the_page_says_which_are_better_and_which_cannot_be_told() -> None:
    rows = [row("grpo", seed, 0.5 + 0.01 * seed) for seed in range(3)]
    rows += [row("dapo", seed, 0.6 + 0.011 * seed) for seed in range(3)]
    rows += [row("rloo", seed, 0.45 + 0.009 * seed) for seed in range(3)]
    rows += [row("sapo", seed, value) for seed, value in enumerate((0.2, 0.9, 0.55))]
    rows += [row("gspo", seed, 0.3 + 0.01 * seed) for seed in range(2)]
    rows += [row("grpo", 0, 1000.0, "tokens_to_90"), row("grpo", 2, 3000.0, "tokens_to_90")]
    text = "\n".join(llm_sections(rows, "full"))
    lines = {each.split("|")[1].strip(): each for each in text.splitlines() if each.startswith("| ")}
    assert list(lines)[1:] == ["dapo", "sapo", "grpo", "rloo", "gspo"]
    assert "better" in lines["dapo"]
    assert "worse" in lines["rloo"]
    assert "not told apart" in lines["sapo"]
    assert "not known" in lines["gspo"], "two seeds are too few"
    assert "2,000 (2 of 3)" in lines["grpo"]
    assert "Better than grpo: dapo. Worse than grpo: rloo." in text
    assert "The gain over grpo that their papers report is not seen here of sapo." in text
    assert llm_sections([], "full") == []
    assert compared_methods([]) is None


def test_among_many_methods_one_that_is_better_by_chance_is_not_called_so() -> None:
    base = [0.50, 0.53, 0.51, 0.55, 0.52]
    better = [value + gain for value, gain in zip(base, (0.01, 0.03, 0.02, 0.015, 0.04), strict=True)]
    rows = [row("grpo", seed, value) for seed, value in enumerate(base)]
    rows += [row("lucky", seed, value) for seed, value in enumerate(better)]
    assert "| better |" in "\n".join(llm_sections(rows, "full")), "alone"
    noise = torch.randn(19, 5, generator=torch.Generator().manual_seed(0)) * 0.05
    rows += [row(f"other{i}", seed, base[seed] + noise[i, seed].item()) for i in range(19) for seed in range(5)]
    among_many = "\n".join(llm_sections(rows, "full"))
    assert "| better |" not in among_many
    (lucky,) = [line for line in among_many.splitlines() if line.startswith("| lucky")]
    assert "| perhaps better |" in lucky


def test_the_figure_has_a_panel_for_each_task() -> None:
    rows = [
        replace(row(method, seed, 0.5 + 0.1 * seed), case=case)
        for case in ("countdown", "sorting", "sums")
        for method in ("grpo", "rloo")
        for seed in range(3)
        if (case, method) != ("sorting", "rloo")
    ]
    figure = compared_methods(rows)
    assert figure is not None
    first, second = figure.axes
    assert [each.get_title() for each in (first, second)] == ["countdown", "sorting"]
    assert [each.get_text() for each in first.get_yticklabels()] == ["grpo", "rloo"]
    dots = [[(float(x), float(y)) for x, y in line.get_xydata()] for line in second.lines if line.get_marker() == "o"]
    assert dots == [[(pytest.approx(0.6), 0.0)]]
