"""Networks: SAOL on backbones by name (`build_model`) or on any convolutional classifier (`attach_saol`)."""

import difflib
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import NodePathTracer, create_feature_extractor

from saol_lib.backbones import build_backbone
from saol_lib.data import stream_seed
from saol_lib.layers import GAPFC, SAOL, Outputs
from saol_lib.peers import ABN

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


def build_model(
    backbone: str,
    num_classes: int,
    *,
    heads: Sequence[str] = HEADS,
    blocks: int = 3,
    separable: bool = False,
    output_size: int | tuple[int, int] | None = None,
    pretrained: bool = False,
    weights: dict[str, Tensor] | None = None,
    seed: int | None = None,
    **options,
) -> SAOLNet | ABN:
    """A backbone by name (see `saol_lib.backbones`) with the output layers `heads` ("gap", "saol"); ("abn",): an ABN.

    pretrained: torchvision's ImageNet weights; weights: those of a trained backbone with `num_classes`, by name.
    blocks: how many of the last stages feed the spatial logits; options: those of `SAOL`.
    seed: backbone and SAOL are drawn from two streams of it, so that networks of one seed share their backbone's
    first weights whatever their heads are; None: torch's global generator.
    Raises ValueError for unknown names and options and for more blocks than there are.
    """
    with _seeded(seed, "backbone"):
        network, nodes = build_backbone(backbone, num_classes, pretrained)
    if not 1 <= blocks <= len(nodes):
        raise ValueError(f"blocks={blocks}: {backbone} has {len(nodes)} stages; choose 1 to {len(nodes)}")
    if weights is not None:
        load_weights(network, weights, f"the {backbone} to start from")
    if tuple(heads) == ("abn",):
        with _seeded(seed, "head"):
            return ABN(network, nodes, num_classes)
    options |= {"separable": separable, "output_size": output_size}
    return attach_saol(network, nodes[-blocks:], num_classes, heads=heads, seed=seed, **options)


def attach_saol(
    model: nn.Module,
    nodes: Sequence[str],
    num_classes: int,
    *,
    heads: Sequence[str] = HEADS,
    seed: int | None = None,
    **options,
) -> SAOLNet:
    """SAOL on any convolutional classifier that torch.fx can trace (torchvision, timm, pytorchcv, your own).

    nodes: graph nodes or modules whose outputs feed SAOL, shallow to deep; the last one must be what the network's
    global average pooling pools. The network's own classifier stays as the GAP-FC layer if it gives `num_classes`,
    else a new linear layer takes its place. The modules are shared with `model`, not copied.
    options: those of `SAOL`. Raises ValueError for unknown or repeated nodes, and where X_L is not what is pooled.
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
    with _seeded(seed, "head"):
        saol = SAOL(channels, num_classes, **options) if "saol" in heads else None
    with _seeded(seed, "gap"):  # an own stream: the same first weights whatever SAOL's options are
        gap = GAPFC(channels[-1], num_classes) if "gap" in heads and not own else None
    return SAOLNet(body, _image_channels(model), gap, saol)


def _extract(model: nn.Module, nodes: Sequence[str], own: bool) -> nn.Module:
    """Images to a dict of maps "0", "1", ... and, with `own`, the classifier's "logits"; any image size is taken."""
    maps = {node: str(i) for i, node in enumerate(nodes)}
    wanted = {mode: maps | ({_trace(model, mode)[-1][0]: "logits"} if own else {}) for mode in (True, False)}
    body = create_feature_extractor(
        model, train_return_nodes=wanted[True], eval_return_nodes=wanted[False], suppress_diff_warning=True
    )
    pool = _global_pool(model)[1]
    if own and pool.op == "call_module" and isinstance(body.get_submodule(pool.target), nn.AvgPool2d):
        body.set_submodule(pool.target, nn.AdaptiveAvgPool2d(1))  # a fixed window would tie it to one image size
    return body


def _trace(model: nn.Module, training: bool) -> list[tuple[str, fx.Node]]:
    """The graph's operations in order, each with its public name."""
    was, tracer = model.training, NodePathTracer()
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
    with _fake_image(body) as image:
        return {name: tuple(tensor.shape[1:]) for name, tensor in body(image).items()}


@contextmanager
def _fake_image(model: nn.Module, size: tuple[int, int] = (224, 224)):
    """One image (1, C, H, W) without content: inside, the model is in evaluation mode and only shapes are computed."""
    was, device = model.training, next(model.parameters()).device
    fake = nullcontext() if device.type == "meta" else FakeTensorMode(allow_non_fake_inputs=True)
    with fake, torch.no_grad():
        model.eval()
        yield torch.empty(1, _image_channels(model), *size, device=device)
    model.train(was)


def _image_channels(model: nn.Module) -> int:
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))


@contextmanager
def _seeded(seed: int | None, stream: str):
    """Draw from stream `stream` of `seed`, and leave torch's global generator as it was; None: from that one."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, stream))
        yield


def enlarge(model: SAOLNet | ABN, dilation: bool = False) -> SAOLNet | ABN:
    """A copy with the last stage's stride taken out: X_L, and with it SAOL's output, has twice the resolution.

    Every weight is kept; strided convolutions get stride 1, shrinking pools go. dilation: the 3x3 convolutions after
    that look twice as far apart, as far as they did before (the paper, section 6, does not say).
    Raises ValueError where the last stage takes no stride, or X_L would not be twice as large.
    """
    copy, seen = deepcopy(model), {}
    body = copy.body if isinstance(copy, SAOLNet) else copy.stage
    sliding = (nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d)
    parts = {name: module for name, module in body.named_modules() if isinstance(module, sliding)}

    def watch(name: str):
        return lambda _, given, made: seen.update({name: (given[0].shape[-1], made.shape[-1])})

    hooks = [module.register_forward_hook(watch(name)) for name, module in parts.items()]
    before = _look_shape(copy)
    for hook in hooks:
        hook.remove()
    shrinking = [name for name, (wide, narrow) in seen.items() if wide > narrow == before[-1]]
    for name in shrinking:
        if isinstance(parts[name], nn.Conv2d):
            parts[name].stride = (1, 1)
        else:
            body.set_submodule(name, nn.Identity())
    for name, sizes in seen.items() if dilation else ():
        if sizes == (before[-1],) * 2 and isinstance(conv := parts[name], nn.Conv2d) and max(conv.kernel_size) > 1:
            conv.dilation, conv.padding = ((2 * d, 2 * e) for d, e in zip(conv.dilation, conv.padding, strict=True))
    after = _look_shape(copy)
    if not shrinking or after != (before[0], *(2 * side for side in before[1:])):
        raise ValueError(f"the last stage of this network cannot be enlarged: its map {before} would be {after}")
    return copy


def _look_shape(model: nn.Module) -> tuple[int, ...]:
    """The shape (C, H, W) of X_L for one image of 224x224, without computing anything."""
    with _fake_image(model) as image:
        return tuple(model.look(image)[1].shape[1:])


def load_weights(model: nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Load weights that must fit exactly; ValueError naming the origin and the first name that does not."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    if wrong := sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name)):
        raise ValueError(
            f"the weights of {origin} are another network's: {wrong[0]} differs, and {len(wrong) - 1} more"
        )
    model.load_state_dict(weights)


@contextmanager
def frozen_statistics(model: nn.Module):
    """Batch normalisation uses the batch's statistics and leaves the running ones as they are."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats]
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        norm.running_mean, norm.running_var, norm.track_running_stats = None, None, False
    try:
        yield
    finally:
        for norm, (mean, var) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var, norm.track_running_stats = mean, var, True


def multiply_adds(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds of one image (H, W) in evaluation mode, counted by torch without computing; works on meta too."""
    with _fake_image(model, size) as image, FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2
