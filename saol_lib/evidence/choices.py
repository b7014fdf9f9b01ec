"""What the paper leaves open, and what we chose: each row an option of `RunConfig` (METHOD, section 4)."""

from typing import NamedTuple


class Choice(NamedTuple):
    """A choice, the option that turns it, its default, other values, and the default in words."""

    name: str
    option: str
    default: object
    others: tuple
    words: str


LAYER_CHOICES = (
    Choice("earlier blocks (X_L is what GAP pools)", "earlier_blocks", "raw", ("bn_relu",), "as the stage gives them"),
    Choice("width of a logit branch", "logit_width", None, (10, 64), "K, but at least 40: **see below**"),
    Choice("between the two logit convolutions", "between_logits", "bn_relu", ("none",), "BatchNorm and ReLU"),
    Choice("between the attention (and mask) ones", "between_attention", "bn_relu", ("none",), "BatchNorm and ReLU"),
    Choice("kernel of SAOL's convolutions", "kernel_size", 3, (1,), "3x3, padding 1"),
    Choice("attention width", "attention_width", None, (64, 512), "half of X_L's channels"),
    Choice("resize of X_l to the output's grid", "resize", "bilinear", ("adaptive",), "antialiased when shrinking"),
    Choice("class softmax", "class_softmax", "position", ("image",), "at every position; image: after the sum"),
    Choice("what predicts M in L_SS1", "mask_source", "branch", ("attention",), "a branch, or the attention's scores"),
)
TRAINING_CHOICES = (
    Choice("M on the output's grid", "mask_resize", "area", ("nearest",), "area average, soft at the border"),
    Choice("direction of L_SS2", "ss2_direction", "source_to_mixed", ("mixed_to_source",), "KL(Y_A ‖ Y), Y_A constant"),
    Choice("teacher in L_SD", "teacher", "constant", ("trained",), "no gradient into y_saol"),
    Choice("CutMix", "cutmix_schedule", "paired", ("sample", "batch"), "half takes patches from the clean half"),
    Choice("share of mixed samples", "cutmix_probability", 0.5, (), "half, by construction; any with other schedules"),
    Choice("rectangles", "cutmix_alpha", 1.0, (0.5,), "area drawn from Beta(1, 1), one for every mixed sample"),
    Choice("weight of L_SL", "sl_weight", 1.0, (0.5, 2.0), "1"),
    Choice("weight of L_SS1 and L_SS2", "ss_weight", 1.0, (0.5, 2.0), "1"),
    Choice("weight of L_SD", "sd_weight", 1.0, (0.5, 2.0), "1; the β inside it is the paper's own 0.5"),
)
CHOICES = LAYER_CHOICES + TRAINING_CHOICES


def choices_table() -> str:
    """All choices as a Markdown table."""
    lines = ["| choice | option | default | alternatives | in words |", "|---|---|---|---|---|"]
    for choice in CHOICES:
        others = ", ".join(f"`{other!r}`" for other in choice.others) or "-"
        cells = [choice.name, f"`{choice.option}`", f"`{choice.default!r}`", others, choice.words]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
