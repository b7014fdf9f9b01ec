"""A stranger's path: miniatures of the public data in their own layouts, the paper's two commands: run, row, figure."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from saol_lib.evidence import made_data
from saol_lib.evidence.tables import runs_tables
from saol_lib.training.runs import ROOT, load_runs

COMMANDS = {"study": ["-m", "saol_lib.training", "study"], "replicate": ["notebooks/run.py", "replicate"]}


@pytest.mark.parametrize("target", COMMANDS)
def test_make_takes_the_first_try_of_the_profiles_page_to_these_commands(target):
    """As the page writes it; the tests below give the same words to what make calls."""
    lines = (ROOT / "notebooks/profiles/README.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"make {target} ") and "RESULTS=results/own" in line]
    words = [*shlex.split(line, comments=True), "-n", "--no-print-directory", f"VENV={sys.prefix}"]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()[-1]
    called = shlex.split(re.sub(r"^@", "", told))
    assert called[1 : 1 + len(COMMANDS[target])] == COMMANDS[target]
    given = "--profile paper --data DIR --only cifar10-wrn --set epochs=1 --set seeds=[0] --set arms=[saol]"
    assert called[1 + len(COMMANDS[target]) :] == [*given.split(), "--results", "results/own"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made_data.make_data(tmp_path_factory.mktemp("stranger"), ("cifar10", "imagenet", "cub"), each=4)


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("experiment", "settings", "runs", "numbers"),
    [
        ("cifar10-wrn40", ["batch_size=8"], 1, ["01"]),
        ("imagenet-resnet50", ["batch_size=4", "schedule=cosine", "milestones=[]"], 2, ["01"]),
        (
            "wsol-cub",
            ["batch_size=4", "pretrained=false", "continued={epochs: 1, lr: 0.001}"],
            6,  # both readings of L_SS1, in three stages
            ["02", "03"],
        ),
    ],
)
def test_the_two_commands_give_runs_rows_notebooks_and_figures(data, tmp_path, experiment, settings, runs, numbers):
    results = tmp_path / "results" / "paper"
    words = ["--profile", "paper", "--data", str(data), "--only", experiment, "--results", str(results)]
    for setting in [*settings, "epochs=1", "seeds=[0]", "arms=[saol_cutmix_ss_sd]", "autocast=none"]:
        words += ["--set", setting]
    environment = os.environ | made_data.trusting(data) | {"OMP_NUM_THREADS": "1"}
    for command in COMMANDS.values():
        whole = [sys.executable, *command, *words]
        done = subprocess.run(whole, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    found = load_runs(results)
    assert len(found) == runs and {run.config["arm"] for run in found} == {"saol_cutmix_ss_sd"}
    rows = [line for line in runs_tables("paper", tmp_path / "results").splitlines() if "saol_cutmix_ss_sd" in line]
    assert len(rows) >= 2, "one for each output layer"
    copies = {path.name for path in results.glob("*.ipynb")}
    assert copies == {f"{number}_{experiment}.ipynb" for number in numbers}
    for number in numbers:
        drawn = (results / "figures").glob(f"{number}_*_{experiment}.*")
        assert {path.suffix for path in drawn} == {".svg", ".png"}, number
