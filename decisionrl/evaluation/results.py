"""The results format: one `Row` per measured number, kept as a JSON list in `results.json`.

A row says what was measured (`suite, case, method, seed, metric`), what came out (`value` with the 95 %
interval `low … high` and the sample count `n`), what it is compared with (`reference` and its kind, and the
relative `gap`, positive is worse), and under which circumstances (`seconds, device, config_hash, version`).
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from decisionrl.files import replacing

ReferenceKind = Literal["exact", "bound", "oracle", "peer", "paper", "none"]
"""What a reference is: a proven optimum, a bound on it, a policy that knows the future, another library's
result, a published number, or nothing."""

Better = Literal["lower", "higher"]

RESULTS_FILE = "results.json"


class ResultsError(ValueError):
    """A results file that cannot be read; the message names the file, the row and the field."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number.

    `low` and `high` bound the 95 % interval of `value`; `gap` is `(value - reference) / |reference|`, with
    the sign turned where more is better, so that positive is always worse. None stands for "not known".
    """

    suite: str
    case: str
    method: str
    seed: int
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    reference: float | None
    reference_kind: ReferenceKind
    gap: float | None
    seconds: float | None
    device: str | None
    config_hash: str | None
    version: str | None

    @classmethod
    def build(
        cls,
        *,
        suite: str,
        case: str,
        method: str,
        seed: int,
        metric: str,
        value: float | None,
        low: float | None = None,
        high: float | None = None,
        n: int | None = None,
        reference: float | None = None,
        reference_kind: ReferenceKind = "none",
        better: Better = "lower",
        seconds: float | None = None,
        device: str | None = None,
        config_hash: str | None = None,
        version: str | None = None,
    ) -> Row:
        """A row with its gap worked out from `value`, `reference` and which direction is better.

        Raises:
            ValueError: a reference without a kind, a kind without a reference, or `low` above `high`.
        """
        if (reference is None) != (reference_kind == "none"):
            raise ValueError(
                f"{case}/{method} {metric}: reference={reference!r} does not go with "
                f"reference_kind={reference_kind!r}; give both, or neither"
            )
        if low is not None and high is not None and low > high:
            raise ValueError(f"{case}/{method} {metric}: low={low!r} is above high={high!r}")
        return cls(
            suite=suite,
            case=case,
            method=method,
            seed=seed,
            metric=metric,
            value=value,
            low=low,
            high=high,
            n=n,
            reference=reference,
            reference_kind=reference_kind,
            gap=relative_gap(value, reference, better=better),
            seconds=seconds,
            device=device,
            config_hash=config_hash,
            version=version,
        )


def relative_gap(value: float | None, reference: float | None, *, better: Better) -> float | None:
    """`(value - reference) / |reference|`, negated where higher is better; None if not defined."""
    if value is None or reference is None or reference == 0:
        return None
    excess = (value - reference) / abs(reference)
    return excess if better == "lower" else 0.0 - excess


def without_nonfinite(row: Row) -> tuple[Row, list[str]]:
    """The row with every NaN and infinity replaced by None, and one message for each of them."""
    broken = {
        field.name: value
        for field in dataclasses.fields(row)
        if isinstance(value := getattr(row, field.name), float) and not math.isfinite(value)
    }
    messages = [
        f"{row.case}/{row.method} seed {row.seed}: {name} of {row.metric!r} is {value}, not a finite number"
        for name, value in broken.items()
    ]
    return dataclasses.replace(row, **cast(dict[str, Any], dict.fromkeys(broken))), messages


def write_results(directory: Path, rows: Iterable[Row]) -> list[str]:
    """Write `directory/results.json` in one atomic step.

    NaN and infinity are never written: they become null, and the returned messages name each of them.
    """
    cleaned = [without_nonfinite(row) for row in rows]
    write_json(directory / RESULTS_FILE, [dataclasses.asdict(row) for row, _ in cleaned])
    return [message for _, messages in cleaned for message in messages]


def read_results(path: Path) -> list[Row]:
    """The rows of a results file, or of `results.json` in a directory.

    Raises:
        ResultsError: a missing file, not JSON, or a row that is not one; names file, row and field.
    """
    path = path / RESULTS_FILE if path.is_dir() else path
    content = read_json(path)
    if not isinstance(content, list):
        raise ResultsError(f"{path}: expected a list of rows, got {type(content).__name__}")
    return [parse_row(row, where=f"{path}: row {index}") for index, row in enumerate(content)]


def parse_row(content: object, *, where: str) -> Row:
    """A validated row from its JSON object; `where` opens every error message."""
    if not isinstance(content, Mapping):
        raise ResultsError(f"{where}: expected an object, got {type(content).__name__}")
    names = [field.name for field in dataclasses.fields(Row)]
    if missing := [name for name in names if name not in content]:
        raise ResultsError(f"{where}: field {missing[0]!r} is missing")
    if unknown := [name for name in content if name not in names]:
        raise ResultsError(f"{where}: field {unknown[0]!r} is not one of {', '.join(names)}")
    for name in names:
        _check_field(name, content[name], where)
    if content["low"] is not None and content["high"] is not None and content["low"] > content["high"]:
        raise ResultsError(f"{where}: field 'low': {content['low']!r} is above 'high' {content['high']!r}")
    return Row(**cast(dict[str, Any], dict(content)))


_TEXT = {"suite", "case", "method", "metric"}
_OPTIONAL_TEXT = {"device", "config_hash", "version"}


def _check_field(name: str, value: object, where: str) -> None:
    """Raise ResultsError unless `value` is what field `name` holds."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name in _TEXT:
        valid, expected = isinstance(value, str) and value != "", "a non-empty string"
    elif name in _OPTIONAL_TEXT:
        valid, expected = value is None or isinstance(value, str), "a string or null"
    elif name == "seed":
        valid, expected = whole, "a whole number"
    elif name == "n":
        valid, expected = value is None or whole, "a whole number or null"
    elif name == "reference_kind":
        kinds = get_args(ReferenceKind)
        valid, expected = value in kinds, f"one of {', '.join(kinds)}"
    else:
        valid, expected = value is None or whole or isinstance(value, float), "a number or null"
    if not valid:
        raise ResultsError(f"{where}: field {name!r}: expected {expected}, got {value!r}")


def write_json(path: Path, content: object) -> None:
    """Write JSON so that `path` always holds either its old or its new content, whole.

    Raises:
        ValueError: the content holds NaN or infinity.
    """
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write bytes so that `path` always holds either its old or its new content, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read_json(path: Path) -> Any:
    """JSON from a file.

    Raises:
        ResultsError: the file cannot be read, is not JSON, or holds NaN or infinity; names the file.
    """

    def reject(constant: str) -> None:
        raise ValueError(f"{constant} is not a number that may be stored")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=reject)
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ResultsError(f"{path}: not valid JSON: {error}") from error


def config_hash(config: Mapping[str, object]) -> str:
    """Twelve hexadecimal digits that depend on the content of a configuration, not on the order of its keys.

    Dataclasses, paths, enums, numpy values and nested containers are taken by content.

    Raises:
        TypeError: a value that has no canonical form; names its key.
    """
    canonical = json.dumps(_canonical(config, "config"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _canonical(value: object, name: str) -> object:
    """`value` as JSON content; `name` says where it stands, for the error."""
    if isinstance(value, enum.Enum):
        return [type(value).__qualname__, value.name]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        content = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return [type(value).__qualname__, _canonical(content, name)]
    if isinstance(value, Mapping):
        return {str(key): _canonical(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_canonical(item, name) for item in value), key=json.dumps)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_canonical(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(f"{name} is a {type(value).__name__}, which has no canonical form for a configuration hash")
