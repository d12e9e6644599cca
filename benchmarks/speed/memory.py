"""Peak memory of a long evaluation, measured in a fresh process: ``python -m decisionrl.benchmarks.speed.memory``."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from decisionrl.envs.inventory.scenarios import make_simulator
from decisionrl.envs.inventory.setting import load_setting
from decisionrl.evaluation.inventory import evaluate_policies
from decisionrl.policies.inventory_rules import BaseStock


def peak_memory(*, scenarios: int, periods: int) -> dict[str, float]:
    """Of a fresh process: GB resident after the imports ("imported") and at most ("peak"), CPU "seconds"."""
    command = [sys.executable, "-m", "decisionrl.benchmarks.speed.memory", str(scenarios), str(periods)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(finished.stdout)
    return measured


def largest_resident_gb() -> float:
    """Of this process. Linux keeps the parent's peak in ``ru_maxrss`` across fork and exec, so not from there."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _main(scenarios: int, periods: int) -> None:
    torch.set_num_threads(1)
    imported = largest_resident_gb()
    setting = load_setting("one_store_lost")
    evaluate_policies(
        {"base_stock": BaseStock(level=28.0)},
        setting,
        make_simulator(setting),
        scenarios=scenarios,
        periods=periods,
        warmup=periods // 5,
    )
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = usage.ru_utime + usage.ru_stime
    print(json.dumps({"imported": imported, "peak": largest_resident_gb(), "seconds": seconds}))


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
