"""Every loss against a literal loop, its gradients, what it must not touch, and how it averages."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from saol_lib.cutmix import SCHEDULES, mix, paste, unmixed
from saol_lib.layers import Outputs, aggregate, attention_log_probs
from saol_lib.losses import (
    DIRECTIONS,
    MASK_RESIZES,
    READS,
    TEACHERS,
    LossOptions,
    consistency_loss,
    cross_entropy,
    gap_loss,
    kl_divergence,
    mask_loss,
    resize_masks,
    saol_loss,
    self_distillation_loss,
    total_loss,
)
from saol_lib.training.config import ARMS, RunConfig

B, K, SIZE, IMAGE = 4, 3, (2, 3), (8, 12)  # a cell of the output is 4x4 pixels
TARGETS = torch.tensor([2, 0, 1, 2])
near = pytest.approx


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 7 * len(shape)), dtype=dtype)


def some_outputs(seed=0, count=B, scale=1.0, dtype=torch.float64):
    """Outputs of both layers as a network would give them; every leaf can take a gradient."""
    scores, raw = (scale * random(count, c, *SIZE, seed=seed, dtype=dtype) for c in (1, K))
    spatial, attention = F.log_softmax(raw, dim=1), attention_log_probs(scores)
    fields = {"gap_logits": scale * random(count, K, seed=seed, dtype=dtype), "spatial_log_probs": spatial,
              "saol_log_probs": aggregate(attention, spatial), "attention": attention.exp(),
              "mask_logits": scale * random(count, 1, *SIZE, seed=seed + 1, dtype=dtype),
              "aux_logits": scale * random(count, K, seed=seed + 2, dtype=dtype)}  # fmt: skip
    return Outputs(**{name: value.requires_grad_() for name, value in fields.items()})


def pasted(boxes, partners=(2, 3, 2, 3), dtype=torch.float64):
    """Images 8x12 with these boxes; the last two samples are the clean sources."""
    boxes = torch.tensor([*boxes, *[[0, 0, 0, 0]] * (B - len(boxes))])
    empty = ~boxes.any(dim=1)
    partners = torch.where(empty, torch.arange(B), torch.tensor(partners))
    return paste(torch.zeros(B, 1, *IMAGE), torch.eye(K, dtype=dtype)[TARGETS], K, boxes, partners)


def total(outputs, mixed, config, source=None):
    """The total of one of the study's arms."""
    return total_loss(outputs, mixed, terms=config.terms, source=source, options=config)


# --- literal float64 twins -------------------------------------------------------------------------------------------


def loop_ce(log_probs, targets):
    labels = targets if targets.ndim == 2 else torch.eye(K)[targets]
    terms = [-labels[b, k].item() * log_probs[b, k].item() for b, k in np.ndindex(*log_probs.shape)]
    return sum(terms) / len(log_probs)


def loop_log_softmax(logits):
    rows = [[math.exp(v) for v in row] for row in logits.tolist()]
    return torch.tensor([[math.log(v / sum(row)) for v in row] for row in rows], dtype=torch.float64)


def loop_kl(log_p, log_q):
    return sum(math.exp(p) * (p - q) for p, q in zip(log_p.tolist(), log_q.tolist(), strict=True))


def loop_sd(gap_logits, saol_log_probs, targets, beta):
    gap = loop_log_softmax(gap_logits)
    return sum(map(loop_kl, saol_log_probs, gap)) / len(gap) + beta * loop_ce(gap, targets)


def loop_masks(masks, size, how):
    """Area: the mean of every pixel that the cell touches. Nearest: the pixel under the cell's centre."""
    y, steps = torch.zeros(len(masks), 1, *size, dtype=torch.float64), [masks.shape[d + 2] / size[d] for d in (0, 1)]
    for b, i, j in np.ndindex(len(masks), *size):
        if how == "nearest":
            y[b, 0, i, j] = masks[b, 0, int((i + 0.5) * steps[0]), int((j + 0.5) * steps[1])]
            continue
        rows, columns = (range(int(n * s), math.ceil((n + 1) * s)) for n, s in zip((i, j), steps, strict=True))
        y[b, 0, i, j] = sum(masks[b, 0, p, q].item() for p in rows for q in columns) / len(rows) / len(columns)
    return y


def loop_ss1(mask_logits, masks, mixed):
    means = []
    for b in mixed:
        terms = []
        for i, j in np.ndindex(*mask_logits.shape[2:]):
            p, m = 1 / (1 + math.exp(-mask_logits[b, 0, i, j].item())), masks[b, 0, i, j].item()
            terms.append(-m * math.log(p) - (1 - m) * math.log(1 - p))
        means.append(sum(terms) / len(terms))
    return sum(means) / len(mixed)


def loop_ss2(ours, sources, masks, mixed, direction):
    """`sources`: one map a sample of the batch."""
    means = []
    for b in mixed:
        total = 0.0
        for i, j in np.ndindex(*ours.shape[2:]):
            p, q = sources[b, :, i, j], ours[b, :, i, j]
            total += masks[b, 0, i, j].item() * (loop_kl(p, q) if direction == "source_to_mixed" else loop_kl(q, p))
        means.append(total / max(masks[b].sum().item(), 1))
    return sum(means) / len(mixed)


def loop_total(outputs, mixed, config, sources):
    """Every term of METHOD's section 2 for one batch, by loops."""
    chosen = [b for b, box in enumerate(mixed.boxes.tolist()) if any(box)]
    masks = loop_masks(mixed.masks, SIZE, config.mask_resize)
    terms = {
        "sl": loop_ce(outputs.saol_log_probs, mixed.targets),
        "ss1": loop_ss1(outputs.mask_logits, masks, chosen) if chosen else None,
        "ss2": loop_ss2(outputs.spatial_log_probs, sources, masks, chosen, config.ss2_direction) if chosen else None,
        "sd": loop_sd(outputs.gap_logits, outputs.saol_log_probs, mixed.targets, config.beta),
        "gap_ce": loop_ce(loop_log_softmax(outputs.gap_logits), mixed.targets),
        "aux_ce": loop_ce(loop_log_softmax(outputs.aux_logits), mixed.targets),
    }
    terms = {name: value for name, value in terms.items() if name in config.terms and value is not None}
    weight = {"sl": config.sl_weight, "ss1": config.ss_weight, "ss2": config.ss_weight, "sd": config.sd_weight}
    return terms | {"total": sum(weight.get(name, 1) * value for name, value in terms.items())}


# --- equations -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 99), st.floats(0, 2))
def test_losses_on_whole_images_are_the_literal_ones(seed, beta):
    outputs, soft = some_outputs(seed), random(B, K, seed=seed + 5).softmax(1)
    saol, gap = outputs.saol_log_probs, outputs.gap_logits
    for targets in (TARGETS, TARGETS.to(torch.uint8), soft):
        assert saol_loss(saol, targets).item() == near(loop_ce(saol, targets.long() if targets.ndim < 2 else soft))
        index = targets if targets.ndim == 2 else TARGETS
        assert gap_loss(gap, targets).item() == near(loop_ce(loop_log_softmax(gap), index))
        for teacher in TEACHERS:
            ours = self_distillation_loss(gap, saol, targets, beta, teacher)
            assert ours.item() == near(loop_sd(gap, saol, index, beta))


def test_beta_is_a_half_by_default():
    outputs = some_outputs()
    arguments = outputs.gap_logits, outputs.saol_log_probs, TARGETS
    assert self_distillation_loss(*arguments) == self_distillation_loss(*arguments, beta=0.5)


@given(st.integers(0, 99), st.sampled_from(DIRECTIONS))
def test_losses_on_maps_are_the_literal_ones(seed, direction):
    ours, source = some_outputs(seed), some_outputs(seed + 100).spatial_log_probs
    masks = random(B, 1, *SIZE, seed=seed).sigmoid() * torch.tensor([1.0, 0.05, 0.0, 1.0])[:, None, None, None]
    for mixed in (None, torch.tensor([True, True, True, False])):
        chosen = [0, 1, 3] if mixed is None else [0, 1, 2]
        assert mask_loss(ours.mask_logits, masks, mixed).item() == near(loop_ss1(ours.mask_logits, masks, chosen))
        loss = consistency_loss(ours.spatial_log_probs, source, masks, mixed, direction)
        assert loss.item() == near(loop_ss2(ours.spatial_log_probs, source, masks, chosen, direction))


@given(
    st.sampled_from([(8, 12), (7, 10), (5, 5)]), st.sampled_from([(2, 3), (4, 5), (5, 2), (1, 1)]), st.integers(0, 9)
)
@pytest.mark.parametrize("how", MASK_RESIZES)
def test_masks_are_resized_literally(how, image, size, seed):
    masks = (random(2, 1, *image, seed=seed) > 0).double()
    ours = resize_masks(masks, size, how)
    torch.testing.assert_close(ours, loop_masks(masks, size, how), rtol=1e-6, atol=0)
    if how == "area" and image == (8, 12) and size in ((2, 3), (1, 1)):
        assert ours.mean() == near(masks.mean())  # the pasted share is kept


@st.composite
def boxes(draw):
    """Boxes for the two samples that may be mixed: empty, full, one pixel, any."""
    found = []
    for _ in range(2):
        x, y = draw(st.integers(0, IMAGE[1] - 1)), draw(st.integers(0, IMAGE[0] - 1))
        any_box = [x, y, draw(st.integers(x + 1, IMAGE[1])), draw(st.integers(y + 1, IMAGE[0]))]
        special = [0, 0, 0, 0], [0, 0, IMAGE[1], IMAGE[0]], [x, y, x + 1, y + 1]
        found.append(draw(st.sampled_from([any_box, *special])))
    return found


@given(boxes(), st.integers(0, 99), st.sampled_from(MASK_RESIZES), st.sampled_from(DIRECTIONS),
       st.sampled_from(TEACHERS))  # fmt: skip
@pytest.mark.parametrize("arm", ARMS)
def test_total_loss_of_every_arm_is_the_literal_sum(arm, drawn, seed, mask_resize, direction, teacher):
    options = {"mask_resize": mask_resize, "ss2_direction": direction, "teacher": teacher}
    config = RunConfig(arm=arm, beta=0.3, sl_weight=0.7, ss_weight=1.3, sd_weight=0.4, **options)
    outputs, mixed = some_outputs(seed), pasted(drawn)
    chosen = mixed.boxes.any(dim=1)
    extra = some_outputs(seed + 50)
    some = extra._replace(spatial_log_probs=extra.spatial_log_probs[chosen])
    cases = [(None, outputs.spatial_log_probs[mixed.partners]), *[(s, extra.spatial_log_probs) for s in (extra, some)]]
    for source, per_sample in cases:
        ours, twin = total(outputs, mixed, config, source), loop_total(outputs, mixed, config, per_sample)
        wanted = {name for name in ARMS[arm].terms if chosen.any() or name not in ("ss1", "ss2")}
        assert set(ours) == set(twin) == wanted | {"total"}
        assert {name: value.item() for name, value in ours.items()} == near(twin)


def test_without_a_mixed_sample_there_are_no_ss_terms():
    outputs = some_outputs()
    for mixed in (unmixed(torch.zeros(B, 1, *IMAGE), TARGETS, K), pasted([])):
        assert set(total(outputs, mixed, RunConfig(arm="saol_cutmix_ss_sd"))) == {"sl", "sd", "total"}


def test_a_rectangle_that_vanishes_still_counts_as_a_mixed_sample():
    outputs, config = some_outputs(), RunConfig(arm="saol_cutmix_ss", mask_resize="nearest")
    whole, pixel = [0, 0, IMAGE[1], IMAGE[0]], [0, 0, 1, 1]
    both, alone = (total(outputs, pasted(drawn), config) for drawn in ([whole, pixel], [whole]))
    assert not resize_masks(pasted([whole, pixel]).masks[1:2], SIZE, "nearest").any()
    assert both["ss2"].item() == near(alone["ss2"].item() / 2)
    nothing = F.softplus(outputs.mask_logits[1]).mean().item()
    assert both["ss1"].item() == near((alone["ss1"].item() + nothing) / 2)


def test_a_pixel_of_area_mask_weighs_what_it_covers():
    outputs, mixed = some_outputs(), pasted([[5, 6, 6, 7]])
    divergence = loop_kl(outputs.spatial_log_probs[2, :, 1, 1], outputs.spatial_log_probs[0, :, 1, 1])
    terms = total(outputs, mixed, RunConfig(arm="saol_cutmix_ss2"))
    assert terms["ss2"].item() == near(divergence / 16)  # max(sum(m), 1) = 1


# --- options ---------------------------------------------------------------------------------------------------------


def test_both_choices_differ_where_they_should_and_agree_where_they_must():
    outputs, other, masks = some_outputs(), some_outputs(9), torch.ones(B, 1, *SIZE, dtype=torch.float64)
    spatial = outputs.spatial_log_probs
    a, b = (consistency_loss(spatial, other.spatial_log_probs, masks, None, d) for d in DIRECTIONS)
    assert abs(a - b) > 1e-3 and min(a, b) > 0
    assert all(consistency_loss(spatial, spatial, masks, None, d) == 0 for d in DIRECTIONS)
    ragged, aligned = pasted([[1, 1, 7, 6]]).masks, pasted([[4, 0, 12, 4]]).masks
    assert not torch.equal(*(resize_masks(ragged, SIZE, how) for how in MASK_RESIZES))
    assert torch.equal(*(resize_masks(aligned, SIZE, how) for how in MASK_RESIZES))
    assert kl_divergence(spatial, spatial).abs().max() == 0


def gradient(loss, leaf):
    found = torch.autograd.grad(loss, leaf, allow_unused=True, retain_graph=True)[0]
    return torch.zeros_like(leaf) if found is None else found


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_gradient_flows_into_the_source_unless_asked_for(direction):
    config, mixed = RunConfig(arm="saol_cutmix_ss2", ss2_direction=direction), pasted([[0, 0, 8, 8], [2, 2, 12, 8]])
    flows = direction == "mixed_to_source"
    outputs, source = some_outputs(), some_outputs(3)
    inside = gradient(total(outputs, mixed, config)["ss2"], outputs.spatial_log_probs)
    assert inside[:2].any() and bool(inside[2:].any()) == flows  # rows 2 and 3 are the clean sources
    separate = total(outputs, mixed, config, source)["ss2"]
    assert bool(gradient(separate, source.spatial_log_probs).any()) == flows
    assert gradient(separate, outputs.spatial_log_probs)[:2].any()


@pytest.mark.parametrize("teacher", TEACHERS)
def test_no_gradient_flows_into_the_teacher_unless_asked_for(teacher):
    outputs = some_outputs()
    config = RunConfig(arm="saol_sd", teacher=teacher)
    sd = total(outputs, unmixed(torch.zeros(B, 1, *IMAGE), TARGETS, K), config)["sd"]
    assert bool(gradient(sd, outputs.saol_log_probs).any()) == (teacher == "trained")
    assert gradient(sd, outputs.gap_logits).any()


# --- gradients and numerics ------------------------------------------------------------------------------------------


def joined(scores, raw):
    return aggregate(attention_log_probs(scores), F.log_softmax(raw, dim=1))


def test_gradients_of_every_loss():
    scores, raw, source = (random(2, c, *SIZE, seed=c).requires_grad_() for c in (1, K, K))
    gap, soft = random(2, K).requires_grad_(), random(2, K, seed=1).softmax(1)
    masks = random(2, 1, *SIZE, seed=8).sigmoid()
    check = torch.autograd.gradcheck
    for targets in (TARGETS[:2], soft):
        assert check(lambda s, r, t=targets: saol_loss(joined(s, r), t), (scores, raw))
        assert check(lambda g, t=targets: gap_loss(g, t), gap)
        assert check(lambda g, s, r, t=targets: self_distillation_loss(g, joined(s, r), t, 0.5, "trained"),
                     (gap, scores, raw))  # fmt: skip
        assert check(lambda g, t=targets: self_distillation_loss(g, joined(scores, raw), t), gap)
    assert check(lambda s: mask_loss(s, masks), scores)
    log = torch.log_softmax
    assert check(lambda r: consistency_loss(log(r, 1), log(source + 1, 1), masks), raw)
    assert check(lambda r, s: consistency_loss(log(r, 1), log(s.sin(), 1), masks, None, "mixed_to_source"),
                 (raw, source))  # fmt: skip


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_give_finite_losses_and_gradients_in_float32(dtype, direction, autocast):
    signs = {c: random(B, c, *SIZE, dtype=torch.float32).sign() for c in (1, K)}
    leaves = [1e4 * t for t in (signs[1], signs[K], random(B, K).sign(), signs[1].flip(0))]
    scores, raw, gap, mask = (t.to(dtype).requires_grad_() for t in leaves)
    config = RunConfig(arm="saol_cutmix_ss_sd", ss2_direction=direction, teacher="trained")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        spatial = F.log_softmax(raw.float(), dim=1)
        outputs = Outputs(gap, aggregate(attention_log_probs(scores), spatial), None, spatial, mask)
        terms = total(outputs, pasted([[0, 0, 8, 8], [2, 2, 12, 8]], dtype=torch.float32), config)
    assert set(terms) == {"sl", "ss1", "ss2", "sd", "total"} and terms["total"] > 1e4
    assert all(value.dtype == torch.float32 and value.isfinite() for value in terms.values())
    terms["total"].backward()
    assert all(leaf.grad.isfinite().all() and leaf.grad.any() for leaf in (scores, raw, gap, mask))


def test_every_loss_comes_out_in_float32_when_given_bfloat16():
    outputs, masks = some_outputs(dtype=torch.bfloat16), torch.ones(B, 1, *SIZE, dtype=torch.bfloat16)
    saol, gap, spatial, soft = outputs[1], outputs[0], outputs[3], torch.eye(K, dtype=torch.bfloat16)[TARGETS]
    losses = [saol_loss(saol, TARGETS), saol_loss(saol, soft), gap_loss(gap, soft)]
    losses += [self_distillation_loss(gap, saol, soft), mask_loss(outputs.mask_logits, masks)]
    losses += [consistency_loss(spatial, spatial.flip(0), masks)]
    assert {loss.dtype for loss in losses} == {torch.float32}


# --- bad input -------------------------------------------------------------------------------------------------------


LOGS, MAPS = F.log_softmax(random(B, K), dim=1), random(B, K, *SIZE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: saol_loss(LOGS, torch.tensor([0, 1, 2, 3])), "targets reach from 0 to 3; expected 0 to 2"),
        (lambda: gap_loss(LOGS, torch.tensor([0, -1, 2, 1])), "targets reach from -1 to 2; expected 0 to 2"),
        (lambda: cross_entropy(LOGS, TARGETS.float()), "targets are torch.float32 of shape (4,)"),
        (lambda: cross_entropy(LOGS, LOGS[:, :2]), "targets are torch.float64 of shape (4, 2); expected"),
        (lambda: cross_entropy(LOGS, LOGS[:1].exp()), "1 targets cannot be compared with 4 outputs"),
        (lambda: cross_entropy(LOGS, TARGETS[:3]), "3 targets cannot be compared with 4 outputs"),
        (lambda: mask_loss(MAPS[:, :1], MAPS[:, :1, :1]), "mask_logits (4, 1, 2, 3) and masks (4, 1, 1, 3) must have"),
        (lambda: consistency_loss(MAPS, MAPS[:2], MAPS[:, :1]), "mixed (4, 3, 2, 3) and source (2, 3, 2, 3) must have"),
        (
            lambda: consistency_loss(MAPS, MAPS, MAPS[:, :1].mT),
            "masks (4, 1, 3, 2) and one class of mixed (4, 1, 2, 3)",
        ),
        (lambda: consistency_loss(MAPS, MAPS, MAPS, None, "both"), "direction='both' is not known; choose one of"),
        (lambda: self_distillation_loss(LOGS, LOGS, TARGETS, teacher="ema"), "teacher='ema' is not known; choose one"),
        (lambda: resize_masks(MAPS, (1, 1), "max"), "how='max' is not known; choose one of 'area', 'nearest'"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


# --- what is asked for and what the outputs allow -------------------------------------------------------------------

CLEAN, TWO = unmixed(torch.zeros(B, 1, *IMAGE), TARGETS, K), pasted([[0, 0, 8, 8], [2, 2, 12, 8]])


def having(*names):
    """Outputs with these fields alone."""
    outputs = some_outputs()
    return Outputs(**{name: getattr(outputs, name) for name in names})


@pytest.mark.parametrize(
    ("names", "terms"),
    [
        (("gap_logits",), {"gap_ce"}),
        (("gap_logits", "aux_logits", "attention"), {"gap_ce", "aux_ce"}),
        (("saol_log_probs", "spatial_log_probs", "mask_logits"), {"sl", "ss1", "ss2"}),
        (("saol_log_probs", "spatial_log_probs"), {"sl", "ss2"}),
        (("gap_logits", "saol_log_probs", "spatial_log_probs", "mask_logits"), {"sl", "ss1", "ss2", "sd"}),
    ],
)
def test_unless_told_the_terms_are_what_the_outputs_allow(names, terms):
    assert set(total_loss(having(*names), TWO)) == terms | {"total"}
    assert set(total_loss(having(*names), CLEAN)) == terms - {"ss1", "ss2"} | {"total"}


@pytest.mark.parametrize("term", READS)
@pytest.mark.parametrize("missing", Outputs._fields)
def test_a_term_without_its_output_layer_ends_in_a_sentence(term, missing):
    outputs = some_outputs()._replace(**{missing: None})
    if missing not in READS[term]:
        assert set(total_loss(outputs, TWO, terms=[term])) == {term, "total"}
        return
    with pytest.raises(
        ValueError, match=f"the term '{term}' needs {missing}, which these outputs do not have; "
    ) as caught:
        total_loss(outputs, TWO, terms=[term])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_second_pass_is_asked_for_where_the_sources_are_not_clean(schedule):
    probability = 0.5 if schedule == "paired" else 1.0
    mixed = mix(torch.zeros(B, 1, *IMAGE), TARGETS, K, schedule=schedule, probability=probability,
                generator=torch.Generator().manual_seed(1))  # fmt: skip
    assert mixed.boxes.any()
    outputs, source = some_outputs()._replace(aux_logits=None), some_outputs(5)
    assert "ss2" in total_loss(outputs, mixed, source=source)
    assert "ss1" in total_loss(outputs, mixed, terms=["sl", "ss1"])
    if schedule == "paired":
        assert "ss2" in total_loss(outputs, mixed)
        return
    for terms in (None, ["ss2"]):
        with pytest.raises(ValueError, match=r"ss2 compares with the clean sources, .* give source=") as caught:
            total_loss(outputs, mixed, terms=terms)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"terms": ["sll"]}, "term='sll' is not known; choose one of 'sl', 'ss1'"),
        ({"terms": []}, "terms=[] must be a list of some of sl, ss1"),
        ({"terms": "sl"}, "terms='sl' must be a list of some of sl, ss1"),
        ({"beta": -1.0}, "beta=-1.0 must be at least 0"),
        ({"sd_weight": float("nan")}, "sd_weight=nan must be at least 0 and finite"),
        ({"teacher": "ema"}, "teacher='ema' is not known; choose one of 'constant', 'trained'"),
        ({"gamma": 1.0}, "option 'gamma' is not known; "),
        ({"source_weight": 1.0}, "option 'source_weight' is not known"),
    ],
)
def test_requests_that_cannot_be(told, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        total_loss(some_outputs(), TWO, **told)


def test_options_come_as_one_object_or_by_name():
    outputs = some_outputs()._replace(aux_logits=None)
    options = LossOptions(beta=0.3, sl_weight=0.7, ss2_direction="mixed_to_source")
    whole = total_loss(outputs, TWO, options=options)
    named = total_loss(outputs, TWO, beta=0.3, sl_weight=0.7, ss2_direction="mixed_to_source")
    assert all(torch.equal(whole[name], named[name]) for name in whole)
    other = total_loss(outputs, TWO, options=options, beta=0.5)
    assert torch.equal(other["sl"], whole["sl"]) and not torch.equal(other["sd"], whole["sd"])


@pytest.mark.parametrize(
    "labels", [torch.full((B, K), math.nan), torch.full((B, K), 0.5), torch.eye(K)[TARGETS] * 2 - 1]
)
def test_soft_labels_that_are_no_distribution_are_refused(labels):
    for loss in (saol_loss, gap_loss, cross_entropy):
        with pytest.raises(ValueError, match="soft labels"):
            loss(LOGS, labels)
