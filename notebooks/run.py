"""Run, refresh and check the notebooks: `python notebooks/run.py replicate|refresh|check|alone`.

A *run* notebook has a cell tagged `parameters`, whose literal defaults are the quick profile; any other profile is a
YAML file of values for that cell, `notebooks/profiles/<profile>/NN.yaml`; a list of experiments there means a copy for
each. A *report* notebook has no such cell and runs in every profile. Nothing is removed or replaced before a request is
accepted and its result is there.
"""

import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import nbformat
import papermill
import psutil
from filelock import FileLock, Timeout
from gate import NOTEBOOKS, RESULTS, check, defaults, normalise, one_line, profile_values, read, show
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from saol_lib.evidence import summary
from saol_lib.training import in_training, load_runs, notebook_runs, read_changes, resolve, study_configs
from saol_lib.training.runs import load_finished, run_id, source_hash

QUICK = "quick"
LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")  # ](file#place), no web address


class Occupied(RuntimeError):
    """Somebody else works in the results folder."""


# --- what a request means --------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """A notebook to run."""

    path: Path
    parameters: dict | None  # None: the profile leaves it out
    copy: str  # the name of its executed copy


def plan(profile, folder=NOTEBOOKS, data=None, only=None, given=None):
    """The jobs of a request, all checked before anything runs.

    only: a notebook's two digits, or the name of an experiment. given: values that take the place of the profile's.
    Of them `changes` are settings of an experiment's runs, or parameters of the one notebook that `only` names.
    Raises ValueError (unknown profile, key, number or experiment) or FileNotFoundError (data directory).
    """
    known = sorted({QUICK, *(path.name for path in folder.glob("profiles/*"))})
    if profile not in known:
        raise ValueError(f"unknown profile {profile!r}: expected one of {', '.join(known)}")
    if data and not Path(data).is_dir():
        raise FileNotFoundError(f"data directory {str(data)!r} does not exist: give the folder that holds the data set")

    given = dict(given or {})
    if data:
        given["data_dir"] = str(Path(data).resolve())
    is_number = only is not None and only[:1].isdigit()
    paths = sorted(folder.glob(f"{only if is_number else '[0-9][0-9]'}_*.ipynb"))
    if not paths:
        raise ValueError(f"no notebook {only or 'NN'}_*.ipynb: expected two digits, as in 01")
    own = given.get("changes", {}) if is_number else {}
    jobs = [job for path in paths for job in _jobs(path, profile, given, own)]
    if only is None or is_number:
        return jobs

    shown = {experiment_of(job): job for job in jobs if experiment_of(job)}
    if only not in shown:
        told = f"choose one of {', '.join(sorted(shown))}" if shown else f"profile {profile!r} shows none by its name"
        raise ValueError(f"no notebook {only!r}, and no experiment: {told}")
    return [job for job in jobs if experiment_of(job) == only]


def _jobs(path, profile, given, own):
    """One job of a notebook; where its profile names a list of experiments, one for each.

    own: changes of the notebook's own parameters, where it shows no experiments.
    """
    known = defaults(read(path))
    file = profile_file(path, profile)
    if not file.exists() and known is not None and profile != QUICK:
        return [Job(path, None, path.name)]

    values = profile_values(file, known) if file.exists() else {}
    values |= {name: value for name, value in given.items() if name in (known or {}) and name != "changes"}
    if not isinstance(values.get("experiment"), list):
        return [Job(path, values | _parameters(path, own, known), path.name)]

    values["changes"] = values.get("changes", {}) | given.get("changes", {})
    jobs = []
    for experiment in values["experiment"]:
        jobs.append(Job(path, values | {"experiment": experiment}, f"{path.name[:2]}_{experiment}.ipynb"))
    return jobs


def _parameters(path, changes, known):
    """The changes of a notebook's own parameters; ValueError for a name that is none."""
    unknown = sorted(set(changes) - set(known or {}))
    if unknown:
        raise ValueError(
            f"{path.name} has no parameter {', '.join(unknown)}: it knows {', '.join(sorted(known or {}))}"
        )
    return changes


def experiment_of(job):
    return (job.parameters or {}).get("experiment")


def runs_of(job, profile):
    """The configurations of a job's own runs: those of its profile file, or of its experiment."""
    experiment = experiment_of(job)
    if experiment:
        return study_configs(profile, only=experiment, changes=job.parameters["changes"])[0]
    return notebook_runs(profile_file(job.path, profile))[0]


def finished(configs, home):
    """How many of these runs are finished in a results folder."""
    return sum(load_finished(home, run_id(config.identity())) is not None for config in configs)


def profile_file(path, profile):
    return path.parent / "profiles" / profile / f"{path.name[:2]}.yaml"


def is_only_shown(job, profile, home):
    """Whether there is nothing to do: an executed copy, all its runs finished, and no data to make it anew.

    A forgotten DATA must not cost a copy that shows more than could be made without the data.
    """
    has_file = profile_file(job.path, profile).exists()
    if not (home / job.copy).exists() or not has_file or job.parameters.get("data_dir"):
        return False
    configs = runs_of(job, profile)
    if not configs or configs[0].dataset == "digits":
        return False
    return finished(configs, home) == len(configs)


# --- one notebook ----------------------------------------------------------------------------------------------------


def run(path, parameters, output):
    """Execute one notebook by papermill into `output`, normalised; return None, or (cell, error) where it failed.

    An earlier `output` is replaced by one that succeeded, and by no other: what failed is left in `failed/` beside it.
    """
    draft = output.parent / "failed" / output.name
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.unlink(missing_ok=True)

    failure = _execute(path, parameters, draft)
    if draft.exists():
        _tidy(draft, parameters, path.parent, output.parent)
    if failure is None:
        draft.replace(output)
    if not any(draft.parent.iterdir()):
        draft.parent.rmdir()
    return failure


def _execute(path, parameters, draft):
    options = {"cwd": path.parent, "kernel_name": "python3", "progress_bar": False, "coalesce_streams": True}
    options["start_timeout"] = 600  # seconds: a busy machine needs more than a minute to start a kernel
    try:
        with _stoppable() as submit:
            submit(papermill.execute_notebook, path, draft, parameters, **options).result()
        return None
    except papermill.PapermillExecutionError as error:
        return f"[{error.exec_count}] {one_line(error.source)}", f"{error.ename}: {one_line(error.evalue)}"
    except Exception as error:  # a dead kernel or a time-out must not keep the other notebooks from running
        cells = read(draft).cells if draft.exists() else []
        begun = [cell.source for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
        return one_line(begun[-1] if begun else "none"), f"{type(error).__name__}: {one_line(str(error))}"


@contextmanager
def _stoppable():
    """Run something in a thread, so that Ctrl-C reaches us: nbclient's own handler would call the kernel dead."""
    with ThreadPoolExecutor(1) as thread:
        before = psutil.Process().children()
        try:
            yield thread.submit
        except KeyboardInterrupt:
            for kernel in set(psutil.Process().children()).difference(before):
                kernel.terminate()  # its workers write checkpoints
            raise


def _tidy(path, parameters, written_in, read_in):
    """Normalise an executed notebook, and let the folder of the user's data read DATA wherever it is shown.

    Its links were written in one folder and are followed from another.
    """
    notebook = normalise(read(path))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = relink(cell.source, written_in, read_in)
        for output in cell.get("outputs", ()):
            shown = output.get("data", {})
            if "text/markdown" in shown:
                shown["text/markdown"] = relink(shown["text/markdown"], written_in, read_in)
    text = nbformat.writes(notebook)
    folder = parameters.get("data_dir")
    if folder:
        text = hide(text, folder)
    path.write_text(text + "\n", encoding="utf-8")


def relink(markdown, written_in, read_in):
    """Markdown whose links to files, relative to the folder that it was written in, lead there from another one."""

    def moved(found):
        target, place = found[1], found[2] or ""
        file = written_in / target
        if not file.exists():
            return found[0]
        return f"]({Path(os.path.relpath(file, read_in)).as_posix()}{place})"

    return LINK.sub(moved, markdown)


def hide(text, folder):
    """A notebook's JSON with DATA for a folder, however it is spelled: as it is, escaped by papermill, repr or HTML."""
    spelled = {folder, folder.encode("unicode_escape").decode(), json.dumps(folder)[1:-1], html.escape(folder)}
    spelled |= {repr(folder)[1:-1], ascii(folder)[1:-1]}
    in_json = {json.dumps(form, ensure_ascii=False)[1:-1] for form in spelled}
    for form in sorted(in_json, key=len, reverse=True):
        text = text.replace(form, "DATA")
    return text


# --- the quick profile's folder --------------------------------------------------------------------------------------


@contextmanager
def alone(home):
    """Work in the quick profile's folder while nobody else does; Occupied where somebody does."""
    home.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home.parent / f".{home.name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise Occupied(f"another make works in {show(home)}; wait for it or stop it: nothing was removed") from None
    try:
        busy = in_training(home)
        if busy:
            raise Occupied(f"run {busy[0]} is being trained in {show(home)}; wait for it: nothing was removed")
        yield
    finally:
        lock.release()


def empty(home, go_on=False):
    """Empty the quick profile's folder. go_on: not if an interrupted replication of the same sources is there."""
    unfinished = home / ".unfinished"
    if go_on and unfinished.exists() and unfinished.read_text() == source_hash():
        print(f"going on with the interrupted runs in {show(home)}", flush=True)
        return
    if home.exists():
        shutil.rmtree(home)


@contextmanager
def _prepared(home):
    """The results folder of a replication: the quick profile's is emptied first, unless it was interrupted."""
    if home.name != QUICK:
        yield
        return
    with alone(home):
        empty(home, go_on=True)
        home.mkdir(parents=True, exist_ok=True)
        (home / ".unfinished").write_text(source_hash())
        yield
        (home / ".unfinished").unlink(missing_ok=True)


# --- the commands ----------------------------------------------------------------------------------------------------


def replicate(profile, folder=NOTEBOOKS, results=RESULTS, data=None, only=None, given=None):
    """Run every numbered notebook in one profile and print a summary; return the number of notebooks that failed.

    given: see `plan`; its "results" is the folder where the copies go, <results>/<profile> without it.
    """
    jobs = plan(profile, folder, data, only, given)
    home = resolve((given or {}).get("results") or results / profile)
    lines, failures = [], []
    with _prepared(home):
        for job in jobs:
            line, failure = _replicate_one(job, profile, home)
            lines.append(f"{job.copy:30} {line}")
            if failure:
                failures.append((job.copy, *failure))

    print(f"\nNotebooks, profile {profile}", *lines, f"Figures: {show(home / 'figures')}", sep="\n")
    print(summary(load_runs(home.resolve())), flush=True)
    for name, cell, error in failures:
        kept = show(home / "failed" / name)
        print(f"FAILED {name}\n  cell {cell}\n  {error}\n  executed as far as that: {kept}", file=sys.stderr)
    return len(failures)


def _replicate_one(job, profile, home):
    """(what the summary says of it, None or its failure)."""
    copy = home / job.copy
    if job.parameters is None:
        return f" skipped: profiles/{profile} has no {job.path.name[:2]}.yaml", None
    if is_only_shown(job, profile, home):
        return f" {show(copy)} is shown as it is: its runs are finished, and DATA is not given", None
    experiment = experiment_of(job)
    if experiment and not finished(runs_of(job, profile), home):
        return f" skipped: no run of it is finished; make study PROFILE={profile} ONLY={experiment} trains them", None

    print(f"running {job.copy}", flush=True)
    start = time.perf_counter()
    failure = run(job.path, job.parameters, copy)
    seconds = time.perf_counter() - start
    if failure is None:
        return f"{seconds:6.0f} s  {show(copy)}", None
    return f"{seconds:6.0f} s  failed; an earlier copy stays as it was", failure


def refresh(paths, results=RESULTS):
    """Execute notebooks in place, in their own folder, and normalise them; one that fails stays as it was."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"no notebook {missing[0]}: give files of notebooks/")

    with alone(results / QUICK):
        empty(results / QUICK)
        for path in paths:
            print(f"refreshing {path.name}", flush=True)
            _refresh_one(path)


def _refresh_one(path):
    notebook = read(path)
    is_app = not path.name[:2].isdigit()
    if not is_app:
        options = {"timeout": 900, "store_widget_state": False, "record_timing": False, "coalesce_streams": True}
        client = NotebookClient(notebook, kernel_name="python3", **options)
        client.execute(cwd=str(path.parent.resolve()))

    draft = path.with_suffix(".tmp")
    nbformat.write(normalise(notebook, outputs=not is_app), draft)
    draft.replace(path)


def run_alone(command, results=RESULTS):
    """Empty the quick profile's folder and run a command while nobody else works there; its exit code."""
    if not command:
        raise ValueError("alone needs a command to run, as in: alone python -m pytest")
    with alone(results / QUICK):
        empty(results / QUICK)
        return subprocess.run(command).returncode


def main(argv=None):
    """Exit code 0; 1 where a notebook failed or is not fit to commit, 2 for a request that cannot be met."""
    parser = argparse.ArgumentParser(prog="python notebooks/run.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    replicating = commands.add_parser("replicate", help="run every numbered notebook in one profile")
    replicating.add_argument("--profile", default=QUICK)
    replicating.add_argument("--data", help="the folder of a data set of your own")
    replicating.add_argument("--only", help="one notebook's number, such as 01, or one experiment of the profile")
    replicating.add_argument("--results", help="another results folder than results/PROFILE")
    replicating.add_argument("--workers", type=int, help="processes that decode images")
    replicating.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what --only names takes instead",
    )
    refreshing = commands.add_parser("refresh", help="execute notebooks in place, quick profile")
    refreshing.add_argument("notebooks", nargs="*", type=Path, help="these only")
    commands.add_parser("check", help="say what keeps notebooks and profiles from being committed")
    running = commands.add_parser("alone", help="run a command that uses the quick profile's folder, emptied")
    running.add_argument("words", nargs=argparse.REMAINDER, metavar="command")

    options = parser.parse_args(argv)
    try:
        return _run_command(options)
    except CellExecutionError as error:
        parser.exit(1, f"{error.ename}: {one_line(error.evalue)}\n")
    except (ValueError, OSError, Occupied) as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on: finished runs and epochs are kept\n")


def _given(options):
    """What the options say in place of the profile; ValueError for a setting that is none."""
    changes = read_changes(options.set)
    if changes and options.only is None:
        raise ValueError("SET changes one experiment or one notebook: name it, as in ONLY=cifar10-wrn or ONLY=02")

    given = {"results": options.results, "workers": options.workers, "changes": changes}
    return {name: value for name, value in given.items() if value}


def _run_command(options):
    if options.command == "replicate":
        given = _given(options)
        return int(replicate(options.profile, data=options.data, only=options.only, given=given) > 0)
    if options.command == "refresh":
        return refresh(options.notebooks or sorted(NOTEBOOKS.glob("*.ipynb")))
    if options.command == "alone":
        return run_alone(options.words)

    found = check()
    for line in found:
        print(line)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
