"""One kind of convolution computed another way, because torch's own way writes beyond its memory.

Measured on processors: with channels_last inputs the backward pass of a 1x1 convolution of stride 2 with fewer input
channels than a vector register holds floats (8 with AVX2, 16 with AVX-512) ends in a segmentation fault or a damaged
heap. `StridedPointwise` takes every second pixel first, so that what is left has stride 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_CHANNELS = 16


class StridedPointwise(nn.Conv2d):
    """A 1x1 convolution with stride, as a 1x1 convolution of the pixels that it looks at: same weights, same values."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        read = x[:, :, ::rows, ::columns]
        return F.conv2d(read, self.weight, self.bias, groups=self.groups)


def spare_narrow_strides(network: nn.Module) -> None:
    """Put `StridedPointwise` in place of every convolution that torch may fail on; weights and names stay."""
    modules = dict(network.named_modules())
    for name, module in modules.items():
        if _is_hit(module):
            spared = _spared(module)
            network.set_submodule(name, spared)


def _is_hit(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d or module.in_channels >= FEWEST_CHANNELS:
        return False
    is_pointwise = module.kernel_size == (1, 1) and module.padding == (0, 0)
    return is_pointwise and max(module.stride) > 1


def _spared(conv: nn.Conv2d) -> StridedPointwise:
    with torch.device("meta"):  # nothing is drawn
        spared = StridedPointwise(
            conv.in_channels,
            conv.out_channels,
            1,
            stride=conv.stride,
            groups=conv.groups,
            bias=conv.bias is not None,
        )
    spared.weight = conv.weight
    spared.bias = conv.bias
    return spared.train(conv.training)
