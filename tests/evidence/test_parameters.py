"""From a notebook's globals to configurations."""

import pytest

from saol_lib.evidence.parameters import configs_of
from saol_lib.training.config import RunConfig


def test_what_a_config_knows_is_taken_and_nothing_else():
    names = {"arms": ["gap_fc", "saol"], "seeds": [3], "epochs": 7, "profile": "quick", "results": "x", "box": object()}
    assert configs_of(names) == [RunConfig(arm=arm, seed=3, epochs=7) for arm in ("gap_fc", "saol")]


def test_a_missing_baseline_is_told_in_one_sentence_unless_nothing_is_asked_for():
    with pytest.raises(ValueError, match=r"\['saol'\] lack the baseline; add gap_fc, gap_fc_cutmix or both"):
        configs_of({"arms": ["saol"], "seeds": [0]}, baseline="gap_fc")
    assert configs_of({"arms": ["saol", "gap_fc_cutmix"], "seeds": [0]}, baseline="gap_fc")
    assert configs_of({"arms": [], "seeds": []}, baseline="gap_fc") == []
