"""The last stage's stride taken out."""

from copy import deepcopy

from torch import nn

from saol_lib.attach import SAOLNet, fake_image
from saol_lib.networks.abn import ABN


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
    with fake_image(model) as image:
        return tuple(model.look(image)[1].shape[1:])
