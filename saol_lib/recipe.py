"""What a configuration stands for: its untrained network, its optimiser, its batches, its CutMix."""

import torch
from torch import Tensor, nn

from saol_lib.config import ARMS, RunConfig
from saol_lib.cutmix import Mixed, mix, unmixed
from saol_lib.data import FLIPS, Batches, Dataset, mean_and_std, select
from saol_lib.models import SAOLNet, build_model


def new_model(config: RunConfig) -> SAOLNet:
    """The untrained network of a configuration, drawn from its seed."""
    options = {"heads": ARMS[config.arm].heads, "blocks": config.blocks, "seed": config.seed} | config.saol_options
    return build_model(config.backbone, config.num_classes, **options)


def new_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay on matrices and kernels alone, not on norms and biases."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def batches(config: RunConfig, dataset: Dataset, device: torch.device) -> tuple[Batches, Batches]:
    """Training and evaluation batches of a configuration, both scaled by the training images' statistics."""
    train_split, evaluation = select(dataset, config.eval_split, config.train_images, config.held_out)
    mean, std = mean_and_std(dataset.train.images)
    augmented = Batches(train_split, device, mean, std, config.pad, FLIPS[config.dataset])
    return augmented, Batches(evaluation, device, mean, std)


def mix_batch(images: Tensor, labels: Tensor, config: RunConfig, generator: torch.Generator) -> Mixed:
    """CutMix as the arm wants it, with the same rectangles for every arm of a seed."""
    if not ARMS[config.arm].cutmix:
        return unmixed(images, labels, config.num_classes)
    how = {"probability": config.cutmix_probability, "alpha": config.cutmix_alpha, "schedule": config.cutmix_schedule}
    return mix(images, labels, config.num_classes, generator=generator, **how)
