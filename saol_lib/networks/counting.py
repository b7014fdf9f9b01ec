"""What a network costs."""

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from saol_lib.finding import fake_pass, spare


def multiply_adds(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds of one image (H, W) in evaluation mode, counted by torch without computing; works on meta too."""
    copy = spare(model, hooks=True).eval()
    channels = _image_channels(copy)
    with fake_pass(copy, channels, size) as images, FlopCounterMode(display=False) as counter:
        copy(images)
    return counter.get_total_flops() // 2


def _image_channels(model: nn.Module) -> int:
    """What a `SAOLNet` or an ABN says; of a plain network what its first convolution takes."""
    said = getattr(model, "channels", None)
    if isinstance(said, int):
        return said
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
