"""Checkpoints: tensors beside a JSON with their checksum, so that a damaged one is never believed."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
from filelock import FileLock, Timeout
from torch import Tensor

from saol_lib.training import files
from saol_lib.training.runs import check_data, source_hash

log = logging.getLogger("saol_lib")


def save_checkpoint(folder: Path, position: tuple[int, int], tensors: dict[str, Tensor], state: dict) -> None:
    """Write a checkpoint at (epoch, step), tensors first: the JSON with the checksum makes it valid. Two are kept.

    state: what else is needed to go on; "data" in it is the fingerprint of the data that were trained on.
    """
    name = f"{position[0]:05d}-{position[1]:07d}"
    plain = {key: value.detach().contiguous() for key, value in tensors.items()}
    data = safetensors.torch.save(plain)

    state = state | {"run": folder.name, "position": position, "sources": source_hash()}
    files.write_whole(folder / f"{name}.safetensors", data)
    files.write_json(folder / f"{name}.json", state | {"sha256": _checksum(data, state)})

    names = sorted(path.stem for path in folder.glob("*-*.json"))
    earlier = [other for other in names if other <= name]
    remove_checkpoints(folder, kept=earlier[-2:])


def load_checkpoint(folder: Path, data: str | None = None) -> tuple[dict[str, Tensor], dict] | None:
    """The newest whole checkpoint as (tensors, state), or None. A damaged one is passed over with a warning.

    data: the fingerprint of the data to go on with; OtherData where the checkpoint was trained on others.
    """
    for path in sorted(folder.glob("*-*.json"), reverse=True):
        try:
            tensors, state = _read(path)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, safetensors.SafetensorError) as error:
            log.warning("checkpoint %s of %s is damaged (%s); the one before is used", path.stem, folder.name, error)
            continue

        if data is not None:
            check_data(folder.name, state.get("data"), data)
        return tensors, state
    return None


def resume(folder: Path, data: str) -> tuple[dict[str, Tensor], dict] | None:
    """`load_checkpoint` to train on from; where other sources of saol_lib wrote it, a warning says so."""
    found = load_checkpoint(folder, data)
    if found:
        _warn_of_other_sources(folder.name, found[1])
    return found


def _read(path: Path) -> tuple[dict[str, Tensor], dict]:
    state = json.loads(path.read_text())
    data = path.with_suffix(".safetensors").read_bytes()
    if state.pop("sha256") != _checksum(data, state):
        raise ValueError("its checksum does not match")
    if state["run"] != path.parent.name:
        raise ValueError(f"it is of {state['run']}")
    return safetensors.torch.load(data), state


def _checksum(data: bytes, state: dict) -> str:
    text = json.dumps(state, sort_keys=True)
    return hashlib.sha256(data + text.encode()).hexdigest()


def _warn_of_other_sources(name: str, state: dict) -> None:
    wrote, present = state.get("sources"), source_hash()
    if wrote not in (None, present):
        log.warning(
            "run %s goes on from a checkpoint of other sources of saol_lib (%s; these are %s): its file will name "
            "these, though both trained it; for numbers of one kind train it anew in another results folder",
            name,
            wrote,
            present,
        )


def remove_checkpoints(folder: Path, kept: Sequence[str] = ()) -> None:
    """Remove all but those `kept`, and what a killed process left half written."""
    found = [*folder.glob("*-*.json"), *folder.glob("*-*.safetensors"), *folder.glob(".*.part")]
    for path in found:
        if path.stem not in kept:
            path.unlink(missing_ok=True)


def lock(folder: Path) -> FileLock:
    """The lock of a run's checkpoint folder: whoever trains the run holds it."""
    return FileLock(folder / "lock", timeout=0)


def in_training(results: Path) -> list[str]:
    """The ids of the runs of a results folder that some process trains at this moment."""
    found = []
    for path in sorted(results.glob("checkpoints/*/lock")):
        try:
            with lock(path.parent):
                pass
        except Timeout:
            found.append(path.parent.name)
    return found
