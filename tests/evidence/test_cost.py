"""The benchmark's own arithmetic: medians after a warm-up, ratios, peaks of memory, and that each function runs."""

import pytest
import torch

from saol_lib.evidence import cost
from saol_lib.training.config import RunConfig


def test_each_function_is_called_in_turn_after_one_warm_up():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    seconds = cost.side_by_side(functions, rounds=3)
    assert calls == ["a", "b"] * 4 and set(seconds) == {"a", "b"}


def test_the_median_leaves_the_warm_up_out(monkeypatch):
    times = iter([100.0, 5.0, 1.0, 3.0])
    monkeypatch.setattr(cost, "seconds_of", lambda function: next(times))
    assert cost.side_by_side({"a": lambda: None}, rounds=3) == {"a": 3.0}


def test_ratios_are_over_the_base():
    assert cost.ratios({"gap": 2.0, "saol": 2.5}, "gap") == {"gap": 1.0, "saol": 1.25}
    with pytest.raises(ValueError, match="base='abn' was not measured; choose one of gap, saol"):
        cost.ratios({"gap": 2.0, "saol": 2.5}, "abn")
    for bad in (0.0, float("nan")):
        with pytest.raises(ValueError, match="a ratio needs one above 0"):
            cost.ratios({"gap": bad}, "gap")


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts what the CPU holds")
def test_the_peak_is_what_is_held_at_once():
    def two_after_each_other():
        for _ in range(2):
            torch.ones(1_000_000)

    def two_at_once():
        return torch.ones(1_000_000), torch.ones(1_000_000)

    assert cost.peak_memory(two_after_each_other) == 4_000_000
    assert cost.peak_memory(two_at_once) == 8_000_000


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), cost.threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_a_step_is_a_training_step_and_evaluation_sees_every_image():
    config = RunConfig.of(arm="saol_cutmix_ss_sd", dataset="digits", backbone="resnet-8-8", batch_size=32)
    steps = cost.steps({"full": config}) | {"bare": cost.bare_step(config)}
    steps["two passes"] = cost.with_whole_batch_pass(config)
    for step in steps.values():
        step()
    assert set(cost.evaluations(config)) == {"evaluate", "bare inference"}


def test_both_ways_of_streaming_give_every_full_batch_of_the_tree(tmp_path):
    cost.write_image_tree(tmp_path, images=10, side=40)
    assert len(list(tmp_path.glob("train/*/*.jpg"))) == len(list(tmp_path.glob("val/*/*.jpg"))) == 10
    passes = cost.streaming_passes(tmp_path, batch_size=4, side=32)
    assert {name: run() for name, run in passes.items()} == {"Stream": 8, "bare DataLoader": 8}
