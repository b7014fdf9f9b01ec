"""Several processes: shares of a batch against the whole, the numbers of one process, faults that end in a sentence."""

import atexit
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from processes import ENVIRONMENT
from torch import nn

from saol_lib.cutmix import SCHEDULES, Patches, draw, mix, paste
from saol_lib.data import Dataset, Split
from saol_lib.layers import Outputs
from saol_lib.losses import total_loss
from saol_lib.streams import stream
from saol_lib.training import distributed, evaluation, runs
from saol_lib.training import loop as training
from saol_lib.training.batch_norm import SharedStatistics
from saol_lib.training.checkpoints import load_checkpoint
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.distributed import Processes, choose_device, launch
from saol_lib.training.loop import NotANumber, Trainer, evaluate, train
from saol_lib.training.recipe import load_model
from saol_lib.training.shares import mix_share, no_patches, plan_step, sources_of

TINY = {
    "train_images": 200,
    "epochs": 2,
    "backbone": "resnet-8-8",
    "batch_size": 40,
    "lr": 0.05,
    "image_size": 16,
}
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node",
    "2",
    "-m",
    "saol_lib.training",
]
pytestmark = pytest.mark.timeout(900)  # a busy machine takes minutes to start three processes
ALL = "saol_cutmix_ss_sd"


def run_id(config):
    return runs.run_id(config.identity())


# --- shares of a batch -----------------------------------------------------------------------------------------------


def random_patches(batch, schedule, dropped, generator):
    """Patches of a batch, some emptied, so that shares get unequal numbers of mixed samples."""
    probability = {"paired": 0.5, "sample": 0.7, "batch": 1.0}[schedule]
    patches = draw(batch, (8, 8), probability=probability, schedule=schedule, generator=generator)
    gone = torch.rand(batch, generator=generator) < dropped
    boxes = torch.where(gone[:, None], 0, patches.boxes)
    return Patches(boxes, torch.where(gone, torch.arange(batch), patches.partners), patches.clean_sources)


def random_batch(batch, generator):
    images = torch.randint(0, 256, (batch, 3, 8, 8), generator=generator)
    return images, torch.randint(0, 10, (batch,), generator=generator)


def random_outputs(batch, generator):
    def logits(*shape):
        return torch.randn(batch, *shape, generator=generator, requires_grad=True, dtype=torch.float64)

    leaves = [logits(10), logits(10), logits(10, 4, 4), logits(1, 4, 4)]
    gap, saol, spatial, mask = leaves
    return leaves, Outputs(gap, saol.log_softmax(1), None, spatial.log_softmax(1), mask)


def own_rows(plan):
    """The rows of the whole batch that a process trains on, pass by pass."""
    return [plan.needed if s.rows is None else plan.needed[s.rows[: s.own]] for s in plan.shares]


SHARES = {
    "count": st.sampled_from([1, 2, 4]),
    "accumulate": st.sampled_from([1, 2, 3]),
    "pairs": st.integers(1, 3),
    "schedule": st.sampled_from(SCHEDULES),
    "dropped": st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    "seed": st.integers(0, 10**6),
}


@pytest.mark.numeric
@given(**SHARES, arm=st.sampled_from(["gap_fc", "saol_cutmix_ss1", ALL]))
def test_losses_of_the_shares_make_the_loss_of_the_batch(count, accumulate, pairs, schedule, dropped, seed, arm):
    """Averaged over processes and passes, every term and every gradient is that of the whole batch."""
    generator, batch, paired = stream(seed, "test"), 2 * count * accumulate * pairs, schedule == "paired"
    config = RunConfig(arm=arm, cutmix_schedule=schedule)
    patches, (images, labels) = random_patches(batch, schedule, dropped, generator), random_batch(batch, generator)
    leaves, outputs = random_outputs(batch, generator)
    clean = torch.randn(batch, 10, 4, 4, generator=generator, dtype=torch.float64).log_softmax(1)

    def loss(mixed, own, clean, weight):
        # Labels and shares in float64 too, so that nothing is rounded.
        mixed = mixed._replace(targets=mixed.targets.double(), masks=mixed.masks.double())
        rows = mixed.partners[mixed.boxes[:, 2] > 0]
        source = None if paired else Outputs(spatial_log_probs=clean[rows])
        return total_loss(own, mixed, terms=config.terms, source=source, mixed_weight=weight, options=config)

    mixed = paste(images, labels, 10, patches.boxes, patches.partners)._replace(clean_sources=paired)
    whole = loss(mixed, outputs, clean, 1.0)
    parts = []
    for rank in range(count):
        plan = plan_step(patches, count, rank, accumulate)
        for share, rows in zip(plan.shares, own_rows(plan), strict=True):
            part, _ = mix_share(images[plan.needed], labels[plan.needed], 10, share)
            read = plan.needed if share.rows is None else plan.needed[share.rows]
            own = Outputs(*(None if value is None else value[rows] for value in outputs))
            parts.append(loss(part, own, clean[read], share.mixed_weight))
            assert torch.equal(part.images, mixed.images[rows]) and torch.equal(part.targets, mixed.targets[rows])

    for name, value in whole.items():
        mean = sum(part.get(name, torch.zeros(())) for part in parts) / len(parts)
        torch.testing.assert_close(mean, value, rtol=1e-12, atol=1e-12)
    assert all(part.keys() <= whole.keys() for part in parts)
    total = sum(part["total"] for part in parts) / len(parts)
    ours = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
    theirs = torch.autograd.grad(whole["total"], leaves, allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@given(**SHARES)
def test_shares_part_the_batch_and_read_what_they_need_alone(count, accumulate, pairs, schedule, dropped, seed):
    generator, batch = stream(seed, "test"), 2 * count * accumulate * pairs
    patches, (images, labels) = random_patches(batch, schedule, dropped, generator), random_batch(batch, generator)
    plans = [plan_step(patches, count, rank, accumulate) for rank in range(count)]
    rows = [part for plan in plans for part in own_rows(plan)]
    assert sorted(torch.cat(rows).tolist()) == list(range(batch)) and {len(part) for part in rows} == {2 * pairs}

    for plan in plans:
        own = torch.cat(own_rows(plan))
        assert set(plan.needed.tolist()) == {*own.tolist(), *patches.partners[own].tolist()}
        if schedule == "paired":
            assert len(plan.needed) == len(own)  # a mixed sample and its source are never parted
        for share, mine in zip(plan.shares, own_rows(plan), strict=True):
            part, read = mix_share(images[plan.needed], labels[plan.needed], 10, share)
            chosen = mine[patches.boxes[mine][:, 2] > 0]
            assert torch.equal(sources_of(part, read), images[patches.partners[chosen]])
            if schedule == "paired":
                assert not part.boxes[part.partners][part.boxes[:, 2] > 0].any() and part.partners.max() < len(mine)


def test_what_eight_processes_read_of_a_batch():
    """As rank 3 of 8: 8 of 64 rows, with sources 16 at the most; it was all 64."""
    for schedule, most in (("paired", 8), ("sample", 16), ("batch", 16)):
        patches = draw(64, (32, 32), probability=0.5, schedule=schedule, generator=stream(0, "test"))
        assert 8 <= len(plan_step(patches, 8, 3).needed) <= most
    assert plan_step(no_patches(64), 8, 3).needed.tolist() == list(range(24, 32))


def test_one_process_takes_the_batch_as_it_is():
    plan = plan_step(draw(8, (8, 8), generator=stream(0, "test")))
    assert plan.needed.tolist() == list(range(8)) and plan.shares[0].rows is None
    images, labels = random_batch(8, stream(0, "test"))
    mixed, read = mix_share(images, labels, 10, plan.shares[0])
    again = mix(images, labels, 10, generator=stream(0, "test"))
    assert read is images and all(torch.equal(a, b) for a, b in zip(mixed[:-1], again[:-1], strict=True))


# --- devices ----------------------------------------------------------------------------------------------------------


def test_each_process_takes_its_own_gpu():
    assert [choose_device("auto", rank, gpus=4).index for rank in range(4)] == [0, 1, 2, 3]
    assert [choose_device("cuda:4", rank, gpus=8).index for rank in range(4)] == [4, 5, 6, 7]
    assert choose_device("auto", 1, gpus=0) == choose_device("cpu", 1, gpus=8) == torch.device("cpu")
    with pytest.raises(ValueError, match=r"would take GPU 2, but 2 are visible; lower processes"):
        choose_device("auto", 2, gpus=2)


# --- batch normalisation over processes, which take turns in this one -------------------------------------------------


class Together:
    """all_reduce of `count` calls that run one after the other: with the sums that an earlier round found."""

    def __init__(self, count):
        self.count, self.rank, self.place, self.sums, self.next = count, 0, 0, [], []

    def start(self, rank):
        self.rank, self.place = rank, 0

    def all_reduce(self, tensor):
        if self.rank == 0:
            self.next.append(torch.zeros_like(tensor))
        self.next[self.place] += tensor
        if self.place < len(self.sums):
            tensor.copy_(self.sums[self.place])
        self.place += 1


@pytest.mark.numeric
@pytest.mark.parametrize("sizes", [[4, 4], [1, 7], [3, 0, 5]])
@pytest.mark.parametrize("shape", [(6, 5, 3), (6,)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_over_processes_is_that_of_the_whole_batch(monkeypatch, sizes, shape, affine):
    """Outputs, gradients and running statistics, in float64, also where a process has no row."""
    torch.manual_seed(3)
    x = (torch.randn(sum(sizes), *shape, dtype=torch.float64) * 3 + 50).requires_grad_()
    weights = torch.randn_like(x)
    kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
    norm, alone = (kind(6, affine=affine).double() for _ in range(2))
    if affine:
        nn.init.normal_(alone.weight), nn.init.normal_(alone.bias)
        norm.load_state_dict(alone.state_dict())
    expected = alone(x)
    (expected * weights).sum().backward()
    gradient, x.grad = x.grad, None

    together = Together(len(sizes))
    monkeypatch.setattr(dist, "all_reduce", together.all_reduce)
    monkeypatch.setattr(dist, "get_world_size", lambda: len(sizes))
    monkeypatch.setattr(dist, "get_rank", lambda: together.rank)
    for _ in range(4):  # sums of the forward pass, then of the backward pass become known
        together.sums, together.next, x.grad, made = together.next, [], None, []
        norm.zero_grad()
        for rank, (part, factor) in enumerate(zip(x.split(sizes), weights.split(sizes), strict=True)):
            together.start(rank)
            twin = kind(6, affine=affine).double()
            twin.load_state_dict(norm.state_dict())
            if affine:
                twin.weight, twin.bias = norm.weight, norm.bias
            with SharedStatistics():
                made.append(twin(part))
            (made[-1] * factor).sum().backward()
            statistics = (twin.running_mean, twin.running_var)
            for mine, whole in zip(statistics, (alone.running_mean, alone.running_var), strict=True):
                if len(together.sums) > 1:
                    torch.testing.assert_close(mine, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat(made), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.grad, gradient, rtol=1e-11, atol=1e-11)
    if affine:
        torch.testing.assert_close(norm.weight.grad, alone.weight.grad, rtol=1e-12, atol=1e-11)
        torch.testing.assert_close(norm.bias.grad, alone.bias.grad, rtol=1e-12, atol=1e-11)


def test_evaluation_does_not_share():
    norm, x = nn.BatchNorm2d(3).eval(), torch.randn(2, 3, 4, 4)
    with SharedStatistics():
        assert torch.equal(norm(x), F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))


# --- several steps of two real processes are those of one -------------------------------------------------------------

STEPS = 3
CASES = [(arm, "paired") for arm in ARMS] + [
    (arm, schedule) for arm in ARMS if ARMS[arm].cutmix for schedule in ("sample", "batch")
]
MORE = {"accumulate": 2, "clip_norm": 0.5, "decay": "all", "cutmix_probability": 0.5}


def cases():
    for arm, schedule in CASES:
        probability = 0.5 if schedule == "paired" else 0.6
        yield f"{arm}/{schedule}", {"arm": arm, "cutmix_schedule": schedule, "cutmix_probability": probability}
    for schedule in SCHEDULES:
        yield f"accumulated/{schedule}", {"arm": ALL, "cutmix_schedule": schedule, **MORE}


# Each way of sharing once; `make test-faults` has the others.
FEW = ["gap_fc/paired", f"{ALL}/paired", f"{ALL}/sample", "abn_cutmix/batch", "accumulated/batch"]
MANY = [name for name, _ in cases() if name not in FEW]
APART = "apart"  # each process with the statistics of its own rows


def made_images(name, folder, **options):
    """Instead of the digits, which take seconds to draw: each class has its own colour."""
    labels = torch.arange(100) % 10
    noise = torch.randint(0, 128, (100, 3, 16, 16), generator=stream(0, "test"))
    colours = torch.randint(0, 128, (10, 3, 1, 1), generator=stream(1, "test"))
    images = (noise + colours[labels]).to(torch.uint8)
    return Dataset(Split(images, labels), Split(images[:50], labels[:50]), tuple("0123456789"), "made")


def trainers(folder, names):
    training.load = made_images
    evaluation.evaluation_batch = lambda size: 16  # several batches, the last of two images
    small = TINY | {"train_images": 60, "batch_size": 16, "epochs": 1}
    known = dict(cases())
    known[APART] = {"arm": ALL, "sync_batch_norm": False, "processes": distributed.process_count()}
    for name in names:
        yield name, Trainer(RunConfig(**small | known[name]), Path(folder) / "results", dtype=torch.float64)


def step_in_float64(folder, names):
    """What `STEPS` steps of these cases give on this process: gradients, weights and statistics, by name."""
    found = {}
    for name, trainer in trainers(folder, names):
        trainer.model.train()
        rows = []
        for step, batch in zip(range(STEPS), trainer._batches(0, 0), strict=False):
            trainer.step(0, step, *batch)
            rows.append(len(batch[1]))
            for part, parameter in trainer.model.named_parameters():
                found[f"{name}/{step}/{part}.grad"] = parameter.grad.clone().contiguous()
        for part, value in trainer.model.state_dict().items():
            found[f"{name}/{part}"] = value.clone().contiguous()
        for part, value in trainer.sums.items():
            found[f"{name}/sum/{part}"] = trainer.group.sum(value) / trainer.group.count
        for part, value in evaluate(trainer.model, trainer.eval_batches, trainer.group).items():
            found[f"{name}/{part}"] = torch.tensor(value)
        found[f"{name}/rows"] = torch.tensor(rows)
    if distributed.process_count() > 1:
        found["refused"] = refused(folder)
    safetensors.torch.save_file(found, f"{folder}/{os.environ.get('RANK', 'alone')}.safetensors")


def refused(folder):
    """The sentence, as bytes, for a network with a layer that its loss does not depend on."""
    plain_model = training.new_model

    def with_an_idle_layer(*arguments):
        model = plain_model(*arguments)
        model.idle = nn.Linear(1, 1)
        return model

    training.new_model = with_an_idle_layer
    (_, trainer), *_ = trainers(folder, FEW[:1])
    with pytest.raises(ValueError) as error:
        trainer.step(0, 0, *next(trainer._batches(0, 0)))
    return torch.tensor(list(str(error.value).encode()))


def alone_and_together(folder, names):
    """What one process found, and each of two, on networks with batch normalisation."""
    before = training.load, evaluation.evaluation_batch
    step_in_float64(str(folder), names)
    training.load, evaluation.evaluation_batch = before
    launch(step_in_float64, (str(folder), names), 2)
    return [safetensors.torch.load_file(folder / f"{name}.safetensors") for name in ("alone", "0", "1")]


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    return alone_and_together(tmp_path_factory.mktemp("few"), [*FEW, APART])


@pytest.fixture(scope="module")
def stepped_too(tmp_path_factory):
    return alone_and_together(tmp_path_factory.mktemp("many"), MANY)


@pytest.mark.numeric
@pytest.mark.parametrize("case", FEW)
def test_two_processes_have_the_gradients_of_one(stepped, case):
    """Real processes, with batch normalisation: gradients, weights, statistics, losses, accuracies."""
    check_case(stepped, case)


@pytest.mark.faults  # two minutes
@pytest.mark.parametrize("case", MANY)
def test_two_processes_have_the_gradients_of_one_with_every_arm_and_schedule(stepped_too, case):
    check_case(stepped_too, case)


def check_case(stepped, case):
    alone, *ranks = ({n: v for n, v in found.items() if n.startswith(f"{case}/")} for found in stepped)
    assert len(alone) > 60 and any(name.endswith("running_var") for name in alone)
    for name, value in alone.items():
        if name.endswith("/rows"):
            continue
        for rank in ranks:
            difference = (rank[name] - value).abs().max().item() if value.numel() else 0.0
            assert difference <= 1e-12 * max(1.0, value.abs().max().item()), (name, difference)


def test_parameters_without_a_gradient_are_refused(stepped):
    """Instead of a wrong first step, and DDP's page of text at the second."""
    _, *ranks = stepped
    for found in ranks:
        text = bytes(found["refused"].tolist()).decode()
        assert "2 parameters" in text and "idle.weight" in text and "use processes=1" in text and "\n" not in text


def test_two_processes_read_their_own_rows(stepped):
    _, *ranks = stepped
    for arm in ("gap_fc", ALL):
        assert [rank[f"{arm}/paired/rows"].tolist() for rank in ranks] == [[8] * STEPS] * 2
    counts = [count for rank in ranks for count in rank[f"{ALL}/sample/rows"].tolist()]
    assert 8 < max(counts) <= 16 and min(counts) >= 8


def test_without_shared_statistics_the_numbers_are_others_and_the_id_says_so(stepped):
    alone, first, _ = stepped
    gradients = [name for name in alone if name.startswith(f"{APART}/0/")]
    assert len(gradients) > 20 and max((alone[name] - first[name]).abs().max() for name in gradients) > 1e-3
    shared, apart = RunConfig(processes=2), RunConfig(processes=2, sync_batch_norm=False)
    assert run_id(shared) == run_id(RunConfig()) == run_id(RunConfig(sync_batch_norm=False)) != run_id(apart)
    assert apart.identity()["processes"] == 2 and apart.identity()["sync_batch_norm"] is False
    assert run_id(RunConfig(processes=4, sync_batch_norm=False)) != run_id(apart)
    assert RunConfig.of(**apart.identity()).identity() == apart.identity()


def test_dropout_in_several_processes_has_an_id_of_its_own():
    """Each process draws its own ShakeDrop, so that their number is part of the run."""
    for backbone, draws in (("pyramidnet-shakedrop-8-12", True), ("pyramidnet-8-12", False), ("resnet18", False)):
        one, two = (RunConfig(backbone=backbone, processes=n) for n in (1, 2))
        assert (run_id(one) != run_id(two)) == draws, backbone


# --- whole runs of several processes ----------------------------------------------------------------------------------


LONG = TINY | {"arm": ALL, "train_images": None, "eval_every": 0}  # 75 steps an epoch
NO_TEARDOWN = """
import atexit, os

if "LOCAL_RANK" in os.environ:  # one of torchrun's processes, which may not get as far as Python's teardown
    atexit.register(os._exit, 6)
"""


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchrun")
    config = RunConfig(**LONG)
    (folder / "config.json").write_text(json.dumps(config.identity()))
    (folder / "sitecustomize.py").write_text(NO_TEARDOWN)
    environment = ENVIRONMENT | {"PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}{os.pathsep}{folder}"}
    command = [*TORCHRUN, str(folder / "config.json"), str(folder / "results")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return config, folder / "results", done


def test_torchrun_writes_the_same_run_once(torchrun):
    config, results, done = torchrun
    assert [path.stem for path in (results / "runs").iterdir()] == [run_id(config)]
    spoken = [re.search(r"epoch (\d)/2", line)[1] for line in done.stdout.splitlines()]
    assert spoken == ["1", "2"]  # the first process alone speaks


def test_metrics_are_exactly_those_of_the_network_kept(torchrun):
    config, results, _ = torchrun
    run = runs.load_runs(results)[0]
    _, evaluation = training.batches(config, training.load("digits", image_size=16), torch.device("cpu"))
    model = load_model(run, results)
    found = {f"{name}_last": value for name, value in evaluate(model, evaluation).items()}
    assert found == {name: value for name, value in run.metrics.items() if name.endswith("_last")}
    counts = {int(value) for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {2 * 75}  # as many steps as one process takes


def test_processes_of_train_write_the_run_of_one(tmp_path):
    """The same file name, config and kinds of provenance and numbers; that the numbers are equal is shown above."""
    values = TINY | {"train_images": 40, "epochs": 1, "arm": ALL}
    one = train(RunConfig(**values), tmp_path / "one", progress=False)
    two = train(RunConfig(**values, processes=2), tmp_path / "two", progress=False)
    assert one.id == two.id and one.config == two.config and one.provenance.keys() == two.provenance.keys()
    assert list(one.epochs[0]) == list(two.epochs[0])


def run_in_float64(folder, results):
    """A whole run as `train` makes it, recorded too, with weights and pixels in float64."""
    training.load = made_images
    config = RunConfig(**TINY | {"train_images": 60, "epochs": 2, "arm": ALL})
    Trainer(config, Path(folder) / results, dtype=torch.float64).run(progress=False)


def test_a_run_of_two_processes_has_the_numbers_of_one(tmp_path, monkeypatch):
    """Losses and accuracies of every epoch as they are recorded, in float64."""
    monkeypatch.setattr(training, "load", training.load)  # `run_in_float64` replaces it
    run_in_float64(str(tmp_path), "one")
    launch(run_in_float64, (str(tmp_path), "two"), 2)
    (one,), (two,) = (runs.load_runs(tmp_path / name) for name in ("one", "two"))
    assert one.id == two.id and one.metrics == two.metrics and len(one.epochs) == 2
    for ours, theirs in zip(one.epochs, two.epochs, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours.pop("reliability", None) == theirs.pop("reliability", None)
        for name, value in ours.items():
            assert math.isclose(theirs[name], value, rel_tol=1e-12), name


# --- faults -----------------------------------------------------------------------------------------------------------


def test_missing_data_with_two_processes_are_told_in_their_sentence(tmp_path):
    config = RunConfig(dataset="tiny-imagenet", data_dir=str(tmp_path / "nowhere"), processes=2)
    with pytest.raises(FileNotFoundError, match="tiny-imagenet was looked for") as error:
        launch(training._train_here, (config, tmp_path, False, None), 2)
    assert "\n" not in str(error.value)


def test_a_loss_that_is_none_with_two_processes(tmp_path):
    """Its sentence, and the whole provenance."""
    config = RunConfig(**TINY | {"lr": 1e30, "processes": 2})
    with pytest.raises(NotANumber) as error:
        train(config, tmp_path, progress=False)
    failed = runs.load_run(tmp_path / "runs" / f"{run_id(config)}.json")
    assert failed.status == "failed" and failed.error == str(error.value) and "\n" not in failed.error
    alone = {"processor", "threads", "data", "parameters", "seconds", "commit", "dirty", "sources", "versions"}
    assert set(failed.provenance) == alone


def fail_at_once(where):
    if distributed.process_rank() == 1:
        raise ValueError(f"a mistake in {where}")
    dist.init_process_group("gloo", os.environ[distributed.RENDEZVOUS], rank=0, world_size=2)  # waits for the other


def die_at_once():
    if distributed.process_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        (fail_at_once, ("process 1",), ValueError, "a mistake in process 1"),
        (die_at_once, (), RuntimeError, r"process 1 of 2 ended with exit code -9; .*start again"),
    ],
)
def test_one_process_fails_and_the_other_is_not_left_waiting(function, arguments, error, message):
    began = time.monotonic()
    with pytest.raises(error, match=message):
        launch(function, arguments, 2)
    assert time.monotonic() - began < 120


def fail_in_the_teardown():
    atexit.register(os._exit, 6)


def test_processes_end_without_a_teardown_in_which_gloo_may_abort():
    launch(fail_in_the_teardown, (), 2)
    with pytest.raises(SystemExit) as ended:  # a process that trains alone ends as any other
        distributed.leave(3)
    assert ended.value.code == 3


UNGUARDED = """
import sys
from saol_lib.training import RunConfig, train
train(RunConfig(train_images=40, batch_size=20, epochs=1, backbone="resnet-8-8", processes=2), sys.argv[1])
"""


@pytest.mark.faults
def test_a_script_without_a_main_guard_is_shown_one(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "results")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]


SCRIPT = """
import json, sys
from saol_lib.training import RunConfig, train

if __name__ == "__main__":
    train(RunConfig.of(**json.loads(sys.argv[1])), sys.argv[2])
"""


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_two_processes_with_a_checkpoint(torchrun, tmp_path, number):
    """Inside an epoch; going on gives the numbers of a run that was never stopped."""
    config = RunConfig(**LONG, processes=2)
    (tmp_path / "script.py").write_text(SCRIPT)
    values = json.dumps(config.identity() | {"processes": 2})
    command = [sys.executable, str(tmp_path / "script.py"), values, str(tmp_path / "results")]
    running = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "epoch 1/2" in running.stdout.readline()
    running.send_signal(number)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT), errors
    assert errors.count("stopped in epoch 2; start again to go on from here") == 1
    epoch, step = load_checkpoint(tmp_path / "results" / "checkpoints" / run_id(config))[1]["position"]
    assert epoch == 1 and 0 <= step < 75 and not (tmp_path / "results" / "runs").exists()
    if number == signal.SIGTERM:
        again = train(config, tmp_path / "results", progress=False)
        whole = runs.load_runs(torchrun[1])[0]
        assert json.dumps([again.metrics, again.epochs]) == json.dumps([whole.metrics, whole.epochs])


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes through Linux's /proc")
def test_a_killed_process_ends_the_run_with_an_error_and_no_hang(tmp_path):
    config = RunConfig(**LONG | {"arm": "saol_sd", "epochs": 50})
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
    folder = tmp_path / "results" / "checkpoints" / run_id(config)
    assert load_checkpoint(folder)[1]["position"][0] >= 1  # nothing finished is lost


def test_buffers_are_left_alone_by_one_process():
    model = nn.BatchNorm2d(3)
    Processes("cpu").align(model)
    assert model.running_mean.tolist() == [0, 0, 0]


def test_launching_inside_one_of_several_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="one of several already"):
        launch(print, (), 2)
