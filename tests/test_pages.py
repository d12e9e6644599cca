"""Pages that list what there is name all of it, and the examples of own data run."""

from __future__ import annotations

import inspect
import json
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from decisionrl.cli import SUITES
from decisionrl.envs.gridworld import FAMILIES
from decisionrl.envs.registration import MEMORY_TASKS, METAWORLD_MEMORY_TASKS, PUSH_T, TASK_FAMILIES
from decisionrl.objectives.preference_methods import METHODS
from decisionrl.pipeline.history_filter import Mode
from decisionrl.recipes import ON_DEMONSTRATIONS, ON_HISTORIES, ON_RECORDED_DATA, RECIPES, metadata, recipe
from decisionrl.recipes.in_context import SMALL, Histories
from decisionrl.recording.histories import SOURCES

ROOT = Path(__file__).parents[1]
PREFERENCES = (ROOT / "docs" / "preferences.md").read_text()
ROBOTICS = (ROOT / "docs" / "robotics.md").read_text()
IN_CONTEXT = (ROOT / "docs" / "in_context.md").read_text()


@pytest.mark.parametrize("name", ON_RECORDED_DATA)
def test_the_page_on_preferences_has_every_recipe(name: str) -> None:
    (line,) = re.findall(rf"^\| `{name}` .*\| (?:recorded|segments) .*\|$", PREFERENCES, re.MULTILINE)
    about = metadata(name)
    assert about["arxiv"] is None or f"[{about['arxiv']}](https://arxiv.org/abs/{about['arxiv']})" in line
    assert about["limit"] in line


@pytest.mark.parametrize("name", METHODS)
def test_the_page_on_preferences_has_every_method_with_its_source(name: str) -> None:
    lines = re.findall(rf"^\| `{name}` \(\[.*\]\((.*?)\)\) \| .* \| .* \|$", PREFERENCES, re.MULTILINE)
    source = METHODS[name].source
    assert (source if source.startswith("http") else f"https://arxiv.org/abs/{source}") in lines


def test_the_page_on_preferences_names_nothing_that_does_not_exist() -> None:
    named = set(re.findall(r"^\| `([a-z0-9_]+)` ", PREFERENCES, re.MULTILINE))
    assert named <= set(METHODS) | set(RECIPES)


@pytest.mark.parametrize("name", ON_DEMONSTRATIONS)
def test_the_page_on_robots_has_every_recipe_with_its_defaults(name: str) -> None:
    (line,) = re.findall(rf"^\| `{name}` .*\|$", ROBOTICS, re.MULTILINE)
    about = metadata(name)
    assert f"([{about['arxiv']}](https://arxiv.org/abs/{about['arxiv']})): {about['title']} |" in line
    assert f"| {about['changes']} | {about['limit']} |" in line
    shown = dict(re.findall(r"`(\w+)=(\w+)`", line))
    defaults = {key: each.default for key, each in inspect.signature(recipe(name)).parameters.items()}
    own = {key: value for key, value in defaults.items() if value is not inspect.Parameter.empty}
    assert shown == {key: "null" if value is None else str(value) for key, value in own.items()}


@pytest.mark.parametrize("task", [*MEMORY_TASKS, *METAWORLD_MEMORY_TASKS, *PUSH_T])
def test_the_page_on_robots_has_every_task(task: str) -> None:
    assert re.search(rf"^\| `{task}` \|", ROBOTICS, re.MULTILINE)


def test_the_page_on_robots_names_no_recipe_that_does_not_exist() -> None:
    named = set(re.findall(r"^\| `(\w+)` \(\[", ROBOTICS, re.MULTILINE))
    trained = set(re.findall(r"decisionrl train (\w+)", ROBOTICS))
    assert named == set(ON_DEMONSTRATIONS)
    assert trained <= set(RECIPES)


def as_json(value: Any) -> str:
    """Of an argument, as it is given at the command line."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


@pytest.mark.parametrize("name", ON_HISTORIES)
def test_the_page_on_in_context_learning_has_every_recipe_with_its_defaults(name: str) -> None:
    (line,) = re.findall(rf"^\| `{name}` .*\|$", IN_CONTEXT, re.MULTILINE)
    about = metadata(name)
    assert f"([{about['arxiv']}](https://arxiv.org/abs/{about['arxiv']})): {about['title']} |" in line
    assert f"| {about['changes']} | {about['limit']} |" in line
    shown = dict(re.findall(r"`(\w+)=([\w.]+)`", line))
    parameters = inspect.signature(recipe(name)).parameters
    own = {key: each.default for key, each in parameters.items() if each.default is not inspect.Parameter.empty}
    assert shown == {key: as_json(value) for key, value in own.items()}


def test_the_page_on_in_context_learning_has_the_shared_arguments_with_both_defaults() -> None:
    lines = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \| (?:`([\w.]+)`)? ?\|", IN_CONTEXT, re.MULTILINE)
    defaults = {each.name: as_json(each.default) for each in fields(Histories)}
    assert {name: (default, small) for name, default, small in lines} == {
        name: (defaults[name], as_json(SMALL[name]) if name in SMALL else "") for name, _, _ in lines
    }
    left_out = {"data", "family", "weight_decay", "clip_norm", "seed", "device"}
    assert {name for name, _, _ in lines} == set(defaults) - left_out


def test_the_page_on_in_context_learning_has_every_family_source_and_mode() -> None:
    named = dict(re.findall(r"^\| `(\w+)` \| `(decisionrl/\w+-v0)` \|", IN_CONTEXT, re.MULTILINE))
    assert named == {family: identifier for identifier, family in TASK_FAMILIES.items()}
    assert set(named) == set(FAMILIES)
    for name in (*SOURCES, *get_args(Mode)):
        assert re.search(rf"^\| `{name}` \|", IN_CONTEXT, re.MULTILINE), name


def test_the_page_on_in_context_learning_has_the_split_and_the_length_of_every_family() -> None:
    for name, make in FAMILIES.items():
        family = make()
        train, test = (len(part) for part in family.split())
        (line,) = re.findall(rf"^\| `{name}` \| `decisionrl.*$", IN_CONTEXT, re.MULTILINE)
        largest = " to ".join(dict.fromkeys(f"{end:.0f}" for end in family.max_return.aminmax()))
        assert line.endswith(f"| {train:,} and {test:,} | {family.horizon} | {largest} |")


def test_the_page_on_in_context_learning_names_no_command_that_does_not_exist() -> None:
    named = set(re.findall(r"^\| `(\w+)` \(\[", IN_CONTEXT, re.MULTILINE))
    assert named == set(ON_HISTORIES)
    assert set(re.findall(r"decisionrl train (\w+)", IN_CONTEXT)) <= set(RECIPES)
    assert set(re.findall(r"decisionrl bench (\w+)", IN_CONTEXT)) <= set(SUITES)


def test_own_preferences_are_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    for name in ("own_preferences", "custom_env"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import own_preferences

    trained, recorded = own_preferences.main(steps=300, days=20)
    assert trained > recorded + 50


def test_own_demonstrations_are_learned_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.delitem(sys.modules, "own_demonstrations", raising=False)
    import own_demonstrations

    assert own_demonstrations.main(data=tmp_path / "lamp", steps=100) > 0.8  # without memory: 0.5 at the most


def test_own_tasks_are_learned_in_context(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.delitem(sys.modules, "own_tasks", raising=False)
    import own_tasks

    result = own_tasks.main(data=tmp_path / "lock", steps=150)
    assert result["last_return"] > result["first_return"] + 1  # without memory there is no difference
