"""Runs as the tests of the evidence need them: made in a line, with the numbers that they should have."""

from saol_lib.training.config import RunConfig
from saol_lib.training.runs import Run


def make(values, arm="saol", metric="top1_saol_last", origin=None, status="finished", **fields):
    """One run for each value, seeds 0, 1, ...; with the best epoch 1 point above the last."""
    provenance = {"sources": "s", "data": "d", "seconds": 1800} | (origin or {})
    extra = {name: fields.pop(name) for name in ("method", "measure") if name in fields}
    identity = RunConfig(arm=arm, **fields).identity() | extra
    runs = []
    for seed, value in enumerate(values):
        config = identity | {"seed": seed}
        metrics = {metric: value, metric.replace("last", "best"): value + 1}
        runs.append(Run(config, metrics, [], provenance, status))
    return runs


def gap(values, **fields):
    return make(values, arm="gap_fc", metric="top1_gap_last", **fields)
