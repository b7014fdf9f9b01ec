"""Backbones by name: CIFAR families with free depth and width (pytorchcv's modules), ImageNet families (torchvision).

resnet-D[-W]             He et al. 2016, basic blocks, D = 6n + 2, stages W, 2W, 4W wide (W = 16)
resnet-s2-D[-W]          the same with a stem of stride 2, for 64x64 images (maps of 32, 16 and 8 pixels a side)
wrn-D-K                  Zagoruyko and Komodakis 2016, D = 6n + 4, stages 16K, 32K, 64K wide
densenet-bc-D-G          Huang et al. 2017, bottlenecks and compression 0.5, D = 6n + 4, growth G
pyramidnet[-bn]-D-A      Han et al. 2017, D = 6n + 2 (bottleneck "-bn": 9n + 2), widened by A in all
pyramidnet[-bn]-shakedrop[-batch]-D-A   the same with ShakeDrop in every unit, drawn for each sample, or once a batch
resnet18/34/50/101/152, resnext50_32x4d, resnext101_32x8d, wide_resnet50_2, ...   as torchvision names them
"""

import re
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import torchvision
from pytorchcv.models.densenet_cifar import CIFARDenseNet
from pytorchcv.models.pyramidnet import PyrUnit
from pytorchcv.models.pyramidnet_cifar import CIFARPyramidNet
from pytorchcv.models.resnet_cifar import CIFARResNet
from pytorchcv.models.wrn_cifar import CIFARWRN
from torch import nn

from saol_lib.networks.peers import add_shakedrop


class Backbone(NamedTuple):
    """A network with its own classifier, and the graph nodes of its stages; the last one is what its GAP pools."""

    network: nn.Module
    nodes: tuple[str, ...]


_PLAIN = ("features.stage1", "features.stage2", "features.stage3")
_PREACTIVATED = ("features.stage1", "features.stage2", "features.post_activ")
_TORCHVISION = re.compile(r"(wide_)?resne(x)?t\d+(_\w+)?")


def _units(name: str, depth: int, per_unit: int, rest: int) -> int:
    units, left = divmod(depth - rest, per_unit)
    if left or units < 3 or units % 3:
        step = 3 * per_unit
        possible = f"{step}n + {rest}: {step + rest}, {2 * step + rest}, ..."
        raise ValueError(f"backbone {name!r}: depth {depth} must be {possible}")
    return units // 3


def _resnet(name: str, num_classes: int, depth: int, width: int = 16, stem_stride: int = 1) -> Backbone:
    if width < 8:
        raise ValueError(
            f"backbone {name!r}: width must be at least 8; torch's convolutions of fewer channels can crash"
        )
    units = _units(name, depth, 2, 2)
    channels = [[width * scale] * units for scale in (1, 2, 4)]
    network = CIFARResNet(channels, width, bottleneck=False, num_classes=num_classes)
    network.features.init_block.conv.stride = (stem_stride, stem_stride)
    return Backbone(network, _PLAIN)


def _wrn(name: str, num_classes: int, depth: int, widening: int) -> Backbone:
    units = _units(name, depth, 2, 4)
    channels = [[16 * scale * widening] * units for scale in (1, 2, 4)]
    return Backbone(CIFARWRN(channels, 16, num_classes=num_classes), _PREACTIVATED)


def _densenet(name: str, num_classes: int, depth: int, growth: int) -> Backbone:
    units = _units(name, depth, 2, 4)
    channels, entering = [], 2 * growth
    for _ in range(3):
        channels.append([entering + growth * (unit + 1) for unit in range(units)])
        entering = channels[-1][-1] // 2
    return Backbone(CIFARDenseNet(channels, 2 * growth, bottleneck=True, num_classes=num_classes), _PREACTIVATED)


def _pyramidnet(name: str, num_classes: int, depth: int, alpha: int, bottleneck: bool, shake: str) -> Backbone:
    units = _units(name, depth, 3 if bottleneck else 2, 2)
    widths = list(accumulate([alpha / (3 * units)] * (3 * units), initial=16.0))[1:]
    outs = [round(w) * (4 if bottleneck else 1) for w in widths]
    channels = [outs[i:j] for i, j in pairwise(range(0, 3 * units + 1, units))]
    network = CIFARPyramidNet(channels, 16, bottleneck, num_classes=num_classes)
    if shake:
        add_shakedrop([m for m in network.modules() if isinstance(m, PyrUnit)], shake)
    return Backbone(network, _PREACTIVATED)


def _imagenet(name: str, num_classes: int, pretrained: bool) -> Backbone:
    weights = "DEFAULT" if pretrained else None
    network = torchvision.models.get_model(name, weights=weights, num_classes=1000 if pretrained else num_classes)
    return Backbone(network, ("layer1", "layer2", "layer3", "layer4"))


def build_backbone(name: str, num_classes: int, pretrained: bool = False) -> Backbone:
    """The network `name` (grammar above) for RGB images (B, 3, H, W) and its stages' graph nodes.

    pretrained: torchvision's ImageNet weights (a checksum-verified download), with their 1,000 classes.
    Raises ValueError for a name, depth or width that does not exist.
    """
    families = {
        r"resnet-(\d+)(?:-(\d+))?": _resnet,
        r"resnet-s2-(\d+)(?:-(\d+))?": partial(_resnet, stem_stride=2),
        r"wrn-(\d+)-(\d+)": _wrn,
        r"densenet-bc-(\d+)-(\d+)": _densenet,
    }
    for bottleneck in ("", "-bn"):
        for infix, shake in (("", ""), ("-shakedrop", "sample"), ("-shakedrop-batch", "batch")):
            build = partial(_pyramidnet, bottleneck=bool(bottleneck), shake=shake)
            families[rf"pyramidnet{bottleneck}{infix}-(\d+)-(\d+)"] = build
    for pattern, build in families.items():
        if found := re.fullmatch(pattern, name):
            if pretrained:
                raise ValueError(f"backbone {name!r} has no pretrained weights; torchvision's names have, resnet50 say")
            numbers = [int(n) for n in found.groups() if n]
            if min(numbers) < 1:
                raise ValueError(f"backbone {name!r}: depth and width must be positive")
            return build(name, num_classes, *numbers)
    if _TORCHVISION.fullmatch(name) and name in torchvision.models.list_models():
        return _imagenet(name, num_classes, pretrained)
    raise ValueError(
        f"backbone {name!r} is not known; write for example resnet-8, resnet-20-32, wrn-16-4, densenet-bc-100-12, "
        "pyramidnet-110-270, pyramidnet-bn-200-240, resnet50 or resnext50_32x4d"
    )
