"""Score maps (the paper's section 6): how strongly each pixel speaks for a class, by SAOL and by its peers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saol_lib.layers import Outputs
from saol_lib.options import check_choice

METHODS = ("saol", "saol_log", "attention", "spatial", "mask", "cam", "grad_cam", "abn")
GAP_METHODS = ("cam", "grad_cam", "abn")  # those whose classes are ranked by the GAP-FC layer


def score_maps(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    method: str = "saol",
    size: tuple[int, int] | None = None,
) -> Tensor:
    """How strongly each pixel speaks for a class: (B, H, W) in [0, 1], for images (B, C, H, W) and classes (B,).

    method "saol"       A * Y_k, as the paper defines it (section 6)
           "saol_log"   the same product in the log domain, log A + log Y_k, before it is stretched: ours, not the
                        paper's; it shows what lies around an attention that has become a point
           "attention"  A alone
           "spatial"    Y_k alone
           "mask"       the predicted CutMix mask
           "cam"        CAM of the GAP-FC layer
           "grad_cam"   Grad-CAM of the GAP-FC layer, at X_L
           "abn"        M of an Attention Branch Network
    size   (H, W) of the maps; None: that of the images

    Each is resized bicubically from its own size to `size` and stretched to [0, 1]; a map that is constant or no
    number becomes 0. One forward pass on the model's device, in evaluation mode; afterwards every module has the mode
    that it had. Only Grad-CAM of a network whose classifier is not one linear layer goes backward too.
    Raises ValueError for an unknown method, for a network without the layer that the method reads, and for classes
    outside 0..K-1. Classes on a GPU are not read, since that would wait for it: those on the CPU are checked.
    """
    maps, _ = resized_maps(model, images, classes, method, size)
    return stretch(maps)


def resized_maps(
    model: nn.Module, images: Tensor, classes: Tensor, method: str, size: tuple[int, int] | None = None
) -> tuple[Tensor, Outputs]:
    """The maps (B, H, W) of `score_maps` in their own units, and the outputs of the same forward pass."""
    size = size or tuple(images.shape[2:])
    outputs, feature = look(model, images, method)
    maps = raw_maps(model, outputs, feature, classes, method)
    maps = maps.detach()[:, None].float()
    return F.interpolate(maps, size, mode="bicubic", align_corners=False)[:, 0], outputs


def look(model: nn.Module, images: Tensor, method: str) -> tuple[Outputs, Tensor]:
    """What `raw_maps` reads: the outputs and X_L of one forward pass in evaluation mode, on the model's device."""
    check_choice("method", method, METHODS)
    images = images.to(device_of(model))
    with evaluating(model), torch.inference_mode():
        outputs, feature = model.look(images, mask=method == "mask")
    if method == "grad_cam" and pooled_classifier(model, feature) is None:
        return _look_with_gradient(model, images)
    return outputs, feature


def _look_with_gradient(model: nn.Module, images: Tensor) -> tuple[Outputs, Tensor]:
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        images = images.clone().requires_grad_()  # frozen networks have a gradient at X_L, too
        return model.look(images)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode inside, and in its own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def raw_maps(model: nn.Module, outputs: Outputs, feature: Tensor, classes: Tensor, method: str) -> Tensor:
    """A method's map (B, Ho, Wo) at its own size and scale, from what `model.look(images)` returned."""
    if method == "cam":
        return _cam(model, outputs, feature, classes)
    if method == "grad_cam":
        return _grad_cam(model, outputs, feature, classes)

    found = outputs.mask_logits if method == "mask" else outputs.attention
    is_abn = outputs.spatial_log_probs is None
    if found is None or is_abn != (method == "abn"):
        raise ValueError(
            f"method={method!r} reads a layer that this network lacks; give an ABN for 'abn', else one with a SAOL"
        )

    log_votes = None if is_abn else _of_class(outputs.spatial_log_probs, classes)
    if method == "mask":
        return found[:, 0].sigmoid()
    if method in ("attention", "abn"):
        return found[:, 0]
    if method == "spatial":
        return log_votes.exp()
    if method == "saol_log":
        return _safe_log(found[:, 0]) + log_votes
    return log_votes.exp() * found[:, 0]


def _of_class(values: Tensor, classes: Tensor) -> Tensor:
    """The entries of one class an image: values (B, K, ...) and classes (B,) to (B, ...)."""
    classes = check_classes(classes, len(values), values.shape[1]).to(values.device)
    rows = torch.arange(len(values), device=values.device)
    return values[rows, classes]


def check_classes(classes: Tensor, count: int, num_classes: int) -> Tensor:
    """The classes (B,); ValueError where they are not `count` whole numbers in 0..K-1, read on the CPU only."""
    whole = not classes.is_floating_point() and classes.dtype != torch.bool
    if not whole or tuple(classes.shape) != (count,):
        raise ValueError(
            f"classes are {classes.dtype} of shape {tuple(classes.shape)}; expected whole numbers ({count},), "
            f"one for each image"
        )
    if classes.device.type != "cpu":
        return classes
    for number in classes.tolist():
        if not 0 <= number < num_classes:
            raise ValueError(
                f"class {number} is not one of the network's {num_classes}; expected 0 to {num_classes - 1}"
            )
    return classes


def _safe_log(values: Tensor) -> Tensor:
    """The logarithm; of what has become 0, that of the smallest normal number."""
    return values.clamp(min=torch.finfo(values.dtype).tiny).log()


def _cam(model: nn.Module, outputs: Outputs, feature: Tensor, classes: Tensor) -> Tensor:
    """Zhou et al. 2016: the channels of X_L, weighted as the classifier weighs their means."""
    classifier = pooled_classifier(model, feature)
    if classifier is None:
        raise ValueError(
            "CAM needs a GAP-FC layer, one linear layer right after the pooling; this network has none"
            + ("" if outputs.gap_logits is None else ", so take 'grad_cam'")
        )
    check_classes(classes, len(feature), classifier.out_features)
    weight = classifier.weight.detach()[classes.to(feature.device)]
    return torch.einsum("bchw,bc->bhw", feature, weight)


def _grad_cam(model: nn.Module, outputs: Outputs, feature: Tensor, classes: Tensor) -> Tensor:
    """Selvaraju et al. 2017 at X_L: the ReLU of its channels, weighted by the mean gradients of the class's logit.

    With one linear layer on the pooled map gradients are its weights over the number of positions: no backward pass.
    """
    if pooled_classifier(model, feature) is not None:
        maps = _cam(model, outputs, feature, classes)
        return maps.relu() / maps[0].numel()
    if outputs.gap_logits is None:
        raise ValueError("CAM needs a GAP-FC layer, and Grad-CAM logits of the network's own; this network has none")
    if not outputs.gap_logits.requires_grad:
        raise ValueError("Grad-CAM of this network needs gradients; call score_maps, or look with gradients enabled")
    with torch.inference_mode(False), torch.enable_grad():
        score = _of_class(outputs.gap_logits, classes).sum()
        (gradient,) = torch.autograd.grad(score, feature, retain_graph=True)
    weight = gradient.mean(dim=(2, 3))
    return torch.einsum("bchw,bc->bhw", feature.detach(), weight).relu()


def pooled_classifier(model: nn.Module, feature: Tensor) -> nn.Linear | None:
    """The one linear layer that reads the mean of X_L (B, C, H, W): the GAP-FC layer; None where there is none such.

    A network's own classifier is its last linear layer. What it reads is the pooled map if nothing but pooling, dropout
    and flattening stands before it in the list of modules; without a pooling module, after a convolution or its norm.
    """
    found = model.gap
    if found is None:
        found = _last_linear(model.body)
    if isinstance(found, nn.Linear) and found.in_features == feature.shape[1]:
        return found
    return None


_PASSIVE = (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d)
_MAP_LAYERS = (nn.Conv2d, nn.BatchNorm2d)


def _last_linear(body: nn.Module) -> nn.Linear | None:
    """The last linear layer of a network, where the modules before it say that it reads a pooled map."""
    leaves = [module for module in body.modules() if not list(module.children())]
    places = [place for place, module in enumerate(leaves) if isinstance(module, nn.Linear)]
    if not places:
        return None

    before = leaves[: places[-1]]
    while before and isinstance(before[-1], _PASSIVE):
        before.pop()
    if before and (_is_pool(before[-1]) or _makes_map(before)):
        return leaves[places[-1]]
    return None


def _is_pool(module: nn.Module) -> bool:
    return "pool" in type(module).__name__.lower()


def _makes_map(before: list[nn.Module]) -> bool:
    """Whether the last layer with weights is one of maps; what has none, an activation say, is passed over."""
    with_weights = [module for module in before if list(module.parameters(recurse=False))]
    return bool(with_weights) and isinstance(with_weights[-1], _MAP_LAYERS)


def stretch(maps: Tensor) -> Tensor:
    """Maps (B, H, W), each stretched to [0, 1]; one that is constant or holds no number becomes 0."""
    low = maps.amin(dim=(1, 2))[:, None, None]
    high = maps.amax(dim=(1, 2))[:, None, None]
    share = (maps - low) / (high - low)
    return share.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(0, 1)
