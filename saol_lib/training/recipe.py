"""What a configuration stands for: its untrained network, its optimiser and rates, its batches, its CutMix."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from saol_lib.attach import SAOLNet
from saol_lib.cutmix import Mixed, Patches, draw, mix, unmixed
from saol_lib.data import FLIPS, SCALING, Batches, Dataset, Files, Stream, mean_and_std, select
from saol_lib.networks import ABN, build_model, enlarge, input_scaling, load_weights
from saol_lib.training.checkpoints import load_checkpoint
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.distributed import choose_device
from saol_lib.training.files import resolve
from saol_lib.training.runs import Run, load_finished
from saol_lib.training.shares import no_patches

# --- networks ---------------------------------------------------------------------------------------------------------


def new_model(config: RunConfig, results: str | Path | None = None) -> SAOLNet | ABN:
    """The network of a configuration before its training: drawn from its seed, with the weights that it starts from.

    results: the folder of the run that is started from; None: trained weights of any kind are not asked for, because
    they will be replaced.
    Of the run `config.start` a network of the same structure is taken over whole; else it must have a GAP-FC layer as
    its backbone's own classifier, and its backbone is taken over. Raises FileNotFoundError where weights are not here,
    ValueError where they are another network's.
    """
    make = partial(
        build_model,
        config.backbone,
        config.num_classes,
        heads=ARMS[config.arm].heads,
        blocks=config.blocks,
        seed=config.seed,
        pretrained=config.pretrained,
        fetch=results is not None,
        options=config.saol_options,
    )
    if results is None:
        model = make()
    elif config.start:
        model = _started(make, config.start, results)
    elif config.weights:
        model = make(weights=config.weights)
    elif config.weights_content:
        raise FileNotFoundError(
            f"this run starts from weights with the content {config.weights_content}; give their file, weights=PATH"
        )
    else:
        model = make()
    return enlarge(model, config.dilation) if config.enlarge else model


def _started(make: Callable, start: str, results: str | Path) -> SAOLNet | ABN:
    """The network with what it takes over from the run `start`."""
    run = load_finished(resolve(results), start)
    if run is None:
        raise FileNotFoundError(f"start={start!r} is no finished run of {Path(results).name}; train it first")

    weights = load_model(run, results, device="cpu").state_dict()
    model = make()
    if model.state_dict().keys() == weights.keys():
        load_weights(model, weights, f"run {start}")
        return model

    body = {name.removeprefix("body."): value for name, value in weights.items() if name.startswith("body.")}
    return make(weights=body)


def load_model(run: Run, results: str | Path, device: str = "auto") -> SAOLNet | ABN:
    """The trained network of a finished run, in evaluation mode, from its last checkpoint.

    device: "auto" (a GPU if there is one) or a torch device. Weights that the run started from are not fetched again.
    Raises FileNotFoundError where the checkpoint is not there.
    """
    found = load_checkpoint(resolve(results) / "checkpoints" / run.id)
    if not found or found[1]["position"] != [run.config["epochs"], 0]:
        raise FileNotFoundError(
            f"run {run.id} lacks its last checkpoint in {Path(results).name}; train it again: "
            "train(RunConfig.of(**run.config, data_dir=DATA), results, again=True), "
            f"where run = load_run(resolve(results) / 'runs/{run.id}.json') and DATA is its data's folder or None"
        )

    model = new_model(RunConfig.of(**run.config))
    weights = {name[6:]: value for name, value in found[0].items() if name.startswith("model.")}
    load_weights(model, weights, f"run {run.id}")
    return model.to(choose_device(device), memory_format=torch.channels_last).eval()


# --- optimisation -----------------------------------------------------------------------------------------------------


def new_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay on kernels and matrices alone, or on norms and biases too (`decay`)."""
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": kernels, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": config.weight_decay if config.decay == "all" else 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def learning_rate(config: RunConfig, step: int, steps: int) -> float:
    """The learning rate of a step, counted from the run's first; steps: of an epoch. Pure: resuming needs no state.

    "one_cycle": linear up from 0.04 of `lr` over the first 30 %, linear down to 0.001 of it; "cosine": down to 0 along
    half a cosine; "step": times `gamma` after each of the `milestones`. `warmup_epochs` come before the last two:
    linear from `lr` over their number of steps to `lr`; the cosine then has the steps that are left.
    """
    warmup = config.warmup_epochs * steps
    if step < warmup:
        return config.lr * (step + 1) / warmup

    done = (step - warmup) / max(config.epochs * steps - warmup - 1, 1)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "step":
        passed = [epoch for epoch in config.milestones if step >= epoch * steps]
        return config.lr * config.gamma ** len(passed)
    if done < 0.3:
        return config.lr * (0.04 + 0.96 * done / 0.3)
    return config.lr * (0.001 + 0.999 * (1 - done) / 0.7)


# --- images -----------------------------------------------------------------------------------------------------------


def batches(
    config: RunConfig, dataset: Dataset, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Batches | Stream, Batches | Stream]:
    """Training and evaluation batches of a configuration, both scaled alike.

    The scaling is the network's own where it has a public one (torchvision, timm); else that of ImageNet for files, and
    mean and deviation of the training images for what is held in memory. dtype: of the pixels that the network gets.
    """
    train_split, evaluation = select(dataset, config.eval_split, config.train_images, config.held_out)
    scaling = input_scaling(config.backbone)  # by the name alone: a run that starts from another one's sees alike
    if isinstance(dataset.train, Files):
        make = partial(
            Stream,
            device=device,
            workers=config.workers,
            skip_damaged=config.skip_damaged,
            scaling=scaling or SCALING,
            dtype=dtype,
        )
        return make(train_split), make(evaluation)

    if scaling is None:
        mean, std = mean_and_std(dataset.train.images)
    else:
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in scaling)
    make = partial(Batches, device=device, mean=mean, std=std, dtype=dtype)
    return make(train_split, pad=config.pad, flip=FLIPS.get(config.dataset, True)), make(evaluation)


def draw_batch(config: RunConfig, size: tuple[int, int], generator: Generator) -> Patches:
    """CutMix as the arm wants it, with the same rectangles for every arm of a seed, for images of `size` (H, W)."""
    if not ARMS[config.arm].cutmix:
        return no_patches(config.batch_size)
    return draw(config.batch_size, size, generator=generator, **_cutmix(config))


def mix_batch(images: Tensor, labels: Tensor, config: RunConfig, generator: Generator) -> Mixed:
    """`draw_batch` and its pasting, for a whole batch."""
    if not ARMS[config.arm].cutmix:
        return unmixed(images, labels, config.num_classes)
    return mix(images, labels, config.num_classes, generator=generator, **_cutmix(config))


def _cutmix(config: RunConfig) -> dict:
    return {
        "probability": config.cutmix_probability,
        "alpha": config.cutmix_alpha,
        "schedule": config.cutmix_schedule,
    }
