"""Several processes: shares of a batch against the whole, gradients of one process, one run's file, no hang."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from saol_lib.cutmix import SCHEDULES, mix, paste, unmixed
from saol_lib.layers import Outputs
from saol_lib.losses import total_loss
from saol_lib.streams import stream
from saol_lib.training import distributed, runs
from saol_lib.training import loop as training
from saol_lib.training.config import RunConfig
from saol_lib.training.distributed import Processes, launch
from saol_lib.training.loop import Trainer, evaluate
from saol_lib.training.recipe import load_model

TINY = {"train_images": 200, "epochs": 2, "backbone": "resnet-8-8", "batch_size": 40, "lr": 0.05}
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node",
    "2",
    "-m",
    "saol_lib.training.loop",
]
pytestmark = pytest.mark.timeout(900)  # a busy machine takes minutes to start three processes
ENVIRONMENT = os.environ | {"PYTHONPATH": str(runs.ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def process(count, rank):
    """One of `count` processes, as far as the arithmetic goes."""
    found = Processes("cpu")
    found.count, found.rank = count, rank
    return found


# --- shares of a batch -----------------------------------------------------------------------------------------------


def random_mixed(batch, schedule, dropped, generator):
    """A mixed batch, some of whose rectangles are emptied, so that shares get unequal numbers of mixed samples."""
    images = torch.randint(0, 256, (batch, 3, 8, 8), generator=generator)
    labels = torch.randint(0, 10, (batch,), generator=generator)
    probability = {"paired": 0.5, "sample": 0.7, "batch": 1.0}[schedule]
    mixed = mix(images, labels, 10, probability=probability, schedule=schedule, generator=generator)
    gone = torch.rand(batch, generator=generator) < dropped
    boxes = torch.where(gone[:, None], 0, mixed.boxes)
    return paste(images, labels, 10, boxes, torch.where(gone, torch.arange(batch), mixed.partners))


def random_outputs(batch, generator):
    def logits(*shape):
        return torch.randn(batch, *shape, generator=generator, requires_grad=True)

    leaves = [logits(10), logits(10), logits(10, 4, 4), logits(1, 4, 4)]
    gap, saol, spatial, mask = leaves
    return leaves, Outputs(gap, saol.log_softmax(1), None, spatial.log_softmax(1), mask)


def rows_of(outputs, rows):
    return Outputs(*(None if value is None else value[rows] for value in outputs))


def sources_of(mixed, clean):
    return Outputs(spatial_log_probs=clean[mixed.partners[mixed.boxes[:, 2] > 0]])


@given(
    st.sampled_from([1, 2, 4]), st.integers(1, 4), st.sampled_from(SCHEDULES), st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    st.sampled_from(["gap_fc", "saol_cutmix_ss1", "saol_cutmix_ss_sd"]), st.integers(0, 10**6),
)  # fmt: skip
def test_losses_of_the_shares_make_the_loss_of_the_batch(count, pairs, schedule, dropped, arm, seed):
    """Averaged over the processes, every term and every gradient is that of the whole batch."""
    generator, batch, paired = stream(seed, "test"), 2 * count * pairs, schedule == "paired"
    config = RunConfig(arm=arm, cutmix_schedule=schedule)
    mixed = random_mixed(batch, schedule, dropped, generator)
    leaves, outputs = random_outputs(batch, generator)
    clean = torch.randn(batch, 10, 4, 4, generator=generator).log_softmax(1)
    whole = total_loss(
        outputs, mixed, terms=config.terms, source=None if paired else sources_of(mixed, clean), options=config
    )
    parts = []
    for rank in range(count):
        mine = process(count, rank)
        part, weight = mine.share(mixed, paired)
        own = rows_of(outputs, mine.rows(mixed, paired)) if count > 1 else outputs
        sources = None if paired else sources_of(part, clean)
        told = {"terms": config.terms, "source": sources, "mixed_weight": weight, "options": config}
        parts.append(total_loss(own, part, **told))
    for name, value in whole.items():
        mean = sum(part.get(name, torch.zeros(())) for part in parts) / count
        torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-6)
    assert all(part.keys() <= whole.keys() for part in parts)
    ours = torch.autograd.grad(
        sum(part["total"] for part in parts) / count, leaves, allow_unused=True, retain_graph=True
    )
    theirs = torch.autograd.grad(whole["total"], leaves, allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)


@given(
    st.sampled_from([2, 3, 4]),
    st.integers(1, 4),
    st.sampled_from(SCHEDULES),
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 10**6),
)
def test_shares_part_the_batch_and_no_pair(count, pairs, schedule, dropped, seed):
    batch, paired = 2 * count * pairs, schedule == "paired"
    mixed = random_mixed(batch, schedule, dropped, stream(seed, "test"))
    rows = [process(count, rank).rows(mixed, paired) for rank in range(count)]
    assert sorted(torch.cat(rows).tolist()) == list(range(batch)) and {len(part) for part in rows} == {2 * pairs}
    for rank in range(count):
        part, _ = process(count, rank).share(mixed, paired)
        assert torch.equal(part.images, mixed.images[rows[rank]]) and torch.equal(part.boxes, mixed.boxes[rows[rank]])
        sources = part.images[part.partners] if paired else mixed.images[part.partners]
        assert torch.equal(sources, mixed.images[mixed.partners[rows[rank]]])
        if paired:
            assert not part.boxes[part.partners][part.boxes[:, 2] > 0].any()  # the sources are clean


def test_an_unmixed_batch_is_shared_in_order():
    mixed = unmixed(torch.arange(8.0).view(8, 1, 1, 1), torch.arange(8), 10)
    parts = [process(2, rank).share(mixed, False) for rank in range(2)]
    assert torch.cat([part.images for part, _ in parts]).flatten().tolist() == list(range(8))
    assert process(1, 0).share(mixed, False) == (mixed, 1.0)


# --- refusing to train copies ----------------------------------------------------------------------------------------


def test_the_number_of_processes_is_asserted(monkeypatch):
    class Single:
        num_processes, process_index, device = 1, 0, torch.device("cpu")

        def __init__(self, **kwargs):
            pass

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.Accelerator", Single)
    with pytest.raises(RuntimeError, match="accelerate sees 1 processes instead of 2"):
        Processes("cpu")


def test_no_processes_in_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="one of several"):
        launch(print, (), 2)


def test_a_batch_that_cannot_be_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "Processes", lambda device: process(4, 0))
    with pytest.raises(ValueError, match="batch_size=50 must be a multiple of twice the 4 processes"):
        Trainer(RunConfig(**TINY | {"batch_size": 50}), tmp_path)


def test_every_batch_is_evaluated_once_even_where_a_process_gets_none(monkeypatch):
    """4 processes, 1 to 5 batches: all agree on the layers, and the counts add up to those of one process."""
    config = RunConfig(arm="saol_sd", **TINY)
    dataset = training.load("digits", None)
    model = training.new_model(config)
    _, batches = training.batches(
        config, dataset._replace(test=dataset.test.subset(torch.arange(95))), torch.device("cpu")
    )
    pieces = batches.all
    for size in (95, 40, 20):
        monkeypatch.setattr(batches, "all", lambda _, size=size: pieces(size))
        whole, counts = evaluate(model, batches), []
        for rank in range(4):
            mine = process(4, rank)
            mine.sum = lambda value, counts=counts: (counts.append(int(value)), value)[1]
            assert evaluate(model, batches, mine).keys() == whole.keys()
        assert [100 * sum(counts[i::2]) / 95 for i in (0, 1)] == [whole["top1_gap"], whole["top1_saol"]]


# --- two real processes ----------------------------------------------------------------------------------------------

DRIVER = """
import os, sys
from pathlib import Path
import safetensors.torch, torch
from torch import nn
from saol_lib import cutmix
from saol_lib.training import loop as training
from saol_lib.training.config import RunConfig

torch.set_num_threads(1)
TINY = dict(train_images=200, epochs=2, backbone="resnet-8-8", batch_size=40, lr=0.02)
ALL = "saol_cutmix_ss_sd"
CASES = [("gap_fc", "paired"), (ALL, "paired"), (ALL, "sample"), ("gap_fc_cutmix", "batch")]
build, sample = training.new_model, cutmix.sample_boxes


def without_norms(config, results=None):
    model = build(config)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, nn.Identity())
    return model


def some_empty(count, *args, **kwargs):
    boxes = sample(count, *args, **kwargs)
    boxes[: count // 3] = 0
    return boxes


training.new_model, cutmix.sample_boxes = without_norms, some_empty


def gradients(folder):
    found = {}
    for arm, schedule in CASES:
        trainer = training.Trainer(RunConfig(arm=arm, cutmix_schedule=schedule, **TINY), Path(folder))
        share, key = trainer.group.share, f"{arm}/{schedule}"

        def spy(*args):
            part, weight = share(*args)
            found[f"rows/{key}"] = torch.tensor([len(part.images), int((part.boxes[:, 2] > 0).sum()), trainer.steps])
            return part, weight

        trainer.group.share = spy
        trainer.model.train()
        for step, batch in zip(range(3), trainer.train_batches.epoch(40, 0, 0)):
            trainer.step(0, step, *batch)
            for name, parameter in trainer.model.named_parameters():
                found[f"{step}/{key}/{name}"] = parameter.grad.clone().contiguous()
    safetensors.torch.save_file(found, f"{folder}/{os.environ.get('RANK', 'alone')}.safetensors")


def run_after_gradients(self, progress):
    gradients(self.results.parent)
    return run(self, progress)


run, training.Trainer.run = training.Trainer.run, run_after_gradients

if __name__ == "__main__":
    for name, processes in (("one", 1), ("two", 2)):
        config = RunConfig(arm=ALL, processes=processes, **TINY)
        assert training.train(config, sys.argv[1] + "/" + name, progress=False).status == "finished"
"""


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    """The folder in which one process and two wrote their gradients and runs, on a network without normalisation."""
    folder = tmp_path_factory.mktemp("gloo")
    (folder / "driver.py").write_text(DRIVER)
    done = subprocess.run(
        [sys.executable, str(folder / "driver.py"), str(folder)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_have_the_gradients_of_one(driven):
    alone, *ranks = (safetensors.torch.load_file(driven / f"{name}.safetensors") for name in ("alone", "0", "1"))
    assert len(alone) > 150
    unequal = 0
    for name, value in alone.items():
        if name.startswith("rows/"):
            parts = [rank[name].tolist() for rank in ranks]
            assert [parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]] == value[:2].tolist() and parts[0][
                0
            ] == parts[1][0]
            assert parts[0][2] == parts[1][2] == value[2]
            unequal += parts[0][1] != parts[1][1]
            continue
        largest = max(v.abs().max() for other, v in alone.items() if other.rsplit("/", 1)[0] == name.rsplit("/", 1)[0])
        for rank in ranks:
            assert (rank[name] - value).abs().max() <= 1e-6 * max(largest, 1), name
    assert unequal >= 2  # the shares had unequal numbers of mixed samples


def test_processes_write_the_very_run_of_one(driven):
    one, two = ([*(driven / name / "runs").iterdir()] for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two] and len(one) == 1
    single, double = runs.load_run(one[0]), runs.load_run(two[0])
    assert single.config == double.config and single.metrics.keys() == double.metrics.keys()
    for a, b in zip(single.epochs, double.epochs, strict=True):
        assert list(a) == list(b)
        assert {k: v for k, v in b.items() if "loss" in k} == pytest.approx(
            {k: v for k, v in a.items() if "loss" in k}, rel=1e-4
        )
    assert all(abs(double.metrics[name] - value) <= 0.3 for name, value in single.metrics.items())  # of 1000 images: 3


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchrun")
    config = RunConfig(arm="saol_cutmix_ss_sd", **TINY | {"batch_size": 8})  # 4 rows a process: statistics far apart
    (folder / "config.json").write_text(json.dumps(config.identity()))
    command = [*TORCHRUN, str(folder / "config.json"), str(folder / "results")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return config, folder / "results", done


def test_torchrun_writes_the_same_run_once(torchrun):
    config, results, done = torchrun
    assert [path.stem for path in (results / "runs").iterdir()] == [runs.run_id(config.identity())]
    assert [re.search(r"epoch (\d)/2", line)[1] for line in done.stdout.splitlines()] == [
        "1",
        "2",
    ]  # the first alone speaks


def test_metrics_are_exactly_those_of_the_network_kept(torchrun):
    """Each process has running statistics of its own rows; what is measured is what is saved."""
    config, results, _ = torchrun
    run = runs.load_runs(results)[0]
    _, evaluation = training.batches(config, training.load("digits", None), torch.device("cpu"))
    model = load_model(run, results)
    assert {f"{name}_last": value for name, value in evaluate(model, evaluation).items()} == {
        name: value for name, value in run.metrics.items() if name.endswith("_last")
    }
    counts = {int(value) for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {2 * 25}  # as many steps as one process takes


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes through Linux's /proc")
def test_a_killed_process_ends_the_run_with_an_error_and_no_hang(tmp_path):
    config = RunConfig(arm="saol_sd", **TINY | {"train_images": None, "epochs": 50, "eval_every": 0})
    (tmp_path / "config.json").write_text(json.dumps(config.identity()))
    command = [*TORCHRUN, str(tmp_path / "config.json"), str(tmp_path / "results")]
    running = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert "epoch 1/50" in running.stdout.readline()
    ranks = children(running.pid)
    assert len(ranks) >= 2
    os.kill(ranks[-1], 9)
    began = time.monotonic()
    assert running.wait(timeout=120) != 0
    assert not any(map(alive, ranks)), time.monotonic() - began
    assert not (tmp_path / "results" / "runs").exists()
    folder = tmp_path / "results" / "checkpoints" / runs.run_id(config.identity())
    assert runs.load_checkpoint(folder)[1]["position"][0] >= 1  # nothing finished is lost


def test_buffers_are_left_alone_by_one_process():
    model = torch.nn.BatchNorm2d(3)
    distributed.Processes("cpu").align(model)
    assert model.running_mean.tolist() == [0, 0, 0]
