"""The last stage's stride taken out."""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from saol_lib.attach import SAOLNet
from saol_lib.finding import fake_pass, spare
from saol_lib.networks.abn import ABN

_POOLS = (nn.AvgPool2d, nn.MaxPool2d)
Size = tuple[int, int]


@dataclass
class Seen:
    """The sizes (H, W) of what a sliding window reads and gives."""

    given: Size
    made: Size


def enlarge(model: SAOLNet | ABN, dilation: bool = False) -> SAOLNet | ABN:
    """A copy with the last stage's stride taken out: X_L, and with it SAOL's output, has twice the resolution.

    Every weight is kept; strided convolutions get stride 1, shrinking pools go. dilation: the convolutions after that
    look twice as far apart, as far as they did before (the paper, section 6, does not say); pools stay as they are.
    Raises ValueError where the last stage takes no stride, X_L would not be twice as large, or the network does not
    run so.
    """
    size = getattr(model, "size", (224, 224))
    before, seen = _look(model, size)
    channels, height, width = before
    wide = (2 * height, 2 * width)
    last_stage = {name: sizes for name, sizes in seen.items() if sizes.made == (height, width)}
    shrinking = [name for name, sizes in last_stage.items() if _shrinks(sizes)]
    if not shrinking:
        raise ValueError(f"this network cannot be enlarged: no stride of its backbone gives its last map {before}")

    copy = deepcopy(model)
    for name in shrinking:
        _take_stride(copy, name, seen[name], wide)
    if dilation:
        for name, sizes in last_stage.items():
            if name not in shrinking:
                _dilate(copy.get_submodule(name), name, sizes)

    after = _look_again(copy, size)
    if after != (channels, *wide):
        raise ValueError(f"this network cannot be enlarged: its last map {before} would be {after}, not twice as large")
    return copy


def _look(model: SAOLNet | ABN, size: Size) -> tuple[tuple[int, ...], dict[str, Seen]]:
    """The shape (C, H, W) of X_L for one image of `size`, and what every sliding window of the backbone sees."""
    copy = spare(model, hooks=True)
    copy.eval()
    seen = {}

    def note(name: str, _module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        size_given = tuple(given[0].shape[2:])
        size_made = tuple(made.shape[2:])
        seen[name] = Seen(size_given, size_made)

    backbone = "body." if isinstance(model, SAOLNet) else "stage."
    for name, module in copy.named_modules():
        slides = hasattr(module, "stride") and not module._modules
        if slides and name.startswith(backbone):
            module.register_forward_hook(partial(note, name))
    with fake_pass(copy, copy.channels, size) as images:
        _, last = copy.look(images)
    return tuple(last.shape[1:]), seen


def _look_again(model: SAOLNet | ABN, size: Size) -> tuple[int, ...]:
    try:
        shape, _ = _look(model, size)
        return shape
    except Exception as error:
        why, *_ = str(error).strip().split("\n")
        raise ValueError(f"this network cannot be enlarged: without its last stride it does not run ({why})") from error


def _shrinks(sizes: Seen) -> bool:
    """Whether a stride makes the map smaller, rather than a window without padding."""
    both_axes = zip(sizes.given, sizes.made, strict=True)
    return all(wide > 1.5 * narrow for wide, narrow in both_axes)


def _take_stride(model: nn.Module, name: str, sizes: Seen, wide: Size) -> None:
    """Stride 1 for a convolution; an even kernel, or one without padding, is padded so that the size stays."""
    module = model.get_submodule(name)
    if isinstance(module, _POOLS):
        model.set_submodule(name, nn.Identity())
        return
    if not isinstance(module, nn.Conv2d):
        module.stride = 1 if isinstance(module.stride, int) else (1, 1)
        return

    pads_itself = _size(module, sizes.given) != sizes.made
    module.stride = (1, 1)
    loses_pixels = _size(module, sizes.given) != wide
    if not pads_itself and loses_pixels and sizes.given == wide:
        module.padding = "same"


def _dilate(module: nn.Module, name: str, sizes: Seen) -> None:
    """The kernel's taps twice as far apart, the size unchanged."""
    if not isinstance(module, nn.Conv2d) or max(module.kernel_size) == 1:
        return
    own_name = name.partition(".")[2]
    kernel = "x".join(map(str, module.kernel_size))
    where = f"its {own_name!r} with a kernel of {kernel}"
    if sizes.given != sizes.made:
        raise ValueError(f"this network cannot be dilated: {where} is padded outside of the convolution")

    pads_itself = _size(module, sizes.given) != sizes.made
    pads_by_name = isinstance(module.padding, str)
    is_even = any(side % 2 == 0 for side in module.kernel_size)
    if pads_by_name and is_even:
        raise ValueError(f"this network cannot be dilated: {where} is even, so no padding keeps it in place")

    rows, columns = module.dilation
    module.dilation = (2 * rows, 2 * columns)
    if not pads_by_name and not pads_itself:  # of an odd kernel that keeps the size
        above, left = module.padding
        module.padding = (2 * above, 2 * left)


def _size(conv: nn.Conv2d, given: Size) -> Size:
    """The size that a convolution with these settings gives."""
    sides = []
    for axis, side in enumerate(given):
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        padding = _padding(conv, axis, reach)
        steps = (side + padding - reach - 1) // conv.stride[axis]
        sides.append(steps + 1)
    return tuple(sides)


def _padding(conv: nn.Conv2d, axis: int, reach: int) -> int:
    """Pixels that a convolution adds along an axis, on both sides together; reach: its kernel's length, less one."""
    if conv.padding == "same":
        return reach
    if conv.padding == "valid":
        return 0
    return 2 * conv.padding[axis]
