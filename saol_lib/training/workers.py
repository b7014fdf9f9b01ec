"""The processes that a study trains in: one a core, or some a GPU, each with its devices and one thread."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext

import torch

STOPPED = 143  # the exit code of a worker that was told to stop
LOST = 70  # of one whose GPU is of no use any more


def local_pool(tasks: int, processes: int, on_gpus: bool = True, per_gpu: int = 1) -> ProcessPoolExecutor:
    """One worker a core, or `per_gpu` for every `processes` GPUs, but not more than there are tasks.

    processes: how many processes the largest run starts by itself. on_gpus: whether runs use GPUs where there are some.
    per_gpu: how many runs share a GPU.
    """
    parts = gpu_parts(processes) if on_gpus else []
    count = len(parts) * per_gpu or max(1, usable_cores() // processes)

    context = worker_context()
    turn = context.Value("i", 0)
    return ProcessPoolExecutor(min(count, tasks), context, initializer=start_worker, initargs=(turn, parts))


def decoders_each(processes: int, per_gpu: int) -> int:
    """How many processes may decode images for each process that trains on GPUs: its share of the cores, less itself.

    0 where there is no GPU: there every core trains.
    """
    parts = gpu_parts(processes)
    training = max(1, len(parts) * per_gpu * processes)
    return max(0, usable_cores() // training - 1) if parts else 0


def usable_cores() -> int:
    """How many cores this process may use; where the system does not tell (macOS), how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu_parts(each: int) -> list[str]:
    """The GPUs in parts of `each`, as values of CUDA_VISIBLE_DEVICES; one part of all where there are fewer."""
    count = torch.cuda.device_count()
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = told.split(",")[:count] if told else [str(number) for number in range(count)]
    if count <= each:
        return [",".join(names)] if names else []

    starts = range(0, count - each + 1, each)
    return [",".join(names[start : start + each]) for start in starts]


def worker_context() -> BaseContext:
    """How workers start: forked from a server that has the imports and nothing else, neither threads nor CUDA."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")

    from multiprocessing import forkserver

    multiprocessing.set_forkserver_preload(["saol_lib.training.study", "sklearn.datasets"])
    forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


def start_worker(turn, parts: list[str]) -> None:
    """Prepare a worker, before it touches CUDA: its GPUs, one thread, and who tells it to stop.

    What decodes images for it is forked from it, and so sees when the worker is gone. A child of the server of forks
    would not, and would stay.
    """
    torch.set_num_threads(1)
    if sys.platform == "linux":
        multiprocessing.set_start_method("fork", force=True)
    if parts:
        with turn.get_lock():
            index = turn.value
            turn.value += 1
        os.environ["CUDA_VISIBLE_DEVICES"] = parts[index % len(parts)]

    # Ctrl-C reaches every process of a terminal. A worker that trains writes its checkpoint and ends; one that does
    # not is ended by the study.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    """Stop this worker, with a checkpoint, when the process that started it is gone."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
    os._exit(STOPPED)


def end(code: int) -> None:
    """Leave this worker at once, with whatever decodes images for it."""
    for child in multiprocessing.active_children():
        child.terminate()
    os._exit(code)


def is_worker() -> bool:
    """Whether this is the main thread of a process that another one started for work."""
    is_child = multiprocessing.parent_process() is not None
    return is_child and threading.current_thread() is threading.main_thread()


def is_importing_main() -> bool:
    """Whether this process is a worker that still imports the user's script: the script has no main guard."""
    return getattr(multiprocessing.current_process(), "_inheriting", False)
