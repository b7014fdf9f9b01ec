"""The evidence: one JSON file a run, named after what can change its numbers, with its provenance."""

import ast
import hashlib
import json
import math
import platform
import re
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

from saol_lib.data import load
from saol_lib.training import files
from saol_lib.training.files import LIBRARY, RESULTS, ROOT, make_folder, resolve, write_json, write_whole  # noqa: F401

METHOD = ("options.py", "layers.py", "cutmix.py", "losses.py", "attach.py", "finding.py", "streams.py")
COMPUTING = (*METHOD, "networks", "data", "training")
SCHEDULING = ("__main__.py", "files.py", "profiles.py", "study.py", "workers.py")  # of training: no number is from them
PACKAGES = ("torch", "torchvision", "pytorchcv", "numpy", "scikit-learn", "pillow")
LATER = {  # config fields that came after the first published runs: at these values they are not part of an id
    **dict.fromkeys(("image_size", "classes", "start"), None),
    **dict.fromkeys(("skip_damaged", "pretrained", "enlarge", "dilation"), False),
    **dict.fromkeys(("weights_content", "clip_norm"), None),
    **{"accumulate": 1, "warmup_epochs": 0, "milestones": [], "gamma": 0.1, "decay": "kernels"},
    **{"processes": 1, "sync_batch_norm": True},  # in an identity where they change numbers
}


class OtherData(ValueError):
    """A stored run or checkpoint was computed from other data than those given now."""


class Run(NamedTuple):
    """A finished (or failed) run as its file tells it."""

    config: dict
    metrics: dict  # flat, in percent: top1_saol_last, top1_gap_last, ece_saol_last, top1_saol_best, ...
    epochs: list  # one dict an epoch: its mean losses, learning rate, and scores where it was evaluated
    provenance: dict
    status: str  # "finished" or "failed"
    error: str | None = None

    @property
    def id(self) -> str:
        return run_id(self.config)


# --- names -----------------------------------------------------------------------------------------------------------


def run_id(identity: dict) -> str:
    """The run's name: arm, seed and a hash of everything that can change a number."""
    counted = {}
    for name, value in identity.items():
        if name not in LATER or value != LATER[name]:
            counted[name] = value

    text = json.dumps(counted, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{identity['arm']}-s{identity['seed']}-{digest[:10]}"


def started_from(config: dict) -> str | None:
    """What a run was fine-tuned from, the same for all seeds and arms of a stage: an arm, or "itself"; else None."""
    start = config.get("start")
    if not start:
        return None
    arm = re.sub(r"-s\d+-\w+$", "", start)
    return "itself" if arm == config["arm"] else arm


def setting(config: dict) -> dict:
    """What makes runs comparable: a run's config with every field, and its start as `started_from` tells it."""
    return LATER | config | {"start": started_from(config)}


# --- files -----------------------------------------------------------------------------------------------------------


def run_path(results: Path, name: str, folder: str = "runs") -> Path:
    """The file of a run, by its id."""
    return results / folder / f"{name}.json"


def save_run(results: Path, run: Run, folder: str = "runs") -> None:
    """Write a run's file. folder: "runs", or "measures" for what is measured on a run: its config and the "method"."""
    told = {name: value for name, value in run._asdict().items() if value is not None}
    files.write_json(run_path(results, run.id, folder), told)


def load_run(path: Path) -> Run:
    """One run's file; ValueError with one sentence if it is damaged, no run, or not the run that its name says."""
    try:
        run = Run(**json.loads(path.read_text()))
        fault = _fault(run)
    except (ValueError, TypeError, OSError) as error:
        run, fault = None, str(error)

    if fault:
        raise ValueError(f"{path.name} is not a readable run ({fault}); remove it and train again")
    if run.id != path.stem:
        raise ValueError(
            f"{path.name} holds the config of {run.id}, so it was edited or renamed; restore it, or remove it "
            "and train again"
        )
    return run


def _fault(run: Run) -> str | None:
    """What is wrong with the contents of a run's file, or None."""
    config = run.config
    if not isinstance(config, dict) or not {"arm", "seed"} <= config.keys():
        return "its config has no arm and seed"
    if not isinstance(run.metrics, dict) or not isinstance(run.provenance, dict):
        return "its metrics and provenance must be tables of names and values"
    if not isinstance(run.epochs, list):
        return "its epochs must be a list"
    if run.status not in ("finished", "failed"):
        return f"its status is {run.status!r}, neither finished nor failed"

    for name, value in run.metrics.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            return f"its metric {name} is {value!r}, not a number"
    return None


def load_runs(results: str | Path, folder: str = "runs") -> list[Run]:
    """The finished runs of a results folder, in the order of their names; failed ones enter no table.

    An empty list where there is no such folder. Raises ValueError for a file that is damaged or no run.
    """
    paths = sorted((resolve(results) / folder).glob("*.json"))
    runs = [load_run(path) for path in paths]
    return [run for run in runs if run.status == "finished"]


def load_finished(results: Path, name: str) -> Run | None:
    """The run of this id if it is there and finished, else None."""
    path = run_path(results, name)
    if not path.exists():
        return None
    run = load_run(path)
    return run if run.status == "finished" else None


def finished_run(config, results: Path) -> Run | None:
    """The finished run of a `RunConfig` in this folder, or None; OtherData where the data given now are others.

    Data that are not given (see `data_are_given`) cannot be compared: the run is returned as it was committed.
    """
    run = load_finished(results, run_id(config.identity()))
    if run and data_are_given(config):
        present = load(config.dataset, config.data_dir, **config.data_options)
        check_data(run.id, run.provenance.get("data"), present.fingerprint)
    return run


def data_are_given(config) -> bool:
    """Whether a `RunConfig` names a folder of data, or a data set that needs none."""
    return bool(config.data_dir) or config.dataset == "digits"


def check_data(name: str, stored: str | None, present: str) -> None:
    """The one place where fingerprints of data meet: OtherData if a run was computed from others than those given.

    stored: None where an old file does not tell it.
    """
    if stored not in (None, present):
        raise OtherData(
            f"run {name} was computed from other data (fingerprint {stored}) than those given now ({present}); "
            "choose another results folder for these data, or give the data of that run"
        )


# --- provenance ------------------------------------------------------------------------------------------------------


@cache
def provenance() -> dict:
    """What a number depends on besides its config: code, versions, processor."""
    changes = _git("status", "--porcelain", "--", "saol_lib")
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(changes),
        "sources": source_hash(),
        "versions": {"python": platform.python_version()} | versions,
    }


@cache
def source_hash() -> str:
    """A hash of the code that computes numbers: not of what plans and starts runs, explorer, evidence or figures."""
    digest = hashlib.sha256()
    for path in _computing():
        digest.update(_code(path.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()[:16]


def _computing() -> list[Path]:
    """The files of COMPUTING, in order."""
    found = []
    for name in COMPUTING:
        place = LIBRARY / name
        found += [place] if place.is_file() else sorted(place.rglob("*.py"))
    scheduling = [LIBRARY / "training" / name for name in SCHEDULING]
    return [path for path in found if path not in scheduling]


def _code(source: str) -> str:
    """Python source as the interpreter reads it: without comments, docstrings and layout, which change no number."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def processor(device: torch.device) -> str:
    """The name of the GPU or CPU that computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)

    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def _git(*words: str) -> str:
    """What git says about the repository; empty where there is none."""
    if files.REPOSITORY is None:
        return ""
    try:
        done = subprocess.run(["git", *words], cwd=files.REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
