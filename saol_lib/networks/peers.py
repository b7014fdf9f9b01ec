"""Peers of SAOL on the same backbones: the Attention Branch Network, and ShakeDrop for PyramidNets."""

from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from saol_lib.layers import Outputs, check_choice

GRANULARITIES = ("sample", "batch")


class ABN(nn.Module):
    """Attention Branch Network (Fukui et al., CVPR 2019) on a network of `saol_lib.networks.backbones`.

    network, nodes  what `build_backbone` gives; the modules are shared, not copied, so load a trained network's weights
                    into it before. Its classifier stays if it gives `num_classes`, else a new linear layer takes over
    trunk   all modules before the last stage: images to x (B, C, h, w)
    branch  a copy of the last stage without its stride, BatchNorm, 1x1 convolution to K, BatchNorm, ReLU. The copy's
            weights start as the last stage's, trained or drawn; in training from scratch both start equal
    aux     1x1 convolution K to K, whose mean over positions is the branch's own answer, `aux_logits`
    map     3x3 convolution to one channel, BatchNorm, sigmoid: the attention M (B, 1, h, w) in 0..1
    stage, gap  the perception branch: the last stage on x * (1 + M), then GAP-FC, `gap_logits`

    `forward(images, mask=None)`: (B, C, H, W) to `Outputs` with gap_logits, aux_logits, attention; `mask` is ignored.
    """

    saol = None  # as in a `SAOLNet` without one

    def __init__(self, network: nn.Module, nodes: Sequence[str], num_classes: int) -> None:
        super().__init__()
        modules = list(getattr(network, "features", network).named_children())
        names = [name for name, _ in modules]
        first, end = (names.index(node.split(".")[-1]) + 1 for node in nodes[-2:])
        self.trunk = nn.Sequential(OrderedDict(modules[:first]))
        self.stage = nn.Sequential(OrderedDict(modules[first:end]))
        own = list(network.children())[-1]
        self.gap = own if own.out_features == num_classes else nn.Linear(own.in_features, num_classes)
        self.branch = nn.Sequential(
            without_stride(self.stage),
            nn.BatchNorm2d(own.in_features),
            nn.Conv2d(own.in_features, num_classes, 1, bias=False),
            nn.BatchNorm2d(num_classes),
            nn.ReLU(inplace=True),
        )
        self.aux = nn.Conv2d(num_classes, num_classes, 1, bias=False)
        self.map = nn.Sequential(nn.Conv2d(num_classes, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1), nn.Sigmoid())
        self.channels = next(m.in_channels for m in self.trunk.modules() if isinstance(m, nn.Conv2d))

    def forward(self, images: Tensor, mask: bool | None = None) -> Outputs:
        return self.look(images, mask)[0]

    def look(self, images: Tensor, mask: bool | None = None) -> tuple[Outputs, Tensor]:
        """`forward`, and beside it the perception branch's last map X_L (B, C_L, H_L, W_L), which CAM reads."""
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images have shape {tuple(images.shape)}; expected (B, {self.channels}, H, W)")
        x = self.trunk(images)
        seen = self.branch(x)
        attention = self.map(seen)
        last = self.stage(x * (1 + attention))
        logits = self.gap(nn.functional.adaptive_avg_pool2d(last, 1).flatten(1))
        aux = self.aux(seen).mean(dim=(2, 3))
        return Outputs(gap_logits=logits, aux_logits=aux, attention=attention), last


def without_stride(stage: nn.Module) -> nn.Module:
    """A copy of a stage that keeps the size of its input: every convolution's stride is 1, shrinking pools are gone."""
    copy = deepcopy(stage)
    for module in list(copy.modules()):
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
        for name, child in module.named_children():
            if isinstance(child, (nn.AvgPool2d, nn.MaxPool2d)) and child.stride not in (1, (1, 1)):
                setattr(module, name, nn.Identity())
    return copy


class ShakeDrop(nn.Module):
    """ShakeDrop (Yamada et al. 2018) on a residual branch's output y (B, C, H, W), before it is added to the shortcut.

    Training: y times b + a - b*a forward, its gradient times b + c - b*c, with b ~ Bernoulli(keep), a ~ U[-1, 1] and
    c ~ U[0, 1], drawn from torch's global generator. Evaluation: y times the forward factor's expectation, `keep`.
    per: "sample" draws b, a and c for every sample, "batch" once for all. Raises ValueError for anything else.
    """

    def __init__(self, keep: float, per: str = "sample") -> None:
        super().__init__()
        check_choice("per", per, GRANULARITIES)
        if not 0 <= keep <= 1:
            raise ValueError(f"keep={keep} must be a probability, 0 to 1")
        self.keep, self.per = keep, per

    def forward(self, y: Tensor) -> Tensor:
        if not self.training:
            return self.keep * y
        one = y[:, :1, :1, :1] if self.per == "sample" else y[:1, :1, :1, :1]
        b = torch.bernoulli(torch.full_like(one, self.keep))
        ahead = b + (1 - b) * (2 * torch.rand_like(one) - 1)
        back = b + (1 - b) * torch.rand_like(one)
        return y * back + (y * (ahead - back)).detach()

    def extra_repr(self) -> str:
        return f"keep={self.keep:.3f}, per={self.per}"


def add_shakedrop(units: Sequence[nn.Module], per: str) -> None:
    """Put ShakeDrop after `bn`, the last BatchNorm of each residual unit; unit l of L keeps with 1 - l / L * 0.5."""
    for l, unit in enumerate(units, 1):  # noqa: E741  the paper's letter
        unit.bn = nn.Sequential(unit.bn, ShakeDrop(1 - l / len(units) * 0.5, per))
