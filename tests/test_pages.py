"""Pages that list what there is name all of it, and the example of own preferences runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from decisionrl.objectives.preference_methods import METHODS
from decisionrl.recipes import ON_RECORDED_DATA, RECIPES, metadata

ROOT = Path(__file__).parents[1]
PREFERENCES = (ROOT / "docs" / "preferences.md").read_text()


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


def test_own_preferences_are_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    for name in ("own_preferences", "custom_env"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import own_preferences

    trained, recorded = own_preferences.main(steps=300, days=20)
    assert trained > recorded + 50
