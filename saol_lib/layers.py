"""Output layers: GAP-FC and the Spatially Attentive Output Layer (Kim, Baek and Kim, CVPR 2020, section 3).

B images, K classes, X_l the (B, C_l, H_l, W_l) map of block l, (Ho, Wo) the size of the spatial output.
Every choice that the paper leaves open is a field of `SaolOptions`; the defaults are explained in notebook 00.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saol_lib.options import changed, check_options, option


class Outputs(NamedTuple):
    """What a classifier returns; what it does not compute is None."""

    gap_logits: Tensor | None = None  # (B, K)
    saol_log_probs: Tensor | None = None  # (B, K)          log of the attention-weighted class distribution
    attention: Tensor | None = None  # (B, 1, Ho, Wo)  sums to 1 over positions (ABN: its sigmoid map)
    spatial_log_probs: Tensor | None = None  # (B, K, Ho, Wo)  log-softmax over K
    mask_logits: Tensor | None = None  # (B, 1, Ho, Wo)  in training; in evaluation only where asked for
    aux_logits: Tensor | None = None  # (B, K)          ABN's attention branch


@dataclass(frozen=True)
class SaolOptions:
    """What the paper leaves open about SAOL: notebook 00 lists the choices. Raises ValueError for anything else."""

    separable: bool = False  # depthwise-separable convolutions throughout (the paper's choice on ImageNet)
    output_size: int | tuple[int, int] | None = option(None, low=1)  # (Ho, Wo), an int for a square, None: X_L's
    logit_width: int | None = option(None, low=1)  # channels of a logit branch; None: see `default_logit_width`
    attention_width: int | None = option(None, low=1)  # channels between the attention convolutions; None: X_L's / 2
    between_logits: str = option("bn_relu", choices=("bn_relu", "none"))  # between the two logit convolutions
    between_attention: str = option("bn_relu", choices=("bn_relu", "none"))  # between the two of attention and mask
    kernel_size: int = option(3, choices=(3, 1))  # of every convolution; 3 with padding 1
    resize: str = option("bilinear", choices=("bilinear", "adaptive"))  # of the maps to (Ho, Wo): see `resize_map`
    earlier_blocks: str = option("raw", choices=("raw", "bn_relu"))  # "bn_relu": BatchNorm, ReLU on all maps but X_L
    class_softmax: str = option("position", choices=("position", "image"))  # "image": softmax(sum_ij A_ij raw_ij)
    mask_source: str = option("branch", choices=("branch", "attention", "none"))  # what predicts the CutMix mask

    def __post_init__(self) -> None:
        check_options(self)


# --- parts ------------------------------------------------------------------------------------------------------------


def at_least_float32(x: Tensor) -> Tensor:
    """Half types become float32; float32 and float64 stay as they are."""
    if x.dtype.itemsize < 4:
        return x.float()
    return x


def resize_map(x: Tensor, size: tuple[int, int], how: str = "bilinear") -> Tensor:
    """Bring a map (B, C, H, W) to `size` (Ho, Wo).

    how: "bilinear" (pixel areas aligned, antialiased when shrinking) or "adaptive" (average pooling).
    """
    if x.shape[-2:] == tuple(size):
        return x
    if how == "adaptive":
        return F.adaptive_avg_pool2d(x, size)

    batch, _, height, width = x.shape
    new_height, new_width = size
    rows = _bilinear(height, new_height, x)
    columns = _bilinear(width, new_width, x)

    pixels = x.permute(0, 2, 3, 1)  # channels last, so that both steps are plain matrix products
    lines = rows @ pixels.flatten(2)  # (B, Ho, W * C)
    lines = lines.view(batch * new_height, width, -1)
    grid = columns @ lines  # (B * Ho, Wo, C)
    resized = grid.view(batch, new_height, new_width, -1)
    return resized.permute(0, 3, 1, 2)


def _bilinear(old: int, new: int, like: Tensor) -> Tensor:
    """The matrix (new, old) by which torch's (antialiased) bilinear resizing maps a line of pixels."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    pixels = torch.eye(old, device=like.device, dtype=dtype)
    image = pixels[None, None]
    shrinks = new < old
    resized = F.interpolate(image, (new, old), mode="bilinear", antialias=shrinks)
    return resized[0, 0].to(like.dtype)


def attention_log_probs(scores: Tensor) -> Tensor:
    """log A: log-softmax of scores (B, 1, Ho, Wo) over all positions, in at least float32 (section 3.1)."""
    flat = at_least_float32(scores).flatten(1)
    log_probs = F.log_softmax(flat, dim=1)
    return log_probs.view_as(scores)


def aggregate(log_attention: Tensor, spatial_log_probs: Tensor) -> Tensor:
    """log sum_ij A_ij Y_k,ij without leaving the log domain (section 3.1).

    log_attention: (B, 1, Ho, Wo); spatial_log_probs: (B, K, Ho, Wo); returns (B, K), a log-distribution over K.
    """
    weighted = log_attention + spatial_log_probs
    return torch.logsumexp(weighted.flatten(2), dim=2)


def attention_entropy(attention: Tensor) -> Tensor:
    """The entropy (B,) of attention maps (B, 1, Ho, Wo), in nats: log(Ho * Wo) if uniform, 0 for a point. Ours.

    Maps need not sum to 1 (ABN's do not): each is divided by its sum first.
    """
    shares = _shares(attention)
    return torch.special.entr(shares).sum(dim=1)


def largest_cell(attention: Tensor) -> Tensor:
    """The share (B,) of attention maps (B, 1, Ho, Wo) on their largest cell: 1 / (Ho * Wo) if uniform. Ours."""
    return _shares(attention).amax(dim=1)


def _shares(attention: Tensor) -> Tensor:
    flat = attention.flatten(1)
    return flat / flat.sum(dim=1, keepdim=True)


def default_logit_width(num_classes: int) -> int:
    """K channels, the paper's "intermediate spatial logits", but at least 40: ten starved SAOL (results/pilot)."""
    return max(num_classes, 40)


def _conv(in_channels: int, out_channels: int, bias: bool, options: SaolOptions) -> nn.Module:
    """A convolution that keeps the size; separable: one filter a channel, then a 1x1 convolution."""
    size = options.kernel_size
    padding = size // 2
    if not options.separable or size == 1:
        return nn.Conv2d(in_channels, out_channels, size, padding=padding, bias=bias)

    depthwise = nn.Conv2d(
        in_channels,
        in_channels,
        size,
        padding=padding,
        groups=in_channels,
        bias=False,
    )
    pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
    return nn.Sequential(depthwise, pointwise)


def _bn_relu(channels: int) -> nn.Sequential:
    norm = nn.BatchNorm2d(channels)
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(norm, relu)


def _two_convs(in_channels: int, width: int, bias: bool, options: SaolOptions) -> nn.Sequential:
    """X_L to one channel: the attention branch, and the branch that predicts the mask."""
    norm = options.between_attention == "bn_relu"
    first = _conv(in_channels, width, not norm, options)
    second = _conv(width, 1, bias, options)
    if not norm:
        return nn.Sequential(first, second)
    return nn.Sequential(first, _bn_relu(width), second)


# --- the layers -------------------------------------------------------------------------------------------------------


class GAPFC(nn.Linear):
    """The usual output layer: the mean of X_L (B, C, H, W) over positions, then a linear map to logits (B, K)."""

    def forward(self, feature: Tensor) -> Tensor:
        pooled = feature.mean(dim=(2, 3))
        return super().forward(pooled)


class SAOL(nn.Module):
    """Spatially Attentive Output Layer (section 3.1): attention A and spatial logits Y, joined as sum_ij A_ij Y_ij.

    in_channels  channels of the maps it will get, from shallow to deep; the last one is X_L, what GAP would pool
    options      a `SaolOptions`; None: the defaults
    changes      single fields of it, by name: SAOL([64, 128], 10, separable=True)

    `forward(maps, mask=None)` takes the maps (B, C_l, H_l, W_l) and returns `Outputs` without `gap_logits`;
    mask_logits are computed when `mask` is true, by default in training.
    Raises ValueError for an unknown option, a size under 1, or maps that are not those it was built for.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        options: SaolOptions | None = None,
        **changes: Any,
    ) -> None:
        super().__init__()
        options = changed(options or SaolOptions(), changes)
        has_maps = in_channels and min(in_channels) >= 1
        if not has_maps or num_classes < 2:
            raise ValueError(f"SAOL needs at least one map and two classes, got {list(in_channels)} and {num_classes}")

        self.in_channels = tuple(in_channels)
        self.num_classes = num_classes
        self.output_size = _as_pair(options.output_size)
        self.resize = options.resize
        self.class_softmax = options.class_softmax
        self.mask_source = options.mask_source

        last = in_channels[-1]
        hidden = options.attention_width or max(last // 2, 1)
        self.attention = _two_convs(last, hidden, bias=False, options=options)  # softmax ignores a constant

        norm_earlier = options.earlier_blocks == "bn_relu"
        self.prepare = nn.ModuleList()
        for channels in in_channels[:-1]:
            self.prepare.append(_bn_relu(channels) if norm_earlier else nn.Identity())
        self.prepare.append(nn.Identity())  # X_L is what the pooling would get

        norm = options.between_logits == "bn_relu"
        width = options.logit_width or default_logit_width(num_classes)
        self.branches = nn.ModuleList()
        for channels in in_channels:
            branch = _conv(channels, width, not norm, options)
            self.branches.append(branch)
        total = width * len(in_channels)
        self.between = _bn_relu(total) if norm else nn.Identity()
        self.logits = _conv(total, num_classes, bias=True, options=options)

        if self.mask_source == "branch":  # drawn last, so that arms with and without it share all other weights
            self.mask = _two_convs(last, hidden, bias=True, options=options)
        if self.mask_source == "attention":  # a constant that the softmax of the scores cannot see, but a sigmoid can
            self.mask_constant = nn.Parameter(torch.zeros(1))

    def forward(self, maps: Sequence[Tensor], mask: bool | None = None) -> Outputs:
        maps = self._resized(maps)
        last = maps[-1]

        scores = self.attention(last)
        log_attention = attention_log_probs(scores)
        attention = log_attention.exp()

        raw = self._raw_logits(maps)
        spatial = F.log_softmax(raw, dim=1)
        if self.class_softmax == "position":
            joined = aggregate(log_attention, spatial)
        else:
            summed = (attention * raw).sum(dim=(2, 3))
            joined = F.log_softmax(summed, dim=1)

        mask_logits = None
        wanted = self.training if mask is None else mask
        if wanted:
            mask_logits = self._mask_logits(last, scores)
        return Outputs(
            saol_log_probs=joined,
            attention=attention,
            spatial_log_probs=spatial,
            mask_logits=mask_logits,
        )

    def _raw_logits(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, Ho, Wo) of every position, from the resized maps of all blocks."""
        intermediate = []
        for branch, feature in zip(self.branches, maps, strict=True):
            intermediate.append(branch(feature))
        joint = torch.cat(intermediate, dim=1)
        normed = self.between(joint)
        return at_least_float32(self.logits(normed))

    def _resized(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps at the output's size; ValueError where they are not those that the layer was built for."""
        channels = tuple(feature.shape[1] for feature in maps)
        if channels != self.in_channels:
            raise ValueError(f"SAOL was built for maps with {self.in_channels} channels, got {channels}")

        last_size = tuple(maps[-1].shape[-2:])
        size = self.output_size or last_size
        resized = []
        for prepare, feature in zip(self.prepare, maps, strict=True):
            prepared = prepare(feature)
            resized.append(resize_map(prepared, size, self.resize))
        return resized

    def _mask_logits(self, last: Tensor, scores: Tensor) -> Tensor | None:
        if self.mask_source == "branch":
            return at_least_float32(self.mask(last))
        if self.mask_source == "attention":
            return at_least_float32(scores) + self.mask_constant
        return None


def _as_pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if isinstance(size, int):
        return (size, size)
    if size is None:
        return None
    return tuple(size)
