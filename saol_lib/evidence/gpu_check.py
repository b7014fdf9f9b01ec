"""What a GPU has to show, in under ten minutes: `python -m saol_lib.evidence.gpu_check` writes results/gpu/README.md.

Without CUDA it says so, writes nothing and claims nothing. With it: the tests that need a GPU; an epoch of three of the
paper's experiments on made data, with images a second, peak memory and the share of time that the GPU waits; float32,
bfloat16 and compiled side by side; one GPU and all; a run that is killed and goes on; a tiny run beside the CPU's.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from saol_lib.evidence import made_data
from saol_lib.evidence.cost import seconds_of
from saol_lib.evidence.forecast import IMAGES
from saol_lib.training import RunConfig, read_runs, train, write_whole
from saol_lib.training.loop import Trainer
from saol_lib.training.profiles import experiments
from saol_lib.training.runs import RESULTS, ROOT, load_run, run_id, run_path

SHOWN = ("cifar10-wrn", "cifar10-densenet", "imagenet-resnet50")  # an epoch of the fullest arm of each
FULLEST = "saol_cutmix_ss_sd"
EACH = {"cifar10": 1200, "imagenet": 300}  # made images of a file or class
TINY = RunConfig(arm=FULLEST, train_images=200, epochs=2, backbone="resnet-8-8", batch_size=40, lr=0.05)
LONG = replace(TINY, epochs=60, eval_every=0, checkpoint_minutes=0.001)
TOLERANCE = 0.02  # of the first losses of the tiny run, relative: two devices round in different orders
FAILED = "**Failed.**"
NO_GPU = "There is no CUDA here: nothing was run, and nothing is claimed. results/gpu stays as it is."


class Speed(NamedTuple):
    """An epoch as it is trained."""

    images_per_second: float
    gigabytes: float  # the most that tensors took on the GPU
    waiting: float  # the share of the time in which the GPU waits for images


# --- measurements -----------------------------------------------------------------------------------------------------


def measure(config: RunConfig, results: Path, most: int = 30) -> Speed:
    """An epoch of at most so many steps, beside the same steps on a batch that is there already."""
    trainer = Trainer(config, results)
    trainer.model.train()
    steps = min(trainer.steps, most)
    on_gpu = trainer.device.type == "cuda"
    batch = next(trainer.train_batches.epoch(config.batch_size, config.seed, 0))

    def resident() -> None:
        for step in range(steps):
            trainer.step(0, step, *batch)

    def epoch() -> None:
        passing = trainer.train_batches.epoch(config.batch_size, config.seed, 0)
        for step in range(steps):
            trainer.step(0, step, *next(passing))

    resident()  # algorithms are chosen, for every size that a second pass will have; code is compiled
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    bare = seconds_of(resident)
    whole = seconds_of(epoch)
    gigabytes = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0
    return Speed(steps * config.batch_size / whole, gigabytes, max(0.0, 1 - bare / whole))


def shown_configs(data_dir: Path, names: Sequence[str] = SHOWN) -> dict[str, RunConfig]:
    """The fullest arm of some of the profile's experiments, in the order of their names, on made data."""
    files = {path.stem: path for path in experiments("paper")}
    found = {}
    for name in names:
        config = next(config for config in read_runs(files[name])[0] if config.arm == FULLEST)
        workers = len(os.sched_getaffinity(0)) if config.dataset == "imagenet" else 0
        found[name] = replace(config, data_dir=str(data_dir), workers=workers)
    return found


def speeds(configs: dict[str, RunConfig], folder: Path, most: int = 30) -> list[str]:
    """A line for each experiment, then the first of them in each precision."""
    columns = [
        "experiment, arm",
        "precision",
        "images a second",
        "GB",
        "the GPU waits",
        "hours a run, without evaluation",
    ]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, config in configs.items():
        speed = measure(replace(config, epochs=1), folder / name, most)
        lines.append(_speed_line(name, config.autocast, speed, config))

    name, config = next(iter(configs.items()))
    precisions = {
        "float32": {"autocast": "none"},
        "float16": {"autocast": "float16"},
        "bfloat16, compiled": {"autocast": "bfloat16", "compile": True},
        "float32, compiled": {"autocast": "none", "compile": True},
    }
    for words, changes in precisions.items():
        changed = replace(config, epochs=1, **changes)
        lines.append(_speed_line(name, words, measure(changed, folder / words, most), config))
    return lines


def _speed_line(name: str, precision: str, speed: Speed, config: RunConfig) -> str:
    """config: the experiment's, whose epochs on the true data would take that many hours, evaluations apart."""
    images, _ = IMAGES[config.dataset]
    hours = config.epochs * images / speed.images_per_second / 3600
    cells = [
        f"{name}, {FULLEST}",
        precision,
        f"{speed.images_per_second:,.0f}",
        f"{speed.gigabytes:.1f}",
        f"{speed.waiting:.0%}",
        f"{hours:,.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def one_and_all(folder: Path, count: int) -> str:
    """The tiny run by one GPU and by all, and how far their first losses are apart."""
    if count < 2:
        return "One GPU is here, so several were not tried."
    one = train(replace(TINY, batch_size=20 * count), folder / "one", progress=False)
    everyone = train(replace(TINY, batch_size=20 * count, processes=count), folder / "all", progress=False)
    apart = _apart(one.epochs[0], everyone.epochs[0])
    _check(apart <= TOLERANCE, f"one GPU and {count} differ by {apart:.2%} in the first epoch's losses")
    return f"One GPU and {count}: the first epoch's losses differ by {apart:.2%}; {one.id} both."


def beside_the_cpu(folder: Path, device: str = "cuda") -> str:
    """The tiny run on the CPU and on the device: their first epoch's losses."""
    cpu = train(replace(TINY, device="cpu"), folder / "cpu", progress=False)
    other = train(replace(TINY, device=device), folder / "device", progress=False)
    _check(cpu.id == other.id, "the same run has two ids on two devices")
    apart = _apart(cpu.epochs[0], other.epochs[0])
    _check(apart <= TOLERANCE, f"{device} and the CPU differ by {apart:.2%} in the first epoch's losses")
    return f"A tiny run on the CPU and here: the first epoch's losses differ by {apart:.2%} (at most {TOLERANCE:.0%})."


def _apart(a: dict, b: dict) -> float:
    """The largest relative difference of two epochs' losses."""
    names = [name for name in a if name.startswith("loss_")]
    return max(abs(a[name] - b[name]) / max(abs(a[name]), 1e-9) for name in names)


def killed_and_resumed(folder: Path, device: str = "cuda") -> str:
    """A run in a process of its own is killed once it has a checkpoint, and goes on as one that was not killed."""
    config = replace(LONG, device=device)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps(config.identity() | {"device": device, "checkpoint_minutes": 0.001}))
    command = [sys.executable, "-m", "saol_lib.training", str(file), str(folder / "killed")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints = folder / "killed" / "checkpoints" / run_id(config.identity())
    _wait_until(lambda: any(checkpoints.glob("0000[1-9]-*.json")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _check(not run_path(folder / "killed", run_id(config.identity())).exists(), "the run ended before it was killed")

    subprocess.run(command, env=environment, check=True, capture_output=True)
    resumed = load_run(run_path(folder / "killed", run_id(config.identity())))
    whole = train(config, folder / "whole", progress=False)
    apart = _apart(whole.epochs[0], resumed.epochs[0])
    _check(len(resumed.epochs) == config.epochs and apart <= TOLERANCE, f"the killed run went on {apart:.2%} apart")
    return f"Killed with kill -9 and started again: all {config.epochs} epochs, losses of the first {apart:.2%} apart."


def _wait_until(holds: Callable[[], bool], process: subprocess.Popen, patience: float = 180.0) -> None:
    began = time.monotonic()
    while not holds():
        _check(process.poll() is None, f"the process that was to be killed ended by itself with {process.poll()}")
        _check(time.monotonic() - began < patience, f"no checkpoint in {patience:.0f} seconds")
        time.sleep(0.05)


def tests_for_gpus() -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or ["pytest did not run"])[-1]
    _check(done.returncode == 0, f"the tests that need a GPU: {last}")
    return f"The tests that need a GPU: {last.strip('= ')}."


def _check(holds: bool, sentence: str) -> None:
    if not holds:
        raise RuntimeError(sentence)


# --- the command ------------------------------------------------------------------------------------------------------


def page(lines: Sequence[str], name: str, seconds: float) -> str:
    parts = [
        f"# On a GPU: {name}",
        f"Written by `make gpu-check` in {math.ceil(seconds / 60)} minutes; not edited by hand.",
    ]
    parts.append(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.device_count()} of them.")
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def main(results: Path = RESULTS) -> None:
    if not torch.cuda.is_available():
        print(NO_GPU)
        return
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checks = {
            "the tests that need a GPU": tests_for_gpus,
            "beside the CPU": lambda: beside_the_cpu(folder / "beside"),
            "several GPUs": lambda: one_and_all(folder / "several", torch.cuda.device_count()),
            "killed and resumed": lambda: killed_and_resumed(folder / "killed"),
            "speeds": lambda: _all_speeds(folder),
        }
        told = {name: _tried(name, check) for name, check in checks.items()}
    lines = [line for part in told.values() for line in (part, "")]
    text = page(lines[:-1], torch.cuda.get_device_name(), time.perf_counter() - began)
    (results / "gpu").mkdir(parents=True, exist_ok=True)
    write_whole(results / "gpu" / "README.md", text.encode())
    print(text)
    failed = [name for name, part in told.items() if part.startswith(FAILED)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; results/gpu/README.md says how")


def _tried(name: str, check: Callable[[], str]) -> str:
    """What a check says; where it fails, that: one failure does not take the others' results away."""
    try:
        return check()
    except Exception as error:
        reason = " ".join(str(error).split())
        return f"{FAILED} {name}: {type(error).__name__}: {reason}"


def _all_speeds(folder: Path) -> str:
    data_dir = folder / "data"
    for kind, each in EACH.items():
        made_data.make_data(data_dir, (kind,), each)
    with made_data.trusted(data_dir):
        return "\n".join(speeds(shown_configs(data_dir), folder))


if __name__ == "__main__":  # processes import this file
    main()
