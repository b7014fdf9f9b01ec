"""Output layers: GAP-FC and the Spatially Attentive Output Layer (Kim, Baek and Kim, CVPR 2020, section 3).

B images, K classes, X_l the (B, C_l, H_l, W_l) map of block l, (Ho, Wo) the size of the spatial output.
Every choice that the paper leaves open is a named argument of `SAOL`; the defaults are explained in notebook 00.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Outputs(NamedTuple):
    """What a classifier returns; what it does not compute is None."""

    gap_logits: Tensor | None = None  # (B, K)
    saol_log_probs: Tensor | None = None  # (B, K)          log of the attention-weighted class distribution
    attention: Tensor | None = None  # (B, 1, Ho, Wo)  sums to 1 over positions (ABN: its sigmoid map)
    spatial_log_probs: Tensor | None = None  # (B, K, Ho, Wo)  log-softmax over K
    mask_logits: Tensor | None = None  # (B, 1, Ho, Wo)  in training; in evaluation only where asked for
    aux_logits: Tensor | None = None  # (B, K)          ABN's attention branch


OPTIONS = {
    "between_logits": ("bn_relu", "none"),
    "between_attention": ("bn_relu", "none"),
    "kernel_size": (3, 1),
    "resize": ("bilinear", "adaptive"),
    "earlier_blocks": ("raw", "bn_relu"),
    "class_softmax": ("position", "image"),
    "mask_source": ("branch", "attention", "none"),
}


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise one sentence if `value` is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(map(repr, choices))}")


def at_least_float32(x: Tensor) -> Tensor:
    """Half types become float32; float32 and float64 stay as they are."""
    return x.float() if x.dtype.itemsize < 4 else x


def resize_map(x: Tensor, size: tuple[int, int], how: str = "bilinear") -> Tensor:
    """Bring a map (B, C, H, W) to `size` (Ho, Wo).

    how: "bilinear" (pixel areas aligned, antialiased when shrinking) or "adaptive" (average pooling).
    """
    if x.shape[-2:] == tuple(size):
        return x
    if how == "adaptive":
        return F.adaptive_avg_pool2d(x, size)
    rows, columns = (_bilinear(old, new, x) for old, new in zip(x.shape[2:], size, strict=True))
    batch, _, _, width = x.shape
    lines = rows @ x.permute(0, 2, 3, 1).flatten(2)  # (B, Ho, W * C): channels last, so that both are plain products
    grid = columns @ lines.view(batch * size[0], width, -1)
    return grid.view(batch, *size, -1).permute(0, 3, 1, 2)


def _bilinear(old: int, new: int, like: Tensor) -> Tensor:
    """The matrix (new, old) by which torch's (antialiased) bilinear resizing maps a line of pixels."""
    pixels = torch.eye(old, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    return F.interpolate(pixels[None, None], (new, old), mode="bilinear", antialias=new < old)[0, 0].to(like.dtype)


def attention_log_probs(scores: Tensor) -> Tensor:
    """log A: log-softmax of scores (B, 1, Ho, Wo) over all positions, in at least float32 (section 3.1)."""
    return F.log_softmax(at_least_float32(scores).flatten(1), dim=1).view_as(scores)


def aggregate(log_attention: Tensor, spatial_log_probs: Tensor) -> Tensor:
    """log sum_ij A_ij Y_k,ij without leaving the log domain (section 3.1).

    log_attention: (B, 1, Ho, Wo); spatial_log_probs: (B, K, Ho, Wo); returns (B, K), a log-distribution over K.
    """
    return torch.logsumexp((log_attention + spatial_log_probs).flatten(2), dim=2)


class GAPFC(nn.Linear):
    """The usual output layer: the mean of X_L (B, C, H, W) over positions, then a linear map to logits (B, K)."""

    def forward(self, feature: Tensor) -> Tensor:
        return super().forward(feature.mean(dim=(2, 3)))


def _conv(in_channels: int, out_channels: int, kernel_size: int, separable: bool, bias: bool) -> nn.Module:
    """A convolution that keeps the size; separable: one filter a channel, then a 1x1 convolution."""
    if not separable or kernel_size == 1:
        return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
    shape = {"padding": kernel_size // 2, "groups": in_channels}
    depthwise = nn.Conv2d(in_channels, in_channels, kernel_size, bias=False, **shape)
    return nn.Sequential(depthwise, nn.Conv2d(in_channels, out_channels, 1, bias=bias))


def _bn_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class SAOL(nn.Module):
    """Spatially Attentive Output Layer (section 3.1): attention A and spatial logits Y, joined as sum_ij A_ij Y_ij.

    in_channels    channels of the maps it will get, from shallow to deep; the last one is X_L, what GAP would pool
    output_size    (Ho, Wo), an int for a square, None for the size of X_L
    separable      depthwise-separable convolutions throughout (the paper's choice on ImageNet)
    logit_width    channels of every branch of intermediate spatial logits; None: see `default_logit_width`
    attention_width  channels between the two attention convolutions; None: half of X_L's
    between_logits, between_attention  "bn_relu" or "none", what stands between the two convolutions
    kernel_size    3 (padding 1) or 1
    resize         "bilinear" or "adaptive", see `resize_map`
    earlier_blocks "raw": the maps as they come; "bn_relu": BatchNorm and ReLU on every map but X_L first
    class_softmax  "position": softmax over K at every position; "image": softmax(sum_ij A_ij * raw logits_ij)
    mask_source    what predicts the CutMix mask: "branch" (an own branch), "attention" (its scores), "none"

    `forward(maps, mask=None)` takes the maps (B, C_l, H_l, W_l) and returns `Outputs` without `gap_logits`;
    mask_logits are computed when `mask` is true, by default in training.
    Raises ValueError for an unknown option, a size under 1, or maps that are not those it was built for.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        output_size: int | tuple[int, int] | None = None,
        separable: bool = False,
        logit_width: int | None = None,
        attention_width: int | None = None,
        between_logits: str = "bn_relu",
        between_attention: str = "bn_relu",
        kernel_size: int = 3,
        resize: str = "bilinear",
        earlier_blocks: str = "raw",
        class_softmax: str = "position",
        mask_source: str = "branch",
    ) -> None:
        super().__init__()
        for name, choices in OPTIONS.items():
            check_choice(name, locals()[name], choices)
        if not in_channels or min(in_channels) < 1 or num_classes < 2:
            raise ValueError(f"SAOL needs at least one map and two classes, got {list(in_channels)} and {num_classes}")
        for name, value in (("logit_width", logit_width), ("attention_width", attention_width)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be None or at least 1")
        self.in_channels, self.num_classes = tuple(in_channels), num_classes
        self.output_size = _as_size(output_size)
        self.resize, self.class_softmax, self.mask_source = resize, class_softmax, mask_source
        width = logit_width or default_logit_width(num_classes)
        last = in_channels[-1]
        hidden = attention_width or max(last // 2, 1)
        shape = {"kernel_size": kernel_size, "separable": separable}

        def two_convs(first: int, between: str, bias: bool) -> nn.Sequential:
            middle = [_bn_relu(hidden)] if between == "bn_relu" else []
            return nn.Sequential(
                _conv(first, hidden, bias=not middle, **shape), *middle, _conv(hidden, 1, bias=bias, **shape)
            )

        self.attention = two_convs(last, between_attention, bias=False)  # softmax ignores a constant
        self.prepare = nn.ModuleList(
            _bn_relu(c) if earlier_blocks == "bn_relu" and i < len(in_channels) - 1 else nn.Identity()
            for i, c in enumerate(in_channels)
        )
        norm = between_logits == "bn_relu"
        self.branches = nn.ModuleList(_conv(c, width, bias=not norm, **shape) for c in in_channels)
        total = width * len(in_channels)
        self.between = _bn_relu(total) if norm else nn.Identity()
        self.logits = _conv(total, num_classes, bias=True, **shape)
        if mask_source == "branch":  # drawn last, so that arms with and without it share all other weights
            self.mask = two_convs(last, between_attention, bias=True)

    def forward(self, maps: Sequence[Tensor], mask: bool | None = None) -> Outputs:
        channels = tuple(m.shape[1] for m in maps)
        if channels != self.in_channels:
            raise ValueError(f"SAOL was built for maps with {self.in_channels} channels, got {channels}")
        size = self.output_size or tuple(maps[-1].shape[-2:])
        maps = [resize_map(prepare(m), size, self.resize) for m, prepare in zip(maps, self.prepare, strict=True)]
        scores = self.attention(maps[-1])
        branches = [branch(m) for branch, m in zip(self.branches, maps, strict=True)]
        raw = at_least_float32(self.logits(self.between(torch.cat(branches, dim=1))))
        log_attention, spatial = attention_log_probs(scores), F.log_softmax(raw, dim=1)
        if self.class_softmax == "position":
            joined = aggregate(log_attention, spatial)
        else:
            joined = F.log_softmax((log_attention.exp() * raw).sum(dim=(2, 3)), dim=1)
        wanted = self.training if mask is None else mask
        return Outputs(
            saol_log_probs=joined,
            attention=log_attention.exp(),
            spatial_log_probs=spatial,
            mask_logits=self._mask_logits(maps[-1], scores) if wanted else None,
        )

    def _mask_logits(self, last: Tensor, scores: Tensor) -> Tensor | None:
        if self.mask_source == "none":
            return None
        return at_least_float32(self.mask(last) if self.mask_source == "branch" else scores)


def default_logit_width(num_classes: int) -> int:
    """K channels, the paper's "intermediate spatial logits", but at least 40: ten starved SAOL (results/pilot)."""
    return max(num_classes, 40)


def _as_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(isinstance(s, int) and s >= 1 for s in pair):
        raise ValueError(f"output_size={size!r} must be None, an int of at least 1, or two of them (height, width)")
    return pair
