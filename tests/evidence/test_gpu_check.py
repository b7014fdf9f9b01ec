"""make gpu-check: without CUDA nothing is claimed; what it measures, on a CPU in its place."""

from dataclasses import replace

import pytest
import torch

from saol_lib.evidence import gpu_check, made_data
from saol_lib.training import RunConfig


def test_without_cuda_it_says_so_and_claims_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(tmp_path) is None
    assert capsys.readouterr().out.strip() == gpu_check.NO_GPU and list(tmp_path.iterdir()) == []


def test_an_epoch_is_measured_beside_its_steps_alone(tmp_path, monkeypatch):
    """Seconds are made: an epoch of 5 steps of 40 images takes 4 s, its steps alone 3."""
    seconds = iter([3.0, 4.0])
    calls = []

    def timed(function):
        function()
        calls.append(function.__name__)
        return next(seconds)

    monkeypatch.setattr(gpu_check, "seconds_of", timed)
    speed = gpu_check.measure(replace(gpu_check.TINY, device="cpu"), tmp_path)
    assert speed == (5 * 40 / 4.0, 0.0, 0.25) and calls == ["resident", "epoch"]


def test_the_experiments_that_are_shown_are_the_papers(tmp_path):
    found = gpu_check.shown_configs(tmp_path)
    assert tuple(found) == gpu_check.SHOWN, "the first one is shown in every precision"
    assert {config.arm for config in found.values()} == {"saol_cutmix_ss_sd"}
    assert {config.epochs for config in found.values()} <= {270, 300} and found["imagenet-resnet50"].side == 224


def test_a_table_of_speeds_has_every_precision(tmp_path, monkeypatch):
    asked = []

    def measure(config, folder, most):
        asked.append((config.autocast, config.compile))
        return gpu_check.Speed(1234.5, 6.78, 0.125)

    monkeypatch.setattr(gpu_check, "measure", measure)
    config = RunConfig(dataset="cifar10", data_dir="x", epochs=300, autocast="bfloat16")
    configs = {"a": config, "b": config}
    lines = gpu_check.speeds(configs, tmp_path)
    assert asked[:2] == [("bfloat16", False)] * 2
    assert asked[2:] == [("none", False), ("float16", False), ("bfloat16", True), ("none", True)]
    assert (
        len(lines) == 8 and lines[2] == "| a, saol_cutmix_ss_sd | bfloat16 | 1,234 | 6.8 | 12% | 3.4 |"
    )  # 300 * 50,000


def test_one_check_that_fails_leaves_the_others_on_the_page(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("cuda and the CPU differ")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(gpu_check, "beside_the_cpu", fails)
    monkeypatch.setattr(gpu_check, "tests_for_gpus", lambda: "7 passed.")
    monkeypatch.setattr(gpu_check, "one_and_all", lambda *_: "Two agree.")
    monkeypatch.setattr(gpu_check, "killed_and_resumed", lambda *_: "It went on.")
    monkeypatch.setattr(gpu_check, "_all_speeds", lambda *_: "| speeds |")
    with pytest.raises(SystemExit, match="failed: beside the CPU; "):
        gpu_check.main(tmp_path)
    text = (tmp_path / "gpu" / "README.md").read_text()
    assert "**Failed.** beside the CPU: RuntimeError: cuda and the CPU differ" in text
    assert "7 passed." in text and "It went on." in text and text.endswith("| speeds |\n")


def test_a_device_beside_the_cpu(tmp_path, monkeypatch):
    told = gpu_check.beside_the_cpu(tmp_path, device="cpu")
    assert "differ by 0.00%" in told
    monkeypatch.setattr(gpu_check, "_apart", lambda a, b: 0.5)
    with pytest.raises(RuntimeError, match="differ by 50"):
        gpu_check.beside_the_cpu(tmp_path, device="cpu")


def test_how_far_losses_are_apart():
    assert gpu_check._apart({"loss_a": 2.0, "lr": 1}, {"loss_a": 1.9, "lr": 5}) == pytest.approx(0.05)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_killed_run_goes_on(tmp_path):
    told = gpu_check.killed_and_resumed(tmp_path, device="cpu")
    assert told.startswith("Killed with kill -9") and "0.00%" in told


def test_several_gpus_are_not_claimed_where_there_is_one(tmp_path):
    assert gpu_check.one_and_all(tmp_path, 1) == "One GPU is here, so several were not tried."
    assert list(tmp_path.iterdir()) == []


def test_enough_made_images_for_an_epoch():
    assert made_data.CIFAR["cifar10"] and 5 * gpu_check.EACH["cifar10"] >= 30 * 128
    assert 3 * gpu_check.EACH["imagenet"] >= 3 * 256
