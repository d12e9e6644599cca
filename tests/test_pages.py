"""Pages that list what there is name all of it, and the examples of own data run."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest

from decisionrl.envs.registration import MEMORY_TASKS, METAWORLD_MEMORY_TASKS, PUSH_T
from decisionrl.objectives.preference_methods import METHODS
from decisionrl.recipes import ON_DEMONSTRATIONS, ON_RECORDED_DATA, RECIPES, metadata, recipe

ROOT = Path(__file__).parents[1]
PREFERENCES = (ROOT / "docs" / "preferences.md").read_text()
ROBOTICS = (ROOT / "docs" / "robotics.md").read_text()


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
