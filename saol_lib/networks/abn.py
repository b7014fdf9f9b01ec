"""The Attention Branch Network, SAOL's peer on the same backbones."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
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
    chain = _opened(network, nodes)
    names = [name for name, _ in chain]
    before, last = nodes[-2:]
    first = names.index(before) + 1
    end = names.index(last) + 1
    trunk = nn.Sequential(OrderedDict(_renamed(chain[:first])))
    stage = nn.Sequential(OrderedDict(_renamed(chain[first:end])))
    _check_chain(network, trunk, stage, last)
    return trunk, stage


def _opened(module: nn.Module, nodes: Sequence[str], prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The modules in their order with their names, a Sequential that holds nodes replaced by what is in it."""
    found = []
    for name, child in module.named_children():
        full = f"{prefix}{name}"
        holds_nodes = any(node.startswith(f"{full}.") for node in nodes)
        if holds_nodes and isinstance(child, nn.Sequential):
            found += _opened(child, nodes, f"{full}.")
        elif holds_nodes:
            raise ValueError(
                f"an ABN takes the network apart between its last stages, {nodes[-2]} and {nodes[-1]}, but {full} is a "
                f"{type(child).__name__}, which does more than call its parts in turn; take another backbone"
            )
        else:
            found.append((full, child))
    return found


def _renamed(chain: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """Names without dots, which no part of a Sequential may have."""
    return [(name.removeprefix("features.").replace(".", "_"), module) for name, module in chain]


def _check_chain(network: nn.Module, trunk: nn.Module, stage: nn.Module, last: str) -> None:
    """ValueError where the parts called in turn do not give what the network itself computes at its node `last`."""
    parameter = next(network.parameters())
    if parameter.is_meta:
        return
    image = torch.linspace(-1, 1, 3 * 64 * 64, dtype=parameter.dtype, device=parameter.device).view(1, 3, 64, 64)
    seen = []
    hook = network.get_submodule(last).register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with _evaluating(network), torch.no_grad():
            network(image)
            own = stage(trunk(image))
    except (RuntimeError, TypeError):
        own = None
    finally:
        hook.remove()
    if own is None or not torch.equal(own, seen[0]):
        raise ValueError(
            f"an ABN calls the parts of {type(network).__name__} up to {last} in turn, but the network's own forward "
            "does more than that; take another backbone"
        )


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode inside, and in its own mode again afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


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
