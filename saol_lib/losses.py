"""SAOL's losses (the paper's section 4), one pure function an equation, and their weighted sum.

Means run over the batch, or over its mixed samples. All of them are computed in at least float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from saol_lib.cutmix import Mixed, check_targets
from saol_lib.layers import Outputs, at_least_float32, check_choice, resize_map

OPTIONS = {
    "ss2_direction": ("source_to_mixed", "mixed_to_source"),
    "teacher": ("constant", "trained"),
    "mask_resize": ("area", "nearest"),
}


def cross_entropy(log_probs: Tensor, targets: Tensor) -> Tensor:
    """-sum_k y'_k log y_k, mean over the batch. log_probs (B, K); targets: indices (B,) or soft labels (B, K)."""
    check_targets(targets, log_probs.shape[1])
    if len(targets) != len(log_probs):
        raise ValueError(f"{len(targets)} targets cannot be compared with {len(log_probs)} outputs")
    log_probs = at_least_float32(log_probs)
    if targets.ndim == 1:
        return F.nll_loss(log_probs, targets.long())
    return -(targets * log_probs).sum(dim=1).mean()


def saol_loss(saol_log_probs: Tensor, targets: Tensor) -> Tensor:
    """L_SL: cross-entropy of the attention-weighted distribution, which is normalised already (section 3.1)."""
    return cross_entropy(saol_log_probs, targets)


def gap_loss(gap_logits: Tensor, targets: Tensor) -> Tensor:
    """The usual cross-entropy of the GAP-FC layer. gap_logits (B, K); targets as for `saol_loss`."""
    return cross_entropy(F.log_softmax(at_least_float32(gap_logits), dim=1), targets)


def _mean_over_mixed(values: Tensor, masks: Tensor, mixed: Tensor | None) -> Tensor:
    """Mean of values (B,) over the samples that `mixed` (B,) marks, else those with a mask; 0 if there is none."""
    chosen = (masks.flatten(1).any(dim=1) if mixed is None else mixed).to(values.dtype)
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def mask_loss(mask_logits: Tensor, masks: Tensor, mixed: Tensor | None = None) -> Tensor:
    """L_SS1: binary cross-entropy of the predicted mask against M, mean over positions, then over the mixed samples.

    mask_logits and masks (B, 1, Ho, Wo), masks in [0, 1]; mixed (B,) marks the mixed samples, by default those with
    any mask above 0 (section 4.1).
    """
    _check_same("mask_logits", mask_logits, "masks", masks)
    logits = at_least_float32(mask_logits)
    losses = F.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype), reduction="none")
    return _mean_over_mixed(losses.mean(dim=(1, 2, 3)), masks, mixed)


def consistency_loss(
    mixed_spatial_log_probs: Tensor,
    source_spatial_log_probs: Tensor,
    masks: Tensor,
    mixed: Tensor | None = None,
    direction: str = "source_to_mixed",
) -> Tensor:
    """L_SS2: KL divergence between Y of the mixed image and Y_A of its source over the pasted positions (section 4.1).

    Spatial log-probabilities (B, K, Ho, Wo), masks m (B, 1, Ho, Wo). Per sample sum(m * KL) / max(sum(m), 1), then the
    mean over the mixed samples (`mixed` as for `mask_loss`). direction "source_to_mixed": KL(Y_A || Y) with Y_A held
    constant; "mixed_to_source": KL(Y || Y_A) with a gradient through both.
    """
    check_choice("direction", direction, OPTIONS["ss2_direction"])
    _check_same("mixed", mixed_spatial_log_probs, "source", source_spatial_log_probs)
    _check_same("masks", masks, "one class of mixed", mixed_spatial_log_probs[:, :1])
    if direction == "source_to_mixed":
        divergence = kl_divergence(source_spatial_log_probs.detach(), mixed_spatial_log_probs)
    else:
        divergence = kl_divergence(mixed_spatial_log_probs, source_spatial_log_probs)
    weights = at_least_float32(masks).flatten(1)
    per_sample = (weights * divergence.flatten(1)).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    return _mean_over_mixed(per_sample, masks, mixed)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) summed over dimension 1, the classes; from log-probabilities of equal shape."""
    return F.kl_div(at_least_float32(log_q), at_least_float32(log_p), reduction="none", log_target=True).sum(dim=1)


def self_distillation_loss(
    gap_logits: Tensor, saol_log_probs: Tensor, targets: Tensor, beta: float = 0.5, teacher: str = "constant"
) -> Tensor:
    """L_SD = KL(y_saol || y_gap) + beta * CE(y', y_gap), mean over the batch (section 4.2): SAOL teaches GAP-FC.

    gap_logits, saol_log_probs (B, K). teacher "constant": no gradient into y_saol; "trained": through both.
    """
    check_choice("teacher", teacher, OPTIONS["teacher"])
    log_teacher = saol_log_probs.detach() if teacher == "constant" else saol_log_probs
    log_gap = F.log_softmax(at_least_float32(gap_logits), dim=1)
    return kl_divergence(log_teacher, log_gap).mean() + beta * cross_entropy(log_gap, targets)


def resize_masks(masks: Tensor, size: tuple[int, int], how: str = "area") -> Tensor:
    """Pixel masks (B, 1, H, W) at the output's size: "area" averages (soft at the border), "nearest" picks."""
    check_choice("how", how, OPTIONS["mask_resize"])
    if how == "area":
        return resize_map(masks, size, "adaptive")
    return F.interpolate(masks, size, mode="nearest-exact")


def total_loss(
    outputs: Outputs, mixed: Mixed, config, source: Outputs | None = None, mixed_weight: float = 1.0
) -> dict[str, Tensor]:
    """Every active term by name, and "total", their weighted sum.

    config: a `RunConfig`: its `terms` (sl, ss1, ss2, sd, gap_ce, aux_ce), `weights`, `beta`, loss options are read.
    source: outputs for the clean sources, one row a sample of the batch or one a mixed sample, in order; by default
    `outputs[mixed.partners]`, right for the paired schedule, whose sources are clean members of the same batch.
    mixed_weight: factor of ss1 and ss2 where this is one process's part of a batch, see `training.distributed`.
    Without a mixed sample in the batch there are no ss1 and ss2.
    """
    terms = {}
    any_mixed = bool(mixed.boxes.any())  # on the CPU: the device need not wait
    if "sl" in config.terms:
        terms["sl"] = saol_loss(outputs.saol_log_probs, mixed.targets)
    if {"ss1", "ss2"} & set(config.terms) and any_mixed:
        spatial = _spatial_terms(outputs, mixed, config, source)
        terms |= {name: mixed_weight * value for name, value in spatial.items()}
    if "sd" in config.terms:
        terms["sd"] = self_distillation_loss(
            outputs.gap_logits, outputs.saol_log_probs, mixed.targets, config.beta, config.teacher
        )
    if "gap_ce" in config.terms:
        terms["gap_ce"] = gap_loss(outputs.gap_logits, mixed.targets)
    if "aux_ce" in config.terms:
        terms["aux_ce"] = gap_loss(outputs.aux_logits, mixed.targets)
    return terms | {"total": sum(config.weights.get(name, 1.0) * value for name, value in terms.items())}


def _spatial_terms(outputs: Outputs, mixed: Mixed, config, source: Outputs | None) -> dict[str, Tensor]:
    """L_SS1 and L_SS2 over the mixed samples alone; the clean ones are left out before anything is computed."""
    chosen = (mixed.boxes[:, 2] > 0).nonzero()[:, 0].to(mixed.masks.device, non_blocking=True)
    masks = resize_masks(mixed.masks[chosen], outputs.spatial_log_probs.shape[-2:], config.mask_resize)
    every = torch.ones_like(chosen)  # a small mask may vanish at the output's size: its sample still counts
    terms = {}
    if "ss1" in config.terms:
        terms["ss1"] = mask_loss(outputs.mask_logits[chosen], masks, every)
    if "ss2" in config.terms:
        if source is None:
            clean = outputs.spatial_log_probs[mixed.partners[chosen]]
        else:
            clean = source.spatial_log_probs
            clean = clean if len(clean) == len(chosen) else clean[chosen]
        ours = outputs.spatial_log_probs[chosen]
        terms["ss2"] = consistency_loss(ours, clean, masks, every, config.ss2_direction)
    return terms


def _check_same(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{name_a} {tuple(a.shape)} and {name_b} {tuple(b.shape)} must have the same shape")
