"""Batch normalisation over the rows of several processes, so that they compute the numbers of one.

torch's SyncBatchNorm knows GPUs alone, and waits for the device in every layer. This is the same arithmetic in plain
operations: for CPU and GPU, in the precision of its input, and without waiting.
"""

from collections.abc import Callable
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from saol_lib.layers import at_least_float32


class SharedStatistics(TorchFunctionMode):
    """Inside, batch normalisation in training takes mean and variance over the rows of all processes.

    The network's own modules stay as they are, with their names: `torch.nn.functional.batch_norm`, which all of them
    call, is what changes. Every process must call the network, if only with rows that are not `counted`.
    """

    def __init__(self, counted: bool = True) -> None:
        super().__init__()
        self.counted = counted

    def __torch_function__(self, function: Callable, types, arguments=(), named=None):
        named = named or {}
        if function is F.batch_norm and named.get("training"):
            return _batch_norm(*arguments, **named, counted=self.counted)
        return function(*arguments, **named)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    counted: bool = True,
) -> Tensor:
    """`torch.nn.functional.batch_norm` in training, of x (B, C, ...), over all processes."""
    channels = x.shape[1]
    wide = at_least_float32(x)
    weight = wide.new_ones(channels) if weight is None else weight
    bias = wide.new_zeros(channels) if bias is None else bias
    made, mean, variance, count = _Normalise.apply(x, weight, bias, eps, counted)

    if running_mean is not None:
        with torch.no_grad():
            unbiased = variance * count / (count - 1)
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return made


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, and beside it mean, variance and the number of values."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, counted: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = at_least_float32(x)
        mean, variance, count = _moments(wide, counted)
        scale = (variance + eps).rsqrt()

        centred = wide - _per_channel(mean, x)
        made = torch.addcmul(_per_channel(bias, x), centred, _per_channel(scale * weight, x))

        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return made.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, scale, count = ctx.saved_tensors
        over = _all_but_channels(x)
        gradient = at_least_float32(gradient)
        normal = (at_least_float32(x) - _per_channel(mean, x)) * _per_channel(scale, x)

        for_bias = gradient.sum(dim=over)
        for_weight = (gradient * normal).sum(dim=over)
        sums = torch.stack([for_bias, for_weight])
        dist.all_reduce(sums)

        common, along = sums / count
        inner = gradient - _per_channel(common, x) - normal * _per_channel(along, x)
        for_x = inner * _per_channel(scale * weight, x)
        return for_x.to(x.dtype), for_weight.to(weight.dtype), for_bias.to(weight.dtype), None, None


def _moments(x: Tensor, counted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), variance (C,) and number of values () of x (B, C, ...), over all processes.

    Each process gives the moments of its own rows, and these are joined: no difference of large squares. Rows that are
    not `counted` stand in for none.
    """
    channels = x.shape[1]
    values = x.numel() // channels if counted else 0
    table = x.new_zeros(dist.get_world_size(), 2, channels)
    counts = x.new_zeros(dist.get_world_size(), 1)
    if values:
        variance, mean = torch.var_mean(x, dim=_all_but_channels(x), correction=0)
        rank = dist.get_rank()
        table[rank] = torch.stack([mean, variance * values])
        counts[rank] = values

    together = torch.cat([table.flatten(1), counts], dim=1)
    dist.all_reduce(together)

    counts = together[:, -1:]
    means, squares = together[:, :-1].unflatten(1, (2, channels)).unbind(dim=1)
    count = counts.sum()
    mean = (counts * means).sum(dim=0) / count
    between = (counts * (means - mean) ** 2).sum(dim=0)
    return mean, (squares.sum(dim=0) + between) / count, count


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.ndim - 2))


@contextmanager
def frozen_statistics(model: nn.Module):
    """Batch normalisation uses the batch's statistics and leaves the running ones as they are."""
    norms = [module for module in model.modules() if _keeps_statistics(module)]
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        norm.running_mean = None
        norm.running_var = None
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, (mean, variance) in zip(norms, kept, strict=True):
            norm.running_mean = mean
            norm.running_var = variance
            norm.track_running_stats = True


def _keeps_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
