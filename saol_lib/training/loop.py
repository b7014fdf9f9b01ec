"""Training: `train(config)` runs one configuration, goes on where it was interrupted, and returns its `Run`.

Every epoch, and inside it every step, draws from random streams named after (seed, purpose, epoch, step): no generator
state has to be saved, an interrupted run repeats nothing and skips nothing, and arms with one seed are pairs.
From a shell, on one or many machines: `torchrun ... -m saol_lib.training CONFIG.json [RESULTS]`.
"""

import math
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from filelock import Timeout
from torch import Tensor, nn
from tqdm import tqdm

from saol_lib.cutmix import Mixed, mixed_rows
from saol_lib.data import Batches, load
from saol_lib.layers import Outputs
from saol_lib.losses import total_loss
from saol_lib.networks.weights import load_weights
from saol_lib.streams import stream, stream_seed
from saol_lib.training import checkpoints, files, runs
from saol_lib.training.config import RunConfig
from saol_lib.training.distributed import Processes, launch
from saol_lib.training.recipe import batches, mix_batch, new_model, new_optimizer
from saol_lib.training.runs import Run


class NotANumber(ArithmeticError):
    """The loss was infinite or not a number; the run is recorded as failed."""


class Busy(RuntimeError):
    """Another process is training this run."""


class Interrupted(SystemExit):
    """Training was asked to stop (SIGTERM, exit code 143) and has written a checkpoint."""


def train(config: RunConfig, results: str | Path = files.OWN, progress: bool = True) -> Run:
    """Train one configuration; a finished run is returned as it is, an interrupted one goes on.

    results: the folder that gets `runs/<id>.json` and, while training, `checkpoints/<id>/`; a relative one lies in the
    repository. Raises ValueError and FileNotFoundError for bad input, NotANumber for a loss that is none (the run is
    recorded as failed), OSError where results cannot be written, Interrupted on SIGTERM, Busy where another process is
    training this run.
    """
    results, name = runs.resolve(results), runs.run_id(config.identity())
    path, folder = results / "runs" / f"{name}.json", results / "checkpoints" / name
    if run := runs.finished_run(config, results):
        return run
    alone = "WORLD_SIZE" not in os.environ
    if alone and config.processes > 1:
        launch(train, (config, results, progress), config.processes)
        return runs.load_run(path)
    files.make_folder(folder)
    first = int(os.environ.get("RANK", 0)) == 0
    try:
        with checkpoints.lock(folder) if first else nullcontext():
            return Trainer(config, results).run(progress)
    except Timeout:
        raise Busy(f"run {name} is being trained by another process; wait for it or stop it") from None


class Trainer:
    """One run under way: its network, optimiser and data, and where it stands."""

    def __init__(self, config: RunConfig, results: Path) -> None:
        self.config, self.results = config, results
        runs.provenance()  # of the code that trains, should it be edited meanwhile
        self.folder = results / "checkpoints" / runs.run_id(config.identity())
        self.group = Processes(config.device)
        self.device, count = self.group.device, self.group.count
        if count > 1 and config.batch_size % (2 * count):
            raise ValueError(f"batch_size={config.batch_size} must be a multiple of twice the {count} processes")
        self.dataset = load(config.dataset, config.data_dir, **config.data_options)
        self.model = new_model(config, results).to(self.device, memory_format=torch.channels_last)
        self.train_batches, self.eval_batches = batches(config, self.dataset, self.device)
        self.steps = len(self.train_batches) // config.batch_size  # an epoch; a last, smaller batch is left out
        if not self.steps:
            raise ValueError(f"batch_size={config.batch_size} is more than the {len(self.train_batches)} images")
        self.optimizer = new_optimizer(self.model, config)
        self.history, self.seconds, self.start, self.sums = [], 0.0, (0, 0), {}
        self._restore()
        self.forward = self.group.wrap(self.model)
        if config.compile:
            self.forward = torch.compile(self.forward)

    def run(self, progress: bool) -> Run:
        self.began = time.perf_counter() - self.seconds
        advance = progress_bar(self.config, self.start[0], progress and self.group.is_first)
        every = self.config.eval_every
        with _stoppable(self.group.count == 1) as self.stop:
            for epoch in range(self.start[0], self.config.epochs):
                entry = {"epoch": epoch + 1} | self._epoch(epoch)
                if epoch + 1 == self.config.epochs or (every and (epoch + 1) % every == 0):
                    self.group.align(self.model)
                    with self._autocast():
                        entry |= evaluate(self.model, self.eval_batches, self.group)
                self.history.append(entry)
                self.sums = {}
                self._save((epoch + 1, 0))
                advance(entry)
        if self.group.is_first:
            runs.save_run(self.results, self._result("finished"))
        self.group.wait()
        self._leave_if_asked()
        return self._result("finished")

    def _leave_if_asked(self) -> None:
        if self.stop:
            raise KeyboardInterrupt if self.stop[0] == signal.SIGINT else Interrupted(143)

    def _epoch(self, epoch: int) -> dict:
        """Train one epoch; its mean losses. Nothing in the loop waits for the device."""
        self.model.train()
        names = (*self.config.terms, "total")  # of every process, in one order
        self.sums = {name: self.sums.get(name, torch.zeros((), device=self.device)) for name in names}
        with torch.random.fork_rng():
            first = self.start[1] if epoch == self.start[0] else 0
            passing = self.train_batches.epoch(self.config.batch_size, self.config.seed, epoch, first)
            for step, batch in enumerate(passing, first):
                if self.stop:
                    self._save((epoch, step))
                    print(f"stopped in epoch {epoch + 1}; start again to go on from here", file=sys.stderr)
                    self._leave_if_asked()
                self.step(epoch, step, *batch)
        count = self.steps * self.group.count
        means = {f"loss_{name}": (self.group.sum(value) / count).item() for name, value in self.sums.items()}
        if not all(map(math.isfinite, means.values())):
            self._fail(f"the loss of epoch {epoch + 1} is not a number; lower lr={self.config.lr} or look at the data")
        return {"lr": round(self._lr((epoch + 1) * self.steps - 1), 6)} | means

    def step(self, epoch: int, step: int, images: Tensor, labels: Tensor) -> None:
        config = self.config
        torch.manual_seed(stream_seed(config.seed, "model", epoch, step, self.group.rank))  # dropout and its like
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(epoch * self.steps + step)
        mixed = mix_batch(images, labels, config, stream(config.seed, "cutmix", epoch, step))
        mixed, mixed_weight = self.group.share(mixed, config.cutmix_schedule == "paired")
        with self._autocast():
            outputs = self.forward(self.train_batches.normalise(mixed.images))
            source = self._second_pass(images, mixed) if config.needs_second_pass else None
        terms = total_loss(outputs, mixed, terms=config.terms, source=source, mixed_weight=mixed_weight, options=config)
        if self.group.count > 1 and outputs.mask_logits is not None:
            terms["total"] = terms["total"] + 0 * outputs.mask_logits.sum()  # every parameter takes part in every step
        self.optimizer.zero_grad(set_to_none=True)
        terms["total"].backward()
        self.optimizer.step()
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()

    def _second_pass(self, images: Tensor, mixed: Mixed) -> Outputs | None:
        """Outputs for the mixed samples' clean sources, in order: batch statistics, no gradient, no trace left."""
        chosen = mixed_rows(mixed.boxes)
        if not len(chosen):
            return None
        partners = mixed.partners[chosen].to(images.device, non_blocking=True)
        with torch.no_grad(), frozen_statistics(self.model):
            return self.model(self.train_batches.normalise(images[partners]), mask=False)

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16) if self.config.autocast == "bfloat16" else nullcontext()

    def _lr(self, step: int) -> float:
        """The learning rate of a step: a pure function, so that resuming needs no state."""
        done = step / max(self.config.epochs * self.steps - 1, 1)
        if self.config.schedule == "cosine":
            return self.config.lr * 0.5 * (1 + math.cos(math.pi * done))
        return self.config.lr * (0.04 + 0.96 * done / 0.3 if done < 0.3 else 0.001 + 0.999 * (1 - done) / 0.7)

    def _save(self, position: tuple[int, int]) -> None:
        self.seconds = time.perf_counter() - self.began
        states = self.optimizer.state_dict()["state"]
        momenta = {
            f"momentum.{i}": s["momentum_buffer"] for i, s in states.items() if s.get("momentum_buffer") is not None
        }
        sums = {f"sum.{name}": value for name, value in self.sums.items()}
        weights = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state = {"history": self.history, "seconds": self.seconds, "data": self.dataset.fingerprint}
        if self.group.is_first:
            checkpoints.save_checkpoint(self.folder, position, weights | momenta | sums, state)

    def _restore(self) -> None:
        if not (found := checkpoints.resume(self.folder, self.dataset.fingerprint)):
            return
        tensors, state = found
        parts = {"model": {}, "momentum": {}, "sum": {}}
        for name, value in tensors.items():
            part, key = name.split(".", 1)
            parts[part][key] = value.to(self.device)
        load_weights(self.model, parts["model"], f"checkpoint {self.folder.name}")
        packed = self.optimizer.state_dict()
        packed["state"] = {int(i): {"momentum_buffer": value} for i, value in parts["momentum"].items()}
        self.optimizer.load_state_dict(packed)
        for weight, own in self.optimizer.state.items():  # the fused step needs both in one memory format
            own["momentum_buffer"] = torch.empty_like(weight).copy_(own["momentum_buffer"])
        self.history, self.seconds = state["history"], state["seconds"]
        self.start, self.sums = tuple(state["position"]), parts["sum"]

    def _result(self, status: str, error: str | None = None) -> Run:
        origin = runs.provenance() | {
            "processor": runs.processor(self.device),
            "threads": torch.get_num_threads(),
            "data": self.dataset.fingerprint,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "seconds": round(self.seconds, 1),
        }
        if damaged := self.train_batches.damaged | self.eval_batches.damaged:
            origin["damaged"] = sorted(Path(path).name for path in damaged)
        return Run(self.config.identity(), summarise(self.history), self.history, origin, status, error)

    def _fail(self, message: str) -> None:
        if self.group.is_first:
            runs.save_run(self.results, self._result("failed", message))
            checkpoints.remove_checkpoints(self.folder)
        raise NotANumber(message)


@contextmanager
def frozen_statistics(model: nn.Module):
    """Batch normalisation uses the batch's statistics and leaves the running ones as they are."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats]
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        norm.running_mean, norm.running_var, norm.track_running_stats = None, None, False
    try:
        yield
    finally:
        for norm, (mean, var) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var, norm.track_running_stats = mean, var, True


@torch.inference_mode()
def evaluate(model: nn.Module, data: Batches, group: Processes | None = None) -> dict[str, float]:
    """Top-1 accuracy in percent of each output layer that the network has: top1_gap, top1_saol."""
    model.eval()
    right = {}
    for number, (images, labels) in enumerate(data.all(500)):
        mine = not group or number % group.count == group.rank
        if number and not mine:
            continue  # the first batch tells every process which layers there are
        outputs = model(images)
        for head, scores in (("gap", outputs.gap_logits), ("saol", outputs.saol_log_probs)):
            if scores is not None:
                right[head] = right.get(head, 0) + mine * (scores.argmax(dim=1) == labels).sum()
    if group:
        right = {head: group.sum(count) for head, count in right.items()}
    return {f"top1_{head}": 100 * int(count) / len(data) for head, count in right.items()}


def summarise(history: list[dict]) -> dict[str, float]:
    """The last epoch's accuracies (primary) and the best evaluated ones (optimistic: chosen on the same images)."""
    heads = [name for name in (history[-1] if history else {}) if name.startswith("top1_")]
    last = {f"{name}_last": history[-1][name] for name in heads}
    return last | {f"{name}_best": max(entry[name] for entry in history if name in entry) for name in heads}


def progress_bar(config: RunConfig, done: int, wanted: bool):
    """A function to call with each finished epoch: a live bar on a terminal, else one plain line an epoch."""
    if not wanted:
        return lambda entry: None
    name = f"{config.arm} seed {config.seed}"
    bar = tqdm(total=config.epochs, initial=done, desc=name, disable=not sys.stderr.isatty(), leave=False)

    def advance(entry: dict) -> None:
        scores = ", ".join(f"{key} {value:.1f}" for key, value in entry.items() if key.startswith("top1_"))
        bar.set_postfix_str(scores, refresh=False)
        bar.update()
        if bar.disable:
            print(
                f"{name} epoch {entry['epoch']}/{config.epochs}: loss {entry['loss_total']:.3f} {scores}".rstrip(),
                flush=True,
            )

    return advance


@contextmanager
def _stoppable(wanted: bool):
    """A list that SIGTERM and Ctrl-C fill instead of killing, in the main thread of a process that trains alone."""
    signals: list[int] = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {n: signal.signal(n, lambda got, _: signals.append(got)) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
