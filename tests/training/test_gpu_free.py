"""GPU code tested without a GPU: everything of a step on pretended `cuda` tensors, which have no contents.

CPU tensors stay real, so that what is drawn and looked up there works as always. On `cuda` only shapes, types and
devices are computed: mixing devices fails, and so does whatever would wait for the device.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saol_lib.cutmix import SCHEDULES
from saol_lib.data import Split
from saol_lib.localization import METHODS, measure_pairs, mix_pairs, pairs, score_maps
from saol_lib.localization.pairs import METHODS as PAIR_METHODS
from saol_lib.networks import build_model, enlarge
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.loop import Interrupted, Trainer, evaluate

CUDA = torch.device("cuda", 0)
SMALL = {"backbone": "resnet-8-8", "train_images": 60, "batch_size": 12, "epochs": 1}


class Waits(AssertionError):
    """Something asked a GPU for its contents."""


class PretendedGPU(TorchDispatchMode):
    """Inside, tensors can be put on `cuda`; `in_step`: where a copy onto it must not be waited for either."""

    def __init__(self, in_step: bool = False) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.in_step = in_step

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        named = named or {}
        leaves = tree_leaves((arguments, named))
        inputs = [leaf for leaf in leaves if isinstance(leaf, FakeTensor)]
        target = named.get("device")
        goes_there = target is not None and torch.device(target).type == "cuda"
        if not inputs and not goes_there:
            return function(*arguments, **named)

        name = function.overloadpacket.__name__
        if self.in_step and not inputs and name == "_to_copy" and not named.get("non_blocking"):
            raise Waits("a copy onto the device is waited for; use non_blocking=True")
        leaves_it = target is not None and torch.device(target).type == "cpu"
        onto_cpu = name == "copy_" and not isinstance(arguments[0], FakeTensor)
        if inputs and (
            leaves_it or onto_cpu or name in ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal")
        ):
            raise Waits(f"{name} waits for the device")

        scalars = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.ndim > 0]
        foreign = [leaf for leaf in scalars if not isinstance(leaf, FakeTensor) and leaf.device.type == "cpu"]
        if inputs and foreign and name not in ("copy_", "_to_copy", "index", "index_put_", "_index_put_impl_"):
            raise AssertionError(f"{name} mixes cuda and cpu")
        if inputs and foreign and name.startswith(("index", "_index")):
            raise Waits(f"{name} with an index on the CPU waits for its copy")
        with self.fake:
            return function(*arguments, **named)

    def put(self, value):
        """A tensor's likeness on the GPU."""
        with self.fake:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=CUDA)

    def put_module(self, module: nn.Module) -> None:
        for part in module.modules():
            for name, value in part._parameters.items():
                if value is not None:
                    part._parameters[name] = nn.Parameter(self.put(value.detach()))
            for name, value in part._buffers.items():
                if value is not None:
                    part._buffers[name] = self.put(value)

    def put_attributes(self, thing: object) -> None:
        for name, value in vars(thing).items():
            if torch.is_tensor(value):
                setattr(thing, name, self.put(value))


@pytest.fixture(autouse=True)
def pretended_autocast(monkeypatch):
    """Autocast believes in the GPU as well, and nothing tries to start it."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)


def on_gpu(gpu, folder, **values):
    """A trainer whose network, data and sums are on the pretended GPU."""
    trainer = Trainer(RunConfig(**SMALL | values, device="cpu"), folder)
    gpu.put_module(trainer.model)
    for data in (trainer.train_batches, trainer.eval_batches):
        gpu.put_attributes(data)
        gpu.put_attributes(data.scaling)
        data.device = CUDA
    trainer.device = trainer.group.device = CUDA
    return trainer


CASES = [(arm, "paired") for arm in ARMS] + [
    (arm, schedule) for arm in ARMS if ARMS[arm].cutmix for schedule in SCHEDULES if schedule != "paired"
]


PROBABILITIES = {"paired": 0.5, "sample": 0.7, "batch": 1.0}


@pytest.mark.parametrize(("arm", "schedule"), CASES)
def test_a_step_mixes_no_devices_and_does_not_wait(tmp_path, arm, schedule):
    """Batch, augmentation, mixing, forward, second pass and losses; of the update all but torch's own backward.

    A step in float32, and one in bfloat16 and two passes.
    """
    gpu = PretendedGPU()
    trainer = on_gpu(gpu, tmp_path, arm=arm, cutmix_schedule=schedule, cutmix_probability=PROBABILITIES[schedule])
    totals = []
    trainer._seed = lambda epoch, step: None
    trainer._backward = totals.append
    trainer._update = lambda step: None
    trainer.optimizer.zero_grad = lambda set_to_none: None
    trainer.model.train()

    dtypes = []
    kernels = [module for module in trainer.model.modules() if isinstance(module, nn.Conv2d)]
    kernels[-1].register_forward_hook(lambda module, given, made: dtypes.append(made.dtype))
    passing = trainer._batches(0, 0)
    with gpu:
        next(passing)  # an epoch begins with a copy
    gpu.in_step = True
    for step, (autocast, passes) in enumerate([("none", 1), ("bfloat16", 2)]):
        trainer.config = replace(trainer.config, autocast=autocast, accumulate=passes)
        totals.clear()
        dtypes.clear()
        trainer.sums = {}
        with gpu:
            trainer.step(0, step, *next(passing))
        assert len(totals) == passes
        assert all(total.device == CUDA and total.dtype == torch.float32 for total in totals)
        assert set(trainer.sums) == {*trainer.config.terms, "total"}
        assert set(dtypes) == {torch.bfloat16 if autocast == "bfloat16" else torch.float32}


@pytest.mark.parametrize("arm", ["gap_fc", "saol_sd", "abn"])
def test_evaluation_waits_once_at_its_end(tmp_path, arm):
    gpu = PretendedGPU()
    trainer = on_gpu(gpu, tmp_path, arm=arm)
    with gpu, pytest.raises(Waits, match=r"item|_local_scalar_dense"):
        evaluate(trainer.model, trainer.eval_batches)
    counted = []

    class Counts:
        rank, count = 0, 1

        def sum(self, counts):
            counted.append(counts)
            return torch.zeros(counts.shape, dtype=torch.int64)

    with gpu, pytest.raises(Interrupted):  # nothing was seen, it seems
        evaluate(trainer.model, trainer.eval_batches, Counts())
    assert counted[0].device == CUDA  # all batches were counted there before anything was asked


@pytest.mark.parametrize("method", METHODS)
def test_every_score_map_stays_on_the_device(method):
    gpu = PretendedGPU()
    heads = ("abn",) if method == "abn" else ("gap", "saol")
    model = build_model("resnet-8-8", 10, heads=heads, seed=0)
    gpu.put_module(model)
    with gpu:
        maps = score_maps(model, gpu.put(torch.rand(2, 3, 32, 32)), gpu.put(torch.tensor([1, 2])), method)
    assert maps.device == CUDA and maps.shape == (2, 32, 32)


@pytest.mark.parametrize("method", PAIR_METHODS)
def test_pair_measures_fetch_what_they_need_once_a_batch(tmp_path, monkeypatch, method):
    gpu = PretendedGPU()
    trainer = on_gpu(gpu, tmp_path, arm="saol_sd")
    labels = torch.tensor([0, 1, 2, 3])
    split = Split(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), labels)
    mixed = mix_pairs(split, 10, torch.Generator().manual_seed(0))
    with gpu, pytest.raises(Waits):
        measure_pairs(trainer.model, mixed, labels, trainer.eval_batches, method)

    fetched = []

    def fetch(part):
        """Ones instead of what only a GPU would know."""
        if part is None:
            return None
        fetched.append(part.device)
        return torch.ones(part.shape)

    monkeypatch.setattr(pairs, "_to_cpu", fetch)
    with gpu:
        table = measure_pairs(trainer.model, mixed, labels, trainer.eval_batches, method)
    assert len(table) == 4 and fetched == [CUDA] * (4 if method == "saol" else 3)


def test_enlarging_a_network_on_the_device():
    gpu = PretendedGPU()
    larger = enlarge(build_model("resnet-8-8", 10, seed=0), dilation=True)
    gpu.put_module(larger)
    with gpu:
        outputs = larger(gpu.put(torch.rand(2, 3, 32, 32)))
    assert outputs.attention.device == CUDA and outputs.attention.shape[-1] == 16


# --- the pretence finds what it should --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.cpu(),
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.tolist(),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: torch.ones(3).to(x.device),
    ],
)
def test_what_waits_is_found(wait):
    gpu = PretendedGPU(in_step=True)
    with gpu, pytest.raises((Waits, RuntimeError)):
        wait(gpu.put(torch.rand(3)))


def test_a_device_mismatch_is_found():
    gpu = PretendedGPU()
    with gpu, pytest.raises((AssertionError, RuntimeError)):
        gpu.put(torch.rand(3)) + torch.rand(3)


def test_the_cpu_is_real_inside():
    with PretendedGPU():
        assert torch.arange(3).sum().item() == 3 and bool(torch.tensor([1]).any())
