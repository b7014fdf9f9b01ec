"""What a network costs."""

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from saol_lib.attach import fake_image


def multiply_adds(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds of one image (H, W) in evaluation mode, counted by torch without computing; works on meta too."""
    with fake_image(model, size) as image, FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2
