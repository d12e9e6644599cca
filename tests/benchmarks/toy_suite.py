"""A small suite for the tests of the runner; run as a script, it is the command line of one."""

import argparse
import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from decisionrl.benchmarks.suite import Case, CaseContext, CaseResult, Measurement, run_suite
from decisionrl.evaluation import Curve, Series, bootstrap_mean


@dataclass(frozen=True)
class Newsvendor:
    """Mean cost of one order quantity, over Exponential(1) demand, against the exact optimum."""

    quantity: float
    underage: float = 3.0
    episodes: int = 200
    sleep: float = 0.0

    def __call__(self, context: CaseContext) -> CaseResult:
        rng = np.random.default_rng(context.seed)
        with (context.directory / "calls.txt").open("a") as log:
            log.write("called\n")
        for step in range(4):
            context.progress(step / 4, f"step {step}")
            time.sleep(self.sleep / 4)
        demand = rng.exponential(size=self.episodes)
        cost = np.maximum(self.quantity - demand, 0) + self.underage * np.maximum(demand - self.quantity, 0)
        optimum = float(np.log(1 + self.underage))
        curve = Curve(x_label="step", y_label="cost", x=[0, 1], y=[9.0, float(cost.mean())], reference=optimum)
        return CaseResult(
            [
                Measurement("cost", bootstrap_mean(cost, rng=rng), optimum, "exact"),
                Measurement("fill rate", float((demand <= self.quantity).mean()), better="higher"),
            ],
            Series(curve=curve),
        )


def fails(context: CaseContext, *, reason: str) -> CaseResult:
    """A case with a bug."""
    raise RuntimeError(reason)


def diverges(context: CaseContext) -> CaseResult:
    """A case whose value is not finite."""
    return CaseResult([Measurement("cost", float("nan")), Measurement("steps", 3)])


def dies(context: CaseContext) -> CaseResult:
    """A case that takes its process with it."""
    os._exit(9)


def toy_cases(sleep: float = 0.0, episodes: int = 200) -> list[Case]:
    """Two cases with two methods each."""
    return [
        Case(f"underage_{underage}", method, Newsvendor(quantity, float(underage), episodes, sleep), cost=cost)
        for underage, cost in ((3, 1.0), (9, 2.0))
        for method, quantity in (("low", 0.5), ("high", 2.0))
    ]


FAILING = Case("broken", "bug", functools.partial(fails, reason="no such luck"))
DIVERGING = Case("broken", "nan", diverges)
DYING = Case("broken", "crash", dies)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--sleep", type=float, default=0.5)
    arguments = parser.parse_args()
    raise SystemExit(run_suite("toy", toy_cases(arguments.sleep), jobs=arguments.jobs, out=arguments.out, seeds=2))
