"""What things cost, measured side by side in one process, so that a machine's changing speed cancels in the ratios."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from saol_lib.data import Stream, load
from saol_lib.training.config import RunConfig
from saol_lib.training.loop import Trainer, evaluate
from saol_lib.training.workers import worker_context

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would write to the notebook's stderr
Functions = dict[str, Callable[[], object]]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with `count` threads inside, and as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(functions: Functions, rounds: int = 7) -> dict[str, float]:
    """Median seconds of each function: all are called in turn, `rounds` times, after one warm-up."""
    for function in functions.values():
        seconds_of(function)

    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(seconds_of(function))
    return {name: statistics.median(values) for name, values in seconds.items()}


def seconds_of(function: Callable[[], object]) -> float:
    """The time of one call; what it left to a GPU is waited for."""
    began = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def ratios(values: Mapping[str, float], base: str) -> dict[str, float]:
    """Every value over that of `base`; ValueError where there is none of that name, or it is not above 0."""
    if base not in values:
        raise ValueError(f"base={base!r} was not measured; choose one of {', '.join(map(str, values))}")
    if not values[base] > 0:
        raise ValueError(f"the value of {base!r} is {values[base]}; a ratio needs one above 0")
    return {name: value / values[base] for name, value in values.items()}


def peak_memory(function: Callable[[], object]) -> int:
    """The most bytes of tensors that one call holds at once above what was there before."""
    if torch.cuda.is_available():
        return _peak_on_gpu(function)
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    events = recorded.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())

    now = 0
    peak = 0
    for event in changes:
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def _peak_on_gpu(function: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on stderr: the profiler warns there, from C++, of each block that is older than itself."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def steps(configs: dict[str, RunConfig]) -> Functions:
    """One training step of each config as `train` does it: next batch, augmentation, CutMix, losses, update."""
    return {name: _step(_trainer(config)) for name, config in configs.items()}


def _trainer(config: RunConfig) -> Trainer:
    """One that starts anew, whatever was trained before, and whose folder nobody reads."""
    return Trainer(config, Path(tempfile.mkdtemp()))


def _step(trainer: Trainer) -> Callable[[], None]:
    stream = _batches_for_ever(trainer)
    trainer.model.train()

    def step() -> None:
        images, labels = next(stream)
        trainer.step(0, 0, images, labels)

    return step


def _batches_for_ever(trainer: Trainer) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from trainer.train_batches.epoch(trainer.config.batch_size, 0, 0)


def bare_step(config: RunConfig) -> Callable[[], None]:
    """Forward, backward and update of a GAP-FC network on one resident batch: what no training loop can beat."""
    trainer = _trainer(config)
    images, labels = next(trainer.train_batches.epoch(config.batch_size, 0, 0))
    pixels = trainer.train_batches.normalise(images)
    trainer.model.train()

    def step() -> None:
        loss = F.cross_entropy(trainer.model(pixels).gap_logits, labels)
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trainer.optimizer.step()

    return step


def with_whole_batch_pass(config: RunConfig) -> Callable[[], None]:
    """A step that also passes the whole clean batch through the network without gradient."""
    trainer = _trainer(config)
    images, _ = next(trainer.train_batches.epoch(config.batch_size, 0, 0))
    step = _step(trainer)

    def both() -> None:
        step()
        with torch.no_grad():
            trainer.model(trainer.train_batches.normalise(images))

    return both


def evaluations(config: RunConfig) -> Functions:
    """Evaluation as `train` does it, and bare inference on one resident batch of the same size, as often."""
    trainer = _trainer(config)
    resident, _ = next(trainer.eval_batches.all(500))
    count = len(trainer.eval_batches) // len(resident)

    @torch.inference_mode()
    def bare() -> None:
        trainer.model.eval()
        for _ in range(count):
            trainer.model(resident)

    def whole() -> None:
        evaluate(trainer.model, trainer.eval_batches)

    return {"evaluate": whole, "bare inference": bare}


def ceilings(rounds: int = 9) -> dict[str, float]:
    """This machine's multiply-adds a second, as torch reaches them: a matrix product and a 3x3 convolution."""
    a = torch.randn(1024, 1024)
    b = torch.randn(1024, 1024)
    images = torch.randn(32, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(64, 64, 3, 3).contiguous(memory_format=torch.channels_last)
    functions = {"matrix product": lambda: a @ b, "convolution": lambda: F.conv2d(images, kernel, padding=1)}
    work = {"matrix product": 1024**3, "convolution": 32 * 32 * 32 * 64 * 64 * 9}
    with torch.inference_mode():
        seconds = side_by_side(functions, rounds)
    return {name: work[name] / seconds[name] for name in functions}


def images_per_second(config: RunConfig, seconds: float = 10.0) -> float:
    """Training throughput of this process with one thread, over about that time."""
    with threads(1):
        step = _step(_trainer(config))
        step()
        count = 0
        taken = 0.0
        while taken < seconds:
            taken += seconds_of(step)
            count += config.batch_size
    return count / taken


def worker_speedup(config: RunConfig, workers: int = 2, seconds: float = 10.0) -> float:
    """Throughput of several single-threaded worker processes at once, over that of one alone."""
    with ProcessPoolExecutor(workers, worker_context()) as pool:
        _at_once(pool, workers, config, 1.0)  # to start the processes
        (alone,) = _at_once(pool, 1, config, seconds)
        together = _at_once(pool, workers, config, seconds)
    return sum(together) / alone


def _at_once(pool: ProcessPoolExecutor, count: int, config: RunConfig, seconds: float) -> list[float]:
    futures = [pool.submit(images_per_second, config, seconds) for _ in range(count)]
    return [future.result() for future in futures]


# --- files that are decoded -------------------------------------------------------------------------------------------


def write_image_tree(root: Path, images: int, side: int, classes: int = 2) -> None:
    """JPEG pictures of `side` pixels, train/<class>/ and val/<class>/, `images` in each: smooth noise, seeded."""
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "val"):
        for number in range(images):
            folder = root / part / f"class{number % classes}"
            folder.mkdir(parents=True, exist_ok=True)
            coarse = torch.rand(1, 3, 12, 12, generator=generator)
            smooth = F.interpolate(coarse, (side, side), mode="bilinear")[0]
            pixels = (255 * smooth).byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=85)


def streaming_passes(root: Path, workers: int = 0, batch_size: int = 32, side: int = 224) -> Functions:
    """A training pass over an image tree by our `Stream`, and by a bare DataLoader on torchvision's ImageFolder.

    Both decode, crop at random, resize, mirror and batch; each returns how many images it gave.
    """
    files = load("imagenet", str(root), image_size=side).train
    stream = Stream(files, torch.device("cpu"), workers)
    steps = [v2.PILToTensor(), v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip()]
    folder = ImageFolder(str(root / "train"), transform=v2.Compose(steps))
    loader = DataLoader(folder, batch_size, shuffle=True, num_workers=workers, drop_last=True)

    def streamed() -> int:
        return sum(len(labels) for _, labels in stream.epoch(batch_size, 0, 0))

    def bare() -> int:
        return sum(len(labels) for _, labels in loader)

    return {"Stream": streamed, "bare DataLoader": bare}
