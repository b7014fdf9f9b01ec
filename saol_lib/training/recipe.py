"""What a configuration stands for: its untrained network, its optimiser, its batches, its CutMix."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from saol_lib.attach import SAOLNet
from saol_lib.cutmix import Mixed, mix, unmixed
from saol_lib.data import FLIPS, Batches, Dataset, Files, Stream, mean_and_std, select
from saol_lib.networks import ABN, build_model, enlarge, load_weights
from saol_lib.training import checkpoints, runs
from saol_lib.training.config import ARMS, RunConfig
from saol_lib.training.runs import Run


def new_model(config: RunConfig, results: str | Path | None = None) -> SAOLNet | ABN:
    """The network of a configuration before its training: drawn from its seed, or that of the run `config.start`.

    results: the folder of the run that is started from; None: it is not asked for (the weights will be replaced).
    A network of the same structure is taken over whole. Else the run must have a GAP-FC layer as its backbone's own
    classifier, and its backbone is taken over. Raises FileNotFoundError where that run has no weights here, ValueError
    where they are another network's.
    """
    options = {"heads": ARMS[config.arm].heads, "blocks": config.blocks, "seed": config.seed} | config.saol_options
    make = partial(build_model, config.backbone, config.num_classes, pretrained=config.pretrained, **options)
    if not (config.start and results):
        model = make()
    else:
        weights = _trained(config.start, results).state_dict()
        if (model := make()).state_dict().keys() == weights.keys():
            load_weights(model, weights, f"run {config.start}")
        else:
            body = {name.removeprefix("body."): value for name, value in weights.items() if name.startswith("body.")}
            model = make(weights=body)
    return enlarge(model, config.dilation) if config.enlarge else model


def _trained(name: str, results: str | Path) -> SAOLNet | ABN:
    path = runs.resolve(results) / "runs" / f"{name}.json"
    if not path.exists() or (run := runs.load_run(path)).status != "finished":
        raise FileNotFoundError(f"start={name!r} is no finished run of {path.parents[1].name}; train it first")
    return load_model(run, results)


def load_model(run: Run, results: str | Path) -> SAOLNet | ABN:
    """The trained network of a finished run, in evaluation mode, from its last checkpoint."""
    found = checkpoints.load_checkpoint(runs.resolve(results) / "checkpoints" / run.id, run.provenance.get("data"))
    if not found or found[1]["position"] != [run.config["epochs"], 0]:
        raise FileNotFoundError(f"run {run.id} lacks its last checkpoint in {Path(results).name}; train it again")
    model = new_model(RunConfig.of(**run.config))
    load_weights(model, {k[6:]: v for k, v in found[0].items() if k.startswith("model.")}, f"run {run.id}")
    return model.to(memory_format=torch.channels_last).eval()


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
    if isinstance(dataset.train, Files):
        more = (config.workers, config.skip_damaged)
        return Stream(train_split, device, *more), Stream(evaluation, device, *more)
    mean, std = mean_and_std(dataset.train.images)
    augmented = Batches(train_split, device, mean, std, config.pad, FLIPS.get(config.dataset, True))
    return augmented, Batches(evaluation, device, mean, std)


def mix_batch(images: Tensor, labels: Tensor, config: RunConfig, generator: torch.Generator) -> Mixed:
    """CutMix as the arm wants it, with the same rectangles for every arm of a seed."""
    if not ARMS[config.arm].cutmix:
        return unmixed(images, labels, config.num_classes)
    how = {"probability": config.cutmix_probability, "alpha": config.cutmix_alpha, "schedule": config.cutmix_schedule}
    return mix(images, labels, config.num_classes, generator=generator, **how)
