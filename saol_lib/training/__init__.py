"""Runs: their configuration, the training loop, studies, files and checkpoints."""

from saol_lib.training.checkpoints import in_training, load_checkpoint
from saol_lib.training.config import ARMS, RunConfig, finetuning, grid
from saol_lib.training.files import REPOSITORY, RESULTS, ROOT, resolve, write_json, write_whole
from saol_lib.training.loop import Busy, Interrupted, NotANumber, evaluate, summarise, train
from saol_lib.training.profiles import notebook_runs, read_changes, read_runs, read_yaml, settings, study_configs
from saol_lib.training.recipe import batches, load_model, mix_batch, new_model
from saol_lib.training.runs import (
    OtherData,
    Run,
    finished_run,
    load_run,
    load_runs,
    run_id,
    save_run,
    setting,
    started_from,
)
from saol_lib.training.study import run_stages, run_study

__all__ = [
    "ARMS",
    "REPOSITORY",
    "RESULTS",
    "ROOT",
    "Busy",
    "Interrupted",
    "NotANumber",
    "OtherData",
    "Run",
    "RunConfig",
    "batches",
    "evaluate",
    "finetuning",
    "finished_run",
    "grid",
    "in_training",
    "load_checkpoint",
    "load_model",
    "load_run",
    "load_runs",
    "mix_batch",
    "new_model",
    "notebook_runs",
    "read_changes",
    "read_runs",
    "read_yaml",
    "resolve",
    "run_id",
    "run_stages",
    "run_study",
    "save_run",
    "setting",
    "settings",
    "started_from",
    "study_configs",
    "summarise",
    "train",
    "write_json",
    "write_whole",
]
