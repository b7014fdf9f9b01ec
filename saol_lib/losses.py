"""SAOL's losses (the paper's section 4), one pure function an equation, and their weighted sum.

Means run over the batch, or over its mixed samples. All of them are computed in at least float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saol_lib.cutmix import Mixed, check_targets, mixed_rows
from saol_lib.layers import Outputs, at_least_float32, resize_map
from saol_lib.options import changed, check_choice, check_options, option

DIRECTIONS = ("source_to_mixed", "mixed_to_source")
TEACHERS = ("constant", "trained")
MASK_RESIZES = ("area", "nearest")

# What each term of the total reads from the outputs.
READS = {
    "sl": ("saol_log_probs",),
    "ss1": ("mask_logits", "spatial_log_probs"),
    "ss2": ("spatial_log_probs",),
    "sd": ("gap_logits", "saol_log_probs"),
    "gap_ce": ("gap_logits",),
    "aux_ce": ("aux_logits",),
}
SPATIAL = ("ss1", "ss2")  # the terms over the mixed samples


@dataclass(frozen=True)
class LossOptions:
    """What `total_loss` can be told: weights, and what the paper leaves open (notebook 00). Else ValueError."""

    beta: float = option(0.5, low=0)  # of the cross-entropy inside L_SD
    sl_weight: float = option(1.0, low=0)
    ss_weight: float = option(1.0, low=0)  # of L_SS1 and of L_SS2
    sd_weight: float = option(1.0, low=0)
    ss2_direction: str = option("source_to_mixed", choices=DIRECTIONS)  # see `consistency_loss`
    teacher: str = option("constant", choices=TEACHERS)  # see `self_distillation_loss`
    mask_resize: str = option("area", choices=MASK_RESIZES)  # see `resize_masks`

    def __post_init__(self) -> None:
        check_options(self)


def cross_entropy(log_probs: Tensor, targets: Tensor) -> Tensor:
    """-sum_k y'_k log y_k, a scalar: the mean over the batch.

    log_probs (B, K): logarithms of probabilities. targets: integer classes (B,) in 0..K-1, or soft labels (B, K), each
    a distribution. Raises ValueError for targets of another shape, type or length, and on the CPU for values out of
    range.
    """
    check_targets(targets, log_probs.shape[1])
    if len(targets) != len(log_probs):
        raise ValueError(f"{len(targets)} targets cannot be compared with {len(log_probs)} outputs")
    log_probs = at_least_float32(log_probs)
    if targets.ndim == 1:
        return F.nll_loss(log_probs, targets.long())
    return -(targets * log_probs).sum(dim=1).mean()


def saol_loss(saol_log_probs: Tensor, targets: Tensor) -> Tensor:
    """L_SL: cross-entropy of the attention-weighted distribution, which is normalised already (section 3.1).

    saol_log_probs (B, K): logarithms of probabilities; targets, result and errors: those of `cross_entropy`.
    """
    return cross_entropy(saol_log_probs, targets)


def gap_loss(gap_logits: Tensor, targets: Tensor) -> Tensor:
    """The usual cross-entropy of the GAP-FC layer, gap_logits (B, K); the rest as in `cross_entropy`."""
    log_gap = F.log_softmax(at_least_float32(gap_logits), dim=1)
    return cross_entropy(log_gap, targets)


def _mean_over_mixed(values: Tensor, masks: Tensor, mixed: Tensor | None) -> Tensor:
    """Mean of values (B,) over the samples that `mixed` (B,) marks, else those with a mask; 0 if there is none."""
    if mixed is None:
        mixed = masks.flatten(1).any(dim=1)
    chosen = mixed.to(values.dtype)
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def mask_loss(mask_logits: Tensor, masks: Tensor, mixed: Tensor | None = None) -> Tensor:
    """L_SS1: binary cross-entropy of the predicted mask against M, mean over positions, then over the mixed samples.

    mask_logits and masks (B, 1, Ho, Wo), masks in [0, 1]; mixed (B,) marks the mixed samples, by default those with
    any mask above 0 (section 4.1). A scalar, 0 without a mixed sample. Raises ValueError where the shapes differ.
    """
    _check_same("mask_logits", mask_logits, "masks", masks)
    logits = at_least_float32(mask_logits)
    losses = F.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype), reduction="none")
    per_sample = losses.mean(dim=(1, 2, 3))
    return _mean_over_mixed(per_sample, masks, mixed)


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
    constant; "mixed_to_source": KL(Y || Y_A) with a gradient through both. A scalar, 0 without a mixed sample. Raises
    ValueError for another direction and for shapes that do not belong together.
    """
    check_choice("direction", direction, DIRECTIONS)
    _check_same("mixed", mixed_spatial_log_probs, "source", source_spatial_log_probs)
    _check_same("masks", masks, "one class of mixed", mixed_spatial_log_probs[:, :1])
    if direction == "source_to_mixed":
        divergence = kl_divergence(source_spatial_log_probs.detach(), mixed_spatial_log_probs)
    else:
        divergence = kl_divergence(mixed_spatial_log_probs, source_spatial_log_probs)
    weights = at_least_float32(masks).flatten(1)
    pasted = weights.sum(dim=1).clamp(min=1)
    per_sample = (weights * divergence.flatten(1)).sum(dim=1) / pasted
    return _mean_over_mixed(per_sample, masks, mixed)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) summed over dimension 1, the classes; from log-probabilities of equal shape."""
    log_p = at_least_float32(log_p)
    log_q = at_least_float32(log_q)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def self_distillation_loss(
    gap_logits: Tensor, saol_log_probs: Tensor, targets: Tensor, beta: float = 0.5, teacher: str = "constant"
) -> Tensor:
    """L_SD = KL(y_saol || y_gap) + beta * CE(y', y_gap), mean over the batch (section 4.2): SAOL teaches GAP-FC.

    gap_logits, saol_log_probs (B, K); targets y' as in `cross_entropy`; beta at least 0. teacher "constant": no
    gradient into y_saol; "trained": through both. A scalar. Raises ValueError for another teacher or unfit targets.
    """
    check_choice("teacher", teacher, TEACHERS)
    log_teacher = saol_log_probs.detach() if teacher == "constant" else saol_log_probs
    log_gap = F.log_softmax(at_least_float32(gap_logits), dim=1)
    taught = kl_divergence(log_teacher, log_gap).mean()
    return taught + beta * cross_entropy(log_gap, targets)


def resize_masks(masks: Tensor, size: tuple[int, int], how: str = "area") -> Tensor:
    """Pixel masks (B, 1, H, W) at the output's size: "area" averages (soft at the border), "nearest" picks."""
    check_choice("how", how, MASK_RESIZES)
    if how == "area":
        return resize_map(masks, size, "adaptive")
    return F.interpolate(masks, size, mode="nearest-exact")


# --- the total --------------------------------------------------------------------------------------------------------


def total_loss(
    outputs: Outputs,
    mixed: Mixed,
    *,
    terms: Sequence[str] | None = None,
    source: Outputs | None = None,
    mixed_weight: float = 1.0,
    options: LossOptions | None = None,
    **changes: Any,
) -> dict[str, Tensor]:
    """Every active term by name, and "total", their weighted sum.

    terms         of sl, ss1, ss2, sd, gap_ce, aux_ce; None: what the outputs allow. Both layers: sl, ss1, ss2, sd; SAOL
                  alone: sl, ss1, ss2; GAP-FC alone: gap_ce; ABN: gap_ce, aux_ce. (ss1 only where masks were predicted.)
    source        outputs for the clean sources, one row a sample of the batch or one a mixed sample, in order; None:
                  `outputs[mixed.partners]`, right where the sources are clean members of the same batch
    mixed_weight  factor of ss1 and ss2 where this is one process's part of a batch, see `training.distributed`
    options       a `LossOptions`; changes: single fields of it, by name, beta=0.3 say

    Without a mixed sample in the batch there are no ss1 and ss2.
    Raises ValueError for an unknown term or option, for a term whose output layer the network does not have, and for
    ss2 without `source` where the sources are not clean (CutMix schedules "sample" and "batch").
    """
    options = changed(options or LossOptions(), changes)
    active = _active_terms(outputs, mixed, terms)
    if "ss2" in active and source is None and not mixed.clean_sources:
        raise ValueError(
            "ss2 compares with the clean sources, which the CutMix schedules 'sample' and 'batch' do not have in the "
            "batch: give source=, the outputs for images[mixed.partners], or mix with schedule='paired'"
        )

    found = {}
    if "sl" in active:
        found["sl"] = saol_loss(outputs.saol_log_probs, mixed.targets)
    if "ss1" in active or "ss2" in active:
        spatial = _spatial_terms(outputs, mixed, source, active, options)
        found |= {name: mixed_weight * value for name, value in spatial.items()}
    if "sd" in active:
        found["sd"] = self_distillation_loss(
            outputs.gap_logits, outputs.saol_log_probs, mixed.targets, options.beta, options.teacher
        )
    if "gap_ce" in active:
        found["gap_ce"] = gap_loss(outputs.gap_logits, mixed.targets)
    if "aux_ce" in active:
        found["aux_ce"] = gap_loss(outputs.aux_logits, mixed.targets)

    weights = {
        "sl": options.sl_weight,
        "ss1": options.ss_weight,
        "ss2": options.ss_weight,
        "sd": options.sd_weight,
    }
    found["total"] = sum(weights.get(name, 1.0) * value for name, value in found.items())
    return found


def default_terms(outputs: Outputs) -> tuple[str, ...]:
    """The terms that a network with these outputs is trained by, unless told: see `total_loss`."""
    if outputs.aux_logits is not None:
        return ("gap_ce", "aux_ce")
    if outputs.saol_log_probs is None:
        return ("gap_ce",)
    masks = () if outputs.mask_logits is None else ("ss1",)
    distilled = () if outputs.gap_logits is None else ("sd",)
    return ("sl", *masks, "ss2", *distilled)


def _active_terms(outputs: Outputs, mixed: Mixed, terms: Sequence[str] | None) -> set[str]:
    """The terms to compute for this batch; ValueError for those that are not known or that the outputs do not allow."""
    if terms is None:
        terms = default_terms(outputs)
    if isinstance(terms, str) or not terms:
        raise ValueError(f"terms={terms!r} must be a list of some of {', '.join(READS)}")
    for term in terms:
        check_choice("term", term, tuple(READS))

    active = set(terms)
    if not len(mixed_rows(mixed.boxes)):  # on the CPU: the device need not wait
        active -= set(SPATIAL)
    for term in sorted(active):
        missing = [name for name in READS[term] if getattr(outputs, name) is None]
        if missing:
            raise ValueError(_explain_missing(term, missing[0]))
    return active


def _explain_missing(term: str, name: str) -> str:
    remedy = {
        "gap_logits": "give the network a GAP-FC layer, heads=('gap', 'saol')",
        "mask_logits": "call the network in training mode or with mask=True, and with a mask_source",
        "aux_logits": "only an ABN makes them, heads=('abn',)",
    }
    otherwise = "give the network a SAOL, heads=('gap', 'saol')"
    return f"the term {term!r} needs {name}, which these outputs do not have; {remedy.get(name, otherwise)}"


def _spatial_terms(
    outputs: Outputs, mixed: Mixed, source: Outputs | None, active: set[str], options: LossOptions
) -> dict[str, Tensor]:
    """L_SS1 and L_SS2 over the mixed samples alone; the clean ones are left out before anything is computed."""
    device = mixed.masks.device
    rows = mixed_rows(mixed.boxes)
    partners = mixed.partners[rows].to(device, non_blocking=True)
    chosen = rows.to(device, non_blocking=True)

    size = outputs.spatial_log_probs.shape[-2:]
    masks = resize_masks(mixed.masks[chosen], size, options.mask_resize)
    every = torch.ones_like(chosen)  # a small mask may vanish at the output's size: its sample still counts

    terms = {}
    if "ss1" in active:
        terms["ss1"] = mask_loss(outputs.mask_logits[chosen], masks, every)
    if "ss2" in active:
        ours = outputs.spatial_log_probs[chosen]
        if source is None:
            theirs = outputs.spatial_log_probs[partners]
        elif len(source.spatial_log_probs) == len(chosen):
            theirs = source.spatial_log_probs
        else:
            theirs = source.spatial_log_probs[chosen]
        terms["ss2"] = consistency_loss(ours, theirs, masks, every, options.ss2_direction)
    return terms


def _check_same(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{name_a} {tuple(a.shape)} and {name_b} {tuple(b.shape)} must have the same shape")
