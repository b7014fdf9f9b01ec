"""What keeps a notebook from being committed: style of its cells, what its outputs hold, and its profile files."""

import ast
import re
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbstripout import strip_output

from saol_lib.training.profiles import is_experiment, read_runs, read_yaml

ROOT = Path(__file__).parents[1]
NOTEBOOKS, RESULTS = ROOT / "notebooks", ROOT / "results"
MAX_BYTES, MAX_LINES, MAX_FUNCTION = 500_000, 15, 5

UNSTABLE = [f"metadata.{key}" for key in ("widgets", "papermill", "signature", "language_info.version")]
UNSTABLE += [f"cell.metadata.{key}" for key in ("papermill", "execution", "ExecuteTime", "collapsed", "scrolled")]

# A path from the root (two names at least), from a home folder, or from a drive of Windows, in letters of any language.
# A slash after a letter, a digit, a bracket or another slash divides words, fractions, tags and addresses.
ABSOLUTE = re.compile(
    r"(?<![\w.:/\\<>~)\]}*-])/\w[^\s/<>\"'|*?`]*/[^\s/<>\"'|*?`]"
    r"|(?<![\w/\\])~[\w.-]*[/\\]\w"
    r"|(?<!\w)[A-Za-z]:(?:\\+|/(?!/))\w"
)


def read(path):
    return nbformat.read(path, as_version=4)


def show(path):
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def one_line(text, length=160):
    return " ".join(text.split())[:length]


def normalise(notebook, outputs=True):
    """Take out of a notebook, in place, what differs between two equal runs; with outputs=False all outputs as well."""
    return strip_output(notebook, keep_output=outputs, keep_count=outputs, keep_id=True, extra_keys=UNSTABLE)


# --- parameters and profiles -----------------------------------------------------------------------------------------


def defaults(notebook):
    """{name: literal default} of the cell tagged `parameters`, or None if the notebook has no such cell."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            return dict(_assignments(ast.parse(cell.source)))
    return None


def _assignments(tree):
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and node.value is not None:
                yield target.id, _literal(node.value)


def _literal(node):
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def profile_values(path, known):
    """The values of one profile file; ValueError for a key that the notebook's `parameters` cell does not have.

    known: the cell's `defaults`. Where the default is a list, so must be the value.
    """
    known = known or {}
    where = f"profile file {path.parent.name}/{path.name}"
    values = read_yaml(path)

    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{where} has unknown {', '.join(unknown)}: its notebook knows {sorted(known)}")
    for name, value in values.items():
        if isinstance(known[name], list) and not isinstance(value, list):
            raise ValueError(f"{where}: {name}={value!r} must be a list, as in [{value}]")
    return values


def profile_problems(folder):
    """What is wrong with the profile files, a sentence each."""
    for path in sorted(folder.glob("profiles/*/*.yaml")):
        try:
            if not is_experiment(path):
                notebooks = [read(notebook) for notebook in folder.glob(f"{path.stem}_*.ipynb")]
                profile_values(path, defaults(notebooks[0]) if notebooks else None)
            read_runs(path)
        except (ValueError, FileNotFoundError) as error:  # a file of weights that a profile starts from
            yield str(error)


# --- notebooks -------------------------------------------------------------------------------------------------------


def shown_text(output):
    """All that an output shows as text."""
    data = output.get("data", {})
    parts = [data[kind] for kind in data if kind.startswith("text/")]
    traceback = "\n".join(output.get("traceback", []))
    return "\n".join([output.get("text", ""), output.get("evalue", ""), traceback, *parts])


def output_problems(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        yield f"execution counts are {counts}, not 1..{len(code)}"

    for cell in code:
        count = cell.execution_count
        if path := ABSOLUTE.search(cell.source):
            yield f"cell [{count}] names an absolute path: {one_line(cell.source[path.start() :], 60)}"
        for output in cell.outputs:
            yield from _problems_of_output(count, output)


def _problems_of_output(count, output):
    text = shown_text(output)
    if output.output_type == "error":
        yield f"cell [{count}] ends in {output.ename}"
    if output.get("name") == "stderr":
        yield f"cell [{count}] writes to stderr: {one_line(text, 60)}"
    if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
        yield f"cell [{count}] holds a widget, which is never twice the same"
    if path := ABSOLUTE.search(text):
        yield f"cell [{count}] shows an absolute path: {one_line(text[path.start() :], 60)}"


def style_problems(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        is_list = "parameters" in cell.metadata.get("tags", [])  # one line a parameter, however many
        lines = len(cell.source.splitlines())
        if lines > MAX_LINES and not is_list:
            yield f"code cell {number} has {lines} lines: at most {MAX_LINES}"

        tree = ast.parse(TransformerManager().transform_cell(cell.source))
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert):
                yield f"code cell {number} asserts: use check(...) of saol_lib.evidence, which PYTHONOPTIMIZE keeps"
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            is_long = is_function and node.end_lineno - node.lineno >= MAX_FUNCTION
            if isinstance(node, ast.ClassDef) or is_long:
                yield f"code cell {number}: {node.name} belongs in the library (a class, or over {MAX_FUNCTION} lines)"


def problems(path, style=True):
    """What keeps a notebook from being committed, a sentence each; style=False for an executed copy."""
    notebook = read(path)
    is_app = not path.name[:2].isdigit()

    found = []
    if style:
        found += style_problems(notebook)
    if not is_app:
        found += output_problems(notebook)

    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        found.append(f"kernelspec is {kernel!r}, not 'python3'")
    size = path.stat().st_size
    if size > MAX_BYTES:
        found.append(f"has {size} bytes: at most {MAX_BYTES}")
    if style and re.match(r"0[1-6]_", path.name) and defaults(notebook) is None:
        found.append("is a run notebook without a cell tagged `parameters`")

    text = path.read_text(encoding="utf-8")
    normal = nbformat.writes(normalise(notebook, outputs=not is_app))
    if text.strip() != normal.strip():
        found.append("is not normalised: run make refresh")
    return [f"{show(path)}: {line}" for line in found]


def check(folder=NOTEBOOKS, results=RESULTS):
    """Every problem of the notebooks, of their executed copies and of the profile files, a sentence each."""
    found = []
    for path in sorted(folder.glob("*.ipynb")):
        found += problems(path)
    for path in sorted(results.glob("*/[0-9]*.ipynb")):
        if path.parent.name not in ("quick", "own"):
            found += problems(path, style=False)
    return found + list(profile_problems(folder))
