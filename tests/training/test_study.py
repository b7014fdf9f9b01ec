"""Studies on every kind of executor: order, failures recorded, killed at any point and continued."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from processes import ENVIRONMENT

from saol_lib.evidence import made_data
from saol_lib.training import (
    Run,
    RunConfig,
    files,
    grid,
    load_checkpoint,
    load_run,
    load_runs,
    run_id,
    run_study,
    save_run,
    study,
    study_configs,
    train,
    workers,
)
from saol_lib.training.loop import Trainer
from saol_lib.training.study import train_one

TINY = {"train_images": 200, "epochs": 2, "backbone": "resnet-8-8", "batch_size": 50, "lr": 0.05}
pytestmark = pytest.mark.timeout(900)  # a busy machine takes minutes to start a few processes
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers through Linux's /proc")
LONG = 800  # seconds, below pytest's own limit: where that ends a test, what hangs is told


class Direct(Executor):
    """Computes at once, here; remembers what was asked for."""

    def __init__(self):
        self.asked = []

    def submit(self, function, config, results):
        self.asked.append(config)
        future = Future()
        future.set_result(function(config, results))
        return future


def fake(config, results, status="finished"):
    run = Run(config.identity(), {"top1_gap_last": 1.0 + config.seed}, [], {"seconds": 60.0}, status)
    save_run(results, run)
    return run


def path_of(folder, config):
    return folder / "runs" / f"{run_id(config.identity())}.json"


def same(a, b):
    assert (a.config, a.metrics, a.epochs, a.status) == (b.config, b.metrics, b.epochs, b.status)


# --- what is done, and in which order --------------------------------------------------------------------------------


def test_longest_first_and_results_in_the_order_given(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "train_one", fake)
    changes = [{"epochs": 2}, {"epochs": 9}, {"backbone": "resnet-20"}, {"train_images": 100}, {"epochs": 2}]
    configs = [RunConfig(**values) for values in changes]
    executor = Direct()
    found = run_study(configs, tmp_path, executor, progress=False)
    assert [run.config for run in found] == [config.identity() for config in configs]
    work = {config: study._work(config) for config in configs}
    assert executor.asked == sorted(dict.fromkeys(configs), key=work.get, reverse=True) and len(executor.asked) == 4
    assert executor.asked[0] == configs[2] and executor.asked[-1] == configs[3]

    executor = Direct()
    run_study(configs, tmp_path / "again", executor, progress=False, in_order=True)
    assert executor.asked == configs[:4]


def test_a_run_waits_for_the_one_it_starts_from_and_for_no_other(tmp_path, monkeypatch):
    """However the configs are ordered, and with the longest at the end of the chain."""
    monkeypatch.setattr(study, "train_one", fake)
    first = RunConfig(epochs=2)
    second = RunConfig(arm="saol", epochs=30, start=run_id(first.identity()))
    third = RunConfig(arm="saol", epochs=90, start=run_id(second.identity()))
    alone, elsewhere = RunConfig(epochs=5), RunConfig(epochs=1, start="gap_fc-s0-0123456789")
    executor, configs = Direct(), [third, second, alone, first, elsewhere]
    found = run_study(configs, tmp_path, executor, progress=False)
    assert [run.config for run in found] == [config.identity() for config in configs]
    assert executor.asked == [alone, first, elsewhere, second, third]
    executor = Direct()  # what is finished need not be waited for
    (tmp_path / "runs" / f"{run_id(third.identity())}.json").unlink()
    run_study(configs, tmp_path, executor, progress=False)
    assert executor.asked == [third]


def test_finished_runs_are_only_read_and_failed_ones_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "train_one", fake)
    configs = grid(["gap_fc", "saol"], [0, 1])
    fake(configs[0], tmp_path), fake(configs[1], tmp_path, "failed")
    executor = Direct()
    run_study(configs, tmp_path, executor, progress=False)
    assert set(executor.asked) == set(configs[1:])
    executor = Direct()
    assert len(run_study(configs, tmp_path, executor)) == 4 and not executor.asked


def test_progress_is_a_line_a_run_with_the_time_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "train_one", fake)
    run_study(grid(["gap_fc"], [0, 1, 2]), tmp_path, Direct())
    lines = capsys.readouterr().out.splitlines()
    pattern = r"(\d)/3 gap_fc-s\d-\w{10} top1_gap_last \d\.0 in 60 s, about (\d+) min left"
    found = [re.fullmatch(pattern, line) for line in lines]
    assert [match[1] for match in found] == ["1", "2", "3"] and found[-1][2] == "0"


def test_what_a_stopped_study_had_not_begun_is_cancelled(tmp_path, monkeypatch):
    class Slow(Executor):
        futures = []  # noqa: RUF012

        def submit(self, *args):
            self.futures.append(Future())
            return self.futures[-1]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(grid(["gap_fc"], [0, 1]), tmp_path, Slow(), progress=False)
    assert len(Slow.futures) == 2 and all(future.cancelled() for future in Slow.futures)


def started(monkeypatch, gpus, processes, workers_started):
    """What CUDA_VISIBLE_DEVICES is in each worker of a machine with so many GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(workers.signal, "signal", lambda *_: None)
    monkeypatch.setattr(workers.threading, "Thread", lambda **_: type("Idle", (), {"start": lambda self: None})())
    parts, turn = workers.gpu_parts(processes), workers.worker_context().Value("i", 0)
    seen = []
    for _ in range(workers_started):
        with monkeypatch.context() as patch:
            patch.setenv("CUDA_VISIBLE_DEVICES", "none yet")
            patch.setattr(multiprocessing, "set_start_method", lambda *_, **__: None)  # of the tests' own process
            workers.start_worker(turn, parts)
            seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    return seen


def test_each_worker_has_gpus_of_its_own(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert started(monkeypatch, 3, 1, 4) == ["0", "1", "2", "0"]
    assert started(monkeypatch, 8, 4, 2) == ["0,1,2,3", "4,5,6,7"]
    assert started(monkeypatch, 7, 2, 3) == ["0,1", "2,3", "4,5"]
    assert started(monkeypatch, 2, 4, 1) == ["0,1"]
    assert started(monkeypatch, 2, 1, 6) == ["0", "1", "0", "1", "0", "1"]  # three runs a GPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,2,GPU-ab,1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert workers.gpu_parts(2) == ["6,2", "GPU-ab,1"]


def test_there_are_as_many_workers_as_parts_or_cores(monkeypatch):
    def count(gpus, tasks, processes, on_gpus=True, per_gpu=1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        pool = workers.local_pool(tasks, processes, on_gpus, per_gpu)
        pool.shutdown()
        return pool._max_workers

    monkeypatch.setattr(workers, "usable_cores", lambda: 6)
    assert [count(8, 10, 4), count(8, 1, 4), count(2, 10, 4), count(0, 10, 4), count(0, 10, 1)] == [2, 1, 1, 1, 6]
    assert count(8, 10, 1, on_gpus=False) == 6
    assert [count(2, 30, 1, per_gpu=7), count(2, 5, 1, per_gpu=7), count(0, 30, 1, per_gpu=7)] == [14, 5, 6]


def test_cores_that_are_left_decode(monkeypatch):
    def each(gpus, cores, processes=1, per_gpu=1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(workers, "usable_cores", lambda: cores)
        return workers.decoders_each(processes, per_gpu)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [each(8, 96), each(8, 96, processes=8), each(1, 12), each(2, 16, per_gpu=4)] == [11, 11, 11, 1]
    assert [each(8, 4), each(0, 64)] == [0, 0]


def test_no_run_on_a_gpu_is_no_number(tmp_path):
    with pytest.raises(ValueError, match="per_gpu=0 is not a number of runs on a GPU; expected 1 or more"):
        run_study([], tmp_path, per_gpu=0)


def test_cores_are_counted_where_the_system_tells_no_affinity(monkeypatch):
    """macOS has no os.sched_getaffinity."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert workers.usable_cores() == 3


# --- equal ids, and two studies on one folder ------------------------------------------------------------------------


def test_configs_with_one_id_are_one_run(tmp_path):
    """Where a run happens is no part of its id: both get the one run, and neither finds it busy."""
    configs = [RunConfig(**TINY), RunConfig(device="cpu", **TINY), RunConfig(workers=1, **TINY)]
    executor = Direct()
    found = run_study(configs, tmp_path, executor, progress=False)
    assert len(executor.asked) == 1 and [run.status for run in found] == ["finished"] * 3
    assert len({run.id for run in found}) == 1


def test_a_run_that_another_study_trains_is_waited_for(tmp_path, monkeypatch, capsys):
    """The other one finishes it; what starts from it is trained here, and nothing is recorded as failed."""
    monkeypatch.setattr(study, "POLL", 0.2)
    first = RunConfig(**TINY)
    name = run_id(first.identity())
    tuned = RunConfig(arm="saol", start=name, **TINY)
    train(first, tmp_path / "other", progress=False)
    folder = tmp_path / "results" / "checkpoints" / name
    folder.mkdir(parents=True)
    held, waited = threading.Event(), threading.Event()
    told = study._Study._wait_for_another
    monkeypatch.setattr(study._Study, "_wait_for_another", lambda self, name: (told(self, name), waited.set()))

    def other_study():
        with FileLock(folder / "lock"):
            held.set()
            waited.wait()
            for kind in ("checkpoints", "runs"):
                shutil.copytree(tmp_path / "other" / kind, tmp_path / "results" / kind, dirs_exist_ok=True)

    other = threading.Thread(target=other_study)
    other.start()
    held.wait()
    found = run_study([tuned, first], tmp_path / "results", Direct())
    other.join()
    assert [run.status for run in found] == ["finished", "finished"]
    same(found[1], load_run(path_of(tmp_path / "other", first)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{name} is being trained by another process; waiting for it"
    assert sum("waiting" in line for line in lines) == 1


def test_a_study_that_does_not_wait_leaves_to_others_what_they_train(tmp_path, monkeypatch):
    """And what starts from that; whatever is free is trained first."""
    monkeypatch.setattr(study, "POLL", 0.05)
    theirs, free = RunConfig(**TINY), RunConfig(seed=1, **TINY)
    name = run_id(theirs.identity())
    tuned = RunConfig(arm="saol", start=name, **TINY)
    folder = tmp_path / "checkpoints" / name
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"):
        found = run_study([theirs, tuned, free], tmp_path, Direct(), progress=False, wait_for_others=False)
    assert [run.id for run in found] == [run_id(free.identity())]


def test_a_lost_gpu_fails_no_run_after_another(tmp_path, monkeypatch, caplog):
    """A worker ends, so that the study does; elsewhere the error comes through. No run is recorded as failed."""

    def broken(config, results, progress):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nCompile with more")

    config, codes = RunConfig(**TINY), []
    monkeypatch.setattr(study, "train", broken)
    monkeypatch.setattr(workers, "is_worker", lambda: True)
    monkeypatch.setattr(workers, "end", codes.append)
    with pytest.raises(torch.AcceleratorError):
        train_one(config, tmp_path)
    assert codes == [workers.LOST] and load_runs(tmp_path) == []
    assert f"{run_id(config.identity())}: the GPU cannot be used any more: CUDA error: device-side" in caplog.text


@pytest.mark.faults
def test_two_studies_at_once_on_one_folder(tmp_path):
    profile(tmp_path, arms=["gap_fc", "saol_sd"], seeds=[0, 1], **TINY | {"train_images": 1000, "epochs": 4})
    both = [shell(tmp_path), shell(tmp_path)]
    ended = [(process.communicate(timeout=LONG), process.returncode) for process in both]
    assert [code for _, code in ended] == [0, 0], ended
    assert len(load_runs(tmp_path / "results" / "tiny")) == 4
    trained = [line for (out, _), _ in ended for line in out.splitlines() if "waiting" not in line]
    assert not [line for line in trained if "failed" in line]


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_failing_run_is_recorded_and_names_no_place(tmp_path):
    missing = RunConfig(dataset="cifar10", data_dir=str(tmp_path / "no where"))
    run = train_one(missing, tmp_path / "results")
    assert run.status == "failed" and run.error.startswith("FileNotFoundError") and "is not a folder" in run.error
    text = path_of(tmp_path / "results", missing).read_text()
    assert str(tmp_path) not in text and str(Path.home()) + "/" not in text and json.loads(text)["status"] == "failed"
    assert load_runs(tmp_path / "results") == []


def test_divergence_keeps_trains_own_record(tmp_path):
    config = RunConfig(**TINY | {"lr": 1e30})
    assert train_one(config, tmp_path).status == "failed"
    recorded = load_run(path_of(tmp_path, config))
    assert (
        recorded.status == "failed" and recorded.error.startswith("the loss of epoch") and recorded.provenance["data"]
    )


def test_a_run_that_another_process_trains_is_not_recorded_as_failed(tmp_path):
    config = RunConfig(**TINY)
    folder = tmp_path / "checkpoints" / run_id(config.identity())
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"):
        assert train_one(config, tmp_path) is None
    assert not path_of(tmp_path, config).exists()


@pytest.mark.parametrize("content", ["half of a fi", '{"status": "finished"}'])
def test_a_failure_never_replaces_what_is_there(tmp_path, content):
    config = RunConfig(**TINY)
    path = path_of(tmp_path, config)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    run = train_one(config, tmp_path)
    assert run.status == "failed" and "is not a readable run" in run.error and path.read_text() == content


def test_a_failure_that_cannot_be_recorded_does_not_stop_the_others(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    run = train_one(RunConfig(**TINY), tmp_path / "file")
    assert run.status == "failed" and "cannot be made" in run.error and "cannot be made" in caplog.text


def test_default_processes(tmp_path, capfd):
    """Two good runs, one that diverges, one without data: the good ones are those that one process makes."""
    good = grid(["gap_fc", "saol_cutmix_ss_sd"], [0], **TINY)
    bad = [RunConfig(**TINY | {"lr": 1e30}), RunConfig(dataset="cifar10", data_dir=str(tmp_path / "nowhere"))]
    found = run_study([*bad, *good], tmp_path / "results")
    assert [run.status for run in found] == ["failed", "failed", "finished", "finished"]
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 4 and sum(" failed: " in line for line in lines) == 2
    assert {run.provenance["threads"] for run in found[2:]} == {1}
    assert {run.id for run in load_runs(tmp_path / "results")} == {run.id for run in found[2:]}
    for config, run in zip(good, found[2:], strict=True):
        same(run, train(config, tmp_path / "here", progress=False))
    before = [path_of(tmp_path / "results", config).stat().st_mtime_ns for config in good]
    with ThreadPoolExecutor(1) as executor:
        run_study([*bad, *good], tmp_path / "results", executor, progress=False)
    assert before == [path_of(tmp_path / "results", config).stat().st_mtime_ns for config in good]


# --- executors of one's own ------------------------------------------------------------------------------------------


def test_a_process_pool_of_ones_own(tmp_path):
    configs = grid(["saol"], [0, 1], **TINY)
    with ProcessPoolExecutor(1, workers.worker_context(), torch.set_num_threads, (1,)) as pool:
        found = run_study(configs, tmp_path / "pool", pool, progress=False)
        assert pool.submit(abs, -1).result() == 1  # it stays the user's
    same(found[0], train(configs[0], tmp_path / "here", progress=False))


def test_threads(tmp_path):
    """Torch's random generator belongs to the process: runs in threads take turns, and every number stays the same."""
    configs = grid(["saol_cutmix_ss_sd", "gap_fc"], [0, 1], **TINY)
    with ThreadPoolExecutor(4) as executor:
        found = run_study(configs, tmp_path / "threads", executor, progress=False)
    assert [run.status for run in found] == ["finished"] * 4
    for config, run in zip(configs, found, strict=True):
        same(run, train(config, tmp_path / "here", progress=False))


def test_dask_threads(tmp_path):
    distributed = pytest.importorskip("distributed")
    configs = grid(["saol", "gap_fc"], [0, 1], **TINY)
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        found = run_study(configs, tmp_path / "threads", client.get_executor(), progress=False)
    for config, run in zip(configs, found, strict=True):
        same(run, train(config, tmp_path / "here", progress=False))


@pytest.mark.faults
def test_dask_cluster(tmp_path):
    distributed = pytest.importorskip("distributed")
    configs = [*grid(["gap_fc", "saol_cutmix_ss2"], [0], **TINY), RunConfig(**TINY | {"lr": 1e30})]
    cluster = distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        local_directory=str(tmp_path / "dask"),
    )
    with cluster, distributed.Client(cluster) as client:
        found = run_study(configs, tmp_path / "results", client.get_executor(), progress=False)
    assert [run.status for run in found] == ["finished", "finished", "failed"]
    for config, run in zip(configs[:2], found[:2], strict=True):
        same(run, train(config, tmp_path / "here", progress=False))


# --- from a shell, and killed ----------------------------------------------------------------------------------------

MAIN = """
import sys
from pathlib import Path
from saol_lib.training import files, workers
from saol_lib.training.__main__ import train_study
files.ROOT = files.REPOSITORY = Path(sys.argv.pop(1))
if __name__ == "__main__":
    train_study(sys.argv[1:])
"""


def profile(root, **values):
    folder = root / "notebooks" / "profiles" / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "01.yaml").write_text(yaml.safe_dump(values))
    return folder


STUDY = {
    "results": "results/here",
    "common": {"dataset": "digits", "batch_size": 50},
    "grids": [
        {"epochs": 2, "arms": ["gap_fc", "saol"], "seeds": [0, 1]},
        {"epochs": 3, "arms": ["gap_fc"], "seeds": [0]},
        {"epochs": 2, "arms": ["gap_fc"], "seeds": [0, 1]},  # again: each run once
    ],
}


def study_file(root, **changes):
    folder = root / "notebooks" / "profiles" / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY | changes))
    return folder


def test_study_yaml_names_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    folder = study_file(tmp_path)
    configs, results = study_configs("tiny", "/data")
    asked = [(c.epochs, c.arm, c.seed) for c in configs]
    assert asked == [(2, "gap_fc", 0), (2, "gap_fc", 1), (2, "saol", 0), (2, "saol", 1), (3, "gap_fc", 0)]
    assert {c.batch_size for c in configs} == {50} and {c.data_dir for c in configs} == {"/data"}
    assert results == "results/here"

    beside = {"results": "results/here", "arms": ["abn"], "seeds": [4], "dataset": "digits"}
    (folder / "04.yaml").write_text(yaml.safe_dump(beside))
    assert [(c.arm, c.seed) for c in study_configs("tiny")[0]].count(("abn", 4)) == 1

    (folder / "04.yaml").write_text(yaml.safe_dump(beside | {"results": "results/there"}))  # it trains its own runs
    assert study_configs("tiny") == (study_configs("tiny", only="study")[0], "results/here")
    (folder / "rates.yaml").write_text(yaml.safe_dump(STUDY | {"results": "results/there"}))
    with pytest.raises(ValueError, match=r"names 2 results folders \(.*rates.yaml: results/there, study.yaml: "):
        study_configs("tiny")


def test_a_grid_waits_for_values_that_are_still_to_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    known, unknown = {"arms": ["gap_fc"], "seeds": [0]}, {"arms": ["saol"], "seeds": [0], "lr": "to be chosen"}
    one_arm = {"arms": [{"arm": "saol_sd", "epochs": "to be chosen"}, "saol_ce"], "seeds": [0]}
    study_file(tmp_path, grids=[unknown, known, one_arm])
    assert [config.arm for config in study_configs("tiny")[0]] == ["gap_fc"]
    assert [config.arm for config in study_configs("tiny", changes={"lr": 0.1})[0]] == ["saol", "gap_fc"]

    study_file(tmp_path, grids=[unknown, one_arm])
    with pytest.raises(ValueError, match="profile 'tiny': epochs, lr still to be chosen; fill them in first"):
        study_configs("tiny")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"grid": []}, "has common, grid, grids, results: expected exactly results, common and grids"),
        ({"results": 7}, "results=7 must be a folder"),
        ({"common": []}, "common=[] must be lines"),
        ({"grids": []}, "grids=[] must be a list of at least one grid"),
        ({"grids": {"arms": ["saol"], "seeds": [0]}}, "must be a list of at least one grid"),
        ({"grids": ["saol"]}, "grid 1 is 'saol'; expected a table"),
        ({"grids": [{"arms": ["saol"]}]}, "grid 1 needs arms and seeds"),
        ({"grids": [{"arms": ["saul"], "seeds": [0]}]}, "saul"),
        ({"grids": [{"arms": ["saol"], "seeds": [0], "epocs": 1}]}, "did you mean epochs?"),
        ({"grids": [{"arms": ["saol"], "seeds": [0], "epochs": "1"}]}, "epochs='1'"),
    ],
)
def test_a_wrong_study_yaml_is_one_sentence(tmp_path, monkeypatch, changes, sentence):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    study_file(tmp_path, **changes)
    with pytest.raises(ValueError) as error:
        study_configs("tiny")
    assert str(error.value).startswith("profile file tiny/study.yaml") and sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_the_pilots_study_has_the_runs_of_notebook_04_and_of_its_grids():
    configs, results = study_configs("pilot")
    assert results == "results/pilot" and len(configs) >= 54
    assert {(c.train_images, c.epochs) for c in configs} >= {(5000, 30), (5000, 60), (5000, 100), (10000, 60)}


def test_every_regime_serves_its_grid_of_rates():
    """Whichever the regime becomes, its runs of seeds 0 and 1 are runs of the grid, with the same ids."""
    regime = {run_id(config.identity()) for config in study_configs("pilot", only="study")[0] if config.seed < 2}
    shared = []
    for images, epochs in ((5000, 60), (5000, 100), (10000, 60)):
        changes = {"train_images": images, "epochs": epochs}
        rates = {run_id(config.identity()) for config in study_configs("pilot", only="rates", changes=changes)[0]}
        assert len(rates) == 6 * 3 * 2 and len(rates & regime) == 4
        shared += rates & regime
    assert set(shared) == regime


def test_study_configs_reads_the_profile(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    folder = profile(
        tmp_path,
        profile="tiny",
        results="results/tiny",
        arms=["gap_fc", {"arm": "saol", "blocks": 2}],
        seeds=[0, 3],
        **TINY,
    )
    (folder / "06.yaml").write_text(yaml.safe_dump({"profile": "tiny", "rounds": 3}))  # a notebook that trains nothing
    configs, results = study_configs("tiny", "/data")
    assert results == "results/tiny" and [(c.arm, c.seed) for c in configs] == [
        ("gap_fc", 0),
        ("gap_fc", 3),
        ("saol", 0),
        ("saol", 3),
    ]
    assert {c.blocks for c in configs if c.arm == "saol"} == {2} and {c.data_dir for c in configs} == {"/data"}
    assert study_configs("tiny")[0][0].data_dir is None
    with pytest.raises(ValueError, match=r"'none'.*notebooks/profiles"):
        study_configs("none")


SHELLS = []


def shell(root, *arguments):
    (root / "main.py").write_text(MAIN)
    command = [sys.executable, "-u", str(root / "main.py"), str(root), "--profile", "tiny", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=ENVIRONMENT, process_group=0, **pipes)
    SHELLS.append(process)
    return process


@pytest.fixture(autouse=True)
def nothing_goes_on():
    """A test that fails leaves no study behind, which would take the others' time."""
    yield
    while SHELLS:
        process = SHELLS.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_bad_input_from_a_shell_is_one_sentence(tmp_path):
    profile(tmp_path, arms=["gap_fc"], seeds=[0], **TINY | {"dataset": "cifar10"})
    process = shell(tmp_path, "--data", str(tmp_path / "nowhere"))
    out, errors = process.communicate(timeout=LONG)
    assert process.returncode == 1 and out == "" and errors.strip().count("\n") == 0 and "is not a folder" in errors


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers_of(pid):
    (server,) = [pid for pid in children(pid) if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return children(server)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids, seconds):
    """Whether all these processes end within some seconds."""
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    return not any(map(alive, pids))


def modified(path):
    return path.stat().st_mtime if path.exists() else 0.0


def under_way(results, process, seconds=LONG):
    """Wait until two runs that are not finished have a checkpoint that is newer than the process."""
    end, began = time.monotonic() + seconds, time.time()
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        begun = {path.parent.name for path in results.glob("checkpoints/*/*.json") if modified(path) > began}
        done = {path.stem for path in results.glob("runs/*.json")}
        if len(begun - done) >= 2:
            return
        time.sleep(0.02)
    pytest.fail("no two runs were under way")


VALUES = TINY | {"train_images": 300, "epochs": 10, "eval_every": 10}  # a few seconds each
ARMS = ["gap_fc", "saol_cutmix_ss_sd"]


def begun_runs(results):
    return {path.name for path in results.glob("checkpoints/*")}


def begin(root):
    """A study of four runs from a shell, two of them under way, and its two workers."""
    profile(root, arms=ARMS, seeds=[0, 1], **VALUES)
    process = shell(root)
    under_way(root / "results" / "tiny", process)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    return process, workers


def go_on(root, monkeypatch):
    """The next call: each run goes on where it had stopped, what is finished is left alone, no number changes."""
    results, configs = root / "results" / "tiny", grid(ARMS, [0, 1], **VALUES)
    finished = {path: path.read_bytes() for path in results.glob("runs/*.json")}
    positions = {
        config: found[1]["position"]
        for config in configs
        if (found := load_checkpoint(results / "checkpoints" / run_id(config.identity())))
        and not path_of(results, config).exists()
    }
    assert len(positions) >= 2 and all(position > [0, 0] for position in positions.values())
    starts, original = {}, Trainer.run
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", lambda self, p: (starts.update({self.config: self.start}), original(self, p))[1])
        run_study(configs, results, Direct(), progress=False)
    assert {config: list(starts[config]) for config in positions} == positions
    assert all(path.read_bytes() == content for path, content in finished.items())
    assert len(starts) == 4 - len(finished)
    config = next(iter(positions))
    same(load_run(path_of(results, config)), train(config, root / "whole", progress=False))


NO_GUARD = """
from saol_lib import RunConfig, run_study
run_study([RunConfig(train_images=200, epochs=1, backbone="resnet-8-8", seed=seed) for seed in (0, 1)], "RESULTS")
"""


def test_a_script_without_a_main_guard_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(NO_GUARD.replace("RESULTS", str(tmp_path / "results")))
    done = subprocess.run([sys.executable, str(script)], env=ENVIRONMENT, capture_output=True, text=True, timeout=LONG)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and 'if __name__ == "__main__":' in last and "worker process died" in last
    assert "freeze_support" not in done.stderr


def last_words(process):
    """What a study says when it fails: its last line, and no traceback before it."""
    _, errors = process.communicate(timeout=LONG)
    assert process.returncode == 1
    assert "Traceback" not in errors
    return errors.strip().splitlines()[-1]


@linux
@pytest.mark.faults
def test_ctrl_c_in_a_terminal_stops_at_once(tmp_path, monkeypatch):
    """It reaches every process of the group: workers write a checkpoint and take no other run."""
    process, workers = begin(tmp_path)
    results = tmp_path / "results" / "tiny"
    begun, finished = begun_runs(results), set(results.glob("runs/*.json"))
    os.killpg(process.pid, signal.SIGINT)
    assert last_words(process).startswith("stopped; the same command goes on")
    assert gone(workers, 60)
    assert begun_runs(results) == begun and set(results.glob("runs/*.json")) == finished
    go_on(tmp_path, monkeypatch)


@linux
@pytest.mark.faults
def test_terminated_and_continued(tmp_path, monkeypatch):
    process, workers = begin(tmp_path)
    process.terminate()
    process.communicate(timeout=LONG)
    assert process.returncode == 143 and not any(map(alive, workers))
    go_on(tmp_path, monkeypatch)


@linux
@pytest.mark.faults
def test_a_killed_worker_is_one_sentence(tmp_path, monkeypatch):
    process, workers = begin(tmp_path)
    os.kill(workers[0], signal.SIGKILL)
    assert last_words(process).startswith("a worker process died, or its GPU was lost; finished runs")
    assert gone(workers, 100)
    go_on(tmp_path, monkeypatch)


@linux
@pytest.mark.faults
def test_workers_of_a_killed_study_stop_by_themselves(tmp_path, monkeypatch):
    process, workers = begin(tmp_path)
    process.kill()
    process.wait()
    assert gone(workers, 100)
    go_on(tmp_path, monkeypatch)


@linux
@pytest.mark.faults
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_decodes_images_ends_with_the_study(tmp_path, how):
    """Streamed data: a run's decoding processes see that it is gone, and hold neither memory nor a terminal."""
    made_data.make_data(tmp_path / "data", ("imagenet",), 40)
    values = TINY | {"train_images": None, "epochs": 1000, "eval_every": 0, "batch_size": 20}
    streamed = {"dataset": "imagenet", "image_size": 32, "device": "cpu", "data_dir": str(tmp_path / "data")}
    profile(tmp_path, arms=["gap_fc"], seeds=[0, 1], **values, **streamed)
    process = shell(tmp_path, "--workers", "1")
    under_way(tmp_path / "results" / "tiny", process)
    workers = workers_of(process.pid)
    decoders = [pid for worker in workers for pid in children(worker)]
    assert len(workers) == 2 <= len(decoders)
    process.send_signal(how)
    process.communicate(timeout=LONG)
    assert gone([*workers, *decoders], 100)
