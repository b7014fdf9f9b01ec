"""The processes that train one run together, on torch.distributed: started by `torchrun` or by `launch`."""

import inspect
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from saol_lib.training.batch_norm import SharedStatistics

RENDEZVOUS = "SAOL_RENDEZVOUS"  # where processes of `launch` meet; those of torchrun meet where it tells them
GRACE = 60.0  # seconds that processes have to write a checkpoint and end
GUARD = (
    "a script that trains in several processes needs a main guard, because each of them imports the script: put the "
    'call under `if __name__ == "__main__":`'
)


class Interrupted(SystemExit):
    """Training was asked to stop (SIGTERM, exit code 143) and has written a checkpoint."""


def process_count() -> int:
    """How many processes train together: what torchrun or `launch` told this one; 1 where none did."""
    return int(os.environ.get("WORLD_SIZE", 1))


def process_rank() -> int:
    return int(os.environ.get("RANK", 0))


class Processes:
    """This process among those that train one run; alone unless torchrun or `launch` started several.

    device: "auto" (a GPU if there is one) or a torch device. Of several processes each takes the next GPU, by its local
    rank, from the device on. shared_statistics: batch normalisation runs over all of them.
    Raises ValueError where there are fewer GPUs than processes of this machine.
    """

    def __init__(self, device: str = "auto", shared_statistics: bool = True) -> None:
        self.count = process_count()
        self.rank = process_rank()
        self.device = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
        self.shares_statistics = shared_statistics and self.count > 1

        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.count > 1 and not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            where = os.environ.get(RENDEZVOUS, "env://")
            dist.init_process_group(backend, where, rank=self.rank, world_size=self.count)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, with its gradients averaged over the processes."""
        if self.count == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        known = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # by torch's version
        return DistributedDataParallel(model, device_ids=devices, **{name: False})

    def check_gradients(self, model: nn.Module) -> None:
        """After a backward pass: ValueError where a parameter took no part, for which the averaging would wait."""
        if self.count == 1:
            return
        idle = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
        if idle:
            raise ValueError(
                f"{len(idle)} parameters of this network take no part in its loss ({idle[0]} is the first), so that "
                f"{self.count} processes cannot average their gradients; use processes=1, or another backbone"
            )

    def averaging(self, model: nn.Module, wanted: bool) -> AbstractContextManager:
        """Inside, `wanted` or not, the gradients of a wrapped model are averaged; those before are added first."""
        return nullcontext() if wanted or self.count == 1 else model.no_sync()

    def statistics(self, counted: bool = True) -> AbstractContextManager:
        """Inside, a forward pass takes the batch's statistics over the `counted` rows of all processes, if wanted."""
        return SharedStatistics(counted) if self.shares_statistics else nullcontext()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.count == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def stack(self, value: Tensor) -> Tensor:
        """The values (...) of all processes as (processes, ...)."""
        table = value.new_zeros(self.count, *value.shape)
        table[self.rank] = value
        return self.sum(table)

    def any(self, *wishes: bool) -> list[bool]:
        """For each wish, whether some process has it. They meet on the CPU: none waits for its GPU."""
        if self.count == 1:
            return list(wishes)
        votes = torch.tensor([int(wish) for wish in wishes])
        dist.all_reduce(votes)
        return [vote > 0 for vote in votes.tolist()]

    def gather(self, value: set[str]) -> set[str]:
        """The union over the processes."""
        if self.count == 1:
            return set(value)
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return set().union(*found)

    def align(self, model: nn.Module) -> None:
        """Give every process the first one's buffers, where each has running statistics of its own rows alone."""
        if self.count == 1 or self.shares_statistics:
            return
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)

    def wait(self) -> None:
        self.any(False)


def choose_device(device: str, local_rank: int = 0, gpus: int | None = None) -> torch.device:
    """The device of a process of this machine; gpus: how many it sees, None: look."""
    gpus = torch.cuda.device_count() if gpus is None else gpus
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    chosen = torch.device(device)
    if chosen.type != "cuda":
        return chosen

    index = (chosen.index or 0) + local_rank
    if index >= gpus:
        raise ValueError(
            f"device={device!r}: process {local_rank} of this machine would take GPU {index}, but {gpus} are visible; "
            "lower processes, or use device='cpu'"
        )
    return torch.device("cuda", index)


# --- starting them ----------------------------------------------------------------------------------------------------


class _Rank(NamedTuple):
    process: multiprocessing.process.BaseProcess
    report: Connection  # what went wrong in it, if something did


def launch(function: Callable, arguments: tuple, processes: int) -> None:
    """Call `function` in `processes` processes of this machine (spawned; from a notebook too) and wait for them.

    Raises what the first of them raised; RuntimeError where one died; KeyboardInterrupt and Interrupted after a signal,
    which is passed on to all of them so that they can write a checkpoint.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(GUARD)
    if process_count() > 1:
        raise RuntimeError("this process is one of several already; processes above 1 would start more")

    threads = max(1, torch.get_num_threads() // processes)
    with tempfile.TemporaryDirectory() as folder, stoppable() as stop:
        meeting = (Path(folder) / "meeting").as_uri()
        ranks = [_start(function, arguments, rank, processes, meeting, threads) for rank in range(processes)]
        failed = _watch(ranks, stop)
        leave_if_asked(stop)
        _raise_first(ranks, failed)


def _start(function: Callable, arguments: tuple, rank: int, count: int, meeting: str, threads: int) -> _Rank:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        RENDEZVOUS: meeting,
    }
    process = context.Process(target=_work, args=(function, arguments, environment, threads, send))
    process.start()
    send.close()
    return _Rank(process, receive)


def _work(function: Callable, arguments: tuple, environment: dict[str, str], threads: int, report: Connection) -> None:
    """What a started process does; an exception is reported, and the exit code says that there was one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one passes it on
    threading.Thread(target=_follow, daemon=True).start()
    os.environ.update(environment)
    torch.set_num_threads(threads)

    try:
        function(*arguments)
    except (Interrupted, KeyboardInterrupt):
        leave(143)
    except Exception as error:
        report.send((time.time(), _portable(error)))
        leave(1)
    leave(0)


def leave(code: int) -> NoReturn:
    """End this process with an exit code.

    One of several ends without Python's own teardown: in that, a thread of gloo's that lets go of its last tensor
    aborts the process (PyTorch issue 190489), and `destroy_process_group` stops those threads only where nothing else,
    such as a wrapped model, holds the group.
    """
    if process_count() == 1:
        sys.exit(code)
    if code == 0 and dist.is_initialized():  # after a failure it could wait for the others, who wait for this one
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _portable(error: Exception) -> Exception:
    """An exception that another process can raise."""
    if not isinstance(error, ValueError | OSError | ArithmeticError):  # of a mistake in the code: where it was
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _follow() -> None:
    """Stop this process, with a checkpoint, when the one that started it is gone."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(143)


def _watch(ranks: list[_Rank], stop: list[int]) -> list[int]:
    """Wait until all have ended; which of them failed by themselves.

    After a signal, or when one fails, the others are told to stop.
    """
    while True:
        running = [rank.process for rank in ranks if rank.process.is_alive()]
        failed = [number for number, rank in enumerate(ranks) if rank.process.exitcode]
        if stop or failed:
            _end(running, GRACE if stop else GRACE / 6)
        if stop or failed or not running:
            return failed
        wait([process.sentinel for process in running], timeout=0.2)


def _end(running: list[multiprocessing.process.BaseProcess], seconds: float) -> None:
    """Tell processes to stop; whoever is still there after some seconds is killed."""
    for process in running:
        process.terminate()
    end = time.monotonic() + seconds
    for process in running:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _raise_first(ranks: list[_Rank], failed: list[int]) -> None:
    """Raise the exception that came first, or say which process died."""
    reports = []
    for rank in ranks:
        try:
            if rank.report.poll():
                reports.append(rank.report.recv())
        except EOFError:
            continue
    if reports:
        raise min(reports, key=lambda report: report[0])[1]

    if not failed:
        return
    number = failed[0]
    code = ranks[number].process.exitcode
    raise RuntimeError(
        f"process {number} of {len(ranks)} ended with exit code {code}; finished epochs are kept, start again to go on "
        f"({GUARD})"
    )


# --- signals ----------------------------------------------------------------------------------------------------------


@contextmanager
def stoppable() -> Iterator[list[int]]:
    """A list that SIGTERM and Ctrl-C fill instead of killing; in another than the main thread it stays empty."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def remember(number: int, _) -> None:
        signals.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_if_asked(stop: list[int]) -> None:
    """Leave as the first of the signals says."""
    if stop:
        raise KeyboardInterrupt if stop[0] == signal.SIGINT else Interrupted(143)
