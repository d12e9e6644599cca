"""A run killed with SIGKILL at any instant goes on to the bit-identical result."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy_run import train

from decisionrl import checkpoint, run

SCRIPT = Path(__file__).with_name("toy_run.py")


def start(out: Path, steps: int, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), str(out), str(steps), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    return process


def flat(value: Any, place: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{place}/{key}").items()}
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)), place)
    return {place: value}


def assert_same_run(out: Path, reference: Path) -> None:
    states = [flat(checkpoint.load_newest(d / run.CHECKPOINTS)) for d in (out, reference)]
    for state in states:
        del state["/seconds"], state["/callbacks/metrics/size"]
    ours, theirs = states
    assert list(ours) == list(theirs)
    assert any("/ema/" in place for place in ours)
    for place, value in ours.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, theirs[place]), place
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, theirs[place])
        else:
            assert value == theirs[place], place
    logs = [[json.loads(line) for line in (d / "metrics.jsonl").open()] for d in (out, reference)]
    for log in logs:
        for line in log:
            del line["seconds"]
    assert logs[0] == logs[1]
    best, best_of_reference = (load_file(d / "best.safetensors") for d in (out, reference))
    assert all(torch.equal(best[name], weight) for name, weight in best_of_reference.items())


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(out, 200)
    torch.set_num_threads(threads)
    return out


def kill_at_random(out: Path, rng: random.Random, longest: float) -> None:
    process = start(out, 200)
    time.sleep(rng.uniform(0, longest))
    process.kill()
    assert process.wait() in (-signal.SIGKILL, 0)  # 0: it was done already


def test_killed_twice_at_random_instants(tmp_path: Path, reference: Path) -> None:
    rng = random.Random(0)
    for _ in range(2):
        kill_at_random(tmp_path, rng, longest=0.8)
    train(tmp_path, 200)
    assert_same_run(tmp_path, reference)


def test_killed_while_a_checkpoint_is_being_written(tmp_path: Path, reference: Path) -> None:
    directory = tmp_path / run.CHECKPOINTS
    # At the 30th checkpoint, complete but not yet under its name; then 10 later, under its name, before the
    # one it replaces is deleted.
    assert start(tmp_path, 200, "file", "30").wait() == -signal.SIGKILL
    assert checkpoint.steps(directory) == [28, 29]
    assert len(list(directory.glob(".*.tmp"))) == 1
    assert start(tmp_path, 200, "directory", "10").wait() == -signal.SIGKILL
    assert checkpoint.steps(directory) == [37, 38, 39]
    assert not list(directory.glob(".*.tmp"))
    train(tmp_path, 200)
    assert_same_run(tmp_path, reference)


@pytest.mark.slow
def test_killed_many_times_at_random_instants(tmp_path: Path, reference: Path) -> None:
    rng = random.Random(1)
    for _ in range(15):
        kill_at_random(tmp_path, rng, longest=0.3)
    train(tmp_path, 200)
    assert_same_run(tmp_path, reference)


def test_interrupt_saves_and_then_takes_effect(tmp_path: Path, reference: Path) -> None:
    process = start(tmp_path, 200)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM
    assert checkpoint.steps(tmp_path / run.CHECKPOINTS)[-1] < 200
    train(tmp_path, 200)
    assert_same_run(tmp_path, reference)
