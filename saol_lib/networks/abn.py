"""The Attention Branch Network, SAOL's peer on the same backbones."""

from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy

import torch.nn.functional as F
from torch import Tensor, nn

from saol_lib.layers import Outputs


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
        self.trunk, self.stage = _split(network, nodes)
        own = list(network.children())[-1]
        width = own.in_features
        self.gap = own if own.out_features == num_classes else nn.Linear(width, num_classes)

        self.branch = nn.Sequential(
            without_stride(self.stage),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, num_classes, 1, bias=False),
            nn.BatchNorm2d(num_classes),
            nn.ReLU(inplace=True),
        )
        self.aux = nn.Conv2d(num_classes, num_classes, 1, bias=False)
        self.map = nn.Sequential(
            nn.Conv2d(num_classes, 1, 3, padding=1, bias=False),
            nn.BatchNorm2d(1),
            nn.Sigmoid(),
        )
        self.channels = next(m.in_channels for m in self.trunk.modules() if isinstance(m, nn.Conv2d))

    def forward(self, images: Tensor, mask: bool | None = None) -> Outputs:
        return self.look(images, mask)[0]

    def look(self, images: Tensor, mask: bool | None = None) -> tuple[Outputs, Tensor]:
        """`forward`, and beside it the perception branch's last map X_L (B, C_L, H_L, W_L), which CAM reads."""
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images have shape {tuple(images.shape)}; expected (B, {self.channels}, H, W)")
        x = self.trunk(images)
        seen = self.branch(x)
        aux_logits = self.aux(seen).mean(dim=(2, 3))
        attention = self.map(seen)

        last = self.stage(x * (1 + attention))
        pooled = F.adaptive_avg_pool2d(last, 1).flatten(1)
        return Outputs(gap_logits=self.gap(pooled), aux_logits=aux_logits, attention=attention), last


def _split(network: nn.Module, nodes: Sequence[str]) -> tuple[nn.Sequential, nn.Sequential]:
    """All modules up to the end of the last stage but one, and those of the last stage."""
    modules = list(getattr(network, "features", network).named_children())
    names = [name for name, _ in modules]
    before, last = (node.split(".")[-1] for node in nodes[-2:])
    first = names.index(before) + 1
    end = names.index(last) + 1
    return nn.Sequential(OrderedDict(modules[:first])), nn.Sequential(OrderedDict(modules[first:end]))


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
