"""A stranger's path: miniatures of the public data in their own layouts, one paper command each: run, row, figure."""

import os
import subprocess
import sys

import pytest

from saol_lib.evidence import figures, made_data
from saol_lib.evidence.tables import runs_tables
from saol_lib.training.runs import ROOT, load_runs

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
TRUSTING = """
import pathlib
from saol_lib.evidence import made_data
made_data.trust(pathlib.Path({folder!r}))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The miniatures, and a start-up file by which every process takes the made CIFAR for torchvision's."""
    folder = made_data.make_data(tmp_path_factory.mktemp("stranger"), ("cifar10", "imagenet", "cub"), each=4)
    (folder / "start").mkdir()
    (folder / "start" / "sitecustomize.py").write_text(TRUSTING.format(folder=str(folder)))
    return folder


@pytest.mark.parametrize(
    ("experiment", "settings"),
    [
        ("cifar10-wrn40", ["batch_size=8"]),
        ("imagenet-resnet50", ["batch_size=4"]),
        ("wsol-cub", ["batch_size=4", "pretrained=false", "continued={epochs: 1, lr: 0.001}"]),
    ],
)
def test_one_command_gives_a_run_a_row_and_a_figure(data, tmp_path, experiment, settings):
    settings = [*settings, "epochs=1", "seeds=[0]", "arms=[saol_cutmix_ss_sd]", "autocast=none", "milestones=[]"]
    if experiment.startswith("imagenet"):
        settings.append("schedule=cosine")
    results = tmp_path / "results" / "paper"
    command = ["-m", "saol_lib.training", "study", "--profile", "paper", "--only", experiment]
    command += ["--data", str(data), "--results", str(results)]
    command += [word for setting in settings for word in ("--set", setting)]
    environment = os.environ | {"PYTHONPATH": f"{data / 'start'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

    runs = load_runs(results)
    count = {"cifar10-wrn40": 1, "imagenet-resnet50": 2, "wsol-cub": 6}[experiment]  # both readings, in three stages
    assert len(runs) == count and {run.config["arm"] for run in runs} == {"saol_cutmix_ss_sd"}
    rows = [line for line in runs_tables("paper", tmp_path / "results").splitlines() if "saol_cutmix_ss_sd" in line]
    assert len(rows) >= 2, "one for each output layer"

    figures.save(figures.curves(runs), results, "curves")
    assert {path.suffix for path in (results / "figures").glob("curves.*")} == {".svg", ".png"}
