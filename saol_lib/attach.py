"""SAOL on any convolutional classifier: `attach_saol`, and the network it gives, `SAOLNet`."""

import difflib
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models.feature_extraction import NodePathTracer, create_feature_extractor

from saol_lib.layers import GAPFC, SAOL, Outputs, SaolOptions
from saol_lib.streams import seeded

HEADS = ("gap", "saol")
_POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_POOL_CALLS = (F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, "mean")


class SAOLNet(nn.Module):
    """A backbone with a GAP-FC layer, a SAOL, or both.

    body  images to a dict: the blocks' maps "0", "1", ... (shallow to deep), and "logits" where the backbone's own
          classifier serves as the GAP-FC layer
    gap   a new GAP-FC layer on the last map, or None
    saol  a SAOL on the maps, or None
    `forward(images, mask=None)`: (B, C, H, W) to `Outputs`; `mask` as for `SAOL`.
    """

    def __init__(self, body: nn.Module, channels: int, gap: nn.Module | None, saol: SAOL | None) -> None:
        super().__init__()
        self.body, self.gap, self.saol, self.channels = body, gap, saol, channels

    def forward(self, images: Tensor, mask: bool | None = None) -> Outputs:
        return self.look(images, mask)[0]

    def look(self, images: Tensor, mask: bool | None = None) -> tuple[Outputs, Tensor]:
        """`forward`, and beside it the last map X_L (B, C, H_L, W_L), which CAM reads."""
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images have shape {tuple(images.shape)}; expected (B, {self.channels}, H, W)")
        size = self.saol.output_size if self.saol else None
        if size and (size[0] > images.shape[2] or size[1] > images.shape[3]):
            raise ValueError(f"output_size={size} is larger than the images, {tuple(images.shape[2:])}")
        found = self.body(images)
        logits = found.pop("logits", None)
        maps = [found[name] for name in sorted(found, key=int)]
        outputs = self.saol(maps, mask) if self.saol else Outputs()
        return outputs._replace(gap_logits=self.gap(maps[-1]) if self.gap else logits), maps[-1]


def attach_saol(
    model: nn.Module,
    nodes: Sequence[str],
    num_classes: int,
    *,
    heads: Sequence[str] = HEADS,
    seed: int | None = None,
    options: SaolOptions | None = None,
    **changes,
) -> SAOLNet:
    """SAOL on any convolutional classifier that torch.fx can trace (torchvision, timm, pytorchcv, your own).

    nodes: graph nodes or modules whose outputs feed SAOL, shallow to deep; the last one must be what the network's
    global average pooling pools. The network's own classifier stays as the GAP-FC layer if it gives `num_classes`,
    else a new linear layer takes its place. The modules are shared with `model`, not copied.
    options: a `SaolOptions`; changes: single fields of it, by name.
    Raises ValueError for unknown or repeated nodes, and where X_L is not what is pooled.
    """
    if not heads or not set(heads) <= set(HEADS):
        raise ValueError(f"heads={heads!r} must name one or both of {HEADS}; build_model also takes ('abn',)")
    if isinstance(model, SAOLNet):
        raise ValueError("this network has its output layers already; attach SAOL to the plain backbone")
    _check_nodes(model, nodes)
    body, own = _extract(model, nodes, own="gap" in heads), "gap" in heads
    shapes = _shapes(body)
    if own and shapes.pop("logits") != (num_classes,):
        body, own = _extract(model, nodes, own=False), False
    for i, node in enumerate(nodes):
        if len(shapes[str(i)]) != 3:
            raise ValueError(f"node {node!r} gives {shapes[str(i)]} for one image; expected a map (channels, H, W)")
    channels = [shapes[str(i)][0] for i in range(len(nodes))]
    with seeded(seed, "head"):
        saol = SAOL(channels, num_classes, options, **changes) if "saol" in heads else None
    with seeded(seed, "gap"):  # an own stream: the same first weights whatever SAOL's options are
        gap = GAPFC(channels[-1], num_classes) if "gap" in heads and not own else None
    return SAOLNet(body, _image_channels(model), gap, saol)


def _extract(model: nn.Module, nodes: Sequence[str], own: bool) -> nn.Module:
    """Images to a dict of maps "0", "1", ... and, with `own`, the classifier's "logits"; any image size is taken."""
    maps = {node: str(i) for i, node in enumerate(nodes)}
    wanted = {mode: maps | ({_trace(model, mode)[-1][0]: "logits"} if own else {}) for mode in (True, False)}
    body = create_feature_extractor(
        model,
        train_return_nodes=wanted[True],
        eval_return_nodes=wanted[False],
        tracer_kwargs={"leaf_modules": [nn.Conv2d]},
        suppress_diff_warning=True,
    )
    pool = _global_pool(model)[1]
    if own and pool.op == "call_module" and isinstance(body.get_submodule(pool.target), nn.AvgPool2d):
        body.set_submodule(pool.target, nn.AdaptiveAvgPool2d(1))  # a fixed window would tie it to one image size
    return body


def _trace(model: nn.Module, training: bool) -> list[tuple[str, fx.Node]]:
    """The graph's operations in order, each with its public name."""
    was, tracer = model.training, NodePathTracer(leaf_modules=[nn.Conv2d])
    try:
        graph = tracer.trace(model.train(training))
    except Exception as error:
        raise ValueError(f"torch.fx cannot trace {type(model).__name__}: {error}") from error
    finally:
        model.train(was)
    names = tracer.node_to_qualname
    return [(names[node], node) for node in graph.nodes if node in names]


def _global_pool(model: nn.Module) -> tuple[str, fx.Node]:
    """The name of what the last pooling (or mean) of the network pools, and the pooling itself."""
    trace = _trace(model, training=False)
    names = {node: name for name, node in trace}
    for _, node in reversed(trace):
        is_module = node.op == "call_module"
        is_pool = isinstance(model.get_submodule(node.target), _POOLS) if is_module else node.target in _POOL_CALLS
        if is_pool and node.args and node.args[0] in names:
            return names[node.args[0]], node
    raise ValueError("no global average pooling was found in this network, so there is no X_L to attach SAOL to")


def _check_nodes(model: nn.Module, nodes: Sequence[str]) -> None:
    if isinstance(nodes, str):
        raise ValueError(f"nodes={nodes!r} must be a list of names")
    names = [name for name, _ in _trace(model, training=False)]
    found = []
    for node in nodes:
        inside = [name for name in names if name == node or name.startswith(f"{node}.")]
        if not inside:
            near = difflib.get_close_matches(node, {n for name in names for n in _prefixes(name)}, n=3, cutoff=0.3)
            near = ", ".join(near or names[-3:])
            raise ValueError(f"node {node!r} is not in {type(model).__name__}; the nearest are {near}")
        found.append(inside[-1])
    if not found or len(set(found)) < len(found):
        raise ValueError(f"nodes={list(nodes)}: name at least one block, and none twice")
    pooled, _ = _global_pool(model)
    if found[-1] != pooled:
        raise ValueError(f"the last node is {nodes[-1]!r}, but the network pools {pooled!r}: end the nodes with that")


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _shapes(body: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of each output for one image of 224x224, without computing anything."""
    with fake_image(body) as image:
        return {name: tuple(tensor.shape[1:]) for name, tensor in body(image).items()}


@contextmanager
def fake_image(model: nn.Module, size: tuple[int, int] = (224, 224)):
    """One image (1, C, H, W) without content: inside, the model is in evaluation mode and only shapes are computed."""
    was, device = model.training, next(model.parameters()).device
    fake = nullcontext() if device.type == "meta" else FakeTensorMode(allow_non_fake_inputs=True)
    with fake, torch.no_grad():
        model.eval()
        yield torch.empty(1, _image_channels(model), *size, device=device)
    model.train(was)


def _image_channels(model: nn.Module) -> int:
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
