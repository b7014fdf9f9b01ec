"""Narrow strided 1x1 convolutions are computed another way: same values, same gradients, and no crash."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from saol_lib.networks import build_backbone, build_model, enlarge
from saol_lib.networks.strides import StridedPointwise, spare_narrow_strides

ROOT = Path(__file__).parents[2]

STEP = """
import torch
from saol_lib.networks import build_model
from saol_lib.networks.strides import spare_narrow_strides
torch.set_num_threads(1)
{network}
network = network.to(memory_format=torch.channels_last).train()
images = torch.randn(8, {channels}, {side}, {side}).to(memory_format=torch.channels_last).requires_grad_()
for _ in range(3):
    outputs = network(images)
    outputs = outputs if isinstance(outputs, torch.Tensor) else outputs.gap_logits
    outputs.square().mean().backward()
print("alive")
"""
NARROW = "network = torch.nn.Sequential(torch.nn.Conv2d(4, 16, 1, stride=2))\nspare_narrow_strides(network)"
QUICK = "network = build_model('resnet-s2-8-8', 4, heads=('gap',))"


@pytest.mark.parametrize(("network", "channels", "side"), [(NARROW, 4, 112), (QUICK, 3, 224)])
def test_backward_survives_in_channels_last(network, channels, side):
    """Without `spare_narrow_strides` the first one dies with AVX2 as with AVX-512, the second one with AVX-512."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    code = STEP.format(network=network, channels=channels, side=side)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"the process ended with {done.returncode}: {done.stderr[-300:]}"
    assert done.stdout.strip() == "alive"


@pytest.mark.parametrize("bias", [True, False])
def test_values_gradients_names_and_weights_are_those_of_the_convolution(bias):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(4, 6, 1, stride=(2, 3), bias=bias)).double()
    state = torch.get_rng_state()
    spared = nn.Sequential(plain[0])
    spare_narrow_strides(spared)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(spared[0], StridedPointwise) and spared[0].weight is plain[0].weight
    assert spared.state_dict().keys() == plain.state_dict().keys()

    images = torch.randn(2, 4, 7, 8, dtype=torch.float64, requires_grad=True)
    ours, theirs = spared(images), plain(images)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), [images, *spared.parameters()]),
        torch.autograd.grad(theirs.square().sum(), [images, *plain.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_only_what_can_fail_is_replaced():
    kept = nn.Sequential(
        nn.Conv2d(16, 8, 1, stride=2),  # wide enough
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 1, stride=2, padding=1),
    )
    spare_narrow_strides(kept)
    assert {type(module) for module in kept} == {nn.Conv2d}


@pytest.mark.parametrize(
    ("name", "count"), [("resnet-8-8", 1), ("resnet-8", 0), ("resnet-s2-8-24", 0), ("resnet18", 0)]
)
def test_published_widths_run_torch_s_own_convolutions(name, count):
    network = build_backbone(name, 10).network
    assert sum(isinstance(module, StridedPointwise) for module in network.modules()) == count


def test_a_stride_taken_out_is_taken_out_here_too():
    model = build_model("resnet-8-8", 4, heads=("gap",), seed=0).eval()
    images = torch.randn(1, 3, 32, 32)
    small, large = model.look(images)[1], enlarge(model).look(images)[1]
    assert small.shape[2:] == (8, 8) and large.shape[2:] == (16, 16)
    abn = build_model("resnet-8-8", 4, heads=("abn",), seed=0).eval()
    assert abn(images).attention.shape[2:] == (16, 16)
