"""CutMix against a loop over pixels, the three schedules, and the law of its rectangles."""

import re
from unittest.mock import patch

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from saol_lib import cutmix
from saol_lib.cutmix import SCHEDULES, draw, mix, paste, sample_boxes, soft_labels, unmixed

CLASSES = 4


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def a_batch(count, height, width, seed=0, dtype=torch.float32):
    """Images whose pixels are all different, so that a wrong one shows, and class indices."""
    pixels = torch.arange(count * 3 * height * width, dtype=dtype)
    images = pixels.view(count, 3, height, width)
    targets = torch.randint(CLASSES, (count,), generator=seeded(seed))
    return images, targets


def same(a, b):
    """Two mixed batches, field by field."""
    for x, y in zip(a, b, strict=True):
        equal = torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        if not equal:
            return False
    return True


def mixed_samples(mixed):
    """Which samples (B,) have a rectangle."""
    return mixed.boxes.any(dim=1)


@st.composite
def pastes(draw):
    """Images that are rarely square, a box each (empty and full ones among them), any partners."""
    height = draw(st.integers(1, 7))
    width = draw(st.integers(1, 9))
    count = draw(st.integers(2, 4))
    across = st.integers(0, width)
    down = st.integers(0, height)
    full = [0, 0, width, height]
    empty = [0, 0, 0, 0]
    boxes = []
    for _ in range(count):
        x0, x1 = sorted(draw(st.tuples(across, across)))
        y0, y1 = sorted(draw(st.tuples(down, down)))
        some = [x0, y0, x1, y1]
        boxes.append(draw(st.sampled_from([some, some, full, empty])))
    anyone = st.integers(0, count - 1)
    partners = draw(st.lists(anyone, min_size=count, max_size=count))
    return height, width, torch.tensor(boxes), torch.tensor(partners)


# --- equations -------------------------------------------------------------------------------------------------------


@given(pastes(), st.booleans())
def test_pasting_is_the_literal_loop_over_pixels(case, soft):
    height, width, boxes, partners = case
    count = len(boxes)
    images, targets = a_batch(count, height, width, dtype=torch.float64)
    if soft:
        labels = torch.rand(count, CLASSES, generator=seeded(1), dtype=torch.float64)
        labels = labels.softmax(1)
        mixed = paste(images, labels, CLASSES, boxes, partners)
    else:
        labels = torch.eye(CLASSES, dtype=torch.float64)[targets]
        mixed = paste(images, targets, CLASSES, boxes, partners)

    for b, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        source = partners[b]
        pasted = 0
        for y, x in np.ndindex(height, width):
            inside = x0 <= x < x1 and y0 <= y < y1
            origin = source if inside else b
            assert mixed.masks[b, 0, y, x] == inside
            assert torch.equal(mixed.images[b, :, y, x], images[origin, :, y, x])
            pasted += inside

        share = pasted / (height * width)
        covered = mixed.masks[b].double().mean()
        assert mixed.share[b].item() == pytest.approx(share, rel=1e-6)
        assert covered.item() == pytest.approx(share, rel=1e-6)
        expected = share * labels[source] + (1 - share) * labels[b]
        assert mixed.targets[b].tolist() == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-7)


def test_any_image_type_and_any_form_of_targets_will_do():
    images, targets = a_batch(6, 5, 8)
    reference = mix(images, targets, CLASSES, generator=seeded(3))
    for dtype in (torch.uint8, torch.bfloat16, torch.float64):
        mixed = mix(images.to(dtype), targets.to(torch.int16), CLASSES, generator=seeded(3))
        assert mixed.images.dtype == dtype
        assert torch.equal(mixed.targets, reference.targets)

    labels = soft_labels(targets, CLASSES)
    soft = mix(images, labels, CLASSES, generator=seeded(3))
    assert same(soft, reference)
    assert soft_labels(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]


# --- what holds for every schedule -----------------------------------------------------------------------------------


@given(
    st.sampled_from(SCHEDULES), st.integers(2, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 10**6),
    st.sampled_from([0.2, 1.0, 3.0]),
)  # fmt: skip
def test_mask_box_label_and_image_agree_for_every_sampled_box(schedule, count, height, width, seed, alpha):
    images, _ = a_batch(count, height, width)
    targets = torch.arange(count)  # everyone has an own class, so that the labels tell who came from where
    mixed = mix(images, targets, count, schedule=schedule, alpha=alpha, generator=seeded(seed))
    clean = unmixed(images, targets, count)
    for b, (x0, y0, x1, y1) in enumerate(mixed.boxes.tolist()):
        assert 0 <= x0 <= x1 <= width
        assert 0 <= y0 <= y1 <= height

        area = (x1 - x0) * (y1 - y0)
        share = pytest.approx(area / (height * width), rel=1e-6)
        mask = mixed.masks[b, 0]
        assert mask.sum() == mask[y0:y1, x0:x1].sum() == area
        assert mixed.share[b].item() == share

        partner = mixed.partners[b].item()
        assert (partner == b) == (area == 0)
        changed = (mixed.images[b] != images[b]).any(dim=0)
        assert torch.equal(changed, mask > 0)
        if area == 0:
            assert mixed.boxes[b].tolist() == [0, 0, 0, 0]
            assert same(of_sample(mixed, b), of_sample(clean, b))
        else:
            assert mixed.targets[b, partner].item() == share
    sums = mixed.targets.sum(dim=1)
    assert sums.tolist() == pytest.approx([1] * count)


def of_sample(mixed, b):
    """What a batch has of one sample; the last field is the batch's own."""
    return [field[b] for field in mixed[:-1]]


@given(st.sampled_from(SCHEDULES), st.integers(0, 10**6))
def test_one_seed_gives_one_set_of_boxes_whatever_else_the_arm_does(schedule, seed):
    images, targets = a_batch(7, 6, 9)
    reference = mix(images, targets, CLASSES, schedule=schedule, generator=seeded(seed))
    torch.manual_seed(seed)  # the global generator is neither read ...
    state = torch.get_rng_state()
    other = mix(torch.zeros(7, 1, 6, 9), targets * 0, 2, schedule=schedule, generator=seeded(seed))
    assert torch.equal(torch.get_rng_state(), state)  # ... nor moved on
    for name in ("boxes", "partners", "masks", "share"):
        assert torch.equal(getattr(reference, name), getattr(other, name))


def test_other_seeds_give_other_boxes():
    images, targets = a_batch(8, 32, 48)
    drawn = set()
    for seed in range(20):
        mixed = mix(images, targets, CLASSES, generator=seeded(seed))
        drawn.add(str(mixed.boxes.tolist()))
    assert len(drawn) == 20


def test_a_batch_left_alone():
    images, targets = a_batch(3, 4, 6)
    mixed = unmixed(images, targets, CLASSES)
    one_hot = torch.eye(CLASSES)[targets]
    assert torch.equal(mixed.images, images)
    assert torch.equal(mixed.targets, one_hot)
    assert mixed.masks.shape == (3, 1, 4, 6)
    assert not mixed.masks.any()
    assert not mixed.boxes.any()
    assert not mixed.share.any()
    assert mixed.partners.tolist() == [0, 1, 2]


# --- schedules -------------------------------------------------------------------------------------------------------


def mix_with(empties, count, schedule, seed=0, probability=0.5):
    """A mix of 4x6 images whose drawn boxes are full, but for `empties` of them, which are empty."""

    def boxes(n, height, width, *_):
        full = [0, 0, width, height]
        empty = [3, 2, 3, 2]
        return torch.tensor([empty if i in empties else full for i in range(n)])

    images, targets = a_batch(count, 4, 6)
    with patch.object(cutmix, "sample_boxes", boxes):
        return mix(images, targets, CLASSES, schedule=schedule, probability=probability, generator=seeded(seed))


@given(st.integers(2, 13), st.sets(st.integers(0, 5)), st.integers(0, 10**6))
def test_paired_mixes_half_of_the_batch_from_the_clean_half(count, empties, seed):
    mixed = mix_with(empties, count, "paired", seed)
    chosen = mixed_samples(mixed).nonzero()[:, 0]
    half = count // 2
    empty = [e for e in empties if e < half]
    assert len(chosen) == half - len(empty)

    sources = mixed.partners[chosen].tolist()
    assert len(set(sources)) == len(sources)
    assert not set(sources) & set(chosen.tolist())


def binomial_error(probability, count):
    """The standard deviation of a share that is counted."""
    return (probability * (1 - probability) / count) ** 0.5


def test_paired_chooses_everyone_alike():
    times = torch.zeros(5, dtype=torch.float64)
    for seed in range(2000):
        mixed = mix_with(set(), 5, "paired", seed)
        times += mixed_samples(mixed)
    distance = (times / 2000 - 2 / 5).abs()
    assert (distance < 5 * binomial_error(2 / 5, 2000)).all()


@given(st.integers(2, 6), st.integers(0, 10**6))
def test_sample_never_pairs_a_sample_with_itself(count, seed):
    mixed = mix_with(set(), count, "sample", seed, probability=1)
    own = torch.arange(count)
    assert mixed_samples(mixed).all()
    assert (mixed.partners != own).all()


def test_sample_uses_each_other_one_and_keeps_its_probability():
    mixed = mix_with(set(), 4000, "sample", probability=0.25)
    share = mixed_samples(mixed).double().mean()
    assert abs(share - 0.25) < 5 * binomial_error(0.25, 4000)

    met = [set() for _ in range(4)]
    for seed in range(60):
        mixed = mix_with(set(), 4, "sample", seed, probability=1)
        for sample, partner in enumerate(mixed.partners.tolist()):
            met[sample].add(partner)
    assert met == [{1, 2, 3}, {0, 2, 3}, {0, 1, 3}, {0, 1, 2}]


@given(st.integers(2, 9), st.integers(0, 10**6))
def test_batch_has_one_rectangle_and_one_permutation(count, seed):
    images, targets = a_batch(count, 9, 14)
    mixed = mix(images, targets, CLASSES, schedule="batch", probability=1, generator=seeded(seed))
    rectangles = {tuple(box) for box in mixed.boxes.tolist() if any(box)}
    assert len(rectangles) <= 1
    assert sorted(mixed.partners.tolist()) == list(range(count))


def test_batch_is_all_or_nothing_with_its_probability():
    own = torch.arange(6)
    times = 0
    for seed in range(1000):
        mixed = mix_with(set(), 6, "batch", seed, probability=0.3)
        has_partner = mixed.partners != own
        assert torch.equal(mixed_samples(mixed), has_partner)
        times += bool(has_partner.any())
    assert abs(times / 1000 - 0.3) < 5 * binomial_error(0.3, 1000)  # an identity permutation: 1 in 720


@pytest.mark.parametrize("schedule", ["sample", "batch"])
def test_probability_zero_mixes_nothing(schedule):
    mixed = mix_with(set(), 5, schedule, probability=0)
    assert not mixed.boxes.any()


# --- the law of the rectangles ---------------------------------------------------------------------------------------


def width_law(alpha):
    """The distribution function of a clipped width, as a share of the image's, and the mean of the clipped area.

    A side s = sqrt(1 - lam) around a uniform centre keeps its length with chance 1 - s and else loses up to half of it.
    """
    levels = (np.arange(4000) + 0.5) / 4000
    lam = scipy.stats.beta.ppf(levels, alpha, alpha)
    s = np.sqrt(1 - lam)
    t = np.linspace(0, 1, 1001)[:, None]
    shorter = np.clip(2 * t - s, 0, None)
    law = np.where(t >= s, 1.0, shorter).mean(axis=1)
    mean_width = s - s**2 / 4

    def distribution(x):
        return np.interp(x, t[:, 0], law)

    return distribution, np.mean(mean_width**2)


@pytest.mark.parametrize("alpha", [0.4, 1.0, 3.0])
def test_boxes_follow_the_beta_law(alpha):
    height, width, count = 700_001, 1_000_003, 4000
    boxes = sample_boxes(count, height, width, alpha, seeded(0)).double().numpy()
    x0, y0, x1, y1 = boxes.T
    widths = (x1 - x0) / width
    heights = (y1 - y0) / height
    law, mean_area = width_law(alpha)
    other_law, _ = width_law(alpha * 4)
    for sides in (widths, heights):
        assert scipy.stats.kstest(sides, law).pvalue > 1e-3
        assert scipy.stats.kstest(sides, other_law).pvalue < 1e-6

    areas = widths * heights
    error = areas.std() / count**0.5
    assert abs(areas.mean() - mean_area) < 4 * error


def test_centres_are_uniform_and_boxes_lie_inside():
    x0, y0, x1, y1 = sample_boxes(20000, 3, 5, 5.0, seeded(0)).T
    assert (x0 >= 0).all() and (x1 <= 5).all()
    assert (y0 >= 0).all() and (y1 <= 3).all()

    side = 10**6
    x0, _, x1, _ = sample_boxes(4000, side, side, 50.0, seeded(1)).T  # sides near 0.7: most are clipped on one side
    left = ((x0 == 0) & (x1 < side)).double().mean()
    right = ((x1 == side) & (x0 > 0)).double().mean()
    assert abs(left - right) < 0.05
    assert left > 0.25


# --- bad input -------------------------------------------------------------------------------------------------------


IMAGES, TARGETS = a_batch(4, 4, 4)
SOFT = torch.eye(4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": IMAGES[:1], "targets": TARGETS[:1]}, "CutMix needs a batch of at least 2, got 1"),
        ({"images": IMAGES[0]}, "got (3, 4, 4) and (4,)"),
        ({"targets": TARGETS[:3]}, "got (4, 3, 4, 4) and (3,)"),
        ({"targets": torch.tensor(1)}, "got (4, 3, 4, 4) and ()"),
        ({"targets": torch.tensor([0, 1, 4, 2])}, "targets reach from 0 to 4; expected 0 to 3"),
        ({"targets": torch.tensor([0, -1, 3, 2])}, "targets reach from -1 to 3; expected 0 to 3"),
        ({"targets": TARGETS.float()}, "targets are torch.float32 of shape (4,); expected integer class indices"),
        ({"targets": torch.zeros(4, 3)}, "targets are torch.float32 of shape (4, 3); expected"),
        ({"targets": torch.zeros(4, 4, dtype=torch.int64)}, "or floating-point soft labels (B, 4)"),
        ({"targets": TARGETS > 1}, "targets are torch.bool of shape (4,)"),
        ({"targets": SOFT * 2 - SOFT.flip(1)}, "soft labels reach down to -1; expected shares of 0 to 1 that sum to 1"),
        ({"targets": SOFT * float("nan")}, "soft labels reach down to nan; expected shares of 0 to 1 that sum to 1"),
        ({"targets": SOFT * 0.5}, "soft labels of sample 0 sum to 0.5; expected 1: divide them by their sum"),
        ({"targets": SOFT + SOFT[2].diag()}, "soft labels of sample 2 sum to 2; expected 1"),
        ({"targets": SOFT.bfloat16() * 1.1}, "soft labels of sample 0 sum to 1.1; expected 1"),
        ({"schedule": "pairs"}, "schedule='pairs' is not known; choose one of 'paired', 'sample', 'batch'"),
        ({"probability": 0.7}, "probability=0.7: the paired schedule always mixes half of the batch, use 0.5"),
        ({"probability": 1.5, "schedule": "batch"}, "probability=1.5 must lie in 0..1"),
        ({"alpha": 0.0}, "alpha=0.0 above 0"),
        ({"alpha": float("nan")}, "alpha=nan above 0"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        mix(**{"images": IMAGES, "targets": TARGETS, "num_classes": CLASSES} | change)


BOXES = torch.tensor([[0, 0, 4, 4], [1, 1, 3, 2], [0, 0, 0, 0], [4, 4, 4, 4]])
OWN = torch.arange(4)


@pytest.mark.parametrize(
    ("boxes", "partners", "message"),
    [
        (BOXES + torch.tensor([0, 0, 1, 0]), OWN, "the box [0, 0, 5, 4] of sample 0 does not lie in an image 4 wide"),
        (BOXES - torch.tensor([0, 1, 0, 0]), OWN, "the box [0, -1, 4, 4] of sample 0 does not lie in an image 4 wide"),
        (BOXES[:, [2, 1, 0, 3]], OWN, "the box [4, 0, 0, 4] of sample 0 does not lie in an image 4 wide and 4 high"),
        (BOXES * 3, OWN, "expected x0, y0, x1, y1 with 0 <= x0 <= x1 <= 4 and 0 <= y0 <= y1 <= 4"),
        (BOXES[:3], OWN, "boxes (3, 4) and partners (4,) must be (4, 4) and (4,), one for each image"),
        (BOXES, OWN[:3], "boxes (4, 4) and partners (3,) must be (4, 4) and (4,)"),
        (BOXES, OWN + 1, "partners reach from 1 to 4; expected 0 to 3"),
        (BOXES, OWN - 1, "partners reach from -1 to 2; expected 0 to 3"),
        (BOXES / 4, OWN, "boxes are torch.float32 on cpu; expected int64 on the CPU"),
        (BOXES.to("meta"), OWN, "boxes are torch.int64 on meta; expected int64 on the CPU"),
    ],
)
def test_boxes_and_partners_that_cannot_be_pasted(boxes, partners, message):
    paste(IMAGES, TARGETS, CLASSES, BOXES, OWN)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        paste(IMAGES, TARGETS, CLASSES, boxes, partners)
    assert "\n" not in str(caught.value)


# --- drawing and pasting ---------------------------------------------------------------------------------------------


@given(st.sampled_from(SCHEDULES), st.integers(2, 9), st.integers(0, 10**6), st.sampled_from([0.4, 1.0]))
def test_mixing_is_drawing_and_pasting(schedule, count, seed, alpha):
    images, targets = a_batch(count, 5, 8)
    told = {"schedule": schedule, "alpha": alpha}
    mixed = mix(images, targets, CLASSES, **told, generator=seeded(seed))
    patches = draw(count, (5, 8), **told, generator=seeded(seed))
    pasted = paste(images, targets, CLASSES, patches.boxes, patches.partners)
    assert same(mixed[:-1], pasted[:-1])
    is_paired = schedule == "paired"
    assert mixed.clean_sources == patches.clean_sources == is_paired
    if is_paired:
        assert pasted.clean_sources


def test_pasting_knows_whether_the_sources_are_clean():
    patch = [0, 0, 2, 2]
    empty = [0, 0, 0, 0]
    boxes = torch.tensor([patch, patch, empty, empty])
    cases = [
        ([2, 3, 2, 3], True),
        ([1, 2, 2, 3], False),
        ([2, 2, 0, 1], True),
        ([3, 1, 2, 3], False),
    ]
    for partners, clean in cases:
        mixed = paste(IMAGES, TARGETS, CLASSES, boxes, torch.tensor(partners))
        assert mixed.clean_sources == clean


def test_drawing_alpha_one_is_what_it_always_was():
    """The rectangles of published runs: lam is the first uniform draw itself."""
    boxes = sample_boxes(5, 32, 32, 1.0, seeded(3))
    uniform, cy, cx = torch.rand(3, 5, generator=seeded(3), dtype=torch.float64)
    for b in range(5):
        side = 32 * (1 - uniform[b]) ** 0.5
        half = int(side) // 2
        x = int(cx[b] * 32)
        y = int(cy[b] * 32)
        x0, x1 = max(x - half, 0), min(x + half, 32)
        y0, y1 = max(y - half, 0), min(y + half, 32)
        assert boxes[b].tolist() == [x0, y0, x1, y1]


def test_boxes_and_partners_stay_on_the_cpu_and_the_rest_goes_with_the_images():
    images, targets = a_batch(6, 4, 6)
    mixed = mix(images.to("meta"), targets.to("meta"), CLASSES, generator=seeded(0))
    on_cpu = set()
    for name in ("images", "targets", "masks", "boxes", "share", "partners"):
        field = getattr(mixed, name)
        if field.device.type == "cpu":
            on_cpu.add(name)
    assert on_cpu == {"boxes", "partners"}
