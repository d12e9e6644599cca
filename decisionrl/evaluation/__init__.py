"""Evidence: the results format, statistics and reports."""

from decisionrl.evaluation.results import Row, config_hash, read_results, write_results
from decisionrl.evaluation.series import (
    Curve,
    Edge,
    Network,
    Node,
    SamplePath,
    Series,
    read_series,
    write_series,
)
from decisionrl.evaluation.statistics import (
    Estimate,
    batch_means,
    bootstrap_mean,
    control_variate,
    interquartile_mean,
    paired_difference,
)

__all__ = [
    "Curve",
    "Edge",
    "Estimate",
    "Network",
    "Node",
    "Row",
    "SamplePath",
    "Series",
    "batch_means",
    "bootstrap_mean",
    "config_hash",
    "control_variate",
    "interquartile_mean",
    "paired_difference",
    "read_results",
    "read_series",
    "write_results",
    "write_series",
]
