"""Training: it learns, arms are pairs, an interrupted run goes on bit for bit, and a loss that is none is no result."""

import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from filelock import FileLock
from processes import ENVIRONMENT, launch

from saol_lib.cutmix import draw
from saol_lib.data import Batches, load, mean_and_std
from saol_lib.training import checkpoints, files, recipe, runs
from saol_lib.training import loop as training
from saol_lib.training.checkpoints import load_checkpoint
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.loop import Busy, Interrupted, NotANumber, Trainer, evaluate, new_model, train
from saol_lib.training.recipe import learning_rate, load_model
from saol_lib.training.shares import mix_share

TINY = {
    "train_images": 200,
    "epochs": 2,
    "backbone": "resnet-8-8",
    "batch_size": 50,
    "lr": 0.05,
    "image_size": 16,
}
ALL = "saol_cutmix_ss_sd"


@pytest.fixture(autouse=True)
def few_test_images(monkeypatch):
    """The first 100 test images are enough here; the data stay the embedded digits."""

    def few(name, folder, **options):
        dataset = load(name, folder, **options)
        return dataset._replace(test=dataset.test.subset(torch.arange(100)))

    monkeypatch.setattr(training, "load", few)


def digits():
    return load("digits", image_size=TINY["image_size"])


def config(arm="gap_fc", **values):
    return RunConfig(arm=arm, **TINY | values)


def layers(arm):
    """The output layers that are read: ABN's own answer is that of its GAP-FC layer."""
    return ["gap" if head == "abn" else head for head in ARMS[arm].heads]


def go(folder, arm="gap_fc", **values):
    return train(config(arm, **values), folder, progress=False)


def path_of(folder, settings):
    return folder / "runs" / f"{runs.run_id(settings.identity())}.json"


def stop_at(monkeypatch, epoch, step, what):
    """Let `what(trainer)` happen after one step, once."""
    original, done = Trainer.step, []

    def step_and_stop(self, *args):
        original(self, *args)
        if args[:2] == (epoch, step) and not done:
            done.append(True)
            what(self)

    monkeypatch.setattr(Trainer, "step", step_and_stop)


def same(a, b):
    """Bit for bit, in everything but the time it took; and written alike."""
    assert json.dumps([a.metrics, a.epochs]) == json.dumps([b.metrics, b.epochs])
    assert (a.config, a.status) == (b.config, b.status)
    assert {k: v for k, v in a.provenance.items() if k != "seconds"} == {
        k: v for k, v in b.provenance.items() if k != "seconds"
    }


# --- it learns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["gap_fc", "saol_cutmix_ss_sd", "abn"])
def test_it_learns(tmp_path, arm):
    """A small set is learnt by heart, far from the ln 10 = 2.30 and the 10 % of chance."""
    settings = config(arm, train_images=60, epochs=40, batch_size=30, pad=0, lr=0.1, eval_every=0)
    run = train(settings, tmp_path, progress=False)
    name = "loss_sl" if "saol" in arm else "loss_gap_ce"
    first, last = run.epochs[0][name], run.epochs[-1][name]
    assert first > 2.0 and last < (1.0 if "saol" in arm else 0.2), (first, last)  # CutMix's soft labels have entropy
    trainer = Trainer(settings, tmp_path)
    pixels = Batches(
        trainer.dataset.train.subset(torch.arange(0)), trainer.device, *mean_and_std(trainer.dataset.train.images)
    )
    pixels.pixels, pixels.labels = trainer.train_batches.pixels, trainer.train_batches.labels  # those it was trained on
    scores = evaluate(load_model(run, tmp_path), pixels)
    assert min(scores[f"top1_{layer}"] for layer in layers(arm)) > 90, scores


def arms_and_schedules():
    """Every arm once, and every schedule with the arm of all losses; the others are long faults."""
    for arm in ARMS:
        yield arm, "paired"
        for schedule in ("sample", "batch") if ARMS[arm].cutmix else ():
            yield pytest.param(arm, schedule, marks=() if arm == ALL else pytest.mark.faults)


@pytest.mark.parametrize(("arm", "schedule"), [*arms_and_schedules()])
def test_every_arm_with_every_schedule(tmp_path, arm, schedule):
    values = {"cutmix_schedule": schedule, "cutmix_probability": 0.5 if schedule == "paired" else 1.0}
    run = go(tmp_path, arm, epochs=1, train_images=100, **values)
    assert run.status == "finished" and len(run.epochs) == 1
    told = [*layers(arm), "mean"] if len(layers(arm)) == 2 else layers(arm)
    expected = {f"top1_{layer}_{which}" for layer in told for which in ("last", "best")}
    expected |= {f"ece_{layer}_last" for layer in told}
    if "mean" in told:
        expected.add("agreement_last")
    if {"saol", "abn"} & set(ARMS[arm].heads):
        expected |= {"attention_spread_last", "attention_peak_last"}
    assert set(run.metrics) == expected
    losses = {name.removeprefix("loss_"): value for name, value in run.epochs[0].items() if name.startswith("loss_")}
    assert set(losses) == {*ARMS[arm].terms, "total"} and all(0 < value < 10 for value in losses.values())
    expected = sum(value for name, value in losses.items() if name != "total")  # all weights are 1
    assert losses["total"] == pytest.approx(expected, rel=1e-6)


def test_accuracy_is_exact(tmp_path):
    """Counted image by image, the last batch incomplete."""
    run = go(tmp_path, "saol_sd", epochs=1)
    dataset, model = training.load("digits", None, image_size=16), load_model(run, tmp_path)
    odd = dataset._replace(test=dataset.test.subset(torch.arange(37)))
    _, evaluation = training.batches(config("saol_sd"), odd, torch.device("cpu"))
    model.eval()
    right = [0, 0]
    peaks = 0.0
    for i in range(37):
        with torch.no_grad():
            outputs = model(evaluation.normalise(odd.test.images[i : i + 1]))
        for head, scores in enumerate((outputs.gap_logits, outputs.saol_log_probs)):
            right[head] += int(scores.argmax()) == int(odd.test.labels[i])
        peaks += float(outputs.attention.max())
    found = evaluate(model, evaluation)
    assert found["attention_peak"] == pytest.approx(100 * peaks / 37, abs=1e-3)
    assert (found["top1_gap"], found["top1_saol"]) == (100 * right[0] / 37, 100 * right[1] / 37)


class Scored(NamedTuple):
    """Instead of a tally."""

    told: dict

    def scores(self):
        return self.told

    def reliability(self):
        return {}


def test_last_and_best_and_eval_every(tmp_path, monkeypatch):
    scores = iter([30.0, 50.0, 40.0])
    monkeypatch.setattr(training, "tally", lambda *args: Scored({"top1_gap": next(scores)}))
    run = go(tmp_path, epochs=5, eval_every=2, train_images=50)
    assert [entry.get("top1_gap") for entry in run.epochs] == [None, 30.0, None, 50.0, 40.0]
    assert run.metrics == {"top1_gap_last": 40.0, "top1_gap_best": 50.0}
    monkeypatch.setattr(training, "tally", lambda *args: Scored({"top1_gap": 7.0}))
    run = go(tmp_path, epochs=3, eval_every=0, train_images=50)
    assert [entry.get("top1_gap") for entry in run.epochs] == [None, None, 7.0]


def test_held_out_images_are_evaluated_and_the_test_images_are_not(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "tally", lambda model, data, group: (seen.append(data), Scored({"top1_gap": 1.0}))[1])
    go(tmp_path, epochs=1, eval_split="held_out", held_out=100)
    test = {image.numpy().tobytes() for image in digits().test.images}
    used = {pixels.permute(2, 0, 1).numpy().tobytes() for pixels in seen[0].pixels}
    assert len(seen) == 1 and len(seen[0]) == 100 and not used & test


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    run = go(tmp_path)
    content = path_of(tmp_path, config()).read_bytes()
    monkeypatch.setattr(training, "Trainer", lambda *args: pytest.fail("trained again"))
    same(go(tmp_path), run)
    assert path_of(tmp_path, config()).read_bytes() == content


def test_one_seed_gives_one_run_and_another_another(tmp_path):
    first = go(tmp_path / "a", "saol_cutmix")
    torch.manual_seed(99)
    same(go(tmp_path / "b", "saol_cutmix"), first)
    assert go(tmp_path, "saol_cutmix", seed=1).epochs != first.epochs


# --- pairs -----------------------------------------------------------------------------------------------------------


def recorded(folder, monkeypatch, arm, **values):
    """What an arm sees: images and labels of every step, and the rectangles."""
    seen, boxes, step = [], [], Trainer.step

    def spy(self, epoch, number, images, labels):
        seen.append((images.clone(), labels.clone()))
        step(self, epoch, number, images, labels)

    def boxes_of(*args, **kwargs):
        patches = draw(*args, **kwargs)
        boxes.append((patches.boxes, patches.partners))
        return patches

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", spy)
        patch.setattr(recipe, "draw", boxes_of)
        go(folder, arm, **values)
    return seen, boxes


def equal(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_arms_of_one_seed_are_pairs(tmp_path, monkeypatch):
    found = {
        arm: recorded(tmp_path, monkeypatch, arm) for arm in ("gap_fc", "saol", "gap_fc_cutmix", "saol_cutmix_ss_sd")
    }
    images = [seen for seen, _ in found.values()]
    assert len(images[0]) == 8 and all(equal(images[0], other) for other in images[1:])
    assert not found["gap_fc"][1] and not found["saol"][1]
    assert len(found["gap_fc_cutmix"][1]) == 8 and equal(found["gap_fc_cutmix"][1], found["saol_cutmix_ss_sd"][1])
    assert not equal(found["gap_fc_cutmix"][1][:4], found["gap_fc_cutmix"][1][4:])  # each epoch has its own rectangles
    seen, boxes = recorded(tmp_path, monkeypatch, "gap_fc_cutmix", seed=1)
    assert not equal(seen, images[0]) and not equal(boxes, found["gap_fc_cutmix"][1])


def test_arms_of_one_seed_start_from_one_backbone():
    models = {arm: new_model(config(arm)) for arm in ARMS if not arm.startswith("abn")}
    first = dict(models["gap_fc"].body.named_parameters())
    heads = set()
    for arm, model in models.items():
        shared = {name: value for name, value in model.body.named_parameters() if "output" not in name}
        assert len(shared) > 20 and shared.keys() <= first.keys(), arm
        assert all(torch.equal(value, first[name]) for name, value in shared.items()), arm
        heads |= {
            tuple(value.flatten()[:5].tolist())
            for name, value in model.named_parameters()
            if name == "saol.attention.0.weight"
        }
    assert len(heads) <= 1  # SAOL is drawn from one stream too
    other = dict(new_model(config(seed=1)).body.named_parameters())
    assert not any(torch.equal(other[name], value) for name, value in first.items() if value.ndim == 4)


# --- steps -----------------------------------------------------------------------------------------------------------


def trainer_of(folder, arm="gap_fc", **values):
    return Trainer(config(arm, **values), folder)


def first_batch(trainer):
    return next(trainer.train_batches.epoch(trainer.config.batch_size, 0, 0))


@pytest.mark.parametrize(("schedule", "passes"), [("paired", 1), ("sample", 2), ("batch", 2)])
def test_how_often_the_network_is_called(tmp_path, schedule, passes):
    """L_SS2 takes Y of the sources from the one pass of the paired schedule."""
    probability = {} if schedule == "paired" else {"cutmix_probability": 1.0}
    trainer = trainer_of(tmp_path, "saol_cutmix_ss", cutmix_schedule=schedule, **probability)
    sizes = []
    trainer.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    trainer.step(0, 0, *first_batch(trainer))
    assert len(sizes) == passes and sizes[0] == 50 and min(sizes) > 0
    sizes.clear()
    plain = trainer_of(tmp_path, "saol_cutmix_ss1", cutmix_schedule=schedule, **probability)
    plain.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    plain.step(0, 0, *first_batch(plain))
    assert sizes == [50]


@pytest.mark.numeric
def test_second_pass_leaves_no_trace(tmp_path):
    """Running statistics are those of one pass, and the sources' Y is that of batch statistics."""
    settings = config("saol_cutmix_ss2", cutmix_schedule="sample", cutmix_probability=1.0)
    trainer, twin = (Trainer(settings, tmp_path / name, dtype=torch.float64) for name in ("one", "twin"))
    images, labels = first_batch(trainer)
    share = trainer._plan(0, 0).shares[0]
    mixed, clean = mix_share(images, labels, 10, share)
    trainer.model.train()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    source = trainer._second_pass(mixed, clean, share)
    assert not source.spatial_log_probs.requires_grad
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    sources = images[mixed.partners[mixed.boxes[:, 2] > 0]]
    outputs = twin.model.train()(twin.train_batches.normalise(sources))
    torch.testing.assert_close(source.spatial_log_probs, outputs.spatial_log_probs, rtol=1e-12, atol=1e-12)
    trainer.step(0, 0, images, labels)
    state = trainer.model.state_dict()
    assert {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")} == {1}


def test_weight_decay_only_on_kernels_and_matrices():
    model = new_model(config("saol_cutmix_ss_sd"))
    decayed, free = training.new_optimizer(model, config(weight_decay=0.01)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.01, 0.0)
    names = {id(value): name for name, value in model.named_parameters()}
    assert all(p.ndim > 1 and names[id(p)].endswith("weight") for p in decayed["params"])
    assert all(p.ndim <= 1 for p in free["params"]) and len(decayed["params"]) + len(free["params"]) == len(names)
    norms = {id(p) for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()}
    assert norms and norms <= {id(p) for p in free["params"]}
    assert decayed["nesterov"] and decayed["momentum"] == 0.9


def test_learning_rates(tmp_path):
    trainer = trainer_of(tmp_path, epochs=5, lr=0.4)  # 4 steps an epoch: 0..19
    rates = [trainer._lr(step) for step in range(20)]
    assert rates[0] == pytest.approx(0.04 * 0.4) and rates[-1] == pytest.approx(0.001 * 0.4)
    assert max(rates) == rates[6] == pytest.approx(0.4, rel=0.03)  # 30 % of the way
    rising, falling = rates[:6], rates[6:]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    steps = [b - a for a, b in pairwise(falling)]
    assert max(steps) - min(steps) < 1e-9  # a straight line
    trainer = trainer_of(tmp_path, epochs=5, lr=0.4, schedule="cosine")
    rates = [trainer._lr(step) for step in range(20)]
    assert rates[0] == pytest.approx(0.4) and rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert rates == [pytest.approx(0.2 * (1 + math.cos(math.pi * step / 19))) for step in range(20)]


@pytest.mark.parametrize("warmup", [0, 2])
def test_step_decay_and_warm_up(warmup):
    """The rates of CutMix's and PyramidNet's own recipes: a tenth after each milestone, linear warm-up before."""
    settings = config(epochs=8, lr=0.5, schedule="step", milestones=[4, 6], gamma=0.1, warmup_epochs=warmup)
    rates = [learning_rate(settings, step, 10) for step in range(80)]
    start = 10 * warmup
    assert rates[:start] == [pytest.approx(0.5 * (step + 1) / start) for step in range(start)]
    assert rates[start:40] == [0.5] * (40 - start)
    assert rates[40:60] == [pytest.approx(0.05)] * 20 and rates[60:] == [pytest.approx(0.005)] * 20
    settings = config(epochs=8, lr=0.5, schedule="cosine", warmup_epochs=warmup)
    rates = [learning_rate(settings, step, 10) for step in range(80)]
    assert rates[start] == pytest.approx(0.5) and rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates[start:] == sorted(rates[start:], reverse=True) and rates[:start] == sorted(rates[:start])


def test_weight_decay_on_everything():
    model = new_model(config("saol_cutmix_ss_sd"))
    groups = training.new_optimizer(model, config(weight_decay=0.01, decay="all")).param_groups
    assert {group["weight_decay"] for group in groups} == {0.01}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def without_the_batch(norm, given, made):
    """A forward hook of batch normalisation: scale and shift are all that is left of it."""
    scale, shift = norm.weight[:, None, None], norm.bias[:, None, None]
    return given[0] * scale + shift


def grads(trainer):
    trainer.model.train()
    trainer.step(0, 0, *first_batch(trainer))
    return {name: value.grad.clone() for name, value in trainer.model.named_parameters()}


@pytest.mark.numeric
@pytest.mark.parametrize("schedule", ["paired", "sample", "batch"])
def test_accumulating_gives_the_gradient_of_the_whole_batch(tmp_path, schedule):
    """Of a network whose normalisation does not look at the batch: the passes have statistics of their own."""
    probability = 0.5 if schedule == "paired" else 0.7
    values = {"cutmix_schedule": schedule, "cutmix_probability": probability, "batch_size": 48}
    found = []
    for accumulate in (1, 3):
        settings = config("saol_cutmix_ss_sd", accumulate=accumulate, **values)
        trainer = Trainer(settings, tmp_path, dtype=torch.float64)
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.register_forward_hook(without_the_batch)
        found.append(grads(trainer))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.numeric
def test_clipping_bounds_the_norm_of_the_gradient(tmp_path):
    free = grads(Trainer(config("saol_sd"), tmp_path / "a", dtype=torch.float64))
    clipped = grads(Trainer(config("saol_sd", clip_norm=0.1), tmp_path / "b", dtype=torch.float64))
    norm = torch.stack([value.norm() for value in free.values()]).norm()
    assert norm > 0.1
    factor = 0.1 / (norm + 1e-6)  # so torch has it
    for name, value in free.items():
        torch.testing.assert_close(clipped[name], value * factor, rtol=1e-12, atol=1e-12)


def test_float16_needs_a_gpu(tmp_path):
    with pytest.raises(ValueError, match="autocast='float16' needs a GPU, this is cpu; use 'bfloat16'"):
        go(tmp_path, autocast="float16", device="cpu")


def test_per_batch_cutmix_with_probability_one(tmp_path):
    """The original CutMix on ImageNet: one rectangle a batch, every batch."""
    trainer = trainer_of(tmp_path, "gap_fc_cutmix", cutmix_schedule="batch", cutmix_probability=1.0)
    boxes = [trainer._plan(0, step).shares[0].boxes for step in range(4)]
    assert all(len(found[found[:, 2] > 0].unique(dim=0)) == 1 for found in boxes)


def test_the_optimiser_uses_these_rates(tmp_path, monkeypatch):
    used, step = [], Trainer.step

    def spy(self, epoch, number, *batch):
        step(self, epoch, number, *batch)
        used.append({group["lr"] for group in self.optimizer.param_groups})

    monkeypatch.setattr(Trainer, "step", spy)
    run = go(tmp_path)
    trainer = trainer_of(tmp_path / "other")
    assert used == [{trainer._lr(step)} for step in range(8)]
    assert [entry["lr"] for entry in run.epochs] == [round(trainer._lr(3), 6), round(trainer._lr(7), 6)]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"batch_size": 300}, ("batch_size=300", "200")),
        ({"train_images": 205}, ("205", "10 classes")),
        ({"arm": "saol", "blocks": 4}, ("blocks=4", "3 stages")),
        ({"arm": "saol", "output_size": 17}, ("output_size", "17", "16")),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, values, parts):
    with pytest.raises(ValueError) as error:
        go(tmp_path, **values)
    text = str(error.value)
    assert "\n" not in text and all(part in text for part in parts)
    assert not (tmp_path / "runs").exists()


def test_a_file_where_the_results_folder_should_be(tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(OSError, match=r"cannot be made .*choose another results folder"):
        go(tmp_path / "results")


def test_full_disk_in_the_middle_keeps_the_finished_epochs(tmp_path, monkeypatch):
    whole = go(tmp_path / "whole", epochs=4)
    write = files.write_whole

    def full(path, data):
        if path.name.startswith("00003"):
            raise OSError("No space left")
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_whole", full)
        with pytest.raises(OSError, match="No space"):
            go(tmp_path, epochs=4)
    trained = []
    stop_at(monkeypatch, 2, 0, lambda self: trained.append(self.start))
    same(go(tmp_path, epochs=4), whole)
    assert trained == [(2, 0)]  # two epochs were not trained again


# --- a loss that is none ---------------------------------------------------------------------------------------------


def poison(monkeypatch, step, value):
    """Make the total loss of the `step`-th step infinite or not a number."""
    original, calls = training.total_loss, []

    def poisoned(*args, **kwargs):
        terms = original(*args, **kwargs)
        calls.append(1)
        return terms | {"total": terms["total"] * value} if len(calls) == step else terms

    monkeypatch.setattr(training, "total_loss", poisoned)


@pytest.mark.parametrize(("step", "value"), [(1, math.nan), (5, math.inf), (8, math.nan), (10, -math.inf)])
def test_not_a_number_is_a_failed_run(tmp_path, monkeypatch, step, value):
    settings = config("saol_sd", epochs=3)
    with monkeypatch.context() as patch:
        poison(patch, step, value)
        with pytest.raises(NotANumber) as error:
            train(settings, tmp_path, progress=False)
    text = str(error.value)
    assert f"loss of epoch {(step + 3) // 4}" in text and "lr=0.05" in text and "\n" not in text
    failed = runs.load_run(path_of(tmp_path, settings))
    assert failed.status == "failed" and failed.error == text and len(failed.epochs) == (step - 1) // 4
    assert runs.load_runs(tmp_path) == [] and load_checkpoint(tmp_path / "checkpoints" / failed.id) is None
    good = train(settings, tmp_path, progress=False)  # the cause is gone: it is trained from the start
    assert good.status == "finished" and runs.load_runs(tmp_path) == [good]
    same(good, go(tmp_path / "other", "saol_sd", epochs=3))


def test_a_real_divergence(tmp_path):
    with pytest.raises(NotANumber):
        go(tmp_path, lr=1e30)
    assert runs.load_runs(tmp_path) == []


# --- going on --------------------------------------------------------------------------------------------------------

GOING_ON = [
    ("gap_fc", {}), ("saol_cutmix_ss_sd", {}), ("saol_cutmix_ss2", {"cutmix_schedule": "sample"}),
    ("saol", {"momentum": 0.0, "schedule": "cosine", "eval_every": 2}),
]  # fmt: skip
GOING_ON_TOO = [
    ("saol_sd", {"backbone": "densenet-bc-22-4"}), ("saol_cutmix", {"separable": True, "kernel_size": 1}),
]  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize(("arm", "values"), GOING_ON_TOO)
def test_going_on_equals_never_stopping_for_other_networks(tmp_path, monkeypatch, arm, values):
    test_going_on_equals_never_stopping(tmp_path, monkeypatch, arm, values)


@pytest.mark.parametrize(("arm", "values"), GOING_ON, ids=[f"{arm}-{i}" for i, (arm, _) in enumerate(GOING_ON)])
def test_going_on_equals_never_stopping(tmp_path, monkeypatch, arm, values):
    """Stopped twice, in the middle of an epoch and at its end: every number is the same bit for bit."""
    whole = go(tmp_path / "whole", arm, epochs=3, **values)
    for epoch, step in ((0, 2), (1, 3)):
        with monkeypatch.context() as patch:
            stop_at(patch, epoch, step, lambda self: self.stop.append(signal.SIGTERM))
            with pytest.raises(Interrupted) as error:
                go(tmp_path, arm, epochs=3, **values)
        assert error.value.code == 143 and not (tmp_path / "runs").exists()
        position = load_checkpoint(next((tmp_path / "checkpoints").iterdir()))[1]["position"]
        assert position == [epoch, step + 1] if step < 3 else [epoch + 1, 0]
    same(go(tmp_path, arm, epochs=3, **values), whole)
    first, second = (load_model(whole, folder).state_dict() for folder in (tmp_path, tmp_path / "whole"))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_an_exception_anywhere_loses_only_the_epoch_under_way(tmp_path, monkeypatch):
    whole = go(tmp_path / "whole", "saol_sd", epochs=3)

    def crash(self):
        raise MemoryError("pulled the plug")

    with monkeypatch.context() as patch:
        stop_at(patch, 2, 1, crash)
        with pytest.raises(MemoryError):
            go(tmp_path, "saol_sd", epochs=3)
    trained = []
    stop_at(monkeypatch, 2, 0, lambda self: trained.append(self.start))
    same(go(tmp_path, "saol_sd", epochs=3), whole)
    assert trained == [(2, 0)]


@pytest.mark.parametrize("how", ["half", "flipped", "foreign", "both"])
def test_going_on_from_a_damaged_checkpoint(tmp_path, monkeypatch, caplog, how):
    """From the one before, or from the start, with a warning; the numbers are those of a run never stopped."""
    whole = go(tmp_path / "whole", "saol_sd", epochs=4)
    with monkeypatch.context() as patch:
        stop_at(patch, 3, 0, lambda self: self.stop.append(signal.SIGTERM))
        with pytest.raises(Interrupted):
            go(tmp_path, "saol_sd", epochs=4)
    folder = tmp_path / "checkpoints" / whole.id
    files = sorted(folder.glob("*.safetensors"))
    assert [path.stem for path in files] == ["00003-0000000", "00003-0000001"]
    for path in files if how == "both" else files[1:]:
        content = path.read_bytes()
        if how == "foreign":
            other = go(tmp_path / "other", "gap_fc")
            source = max((tmp_path / "other" / "checkpoints" / other.id).glob("*.safetensors"))
            shutil.copy(source, path), shutil.copy(source.with_suffix(".json"), path.with_suffix(".json"))
        else:
            path.write_bytes(
                content[:1000] + bytes([content[1000] ^ 4]) + content[1001:] if how == "flipped" else content[:500]
            )
    starts = []
    original = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self, progress: (starts.append(self.start), original(self, progress))[1])
    with caplog.at_level(logging.WARNING):
        same(go(tmp_path, "saol_sd", epochs=4), whole)
    assert starts == [(0, 0) if how == "both" else (3, 0)]
    assert "is damaged" in caplog.text and whole.id in caplog.text


def test_going_on_with_other_sources_says_so(tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "source_hash", lambda: "0123456789ab")
        stop_at(patch, 0, 1, lambda self: self.stop.append(signal.SIGTERM))
        with pytest.raises(Interrupted):
            go(tmp_path)
    run = go(tmp_path)
    assert f"run {run.id} goes on from a checkpoint of other sources" in caplog.text


def test_load_model_gives_the_last_epochs_network_or_none(tmp_path):
    run = go(tmp_path, epochs=2)
    assert (
        evaluate(load_model(run, tmp_path), trainer_of(tmp_path).eval_batches)["top1_gap"]
        == run.metrics["top1_gap_last"]
    )
    last = max((tmp_path / "checkpoints" / run.id).glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(FileNotFoundError, match=f"run {run.id} .*last checkpoint"):
        load_model(run, tmp_path)


def test_a_run_without_its_weights_is_trained_again(tmp_path, caplog):
    """It reproduces its file, which stays as it is; with other numbers in the file it says that it did not."""
    run = go(tmp_path, "saol_sd", epochs=1)
    path, folder = path_of(tmp_path, config("saol_sd", epochs=1)), tmp_path / "checkpoints" / run.id
    content, weights = path.read_bytes(), load_model(run, tmp_path).state_dict()
    for file in folder.glob("0*"):
        file.unlink()
    assert go(tmp_path, "saol_sd", epochs=1) == run  # unless told, it is finished
    with pytest.raises(FileNotFoundError, match="again=True"):
        load_model(run, tmp_path)

    same(train(config("saol_sd", epochs=1), tmp_path, progress=False, again=True), run)
    assert path.read_bytes() == content and not caplog.records
    made = load_model(run, tmp_path).state_dict()
    assert all(torch.equal(made[name], value) for name, value in weights.items())

    older = {name: value for name, value in run.metrics.items() if name.startswith("top1")}  # its file told less
    runs.save_run(tmp_path, run._replace(metrics=older))
    for file in folder.glob("0*"):
        file.unlink()
    train(config("saol_sd", epochs=1), tmp_path, progress=False, again=True)
    assert not caplog.records

    other = run._replace(metrics={name: 1.5 for name in run.metrics})
    runs.save_run(tmp_path, other)
    for file in folder.glob("0*"):
        file.unlink()
    train(config("saol_sd", epochs=1), tmp_path, progress=False, again=True)
    assert f"{run.id} was trained again and did not reproduce its file" in caplog.text and "there 1.5" in caplog.text
    assert runs.load_run(path).metrics == other.metrics


def test_the_sentence_about_a_lost_start_can_be_followed_word_by_word(tmp_path):
    """What it says is run as it stands; then the run that starts from there trains, and the file has stayed."""
    first = go(tmp_path, epochs=1)
    content = path_of(tmp_path, config(epochs=1)).read_bytes()
    for file in (tmp_path / "checkpoints" / first.id).glob("0*"):
        file.unlink()
    with pytest.raises(FileNotFoundError) as error:
        go(tmp_path, "saol_sd", epochs=1, start=first.id)

    names = {"results": str(tmp_path), "DATA": None, "RunConfig": RunConfig, "train": train}
    names |= {"load_run": runs.load_run, "resolve": training.resolve}
    names["run"] = eval(re.search(r"run = (load_run.*json'\))", str(error.value))[1], names)
    eval(re.search(r"train\(.*again=True\)", str(error.value))[0], names)
    assert path_of(tmp_path, config(epochs=1)).read_bytes() == content
    assert go(tmp_path, "saol_sd", epochs=1, start=first.id).status == "finished"


def test_long_epochs_have_checkpoints_inside(tmp_path, monkeypatch):
    """checkpoint_minutes decides; what is lost by a crash is what came after it."""
    whole = go(tmp_path / "whole", "saol_sd")
    now = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    original = Trainer.step

    def slow(self, *args):
        original(self, *args)
        now[0] += 40.0
        if args[:2] == (1, 3) and self.start == (0, 0):
            raise MemoryError("pulled the plug")

    monkeypatch.setattr(Trainer, "step", slow)
    with pytest.raises(MemoryError):
        go(tmp_path, "saol_sd", checkpoint_minutes=1.0)
    assert load_checkpoint(tmp_path / "checkpoints" / whole.id)[1]["position"] == [1, 2]
    same(go(tmp_path, "saol_sd", checkpoint_minutes=1.0), whole)


def test_a_run_under_way_is_not_trained_twice(tmp_path):
    folder = tmp_path / "checkpoints" / runs.run_id(config().identity())
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"), pytest.raises(Busy) as error:
        go(tmp_path)
    assert "is being trained by another process" in str(error.value) and "\n" not in str(error.value)
    assert go(tmp_path).status == "finished"


def test_asked_to_stop_in_the_last_epochs_evaluation(tmp_path, monkeypatch):
    """The run is finished and recorded, and the wish to stop is not swallowed."""
    stop_at(monkeypatch, 1, 3, lambda self: self.stop.append(signal.SIGTERM))
    with pytest.raises(Interrupted):
        go(tmp_path)
    assert runs.load_run(path_of(tmp_path, config())).status == "finished"


def test_an_interrupt_stops_with_a_checkpoint(tmp_path, monkeypatch):
    whole = go(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 0, 1, lambda self: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path)
    assert load_checkpoint(tmp_path / "checkpoints" / whole.id)[1]["position"] == [0, 2]
    same(go(tmp_path), whole)


def start(folder, settings):
    """A run from a shell that has its first epoch behind it."""
    process = launch(folder, settings)
    line = process.stdout.readline()
    assert "epoch 1/" in line, process.communicate()
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)])
def test_a_signal_writes_a_checkpoint_and_going_on_changes_nothing(tmp_path, monkeypatch, number):
    """A real process, 30 steps an epoch, is stopped in its second epoch; meanwhile nobody else may train this run."""
    monkeypatch.setattr(training, "load", load)
    settings = config("saol_cutmix_ss", train_images=1500, eval_every=0)
    process = start(tmp_path, settings)
    with pytest.raises(Busy):
        train(settings, tmp_path / "results", progress=False)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT)
    assert "stopped in epoch 2; start again to go on" in errors
    checkpoints = tmp_path / "results" / "checkpoints"
    epoch, step = load_checkpoint(next(checkpoints.iterdir()))[1]["position"]
    assert epoch == 1 and 0 <= step < 30 and not (tmp_path / "results" / "runs").exists()
    whole = train(settings, tmp_path / "whole", progress=False)
    same(train(settings, tmp_path / "results", progress=False), whole)


def test_from_a_shell_bad_input_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"arms": "saol"}))
    command = [sys.executable, "-m", "saol_lib.training", str(tmp_path / "config.json"), str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip().count("\n") == 0 and "did you mean arm?" in done.stderr


# --- options that must not change the numbers ------------------------------------------------------------------------


def losses_and_gradients(folder, arm, **values):
    trainer = trainer_of(folder, arm, **values)
    trainer.model.train()
    images, labels = first_batch(trainer)
    terms = trainer.losses(trainer._plan(0, 0).shares[0], images, labels)
    terms["total"].backward()
    gradients = [value.grad.flatten().double() for value in trainer.model.parameters()]
    return {name: float(value.detach()) for name, value in terms.items()}, torch.cat(gradients)


@pytest.mark.numeric
def test_bfloat16_autocast_computes_the_same_within_its_precision(tmp_path):
    """Of one step: of each number eight bits are left."""
    plain, gradient = losses_and_gradients(tmp_path, ALL)
    half, rough = losses_and_gradients(tmp_path, ALL, autocast="bfloat16")
    assert half != plain  # it was on
    assert all(abs(half[name] - value) < 0.01 * value for name, value in plain.items()), (half, plain)
    assert torch.cosine_similarity(gradient, rough, dim=0) > 0.99  # measured: 0.0022 and 0.9992
    assert go(tmp_path, ALL, autocast="bfloat16", epochs=1).status == "finished"


@pytest.mark.faults  # the compiler takes most of a minute
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("arm", ["gap_fc", ALL])
def test_compiled_training_gives_the_same_numbers(tmp_path, arm):
    """Three steps in float64."""
    sums = []
    for wanted in (False, True):
        trainer = Trainer(config(arm, compile=wanted), tmp_path, dtype=torch.float64)
        trainer.model.train()
        for step, batch in zip(range(3), trainer._batches(0, 0), strict=False):
            trainer.step(0, step, *batch)
        sums.append(trainer.sums)
    for name, value in sums[0].items():
        torch.testing.assert_close(sums[1][name], value, rtol=1e-12, atol=1e-12)
    assert go(tmp_path, arm).id != go(tmp_path, arm, compile=True).id


# --- what is seen ----------------------------------------------------------------------------------------------------


def test_one_plain_line_an_epoch(tmp_path, capsys):
    train(config("saol_sd"), tmp_path, progress=True)
    lines = capsys.readouterr().out.splitlines()
    pattern = r"saol_sd seed 0 epoch (\d)/2: loss \d+\.\d{3} top1_gap \d+\.\d, top1_saol \d+\.\d, top1_mean \d+\.\d"
    assert [re.fullmatch(pattern, line)[1] for line in lines] == ["1", "2"]
    go(tmp_path / "quiet", "saol_sd")
    assert capsys.readouterr().out == ""


def test_provenance_of_a_run(tmp_path):
    run = go(tmp_path)
    assert run.provenance["data"] == digits().fingerprint and run.provenance["threads"] == 1
    assert run.provenance["parameters"] == sum(p.numel() for p in new_model(config()).parameters())
    assert run.provenance["seconds"] > 0 and run.provenance["sources"] == runs.provenance()["sources"]
