"""Trainings in processes of their own, as a user starts them from a shell."""

import json
import os
import subprocess
import sys

from saol_lib.training.files import ROOT

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def launch(folder, config, *before):
    """`python -m saol_lib.training` of a config's file in `folder`, into results/ beside it.

    before: what stands before the -m, a launcher of several processes say. What it prints is read from its pipes.
    """
    folder.mkdir(exist_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps(config.identity()))
    words = [*before, "-m", "saol_lib.training", str(file), str(folder / "results")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-u", *words], env=ENVIRONMENT, **pipes)
