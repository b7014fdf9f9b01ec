"""The evidence: one JSON file a run, with provenance; checkpoints; files are written whole or not at all."""

import hashlib
import json
import logging
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
COMPUTING = ("layers.py", "cutmix.py", "losses.py", "attach.py", "streams.py", "networks", "data", "training")
LATER = {  # config fields that came after the first published runs: at these values they are not part of an id
    **dict.fromkeys(("image_size", "classes", "start"), None),
    **dict.fromkeys(("skip_damaged", "pretrained", "enlarge", "dilation"), False),
}
log = logging.getLogger("saol_lib")


class Run(NamedTuple):
    """A finished (or failed) run as its file tells it."""

    config: dict
    metrics: dict  # flat, in percent: top1_saol_last, top1_gap_last, top1_saol_best, ...
    epochs: list  # one dict an epoch: its mean losses, learning rate, and accuracies where it was evaluated
    provenance: dict
    status: str  # "finished" or "failed"
    error: str | None = None

    @property
    def id(self) -> str:
        return run_id(self.config)


def run_id(identity: dict) -> str:
    """The run's name: arm, seed and a hash of everything that can change a number."""
    counted = {name: value for name, value in identity.items() if name not in LATER or value != LATER[name]}
    text = json.dumps(counted, sort_keys=True)
    return f"{identity['arm']}-s{identity['seed']}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def started_from(config: dict) -> str | None:
    """What a run was fine-tuned from, the same for all seeds and arms of a stage: an arm, or "itself"; else None."""
    arm = re.sub(r"-s\d+-\w+$", "", config.get("start") or "")
    return "itself" if arm == config["arm"] else arm or None


def setting(config: dict) -> dict:
    """What makes runs comparable: a run's config with every field, and its start as `started_from` tells it."""
    return LATER | config | {"start": started_from(config)}


def write_whole(path: Path, data: bytes) -> None:
    """Write the file whole or not at all, whatever happens meanwhile; raises OSError with one sentence."""
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(
            f"{path.name} could not be written to {path.parent.name}/ ({error.strerror}); make room or choose another "
            "results folder, then start again: finished epochs are kept"
        ) from None


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"folder {folder} cannot be made ({error.strerror}); choose another results folder") from None


def write_json(path: Path, value: object) -> None:
    write_whole(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def save_run(results: Path, run: Run, folder: str = "runs") -> None:
    """folder: "runs", or "measures" for what is measured on a finished run: its config, and the "method"."""
    write_json(results / folder / f"{run.id}.json", {k: v for k, v in run._asdict().items() if v is not None})


def load_run(path: Path) -> Run:
    """One run's file; ValueError if it is damaged or not a run."""
    try:
        return Run(**json.loads(path.read_text()))
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path.name} is not a readable run ({error}); remove it and train again") from None


def load_runs(results: str | Path, folder: str = "runs") -> list[Run]:
    """The finished runs of a results folder, in the order of their names; failed ones enter no table."""
    runs = [load_run(path) for path in sorted((resolve(results) / folder).glob("*.json"))]
    return [run for run in runs if run.status == "finished"]


def resolve(results: str | Path) -> Path:
    """A results folder: a relative path is taken from the repository's root, whatever the working directory is."""
    path = Path(results).expanduser()
    return path if path.is_absolute() else ROOT / path


@cache
def provenance() -> dict:
    """What a number depends on besides its config: code, versions, processor."""
    library = Path(__file__).parents[1]
    places = [library / name for name in COMPUTING]
    files = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*.py")))]
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in files))
    packages = ("torch", "torchvision", "pytorchcv", "numpy", "scikit-learn", "pillow")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", "saol_lib")),
        "sources": sources.hexdigest()[:16],
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
    }


def processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


# --- checkpoints -----------------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, position: tuple[int, int], tensors: dict[str, Tensor], state: dict) -> None:
    """Write a checkpoint at (epoch, step), tensors first; the JSON with the checksum makes it valid. Two are kept."""
    name = f"{position[0]:05d}-{position[1]:07d}"
    data = safetensors.torch.save({k: v.detach().contiguous() for k, v in tensors.items()})
    state = state | {"run": folder.name, "position": position}
    write_whole(folder / f"{name}.safetensors", data)
    write_json(folder / f"{name}.json", state | {"sha256": _checksum(data, state)})
    remove_checkpoints(folder, sorted(path.stem for path in folder.glob("*-*.json") if path.stem <= name)[-2:])


def _checksum(data: bytes, state: dict) -> str:
    return hashlib.sha256(data + json.dumps(state, sort_keys=True).encode()).hexdigest()


def remove_checkpoints(folder: Path, kept: Sequence[str] = ()) -> None:
    """Remove all but those `kept`, and what a killed process left half written."""
    for path in [*folder.glob("*-*.json"), *folder.glob("*-*.safetensors"), *folder.glob(".*.part")]:
        if path.stem not in kept:
            path.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict] | None:
    """The newest whole checkpoint, or None. A damaged one, or another run's, is passed over with a warning."""
    for path in sorted(folder.glob("*-*.json"), reverse=True):
        try:
            state = json.loads(path.read_text())
            data = path.with_suffix(".safetensors").read_bytes()
            if state.pop("sha256") != _checksum(data, state):
                raise ValueError("its checksum does not match")
            if state["run"] != folder.name:
                raise ValueError(f"it is of {state['run']}")
            return safetensors.torch.load(data), state
        except (OSError, ValueError, LookupError, TypeError, AttributeError, safetensors.SafetensorError) as error:
            log.warning("checkpoint %s of %s is damaged (%s); the one before is used", path.stem, folder.name, error)
    return None
