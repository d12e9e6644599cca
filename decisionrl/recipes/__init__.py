"""Published systems as named compositions of the library's parts."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from decisionrl.experiment import Experiment
from decisionrl.names import pick

RECIPES = {
    "hdpo": "decisionrl.recipes.hdpo",
    "reinforce": "decisionrl.recipes.reinforce",
    "ppo": "decisionrl.recipes.ppo",
    "grpo": "decisionrl.recipes.grpo",
    "rloo": "decisionrl.recipes.rloo",
    "dapo": "decisionrl.recipes.dapo",
    "gspo": "decisionrl.recipes.gspo",
    "sapo": "decisionrl.recipes.sapo",
    "bapo": "decisionrl.recipes.bapo",
    "dcpo": "decisionrl.recipes.dcpo",
    "capo": "decisionrl.recipes.capo",
    "d3s": "decisionrl.recipes.d3s",
    "remax": "decisionrl.recipes.remax",
    "spo": "decisionrl.recipes.spo",
    "segment_spo": "decisionrl.recipes.segment_spo",
    "hapo": "decisionrl.recipes.hapo",
    "tppo": "decisionrl.recipes.tppo",
    "riskpo": "decisionrl.recipes.riskpo",
    "vade": "decisionrl.recipes.vade",
    "xrpo": "decisionrl.recipes.xrpo",
    "gtpo": "decisionrl.recipes.gtpo",
    "ares": "decisionrl.recipes.ares",
    "dr_rpo": "decisionrl.recipes.dr_rpo",
    "dr_lsvi_ucb": "decisionrl.recipes.dr_lsvi_ucb",
    "lsvi_ucb": "decisionrl.recipes.lsvi_ucb",
    "pevi": "decisionrl.recipes.pevi",
    "drpvi": "decisionrl.recipes.drpvi",
    "va_drpvi": "decisionrl.recipes.va_drpvi",
    "r2pvi": "decisionrl.recipes.r2pvi",
}
"""Recipe name -> module that holds a function of that name and METADATA; imported when used."""

LINEAR_MDPS = ("dr_rpo", "dr_lsvi_ucb", "lsvi_ucb", "pevi", "drpvi", "va_drpvi", "r2pvi")
"""The recipes on linear MDPs."""

ON_ENVIRONMENTS = tuple(name for name in RECIPES if name not in ("hdpo", *LINEAR_MDPS))
"""The recipes on any environment."""


def recipe(name: str) -> Callable[..., Experiment]:
    """The recipe's function; UnknownNameError with the nearest name if there is none."""
    module = importlib.import_module(pick("recipe", name, RECIPES))
    return cast(Callable[..., Experiment], getattr(module, name))


def metadata(name: str) -> Mapping[str, Any]:
    """Title, arXiv id, what the recipe changes and what it equals in its limit."""
    return cast(Mapping[str, Any], importlib.import_module(pick("recipe", name, RECIPES)).METADATA)
