"""What a run would cost, counted without computing a number: on torch's meta device.

Operations are counted by torch over a forward pass, and a backward pass is taken for two of them; hours are these over
what one GPU is assumed to keep up, so they are an estimate. So is memory: what is there for a moment is left out.
"""

import math
from dataclasses import fields
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from saol_lib.layers import SaolOptions
from saol_lib.training import ARMS, RunConfig, new_model

SUSTAINED = 30.0  # floating-point operations of one GPU, 10^12 a second: an assumption
IMAGES = {  # of training, of evaluation
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "imagenet": (1_281_167, 50_000),
    "cub": (5_994, 5_794),
}
STRUCTURE = ("dataset", "image_size", "classes", "backbone", "arm", "blocks", "enlarge", "dilation")
TRAINED_BYTES = 12  # of a parameter while it is trained: itself, its gradient and its momentum in float32
STORED_BYTES = 16  # of a parameter on disk: itself and its momentum in float32, in the two checkpoints that are kept


class Network(NamedTuple):
    """What one image costs."""

    parameters: int
    multiply_adds: int  # of the network in use
    training: int  # of a forward and a backward pass in training
    kept: int  # bytes that the forward pass keeps for the backward pass, in float32


class Cost(NamedTuple):
    """What a run costs."""

    hours: float  # of one GPU
    memory: float  # GB of the GPU, for the whole batch at once
    disk: float  # GB


def forecast(config: RunConfig, network: Network, sustained: float = SUSTAINED) -> Cost:
    """The cost of a run with a counted network; ValueError for a data set whose size is not known here."""
    if config.dataset not in IMAGES:
        raise ValueError(f"dataset={config.dataset!r} has no known size; choose one of {', '.join(IMAGES)}")
    images, evaluated = IMAGES[config.dataset]
    images = config.train_images or images

    step = network.training
    if config.needs_second_pass:
        step += config.cutmix_probability * network.multiply_adds
    evaluations = math.ceil(config.epochs / config.eval_every) if config.eval_every else 1
    work = config.epochs * images * step + evaluations * evaluated * network.multiply_adds

    share = 1.0 if config.autocast == "none" else 0.5  # half of the bytes an activation
    at_once = config.batch_size // config.accumulate
    memory = TRAINED_BYTES * network.parameters + share * at_once * network.kept
    hours = 2 * work / (sustained * 1e12) / 3600
    return Cost(hours, memory / 1e9, STORED_BYTES * network.parameters / 1e9)


def count(config: RunConfig) -> Network:
    """What one image costs in the network of a config, whatever else the config says."""
    return _count(structure(config))


def structure(config: RunConfig) -> RunConfig:
    """A config with all that shapes its network and nothing else: the first arm with the same layers stands for all."""
    names = [*STRUCTURE, *(field.name for field in fields(SaolOptions))]
    values = {name: getattr(config, name) for name in names}
    return RunConfig.of(**(values | {"arm": _alike(config.arm)}))


def _alike(arm: str) -> str:
    layers = _layers(arm)
    return next(name for name in ARMS if _layers(name) == layers)


def _layers(arm: str) -> tuple:
    return ARMS[arm].heads, "ss1" in ARMS[arm].terms


@lru_cache(maxsize=512)
def _count(config: RunConfig) -> Network:
    with torch.device("meta"):
        model = new_model(config)
        images = torch.zeros(2, 3, config.side, config.side)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        in_use = _forward(model.eval(), images)

    own = {_storage(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            found[_storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        training = 3 * _forward(model.train(), images)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in found.values())
    return Network(parameters, in_use, training, kept // len(images))


def _forward(model: nn.Module, images: Tensor) -> int:
    """Multiply-adds of a pass of one of the images."""
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() // (2 * len(images))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
