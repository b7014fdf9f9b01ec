"""Training: `train(config)` runs one configuration, goes on where it was interrupted, and returns its `Run`.

Every epoch, and inside it every step, draws from random streams named after (seed, purpose, epoch, step): no generator
state has to be saved, an interrupted run repeats nothing and skips nothing, and arms with one seed are pairs.
From a shell, on one or many machines: `torchrun ... -m saol_lib.training CONFIG.json [RESULTS]`.
"""

import logging
import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from filelock import Timeout
from torch import Tensor, nn
from tqdm import tqdm

from saol_lib.cutmix import Mixed
from saol_lib.data import Stream, load
from saol_lib.layers import Outputs
from saol_lib.losses import total_loss
from saol_lib.networks import load_weights
from saol_lib.streams import stream, stream_seed
from saol_lib.training import checkpoints, runs
from saol_lib.training.batch_norm import frozen_statistics
from saol_lib.training.config import RunConfig
from saol_lib.training.distributed import (
    Interrupted,
    Processes,
    launch,
    leave_if_asked,
    process_count,
    process_rank,
    stoppable,
)
from saol_lib.training.evaluation import evaluate, summarise, tally
from saol_lib.training.files import OWN, make_folder, resolve
from saol_lib.training.recipe import batches, draw_batch, learning_rate, new_model, new_optimizer
from saol_lib.training.runs import Run
from saol_lib.training.shares import Plan, Share, mix_share, plan_step, sources_of

__all__ = ["Busy", "Interrupted", "NotANumber", "Trainer", "evaluate", "summarise", "train"]
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
log = logging.getLogger("saol_lib")


class NotANumber(ArithmeticError):
    """The loss was infinite or not a number; the run is recorded as failed."""


class Busy(RuntimeError):
    """Another process is training this run."""


def train(config: RunConfig, results: str | Path = OWN, progress: bool = True, *, again: bool = False) -> Run:
    """Train one configuration; a finished run is returned as it is, an interrupted one goes on.

    results: the folder that gets `runs/<id>.json` and, while training, `checkpoints/<id>/`; a relative one lies in the
    repository. again: a finished run whose weights are not here is trained again; its file stays, and a warning says
    where the numbers are not those of the file.

    Raises ValueError and FileNotFoundError for bad input, OtherData where the run was computed from other data,
    NotANumber for a loss that is none (the run is recorded as failed), OSError where results cannot be written,
    Interrupted on SIGTERM, Busy where another process is training this run.
    """
    if process_count() > 1:
        config = replace(config, processes=process_count())
    results = resolve(results)
    name = runs.run_id(config.identity())
    folder = results / "checkpoints" / name
    known = runs.finished_run(config, results)
    if known and not (again and _lacks_weights(folder, config)):
        return known

    make_folder(folder)
    if process_rank() > 0:  # the first of the processes of torchrun holds the lock
        return _train_here(config, results, progress, known)
    try:
        with checkpoints.lock(folder):
            if config.processes == process_count():
                return _train_here(config, results, progress, known)
            launch(_train_here, (config, results, progress, known), config.processes)
            return runs.load_run(runs.run_path(results, name))
    except Timeout:
        raise Busy(f"run {name} is being trained by another process; wait for it or stop it") from None


def _train_here(config: RunConfig, results: Path, progress: bool, known: Run | None) -> Run:
    return Trainer(config, results, known=known).run(progress)


def _lacks_weights(folder: Path, config: RunConfig) -> bool:
    found = checkpoints.load_checkpoint(folder)
    return not found or found[1]["position"] != [config.epochs, 0]


class Trainer:
    """One run under way: its network, optimiser and data, and where it stands.

    dtype: of weights and pixels; float64 where equality is shown, see the tests. known: the finished run that is
    trained again.
    """

    def __init__(
        self, config: RunConfig, results: Path, *, dtype: torch.dtype = torch.float32, known: Run | None = None
    ) -> None:
        self.config, self.results, self.dtype, self.known = config, results, dtype, known
        runs.provenance()  # of the code that trains, should it be edited meanwhile
        self.folder = results / "checkpoints" / runs.run_id(config.identity())
        self.group = Processes(config.device, config.sync_batch_norm)
        self.device = self.group.device
        self._check_shares()
        self._prepare_device()

        self.dataset = load(config.dataset, config.data_dir, **config.data_options)
        self.train_batches, self.eval_batches = batches(config, self.dataset, self.device, dtype)
        for data in (self.train_batches, self.eval_batches):
            if isinstance(data, Stream):
                data.stop = self._is_asked_to_stop
        self.steps = len(self.train_batches) // config.batch_size  # an epoch; a last, smaller batch is left out
        if not self.steps:
            raise ValueError(f"batch_size={config.batch_size} is more than the {len(self.train_batches)} images")

        model = new_model(config, results)
        self.model = model.to(self.device, dtype, memory_format=torch.channels_last)
        self.optimizer = new_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.autocast == "float16")
        self.history: list[dict] = []
        self.sums: dict[str, Tensor] = {}  # of the losses of the epoch under way, of this process
        self.seconds = 0.0
        self.start = (0, 0)
        self.stop: list[int] = []
        self._restore()
        self._start_clock()

        self.forward = self.group.wrap(self.model)
        if config.compile:
            self.forward = torch.compile(self.forward)

    def _check_shares(self) -> None:
        shares = self.group.count * self.config.accumulate
        if shares > 1 and self.config.batch_size % (2 * shares):
            raise ValueError(
                f"batch_size={self.config.batch_size} must be a multiple of twice the {self.group.count} processes "
                f"times accumulate={self.config.accumulate}"
            )

    def _prepare_device(self) -> None:
        on_gpu = self.device.type == "cuda"
        if self.config.autocast == "float16" and not on_gpu:
            raise ValueError(f"autocast='float16' needs a GPU, this is {self.device}; use 'bfloat16' or 'none'")
        if on_gpu:
            torch.backends.cudnn.benchmark = True  # all batches have one size

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self, progress: bool) -> Run:
        """Train what is left, record the run and return it."""
        self._start_clock()
        advance = progress_bar(self.config, self.start[0], progress and self.group.is_first)
        with stoppable() as self.stop:
            for epoch in range(self.start[0], self.config.epochs):
                entry = {"epoch": epoch + 1} | self._epoch(epoch)
                if self._is_evaluated(epoch):
                    entry |= self._evaluate(epoch)
                self.history.append(entry)
                self.sums = {}
                self._save((epoch + 1, 0))
                advance(entry)

        run = self._result("finished")
        if self.group.is_first:
            self._record(run)
        self.group.wait()
        leave_if_asked(self.stop)
        return run

    def _start_clock(self) -> None:
        self.began = time.perf_counter() - self.seconds
        self.saved = time.monotonic()

    def _is_evaluated(self, epoch: int) -> bool:
        every = self.config.eval_every
        return self._is_last(epoch) or (every > 0 and (epoch + 1) % every == 0)

    def _is_last(self, epoch: int) -> bool:
        return epoch + 1 == self.config.epochs

    def _evaluate(self, epoch: int) -> dict:
        self.group.align(self.model)
        try:
            with self._precision():
                counts = tally(self.model, self.eval_batches, self.group)
        except Interrupted:
            self._stop_at(epoch, self.steps)
            raise
        more = {"reliability": counts.reliability()} if self._is_last(epoch) else {}
        return counts.scores() | more

    def _is_asked_to_stop(self) -> bool:
        return bool(self.stop)

    def _epoch(self, epoch: int) -> dict[str, float]:
        """Train one epoch; its mean losses. Nothing in the loop waits for the device."""
        self.model.train()
        names = (*self.config.terms, "total")  # of every process, in one order
        nothing = torch.zeros((), device=self.device, dtype=self.dtype)
        self.sums = {name: self.sums.get(name, nothing) for name in names}

        first = self.start[1] if epoch == self.start[0] else 0
        with self._forked_generators():
            passing = self._batches(epoch, first)
            for step in range(first, self.steps):
                batch = next(passing, None)  # None: this process was asked to stop while it waited for images
                self._save_or_stop(epoch, step, stop=batch is None or self._is_asked_to_stop())
                self.step(epoch, step, *batch)

        return {"lr": round(self._lr((epoch + 1) * self.steps - 1), 6)} | self._mean_losses(epoch)

    def _batches(self, epoch: int, first: int):
        """The images and labels of this process's rows, step by step."""
        config = self.config
        rows = None
        if self.group.count > 1:

            def rows(step: int) -> Tensor:
                return self._plan(epoch, step).needed

        return self.train_batches.epoch(config.batch_size, config.seed, epoch, first, rows=rows)

    def _save_or_stop(self, epoch: int, step: int, stop: bool) -> None:
        """Before a step: write a checkpoint where one is due, and leave where someone asked for it."""
        due = time.monotonic() - self.saved > 60 * self.config.checkpoint_minutes
        stop, due = self.group.any(stop, due)
        if stop:
            self._stop_at(epoch, step)
        elif due:
            self._save((epoch, step))

    def _stop_at(self, epoch: int, step: int) -> None:
        self._save((epoch, step))
        if self.group.is_first:
            print(f"stopped in epoch {epoch + 1}; start again to go on from here", file=sys.stderr)
        leave_if_asked(self.stop)
        raise Interrupted(143)  # another process was asked

    def _mean_losses(self, epoch: int) -> dict[str, float]:
        sums = self.group.sum(torch.stack(list(self.sums.values())))
        means = (sums / (self.steps * self.group.count)).tolist()
        if not all(map(math.isfinite, means)):
            self._fail(f"the loss of epoch {epoch + 1} is not a number; lower lr={self.config.lr} or look at the data")
        return {f"loss_{name}": mean for name, mean in zip(self.sums, means, strict=True)}

    # --- one step -----------------------------------------------------------------------------------------------------

    def step(self, epoch: int, step: int, images: Tensor, labels: Tensor) -> None:
        """One update. images (M, 3, H, W) uint8 and labels (M,): the rows that this process needs of the batch."""
        self._seed(epoch, step)
        plan = self._plan(epoch, step)
        self.optimizer.zero_grad(set_to_none=True)
        for number, share in enumerate(plan.shares, 1):
            with self.group.averaging(self.forward, number == len(plan.shares)):
                terms = self.losses(share, images, labels)
                self._backward(terms["total"])
            self._add(terms)
        if (epoch, step) == self.start:
            self.group.check_gradients(self.model)
        self._update(epoch * self.steps + step)

    def losses(self, share: Share, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss terms of one share of a batch, by name, and "total"."""
        config = self.config
        mixed, clean = mix_share(images, labels, config.num_classes, share)
        with self._precision():
            with self.group.statistics():
                outputs = self.forward(self._pixels(mixed.images))
            source = self._second_pass(mixed, clean, share) if config.needs_second_pass else None

        terms = total_loss(
            outputs,
            mixed,
            terms=config.terms,
            source=source,
            mixed_weight=share.mixed_weight,
            options=config,
        )
        if outputs.mask_logits is not None:  # every parameter takes part in every step, mixed samples or not
            terms["total"] = terms["total"] + 0 * outputs.mask_logits.sum()
        return terms

    def _second_pass(self, mixed: Mixed, clean: Tensor, share: Share) -> Outputs | None:
        """Outputs for the mixed samples' clean sources, in order: batch statistics, no gradient, no trace left.

        Where the statistics are everyone's, a process without mixed samples takes part with a row that does not count.
        """
        sources = sources_of(mixed, clean)
        counted = len(sources) > 0
        takes_part = counted or (share.any_mixed and self.group.shares_statistics)
        if not takes_part:
            return None

        images = sources if counted else clean[:1]
        with torch.no_grad(), frozen_statistics(self.model), self.group.statistics(counted):
            outputs = self.model(self._pixels(images), mask=False)
        return outputs if counted else None

    def _pixels(self, images: Tensor) -> Tensor:
        return self.train_batches.normalise(images)

    def _plan(self, epoch: int, step: int) -> Plan:
        """What is pasted where in a step, drawn for the whole batch, and which of its rows are this process's."""
        generator = stream(self.config.seed, "cutmix", epoch, step)
        patches = draw_batch(self.config, self.train_batches.source_size, generator)
        return plan_step(patches, self.group.count, self.group.rank, self.config.accumulate)

    def _backward(self, total: Tensor) -> None:
        self.scaler.scale(total / self.config.accumulate).backward()

    def _add(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach() / self.config.accumulate

    def _update(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(step)
        if self.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _lr(self, step: int) -> float:
        return learning_rate(self.config, step, self.steps)

    def _precision(self) -> AbstractContextManager:
        precision = PRECISIONS.get(self.config.autocast)
        return torch.autocast(self.device.type, precision) if precision else nullcontext()

    # --- random numbers of the network itself: dropout and its like ---------------------------------------------------

    def _forked_generators(self) -> AbstractContextManager:
        """Inside, the generators of the CPU and of the device in use may be seeded; others are not touched."""
        devices = [self.device.index] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices)

    def _seed(self, epoch: int, step: int) -> None:
        seed = stream_seed(self.config.seed, "model", epoch, step, self.group.rank)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    # --- checkpoints and the record -----------------------------------------------------------------------------------

    def _save(self, position: tuple[int, int]) -> None:
        self.seconds = time.perf_counter() - self.began
        self.saved = time.monotonic()
        sums = {f"sum.{name}": self.group.stack(value) for name, value in self.sums.items()}
        if not self.group.is_first:
            return

        weights = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        momenta = {}
        for number, own in self.optimizer.state_dict()["state"].items():
            if own.get("momentum_buffer") is not None:
                momenta[f"momentum.{number}"] = own["momentum_buffer"]
        state = {
            "history": self.history,
            "seconds": self.seconds,
            "scaler": self.scaler.state_dict(),
            "data": self.dataset.fingerprint,
        }
        checkpoints.save_checkpoint(self.folder, position, weights | momenta | sums, state)

    def _restore(self) -> None:
        found = checkpoints.resume(self.folder, self.dataset.fingerprint)
        if not found:
            return
        tensors, state = found
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "momentum": {}, "sum": {}}
        for name, value in tensors.items():
            part, key = name.split(".", 1)
            parts[part][key] = value.to(self.device)

        load_weights(self.model, parts["model"], f"checkpoint {self.folder.name}")
        self._restore_momenta(parts["momentum"])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.sums = {name: self._own_sum(value) for name, value in parts["sum"].items()}
        self.history = state["history"]
        self.seconds = state["seconds"]
        self.start = tuple(state["position"])

    def _restore_momenta(self, momenta: dict[str, Tensor]) -> None:
        packed = self.optimizer.state_dict()
        packed["state"] = {int(number): {"momentum_buffer": value} for number, value in momenta.items()}
        self.optimizer.load_state_dict(packed)
        for weight, own in self.optimizer.state.items():  # the fused step needs both in one memory format
            own["momentum_buffer"] = torch.empty_like(weight).copy_(own["momentum_buffer"])

    def _own_sum(self, sums: Tensor) -> Tensor:
        """This process's sum of those of all; if their number has changed, an even share of the total."""
        sums = sums.reshape(-1)
        if len(sums) == self.group.count:
            return sums[self.group.rank]
        return sums.sum() / self.group.count

    def _result(self, status: str, error: str | None = None) -> Run:
        origin = runs.provenance() | {
            "processor": runs.processor(self.device),
            "threads": torch.get_num_threads(),
            "data": self.dataset.fingerprint,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "seconds": round(self.seconds, 1),
        }
        damaged = self.group.gather(set(self.train_batches.damaged) | set(self.eval_batches.damaged))
        if damaged:
            origin["damaged"] = sorted(Path(path).name for path in damaged)
        return Run(self.config.identity(), summarise(self.history), self.history, origin, status, error)

    def _record(self, run: Run) -> None:
        """Write the run's file; where it was trained again, the file stays, and what differs from it is said."""
        if self.known is None:
            runs.save_run(self.results, run)
            return
        difference = _difference(self.known, run)
        if difference:
            log.warning("run %s was trained again and did not reproduce its file: %s", run.id, difference)

    def _fail(self, message: str) -> None:
        self.seconds = time.perf_counter() - self.began
        run = self._result("failed", message)
        if self.group.is_first:
            if self.known is None:
                runs.save_run(self.results, run)
            checkpoints.remove_checkpoints(self.folder)
        self.group.wait()
        raise NotANumber(message)


def _difference(known: Run, run: Run) -> str:
    """How a run that was trained again differs from its file; empty where it does not."""
    epochs = [_part(now, then) for now, then in zip(run.epochs, known.epochs, strict=True)]
    if (_part(run.metrics, known.metrics), epochs) == (known.metrics, known.epochs):
        return ""
    numbers = [
        f"{name} is {run.metrics.get(name)}, there {value}"
        for name, value in known.metrics.items()
        if value != run.metrics.get(name)
    ]
    origins = [
        f"{name} {run.provenance[name]}, there {known.provenance.get(name)}"
        for name in ("sources", "processor", "threads", "versions")
        if run.provenance[name] != known.provenance.get(name)
    ]
    found = "; ".join(numbers) or "the losses are others"
    return f"{found} ({'; '.join(origins) or 'same sources, processor and versions'})"


def _part(now: dict, then: dict) -> dict:
    """Of what is measured now what an older file has, too."""
    return {name: value for name, value in now.items() if name in then}


# --- what is seen -----------------------------------------------------------------------------------------------------


def progress_bar(config: RunConfig, done: int, wanted: bool) -> Callable[[dict], None]:
    """A function to call with each finished epoch: a live bar on a terminal, else one plain line an epoch."""
    if not wanted:
        return lambda entry: None
    name = f"{config.arm} seed {config.seed}"
    on_terminal = sys.stderr.isatty()
    bar = tqdm(total=config.epochs, initial=done, desc=name, disable=not on_terminal, leave=False)

    def advance(entry: dict) -> None:
        scores = [f"{key} {value:.1f}" for key, value in entry.items() if key.startswith("top1_")]
        bar.set_postfix_str(", ".join(scores), refresh=False)
        bar.update()
        if not on_terminal:
            line = f"{name} epoch {entry['epoch']}/{config.epochs}: loss {entry['loss_total']:.3f} {', '.join(scores)}"
            print(line.rstrip(), flush=True)

    return advance
