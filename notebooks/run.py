"""Run, refresh and check the notebooks: `python notebooks/run.py replicate|refresh|check`.

A *run* notebook has a cell tagged `parameters`, whose literal defaults are the quick profile; any other profile is a
YAML file of values for that cell, `notebooks/profiles/<profile>/NN.yaml`. A *report* notebook has no such cell and runs
in every profile.
"""

import argparse
import ast
import json
import re
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbstripout import strip_output

from saol_lib.training.runs import setting

ROOT = Path(__file__).parents[1]
NOTEBOOKS, RESULTS = ROOT / "notebooks", ROOT / "results"
MAX_BYTES, MAX_LINES, MAX_FUNCTION = 500_000, 15, 5
UNSTABLE = [f"metadata.{key}" for key in ("widgets", "papermill", "signature", "language_info.version")]
UNSTABLE += [f"cell.metadata.{key}" for key in ("papermill", "execution", "ExecuteTime", "collapsed", "scrolled")]
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:home|root|work|Users|tmp|opt|usr|var|mnt|srv|content)/|\b[A-Z]:\\+Users\b")


def read(path):
    return nbformat.read(path, as_version=4)


def parameter_names(notebook):
    """Names that the cell tagged `parameters` assigns, or None if the notebook has no such cell."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            names = (node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name))
            return {name.id for name in names if isinstance(name.ctx, ast.Store)}
    return None


def profile_values(path, names):
    """The values of one profile file; ValueError for a key that the notebook's `parameters` cell does not have."""
    values, where = yaml.safe_load(path.read_text()) or {}, f"profile file {path.parent.name}/{path.name}"
    if not isinstance(values, dict):
        raise ValueError(f"{where} holds one {type(values).__name__}: expected lines of `name: value`")
    if unknown := sorted(set(values) - set(names or ())):
        raise ValueError(f"{where} has unknown {', '.join(unknown)}: its notebook knows {sorted(names or ())}")
    return values


def plan(profile, folder=NOTEBOOKS, data=None, only=None):
    """{notebook: its parameters, or None where the profile leaves it out}, all checked before anything runs.

    Raises ValueError (unknown profile, key, number) or FileNotFoundError (data directory).
    """
    known = sorted({"quick", *(path.name for path in folder.glob("profiles/*"))})
    if profile not in known:
        raise ValueError(f"unknown profile {profile!r}: expected one of {', '.join(known)}")
    if data and not Path(data).is_dir():
        raise FileNotFoundError(f"data directory {str(data)!r} does not exist: give the folder that holds the data set")
    paths = sorted(folder.glob(f"{only or '[0-9][0-9]'}_*.ipynb"))
    if not paths:
        raise ValueError(f"no notebook {only or 'NN'}_*.ipynb: expected two digits, as in 01")
    return {path: _parameters(path, profile, data) for path in paths}


def _parameters(path, profile, data):
    names, file = parameter_names(read(path)), path.parent / "profiles" / profile / f"{path.name[:2]}.yaml"
    if not file.exists() and names is not None and profile != "quick":
        return None
    values = profile_values(file, names) if file.exists() else {}
    return values | ({"data_dir": str(Path(data).resolve())} if data and "data_dir" in (names or ()) else {})


def normalise(notebook, outputs=True):
    """Take out of a notebook, in place, what differs between two equal runs; with outputs=False all outputs as well."""
    return strip_output(notebook, keep_output=outputs, keep_count=outputs, keep_id=True, extra_keys=UNSTABLE)


def run(path, parameters, output):
    """Execute one notebook by papermill into `output`, normalised; return None, or (cell, error) where it failed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    options = {"cwd": path.parent, "kernel_name": "python3", "progress_bar": False, "coalesce_streams": True}
    try:
        papermill.execute_notebook(path, output, parameters, **options)
        return None
    except papermill.PapermillExecutionError as error:
        return f"[{error.exec_count}] {_line(error.source)}", f"{error.ename}: {_line(error.evalue)}"
    except Exception as error:  # a dead kernel or a time-out must not keep the other notebooks from running
        cells = read(output).cells if output.exists() else []
        begun = [cell.source for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
        return _line(begun[-1] if begun else "none"), f"{type(error).__name__}: {_line(str(error))}"
    finally:
        if output.exists():
            notebook = normalise(read(output))
            for cell in notebook.cells:  # where the user keeps the data is nobody's business
                if "injected-parameters" in cell.metadata.get("tags", []) and "data_dir" in parameters:
                    cell.source = cell.source.replace(parameters["data_dir"], "DATA")
            nbformat.write(notebook, output)


def _line(text, length=160):
    return " ".join(text.split())[:length]


def _show(path):
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def replicate(profile, folder=NOTEBOOKS, results=RESULTS, data=None, only=None):
    """Run every numbered notebook in one profile and print a summary; return the number of notebooks that failed."""
    jobs, failures, lines, home = plan(profile, folder, data, only), [], [], results / profile
    for path, parameters in jobs.items():
        if parameters is None:
            lines.append(f"{path.name:30}  skipped: profiles/{profile} has no {path.name[:2]}.yaml")
            continue
        print(f"running {path.name}", flush=True)
        start, failure = time.perf_counter(), run(path, parameters, home / path.name)
        lines.append(f"{path.name:30} {time.perf_counter() - start:6.0f} s  {_show(home / path.name)}")
        failures += [(path.name, *failure)] if failure else []
    print(f"\nNotebooks, profile {profile}", *lines, f"Figures: {_show(home / 'figures')}", sep="\n")
    print(arms_table(home / "runs"), flush=True)
    for name, cell, error in failures:
        print(f"FAILED {name}\n  cell {cell}\n  {error}", file=sys.stderr)
    return len(failures)


def arms_table(folder):
    """Mean last-epoch accuracy of both output layers over the finished runs of a folder, as text.

    Runs share a line if only their seed differs; settings that differ within the folder are columns.
    """
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    runs = [run for run in runs if run["status"] == "finished"]
    if not runs:
        return "Arms: no finished run"
    config = pd.DataFrame([setting(run["config"]) for run in runs]).drop(columns="seed", errors="ignore").astype(str)
    by = ["arm", *(key for key in config if key != "arm" and config[key].nunique() > 1)]
    metrics = pd.DataFrame([run["metrics"] for run in runs]).reindex(columns=["top1_gap_last", "top1_saol_last"])
    groups = config[by].join(metrics).groupby(by, sort=False, dropna=False)
    table = groups.mean().round(2).assign(runs=groups.size()).reset_index()
    return "Arms: mean top-1 of the last epoch, percent\n" + table.to_string(index=False, na_rep="-")


def refresh(paths):
    """Execute notebooks in place, in their own folder, and normalise them; one that fails stays as it was."""
    options = {"timeout": 900, "store_widget_state": False, "record_timing": False, "coalesce_streams": True}
    for path in paths:
        notebook, is_app, draft = read(path), not path.name[:2].isdigit(), path.with_suffix(".tmp")
        print(f"refreshing {path.name}", flush=True)
        if not is_app:
            NotebookClient(notebook, kernel_name="python3", **options).execute(cwd=str(path.parent.resolve()))
        nbformat.write(normalise(notebook, outputs=not is_app), draft)
        draft.replace(path)


def _output_problems(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    if (counts := [cell.execution_count for cell in code]) != list(range(1, len(code) + 1)):
        yield f"execution counts are {counts}, not 1..{len(code)}"
    for count, output in ((cell.execution_count, output) for cell in code for output in cell.outputs):
        data = output.get("data", {})
        text = "".join([output.get("text", ""), *(data[key] for key in data if key.startswith("text/"))])
        if output.output_type == "error":
            yield f"cell [{count}] ends in {output.ename}"
        if output.get("name") == "stderr":
            yield f"cell [{count}] writes to stderr: {_line(text, 60)}"
        if "application/vnd.jupyter.widget-view+json" in data:
            yield f"cell [{count}] holds a widget, which is never twice the same"
        if path := ABSOLUTE.search(text):
            yield f"cell [{count}] shows an absolute path: {_line(text[path.start() :], 60)}"


def _style_problems(notebook):
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        is_list = "parameters" in cell.metadata.get("tags", [])  # one line a parameter, however many
        if (lines := len(cell.source.splitlines())) > MAX_LINES and not is_list:
            yield f"code cell {number} has {lines} lines: at most {MAX_LINES}"
        for node in ast.walk(ast.parse(TransformerManager().transform_cell(cell.source))):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(node, ast.ClassDef) or (is_function and node.end_lineno - node.lineno >= MAX_FUNCTION):
                yield f"code cell {number}: {node.name} belongs in the library (a class, or over {MAX_FUNCTION} lines)"


def problems(path, style=True):
    """What keeps a notebook from being committed, a sentence each; style=False for an executed copy."""
    notebook, is_app = read(path), not path.name[:2].isdigit()
    found = [*(_style_problems(notebook) if style else ()), *(() if is_app else _output_problems(notebook))]
    if (kernel := notebook.metadata.get("kernelspec", {}).get("name")) != "python3":
        found.append(f"kernelspec is {kernel!r}, not 'python3'")
    if (size := path.stat().st_size) > MAX_BYTES:
        found.append(f"has {size} bytes: at most {MAX_BYTES}")
    if style and re.match(r"0[1-6]_", path.name) and parameter_names(notebook) is None:
        found.append("is a run notebook without a cell tagged `parameters`")
    if path.read_text().strip() != nbformat.writes(normalise(notebook, outputs=not is_app)).strip():
        found.append("is not normalised: run make refresh")
    return [f"{_show(path)}: {line}" for line in found]


def check(folder=NOTEBOOKS, results=RESULTS):
    """Every problem of the notebooks, of their executed copies and of the profile files, a sentence each."""
    found = [line for path in sorted(folder.glob("*.ipynb")) for line in problems(path)]
    copies = [path for path in sorted(results.glob("*/[0-9]*.ipynb")) if path.parent.name != "quick"]
    found += [line for path in copies for line in problems(path, style=False)]
    for file in sorted(folder.glob("profiles/*/*.yaml")):
        notebooks = [read(path) for path in folder.glob(f"{file.stem}_*.ipynb")]
        try:
            profile_values(file, parameter_names(notebooks[0]) if notebooks else None)
        except ValueError as error:
            found.append(str(error))
    return found


def main(argv=None):
    """Exit code 0; 1 where a notebook failed or is not fit to commit, 2 for a request that cannot be met."""
    parser = argparse.ArgumentParser(prog="python notebooks/run.py", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["replicate", "refresh", "check"])
    parser.add_argument("notebooks", nargs="*", type=Path, help="for refresh: these only")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--data", help="for replicate: the folder of a data set of your own")
    parser.add_argument("--only", help="for replicate: the number of the one notebook to run, such as 01")
    options = parser.parse_args(argv)
    try:
        if options.command == "replicate":
            return int(replicate(options.profile, data=options.data, only=options.only) > 0)
        if options.command == "refresh":
            return refresh(options.notebooks or sorted(NOTEBOOKS.glob("*.ipynb")))
        found = check()
    except CellExecutionError as error:
        parser.exit(1, f"{error.ename}: {_line(error.evalue)}\n")
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{error}\n")
    print(*found, sep="\n", end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
