"""Every choice that notebook 00 lists is an option with that default, and every option of SAOL is listed."""

from dataclasses import fields

import pytest
import torch

from saol_lib.evidence.choices import CHOICES, LAYER_CHOICES, choices_table
from saol_lib.layers import SaolOptions
from saol_lib.streams import stream
from saol_lib.training import mix_batch, summarise
from saol_lib.training.config import RunConfig


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.option)
def test_the_option_has_that_default_and_takes_every_alternative(choice):
    assert getattr(RunConfig(), choice.option) == choice.default
    for other in choice.others:
        assert getattr(RunConfig(**{choice.option: other}), choice.option) == other != choice.default


def test_every_option_of_the_layer_is_listed():
    """Two are no choice of ours: separable is the paper's on ImageNet, output_size its enlarged map."""
    listed = {choice.option for choice in LAYER_CHOICES}
    assert {field.name for field in fields(SaolOptions)} - {"separable", "output_size"} == listed


def test_the_table_has_a_row_a_choice_with_five_cells():
    rows = choices_table().splitlines()[2:]
    assert len(rows) == len(CHOICES) and {row.count("|") for row in rows} == {6}


def test_the_choices_without_a_switch_are_as_the_notebook_says():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    arms = ("gap_fc_cutmix", "saol_cutmix", "saol_cutmix_ss_sd")
    labels = torch.arange(4)
    drawn = [mix_batch(images, labels, RunConfig(arm=arm, batch_size=4), stream(0, "cutmix", 0, 0)) for arm in arms]
    assert all(torch.equal(other.boxes, drawn[0].boxes) for other in drawn), "arms of a seed share their rectangles"

    configs = {name: RunConfig(arm=arms[2], cutmix_schedule=name) for name in ("paired", "sample", "batch")}
    assert [name for name, config in configs.items() if config.needs_second_pass] == ["sample", "batch"]
    history = [{"top1_saol": 90.0}, {"top1_saol": 80.0}]
    assert summarise(history) == {"top1_saol_last": 80.0, "top1_saol_best": 90.0}
