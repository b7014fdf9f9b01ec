"""Studies: many runs on any `concurrent.futures.Executor`; interrupted at any point, the next call goes on.

From a shell: `python -m saol_lib.training study --profile pilot --data DIR` trains what notebooks/profiles/pilot names.
"""

import gc
import logging
import multiprocessing
import re
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from saol_lib.networks import multiply_adds
from saol_lib.training import workers
from saol_lib.training.config import RunConfig
from saol_lib.training.files import OWN, resolve
from saol_lib.training.loop import Busy, Interrupted, NotANumber, train
from saol_lib.training.recipe import new_model
from saol_lib.training.runs import (
    OtherData,
    Run,
    data_are_given,
    finished_run,
    load_run,
    provenance,
    run_id,
    run_path,
    save_run,
)

POLL = 2.0  # seconds between two looks at a run that another process trains
GUARD = 'a script calls run_study under `if __name__ == "__main__":`, because workers import the script'
log = logging.getLogger("saol_lib")
_one_at_a_time = threading.Lock()  # torch's random generator belongs to the whole process, not to a thread


def run_study(
    configs: Sequence[RunConfig],
    results: str | Path = OWN,
    executor: Executor | None = None,
    progress: bool = True,
    in_order: bool = False,
    per_gpu: int = 1,
    wait_for_others: bool = True,
) -> list[Run]:
    """Train every config, longest first, and return their runs in the order given; finished ones are only read.

    A config whose `start` is among the configs waits for that one, and for no other. A run that another process trains
    is waited for, unless `wait_for_others` is False: then it is left to that process, and missing in what is returned.

    executor: any `concurrent.futures.Executor`, Dask's `Client.get_executor()` say; None: one process a core, or a GPU,
    each with one thread. Runs in threads of one process take turns: torch has one random generator a process. A run
    that fails is recorded with status "failed" and the others go on.
    in_order: begin them in the order given instead, so that what is reached when time runs out is its first part.
    per_gpu: how many runs share a GPU; a small network leaves most of a large one idle. Numbers are the same.

    Raises ValueError where two configs with one id have different data folders, or per_gpu is less than 1; OtherData
    where a finished or begun run was computed from other data; RuntimeError where a worker process died: what was
    finished is kept, and calling again goes on.
    """
    if workers.is_importing_main():
        sys.exit(GUARD)
    if per_gpu < 1:
        raise ValueError(f"per_gpu={per_gpu} is not a number of runs on a GPU; expected 1 or more")

    results, configs = resolve(results), list(configs)
    by_id = _by_id(configs)
    done = {}
    for name, config in by_id.items():
        if run := finished_run(config, results):
            done[name] = run
    _tell_of_missing_data(by_id, done, results)

    missing = {name: config for name, config in by_id.items() if name not in done}
    if missing:
        with _pool(missing, executor, per_gpu) as pool:
            done |= _Study(missing, results, pool, progress, in_order, wait_for_others).train()
    names = [run_id(config.identity()) for config in configs]
    return [done[name] for name in names if name in done]


def run_stages(
    stages: dict[str, list[RunConfig]],
    results: str | Path = OWN,
    executor: Executor | None = None,
    progress: bool = True,
) -> dict[str, list[Run]]:
    """`run_study` of the configs of several stages together: their runs by stage, in the order given.

    Raises RuntimeError that names the runs that failed.
    """
    configs = [config for stage in stages.values() for config in stage]
    runs = run_study(configs, results, executor, progress)
    failed = [f"{run.id} ({run.error})" for run in runs if run.status != "finished"]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")

    found, rest = {}, runs
    for stage, some in stages.items():
        found[stage], rest = rest[: len(some)], rest[len(some) :]
    return found


def _by_id(configs: list[RunConfig]) -> dict[str, RunConfig]:
    """Each run once: configs that differ only in where they run have one id. Two data folders for it are refused."""
    found = {}
    for config in configs:
        name = run_id(config.identity())
        first = found.setdefault(name, config)
        if first.data_dir != config.data_dir:
            raise ValueError(
                f"run {name} is asked for with two data folders, {first.data_dir} and {config.data_dir}; its id "
                "does not tell them apart: train them in two studies with two results folders"
            )
    return found


def _tell_of_missing_data(by_id: dict[str, RunConfig], done: dict[str, Run], results: Path) -> None:
    shown = [name for name in done if not data_are_given(by_id[name])]
    if shown:
        print(
            f"{len(shown)} finished runs are shown as {results.name}/runs has them: their data were not given, so "
            "nothing was compared with them",
            flush=True,
        )


@contextmanager
def _pool(missing: dict[str, RunConfig], executor: Executor | None, per_gpu: int):
    """The user's executor, which stays open; or one of our own, whose workers end with the study."""
    if executor is not None:
        yield executor
        return

    others = multiprocessing.active_children()
    processes = max(config.processes for config in missing.values())
    on_gpus = any(config.device != "cpu" for config in missing.values())
    pool = workers.local_pool(len(missing), processes, on_gpus, per_gpu)
    try:
        yield pool
    except BaseException:
        for worker in set(multiprocessing.active_children()).difference(others):
            worker.terminate()  # it writes a checkpoint first
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class _Study:
    """The missing runs of a study: which wait, which are under way, and how much is left."""

    def __init__(
        self,
        missing: dict[str, RunConfig],
        results: Path,
        pool: Executor,
        progress: bool,
        in_order: bool,
        wait_for_others: bool,
    ) -> None:
        self.configs, self.results, self.pool, self.progress = missing, results, pool, progress
        self.wait_for_others = wait_for_others
        self.work = {name: _work(config) for name, config in missing.items()}
        self.waiting = list(missing) if in_order else sorted(missing, key=self.work.get, reverse=True)
        self.under_way: dict[Future, str] = {}
        self.look_again: dict[str, float] = {}  # when to try a run that another process trains
        self.done: dict[str, Run] = {}
        self.began = time.perf_counter()

    def train(self) -> dict[str, Run]:
        """Train all of them; {id: run}."""
        try:
            while (self.waiting or self.under_way) and not self._only_others_are_left():
                self._submit()
                self._collect()
        except BrokenProcessPool:
            raise RuntimeError(
                "a worker process died, or its GPU was lost; finished runs and epochs are kept, start again to go on "
                f"({GUARD})"
            ) from None
        except BaseException:
            for future in self.under_way:
                future.cancel()
            raise
        return self.done

    def _only_others_are_left(self) -> bool:
        """Whether this study is not to wait, and nothing is left but what others train or what starts from that."""
        if self.wait_for_others or self.under_way:
            return False
        left = self.waiting
        return all(name in self.look_again or self.configs[name].start in left for name in left)

    def _submit(self) -> None:
        """Hand on every run that waits neither for the one it starts from nor for another process."""
        to_come = {*self.waiting, *self.under_way.values()}
        now = time.perf_counter()
        for name in list(self.waiting):
            config = self.configs[name]
            if config.start in to_come or self.look_again.get(name, 0) > now:
                continue
            self.waiting.remove(name)
            future = self.pool.submit(train_one, config, self.results)
            self.under_way[future] = name

    def _collect(self) -> None:
        """Wait for the next runs that end."""
        if not self.under_way:
            time.sleep(POLL)
            return

        timeout = POLL if self.look_again else None
        ended = wait(self.under_way, timeout, FIRST_COMPLETED).done
        for future in ended:
            name = self.under_way.pop(future)
            run = future.result()
            if run is None:
                self._wait_for_another(name)
            else:
                self._take(name, run)

    def _wait_for_another(self, name: str) -> None:
        if self.progress and name not in self.look_again:
            print(f"{name} is being trained by another process; waiting for it", flush=True)
        self.look_again[name] = time.perf_counter() + POLL
        self.waiting.append(name)

    def _take(self, name: str, run: Run) -> None:
        self.look_again.pop(name, None)
        self.done[name] = run
        if not self.progress:
            return

        behind = sum(self.work[done] for done in self.done)
        share = behind / sum(self.work.values())
        seconds = (time.perf_counter() - self.began) * (1 / share - 1)
        print(f"{len(self.done)}/{len(self.work)} {_line(run)}, about {seconds / 60:.0f} min left", flush=True)


def train_one(config: RunConfig, results: Path) -> Run | None:
    """One run of a study, in a worker: what goes wrong with it is recorded and not raised.

    None while another process trains it. A worker that was told to stop ends here and takes no other run; so does one
    whose GPU fails, which would fail every other run as well.
    """
    try:
        with _one_at_a_time:
            return train(config, results, progress=False)
    except Busy:
        return None
    except OtherData:
        raise
    except (Interrupted, KeyboardInterrupt):
        if workers.is_worker():
            workers.end(workers.STOPPED)
        raise
    except torch.AcceleratorError as error:
        log.error("%s: the GPU cannot be used any more: %s", run_id(config.identity()), _first_line(error))
        if workers.is_worker():
            workers.end(workers.LOST)
        raise
    except NotANumber as error:  # `train` wrote the record
        return _failed(config, error)
    except Exception as error:
        run = _failed(config, error)
        _record(run, results)
        return run
    finally:
        gc.collect()  # a trainer that has ended refers to itself, and keeps weights and decoding processes
        torch.cuda.empty_cache()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _failed(config: RunConfig, error: Exception) -> Run:
    text = f"{type(error).__name__}: {error}"
    without_folders = re.sub(r"(?<![\w.>])/[^\s'\"]*/", "", text)  # no absolute path in a record
    return Run(config.identity(), {}, [], provenance(), "failed", without_folders)


def _record(run: Run, results: Path) -> None:
    """Write a failed run's file, unless something else than an earlier failure is there."""
    path = run_path(results, run.id)
    try:
        if not path.exists() or load_run(path).status == "failed":
            save_run(results, run)
    except (OSError, ValueError) as error:
        log.error("%s", error)


def _work(config: RunConfig) -> float:
    """How long a run will take beside others: multiply-adds of its training."""
    macs = _multiply_adds(replace(config, seed=0))
    return macs * config.epochs * (config.train_images or 50_000)


@lru_cache(maxsize=1024)
def _multiply_adds(config: RunConfig) -> int:
    """Of one image, counted once for all seeds."""
    with torch.device("meta"):
        return multiply_adds(new_model(config), (config.side, config.side))


def _line(run: Run) -> str:
    if run.status == "failed":
        return f"{run.id} failed: {run.error}"
    read = [name for name in run.metrics if re.fullmatch("top1_.*_last", name)]
    scores = [f"{name} {run.metrics[name]:.1f}" for name in read]
    return f"{run.id} {', '.join(scores)} in {run.provenance['seconds']:.0f} s"
