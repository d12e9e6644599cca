"""The results format: round trips, gaps, validation, atomic writes, hashes."""

import dataclasses
import enum
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from decisionrl.evaluation import Row, config_hash, read_results, write_results
from decisionrl.evaluation.results import ResultsError, relative_gap, without_nonfinite, write_json
from decisionrl.version import code_version

FIELDS = (
    "suite case method seed metric value low high n reference reference_kind gap seconds device config_hash version"
)


def row(**changes):
    known = {
        "suite": "toy",
        "case": "one_store",
        "method": "mlp",
        "seed": 0,
        "metric": "cost",
        "value": 4.4,
        "low": 4.2,
        "high": 4.6,
        "n": 100,
        "reference": 4.0,
        "reference_kind": "exact",
    }
    return Row.build(**{**known, **changes})


def test_the_fields_are_the_documented_ones():
    assert [field.name for field in dataclasses.fields(Row)] == FIELDS.split()


def test_gap_is_relative_and_positive_is_worse():
    assert row().gap == pytest.approx(0.1)
    assert row(better="higher").gap == pytest.approx(-0.1)
    assert relative_gap(-110.0, -100.0, better="higher") == pytest.approx(0.1)
    assert relative_gap(-110.0, -100.0, better="lower") == pytest.approx(-0.1)
    assert relative_gap(3.0, 0.0, better="lower") is None
    assert row(reference=None, reference_kind="none").gap is None


@pytest.mark.parametrize("changes", [{"reference": None}, {"reference_kind": "none"}, {"low": 5.0, "high": 4.0}])
def test_build_refuses_rows_that_contradict_themselves(changes):
    with pytest.raises(ValueError, match="one_store/mlp cost"):
        row(**changes)


def test_round_trip(tmp_path):
    rows = [row(), row(seed=1, low=None, high=None, n=None, reference=None, reference_kind="none")]
    assert write_results(tmp_path, rows) == []
    assert read_results(tmp_path) == rows
    assert read_results(tmp_path / "results.json") == rows


def test_numbers_that_are_not_finite_become_null_and_are_named(tmp_path):
    messages = write_results(tmp_path, [row(value=math.nan, high=math.inf)])
    assert messages == [
        "one_store/mlp seed 0: value of 'cost' is nan, not a finite number",
        "one_store/mlp seed 0: high of 'cost' is inf, not a finite number",
        "one_store/mlp seed 0: gap of 'cost' is nan, not a finite number",
    ]
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    (stored,) = read_results(tmp_path)
    assert (stored.value, stored.low, stored.high, stored.gap) == (None, 4.2, None, None)
    assert without_nonfinite(row()) == (row(), [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "4"}, "field 'value': expected a number or null, got '4'"),
        ({"value": True}, "field 'value': expected a number"),
        ({"seed": 0.5}, "field 'seed': expected a whole number"),
        ({"case": ""}, "field 'case': expected a non-empty string"),
        ({"reference_kind": "guess"}, "field 'reference_kind': expected one of exact, bound"),
        ({"low": 9.0}, "field 'low': 9.0 is above 'high'"),
        ({"extra": 1}, "field 'extra' is not one of"),
    ],
)
def test_errors_name_file_row_and_field(tmp_path, change, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([dataclasses.asdict(row()), {**dataclasses.asdict(row()), **change}]))
    with pytest.raises(ResultsError) as error:
        read_results(tmp_path)
    assert str(error.value).startswith(f"{path}: row 1: ")
    assert message in str(error.value)


def test_missing_fields_and_broken_files_are_named(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(ResultsError, match=r"results\.json: No such file"):
        read_results(path)
    path.write_text('[{"suite": "toy"}]')
    with pytest.raises(ResultsError, match="row 0: field 'case' is missing"):
        read_results(path)
    path.write_text('[{"value": NaN}]')
    with pytest.raises(ResultsError, match="NaN is not a number"):
        read_results(path)
    path.write_text('{"a": 1}')
    with pytest.raises(ResultsError, match="expected a list of rows, got dict"):
        read_results(path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", [math.nan])
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.json"
    script = (
        "import sys; from pathlib import Path; from decisionrl.evaluation.results import write_json\n"
        "for i in range(10**9): write_json(Path(sys.argv[1]), [i] * 20000)"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)])
    try:
        while not path.exists():
            time.sleep(0.02)
            assert writer.poll() is None
        for _ in range(50):
            assert len(set(json.loads(path.read_text()))) == 1
            time.sleep(0.005)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    content = json.loads(path.read_text())
    assert len(content) == 20000
    assert len(set(content)) == 1


@dataclass(frozen=True)
class Config:
    width: int = 32
    rates: tuple[float, ...] = (0.1, 0.2)
    data: Path = Path("a.csv")


class Mode(enum.Enum):
    LOST = 1


def test_config_hash_depends_on_content_only():
    first = config_hash({"a": 1, "b": Config(), "c": np.array([1.0, 2.0]), "d": {Mode.LOST: {2, 1}}})
    assert first == config_hash({"d": {Mode.LOST: {1, 2}}, "c": [1.0, 2.0], "b": Config(), "a": np.int64(1)})
    assert first != config_hash({"a": 1, "b": Config(width=33), "c": [1.0, 2.0], "d": {Mode.LOST: {1, 2}}})
    assert len(first) == 12
    assert int(first, 16) >= 0
    assert config_hash({"f": math.sin}) != config_hash({"f": math.cos})
    with pytest.raises(TypeError, match=r"config\['a'\]\[1\] is a object"):
        config_hash({"a": [1, object()]})


def test_version_names_the_package():
    assert code_version().startswith("0.")
