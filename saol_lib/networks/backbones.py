"""Backbones by name: CIFAR families of free depth and width (pytorchcv's modules), ImageNet families, timm's networks.

resnet-D[-W]             He et al. 2016, basic blocks, D = 6n + 2, stages W, 2W, 4W wide (W = 16)
resnet-s2-D[-W]          the same with a stem of stride 2, for 64x64 images (maps of 32, 16 and 8 pixels a side)
wrn-D-K                  Zagoruyko and Komodakis 2016, D = 6n + 4, stages 16K, 32K, 64K wide
densenet-bc-D-G          Huang et al. 2017, bottlenecks and compression 0.5, D = 6n + 4, growth G
pyramidnet[-bn]-D-A      Han et al. 2017, D = 6n + 2 (bottleneck "-bn": 9n + 2), widened by A in all
pyramidnet[-bn]-shakedrop[-batch]-D-A   the same with ShakeDrop in every unit, drawn for each sample, or once a batch
resattnet56, resattnet92 Residual Attention Network (Wang et al. 2017), for images whose sides are multiples of 32
resnet18/34/50/101/152, resnext50_32x4d, resnext101_32x8d, wide_resnet50_2, ...   as torchvision names them
timm:NAME                any convolutional classifier of timm, with or without the tag of its weights (extra `timm`)
"""

import difflib
import re
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import accumulate
from typing import NamedTuple

import torch
import torchvision
from pytorchcv.models.densenet_cifar import CIFARDenseNet
from pytorchcv.models.pyramidnet import PyrUnit
from pytorchcv.models.pyramidnet_cifar import CIFARPyramidNet
from pytorchcv.models.resattnet import get_resattnet
from pytorchcv.models.resnet_cifar import CIFARResNet
from pytorchcv.models.wrn_cifar import CIFARWRN
from torch import nn

from saol_lib.networks.shakedrop import add_shakedrop
from saol_lib.networks.strides import spare_narrow_strides


class Scaling(NamedTuple):
    """What weights were trained on: RGB images in 0..1, less `mean`, divided by `std`, channel by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Backbone(NamedTuple):
    """A network with its own classifier."""

    network: nn.Module
    nodes: tuple[str, ...] | None  # its stages, the last one being what its GAP pools; None: `attach_saol` finds them


_PLAIN = ("features.stage1", "features.stage2", "features.stage3")
_PREACTIVATED = ("features.stage1", "features.stage2", "features.post_activ")


def _units(name: str, depth: int, per_unit: int, rest: int) -> int:
    """Residual units in each of three stages; a unit is `per_unit` layers deep, and `rest` layers are no unit's."""
    units, left = divmod(depth - rest, per_unit)
    if left or units < 3 or units % 3:
        step = 3 * per_unit
        possible = f"{step}n + {rest}: {step + rest}, {2 * step + rest}, ..."
        raise ValueError(f"backbone {name!r}: depth {depth} must be {possible}")
    return units // 3


def _resnet(name: str, num_classes: int, depth: int, width: int = 16, stem_stride: int = 1) -> Backbone:
    if width < 8:
        raise ValueError(f"backbone {name!r}: width must be at least 8")
    units = _units(name, depth, 2, 2)
    channels = [[width * scale] * units for scale in (1, 2, 4)]
    network = CIFARResNet(channels, width, bottleneck=False, num_classes=num_classes)
    network.features.init_block.conv.stride = (stem_stride, stem_stride)
    return Backbone(network, _PLAIN)


def _wrn(name: str, num_classes: int, depth: int, widening: int) -> Backbone:
    units = _units(name, depth, 2, 4)
    channels = [[16 * scale * widening] * units for scale in (1, 2, 4)]
    network = CIFARWRN(channels, 16, num_classes=num_classes)
    return Backbone(network, _PREACTIVATED)


def _densenet(name: str, num_classes: int, depth: int, growth: int) -> Backbone:
    units = _units(name, depth, 2, 4)
    channels = []
    entering = 2 * growth
    for _ in range(3):
        stage = [entering + growth * (unit + 1) for unit in range(units)]
        channels.append(stage)
        entering = stage[-1] // 2
    network = CIFARDenseNet(channels, 2 * growth, bottleneck=True, num_classes=num_classes)
    return Backbone(network, _PREACTIVATED)


def _pyramidnet(
    name: str, num_classes: int, depth: int, alpha: int, bottleneck: bool = False, shake: str | None = None
) -> Backbone:
    units = _units(name, depth, 3 if bottleneck else 2, 2)
    steps = [alpha / (3 * units)] * (3 * units)
    widths = list(accumulate(steps, initial=16.0))[1:]
    expansion = 4 if bottleneck else 1
    outs = [round(width) * expansion for width in widths]
    channels = [outs[:units], outs[units : 2 * units], outs[2 * units :]]

    network = CIFARPyramidNet(channels, 16, bottleneck, num_classes=num_classes)
    if shake:
        residual_units = [module for module in network.modules() if isinstance(module, PyrUnit)]
        add_shakedrop(residual_units, shake)
    return Backbone(network, _PREACTIVATED)


def _resattnet(name: str, num_classes: int, depth: int) -> Backbone:
    network = get_resattnet(depth, num_classes=num_classes)
    network.features.final_pool = nn.AdaptiveAvgPool2d(1)  # a fixed window would tie it to 224 pixels
    return Backbone(network, ("features.stage1", "features.stage2", "features.stage3", "features.post_activ"))


# How the names of our own families are read: the numbers in a name are the arguments of the function.
_BN = {"bottleneck": True}
_FAMILIES = {
    r"resnet-(\d+)(?:-(\d+))?": _resnet,
    r"resnet-s2-(\d+)(?:-(\d+))?": partial(_resnet, stem_stride=2),
    r"wrn-(\d+)-(\d+)": _wrn,
    r"densenet-bc-(\d+)-(\d+)": _densenet,
    r"pyramidnet-(\d+)-(\d+)": _pyramidnet,
    r"pyramidnet-shakedrop-(\d+)-(\d+)": partial(_pyramidnet, shake="sample"),
    r"pyramidnet-shakedrop-batch-(\d+)-(\d+)": partial(_pyramidnet, shake="batch"),
    r"pyramidnet-bn-(\d+)-(\d+)": partial(_pyramidnet, **_BN),
    r"pyramidnet-bn-shakedrop-(\d+)-(\d+)": partial(_pyramidnet, **_BN, shake="sample"),
    r"pyramidnet-bn-shakedrop-batch-(\d+)-(\d+)": partial(_pyramidnet, **_BN, shake="batch"),
    r"resattnet(56|92)": _resattnet,
}
_TORCHVISION = re.compile(r"(wide_)?resne(x)?t\d+(_\w+)?")
_TIMM = "timm:"


def build_backbone(name: str, num_classes: int, pretrained: bool = False, fetch: bool = True) -> Backbone:
    """The network `name` (grammar above) for RGB images (B, 3, H, W), and its stages.

    pretrained: torchvision's or timm's own ImageNet weights (a download), with the classes that they were trained on;
    without `fetch` the same network with drawn weights, which others will replace.
    Raises ValueError for a name, depth or width that does not exist, and ImportError for timm:NAME without timm.
    """
    if name.startswith(_TIMM):
        backbone = _build_timm(name, num_classes, pretrained, fetch)
    elif _is_torchvision(name):
        backbone = _build_torchvision(name, num_classes, pretrained, fetch)
    else:
        backbone = _build_own(name, num_classes, pretrained)
    spare_narrow_strides(backbone.network)
    return backbone


def input_scaling(name: str) -> Scaling | None:
    """How a backbone's published weights want their images, by timm's or torchvision's metadata; None: no such."""
    if name.startswith(_TIMM):
        published = _check_timm(name).get_pretrained_cfg(name.removeprefix(_TIMM))
        return Scaling(tuple(published.mean), tuple(published.std))
    if _is_torchvision(name):
        preparation = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        return Scaling(tuple(preparation.mean), tuple(preparation.std))
    return None


@lru_cache(maxsize=256)  # the deepest take seconds, and a study asks for each hundreds of times
def check_backbone(name: str) -> None:
    """Raise what `build_backbone` would raise for this name, without building a network or drawing a number."""
    if name.startswith(_TIMM):
        _check_timm(name)
    else:
        _check_named(name)


@lru_cache(maxsize=256)
def _check_named(name: str) -> None:
    """Once a name: a study makes hundreds of configs."""
    with torch.device("meta"):
        build_backbone(name, 2)


def _is_torchvision(name: str) -> bool:
    return _TORCHVISION.fullmatch(name) is not None and name in torchvision.models.list_models()


def _build_own(name: str, num_classes: int, pretrained: bool) -> Backbone:
    for pattern, build in _FAMILIES.items():
        found = re.fullmatch(pattern, name)
        if found is None:
            continue
        if pretrained:
            raise ValueError(f"backbone {name!r} has no pretrained weights; torchvision's names have, resnet50 say")
        numbers = [int(number) for number in found.groups() if number]
        if min(numbers) < 1:
            raise ValueError(f"backbone {name!r}: depth and width must be positive")
        backbone = build(name, num_classes, *numbers)
        backbone.network.features.final_pool = nn.AdaptiveAvgPool2d(1)  # theirs takes images of one size alone
        return backbone
    raise ValueError(
        f"backbone {name!r} is not known; write for example resnet-8, resnet-20-32, wrn-16-4, densenet-bc-100-12, "
        "pyramidnet-110-270, pyramidnet-bn-200-240, resattnet56, resnet50, resnext50_32x4d or timm:NAME"
    )


def _build_torchvision(name: str, num_classes: int, pretrained: bool, fetch: bool) -> Backbone:
    if pretrained:
        network = torchvision.models.get_model(name, weights="DEFAULT" if fetch else None)
    else:
        network = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return Backbone(network, ("layer1", "layer2", "layer3", "layer4"))


def _build_timm(name: str, num_classes: int, pretrained: bool, fetch: bool) -> Backbone:
    timm = _check_timm(name)
    classes = {} if pretrained else {"num_classes": num_classes}
    network = timm.create_model(name.removeprefix(_TIMM), pretrained=pretrained and fetch, **classes)
    return Backbone(network, None)


def _check_timm(name: str):
    """timm itself; ImportError where it is not installed, ValueError where it has no network of this name."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"backbone {name!r} needs timm; install it with: pip install saol_lib[timm]") from error

    wanted = name.removeprefix(_TIMM)
    architecture, _, tag = wanted.partition(".")
    if not timm.is_model(architecture):
        raise ValueError(
            f"timm has no network {architecture!r}; the nearest are {_near(architecture, timm.list_models())}"
        )
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in known:
        raise ValueError(f"timm has no weights {tag!r} of {architecture}; it has {', '.join(known) or 'none'}")
    return timm


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return ", ".join(near or known[:3])
