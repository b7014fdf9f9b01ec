"""One run has one identity and one set of numbers, wherever it is asked for."""

import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import run as notebooks
import torch
from gate import NOTEBOOKS
from processes import ENVIRONMENT

from saol_lib.training import RunConfig, load_runs, run_id, run_study, train, workers

VALUES = {
    "dataset": "digits",
    "train_images": 200,
    "backbone": "resnet-8-8",
    "epochs": 1,
    "batch_size": 40,
    "lr": 0.05,
    "schedule": "cosine",
    "weight_decay": 1e-4,
    "eval_every": 1,
}
ARM = "saol_sd"
CONFIG = RunConfig(arm=ARM, **VALUES)
OTHERWISE = {"milestones": [], "decay": "kernels", "clip_norm": None, "autocast": "none"}  # than in cifar10-wrn40
pytestmark = pytest.mark.timeout(900)  # a busy machine takes minutes to start a few processes


def by_python(results):
    train(CONFIG, results, progress=False)


def by_threads(results):
    with ThreadPoolExecutor(2) as executor:
        run_study([CONFIG], results, executor, progress=False)


def by_processes(results):
    with ProcessPoolExecutor(1, workers.worker_context(), torch.set_num_threads, (1,)) as executor:
        run_study([CONFIG], results, executor, progress=False)


def by_dask(results):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        run_study([CONFIG], results, client.get_executor(), progress=False)


def by_study_from_a_shell(results):
    settings = VALUES | OTHERWISE | {"arms": [ARM], "seeds": [0]}
    command = ["-m", "saol_lib.training", "study", "--profile", "paper", "--only", "cifar10-wrn40"]
    command += ["--results", str(results)]
    for name, value in settings.items():
        command += ["--set", f"{name}={json.dumps(value)}"]
    shell([sys.executable, *command])


def by_torchrun(results):
    results.mkdir(parents=True)
    path = results / "config.json"
    path.write_text(json.dumps(VALUES | {"arm": ARM}))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    shell([sys.executable, *launcher, "-m", "saol_lib.training", str(path), str(results)])


def by_papermill(results):
    parameters = VALUES | {"profile": "mini", "results": str(results), "arms": ["gap_fc", ARM], "seeds": [0]}
    failure = notebooks.run(NOTEBOOKS / "01_cifar_training.ipynb", parameters, results / "01_cifar_training.ipynb")
    assert failure is None or "better than chance" in failure[1], failure  # five steps teach nothing


def shell(command):
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    results = tmp_path_factory.mktemp("here")
    by_python(results)
    (run,) = load_runs(results)
    return run


SLOW = [by_processes, by_dask, by_study_from_a_shell, by_torchrun, by_papermill]


@pytest.mark.parametrize("way", [by_threads, *(pytest.param(way, marks=pytest.mark.faults) for way in SLOW)])
def test_every_way_gives_the_same_run(here, tmp_path, way):
    """By id and config; where nothing but the way is another, also by its numbers."""
    results = tmp_path / "results"
    way(results)
    (run,) = (run for run in load_runs(results) if run.config["arm"] == ARM)
    assert run.id == here.id == run_id(CONFIG.identity()) and run.config == here.config
    if way is not by_torchrun:  # two processes round otherwise; equal in float64, see test_distributed
        assert (run.metrics, run.epochs) == (here.metrics, here.epochs)
