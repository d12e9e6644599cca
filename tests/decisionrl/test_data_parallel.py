"""Two processes with half of a batch each make the update of one process with all of it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from toy_data_parallel import train

from decisionrl import checkpoint, run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_processes_equal_one(tmp_path: Path) -> None:
    script = Path(__file__).with_name("toy_data_parallel.py")
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    ours = tmp_path / "two"
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(ours)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)

    reference, _ = train(tmp_path / "one", 6, accelerator=None)
    state = checkpoint.load(ours / run.CHECKPOINTS / "step-000000000006.safetensors")
    for name, weight in reference.policy.state_dict().items():
        torch.testing.assert_close(state["learner"]["policy"][name], weight, rtol=0, atol=1e-6)
    logs = [[json.loads(line) for line in (tmp_path / d / "metrics.jsonl").open()] for d in ("two", "one")]
    assert [line["step"] for line in logs[0]] == [1, 2, 3, 4, 5, 6]
    for line, expected in zip(*logs, strict=True):
        for name in ("loss", "final", "gradient_norm"):
            assert line[name] == pytest.approx(expected[name], abs=1e-6)
    assert logs[0][1]["eval/rank"] == 0.0  # the main process's
    with (
        pytest.warns(RuntimeWarning, match="processes 2 -> 1"),
        pytest.raises(checkpoint.CheckpointError, match="2 processes; this one has 1"),
    ):
        train(ours, 8, accelerator=None)


def test_one_process_with_an_accelerator_equals_none(tmp_path: Path) -> None:
    plain, _ = train(tmp_path / "plain", 3, accelerator=None)
    prepared, _ = train(tmp_path / "prepared", 3, accelerator=Accelerator(cpu=True))
    AcceleratorState._reset_state(reset_partial_state=True)
    for name, weight in plain.policy.state_dict().items():
        assert torch.equal(prepared.policy.state_dict()[name], weight)
