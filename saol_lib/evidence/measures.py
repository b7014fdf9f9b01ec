"""What is measured on trained networks: a file each in `measures/`, with how it was measured.

Weights are not in git, and runs finish in several sessions: each measure stands for itself, so that tables and figures
are drawn from all of them, whoever's weights are here.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from saol_lib.training.files import LIBRARY
from saol_lib.training.runs import (  # what is private there is in the study's hash: it is renamed after the study
    Run,
    _code,
    load_runs,
    resolve,
    run_id,
    save_run,
)


def save_measure(
    run: Run,
    results: str | Path,
    measure: str,
    method: str,
    metrics: Mapping[str, float],
    how: Mapping[str, object],
    curve: Sequence[dict] = (),
) -> None:
    """Write what was measured on a run's network by a method.

    how: what else its numbers depend on, the count of images say; measures are compared where it is the same. curve:
    points of a curve, {name: number} each.
    """
    config = run.config | {"measure": measure, "method": method}
    provenance = run.provenance | {"measured": {**how, "sources": measuring_hash()}}
    measured = run._replace(config=config, metrics=dict(metrics), epochs=list(curve), provenance=provenance)
    save_run(resolve(results), measured, folder="measures")


def load_measures(results: str | Path, measure: str) -> Iterator[tuple[str, str, Run]]:
    """Every measure of one kind: the id of the run that it was taken on, the method, and what was written."""
    for run in load_runs(results, folder="measures"):
        config = dict(run.config)
        kind = config.pop("measure", None)
        method = config.pop("method", None)
        if kind == measure:
            yield run_id(config), method, run


@cache
def measuring_hash() -> str:
    """A hash of the code of `saol_lib.localization`, which measures; comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    for path in sorted((LIBRARY / "localization").glob("*.py")):
        digest.update(_code(path.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()[:16]
