"""Fault injection: processes killed at random moments, full and read-only disks. make test-faults runs the long."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ENVIRONMENT, launch

from saol_lib.training import RunConfig, load_checkpoint, load_runs, run_id, train

TINY = {"train_images": 200, "epochs": 2, "backbone": "resnet-8-8", "batch_size": 40, "lr": 0.05}
pytestmark = pytest.mark.timeout(900)  # a busy machine takes minutes to start a few processes
ALL = "saol_cutmix_ss_sd"

STORM = """
import json, mmap, os, random, signal, sys, time
from pathlib import Path
import torch
from saol_lib.training import files, runs
from saol_lib.training import loop as training
from saol_lib.training.config import RunConfig
from saol_lib.training.recipe import new_model
from saol_lib.data import load

config, folder, wanted = RunConfig(**json.loads(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
dataset = load("digits")
small = dataset._replace(test=dataset.test.subset(torch.arange(100)))
training.load = lambda name, data_dir, **options: small
new_model(config)  # what is read once a process need not be read in every child
inside = mmap.mmap(-1, 1)  # shared with the children: 1 while one of them writes a file
write, fsync, generator = files.write_whole, os.fsync, random.Random(11)


def watched(*args):
    inside[0] = 1
    write(*args)
    inside[0] = 0


def slow_fsync(number):
    fsync(number)
    time.sleep(0.3)


def start(results, slow):
    if child := os.fork():
        return child
    try:
        torch.set_num_threads(1)  # not before the fork: torch's pool of threads does not survive one
        files.write_whole, os.fsync = watched, slow_fsync if slow else fsync
        training.train(config, results, progress=False)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def outcome(results):
    run = runs.load_run(next((results / "runs").glob("*.json")))
    return json.dumps([run.config, run.metrics, run.epochs, run.status])


def wait(child, seconds, until_it_writes=False):
    "The child's exit code, or None if it still runs after some seconds, and perhaps until it writes a file."
    end = time.monotonic() + seconds
    while time.monotonic() < end or until_it_writes and not inside[0]:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)


began = time.monotonic()
assert wait(start(folder / "whole", False), 300) == 0
length, whole = time.monotonic() - began, outcome(folder / "whole")
kills, writing, equal, codes = 0, 0, [], set()
while kills < wanted or len(equal) == 0:
    results = folder / str(len(equal))
    inside[0] = 0
    child = start(results, slow=kills % 3 > 0)
    if kills < wanted:
        code = wait(child, generator.uniform(0, length), until_it_writes=kills % 3 == 1)
    else:
        code = wait(child, 300)
    if code is None:
        writing += inside[0]
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
    else:
        codes.add(code)
        equal.append(outcome(results) == whole)
print(json.dumps({"kills": kills, "writing": writing, "equal": equal, "codes": sorted(codes), "seconds": length}))
"""


def storm(folder, kills):
    config = RunConfig(arm=ALL, **TINY | {"epochs": 8, "eval_every": 2})
    values = json.dumps(config.identity())
    done = subprocess.run(
        [sys.executable, "-c", STORM, values, str(folder), str(kills)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["kills"] == kills and found["codes"] == [0] and found["equal"] and all(found["equal"]), (
        found,
        done.stderr,
    )
    return found


def test_killed_at_some_moments_and_continued(tmp_path):
    storm(tmp_path, 4)


@pytest.mark.faults
def test_killed_at_thirty_moments_and_continued(tmp_path):
    """kill -9 over the whole length of a run, one of three times while a file is written: every number is the same."""
    found = storm(tmp_path, 30)
    assert found["writing"] >= 5, "too few of the kills came in the middle of writing a file"


def only_run(folder):
    (run,) = load_runs(folder / "results")
    return run.metrics, run.epochs


@pytest.mark.faults
def test_two_processes_started_at_once_on_one_run(tmp_path):
    config = RunConfig(arm="saol_sd", **TINY | {"train_images": None, "epochs": 6})
    both = [launch(tmp_path, config) for _ in range(2)]
    ended = {process.wait(timeout=800): process.communicate()[1] for process in both}
    assert set(ended) == {0, 1}
    assert re.fullmatch(r"run saol_sd-s0-\w{10} is being trained by another process; .*\n", ended[1])
    whole = train(config, tmp_path / "whole", progress=False)
    assert only_run(tmp_path) == (whole.metrics, whole.epochs)


@contextlib.contextmanager
def tmpfs(folder, options):
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.faults
@pytest.mark.parametrize("kilobytes", [40, 100, 160, 200, 260])
def test_a_disk_that_is_full(tmp_path, kilobytes):
    """Wherever the space ends: one sentence, and with room made the run ends in the numbers of one never stopped."""
    config = RunConfig(arm="saol_sd", **TINY | {"epochs": 4})
    results = tmp_path / "results"
    with tmpfs(results, f"size={kilobytes}k"):
        process = launch(tmp_path, config)
        _, errors = process.communicate(timeout=800)
        assert process.returncode == 1 and errors.count("\n") == 1 and "No space left on device" in errors
        kept = load_checkpoint(results / "checkpoints" / run_id(config.identity()))
        assert not list(results.glob("runs/*.json"))
        subprocess.run(["mount", "-o", "remount,size=9m", str(results)], check=True)
        trained = []
        original = train.__globals__["Trainer"].run
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                train.__globals__["Trainer"], "run", lambda self, p: (trained.append(self.start), original(self, p))[1]
            )
            run = train(config, results, progress=False)
        assert trained == [tuple(kept[1]["position"]) if kept else (0, 0)]
        assert only_run(tmp_path) == (run.metrics, run.epochs)
    whole = train(config, tmp_path / "whole", progress=False)
    assert (whole.metrics, whole.epochs) == (run.metrics, run.epochs)


@pytest.mark.faults
def test_a_read_only_results_folder(tmp_path):
    config = RunConfig(**TINY)
    results = tmp_path / "results"
    with tmpfs(results, "size=9m"):
        whole = train(config, results, progress=False)
        subprocess.run(["mount", "-o", "remount,ro", str(results)], check=True)
        assert train(config, results, progress=False) == whole  # what is finished can be read
        process = launch(tmp_path, RunConfig(seed=1, **TINY))
        _, errors = process.communicate(timeout=800)
        assert process.returncode == 1 and errors.count("\n") == 1 and "Read-only file system" in errors, errors
        assert load_runs(results) == [whole]


@pytest.mark.faults
def test_a_killed_process_of_two_and_the_run_continued(tmp_path):
    """Two processes, one is killed; started again, both go on and end in the numbers of a run never stopped."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    config = RunConfig(arm=ALL, **TINY | {"train_images": None, "epochs": 4})
    process = launch(tmp_path, config, *command)
    assert "epoch 1/4" in process.stdout.readline()
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(ranks[-1]), 9)
    process.communicate(timeout=800)
    assert process.returncode not in (0, None) and not (tmp_path / "results" / "runs").exists()
    (tmp_path / "whole").mkdir()
    for folder in (tmp_path, tmp_path / "whole"):
        process = launch(folder, config, *command)
        _, errors = process.communicate(timeout=800)
        assert process.returncode == 0, errors[-3000:]
    assert only_run(tmp_path) == only_run(tmp_path / "whole")
