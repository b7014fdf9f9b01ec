"""The runner, the refresher and the gate, on notebooks of a few lines; then the gate on the real ones."""

import json

import nbformat
import pytest
import run as notebooks
from nbformat import v4

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def write(path, *sources, parameters=None):
    """A notebook without outputs; `parameters` is the source of its tagged cell."""
    cells = [v4.new_code_cell(source) for source in sources]
    if parameters is not None:
        cells.insert(0, v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells, metadata=KERNEL), path)
    return path


def executed(path, change=lambda notebook: None, source="print(1)"):
    """A notebook as `refresh` leaves it, without starting a kernel, then changed."""
    cell = v4.new_code_cell(source, execution_count=1, outputs=[v4.new_output("stream", text="1\n")])
    notebook = v4.new_notebook(cells=[cell], metadata=KERNEL)
    change(notebook)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "notebooks"
    write(folder / "00_story.ipynb", "print('told')")
    write(folder / "01_train.ipynb", "print(epochs, data_dir)", parameters="epochs: int = 1\ndata_dir = ''")
    write(folder / "02_other.ipynb", parameters="seed = 0")
    (folder / "profiles/cpu").mkdir(parents=True)
    (folder / "profiles/cpu/01.yaml").write_text("# costs nothing\nepochs: 7\n")
    return folder


def test_plan_takes_defaults_profiles_and_data(folder, tmp_path):
    names = ["00_story.ipynb", "01_train.ipynb", "02_other.ipynb"]
    plan = {path.name: parameters for path, parameters in notebooks.plan("quick", folder).items()}
    assert plan == {name: {} for name in names}
    plan = {path.name: parameters for path, parameters in notebooks.plan("cpu", folder, data=tmp_path).items()}
    assert plan == {names[0]: {}, names[1]: {"epochs": 7, "data_dir": str(tmp_path)}, names[2]: None}


@pytest.mark.parametrize(
    ("text", "arguments", "sentence"),
    [
        ("epochs: 7", {"profile": "gpu"}, "unknown profile 'gpu': expected one of cpu, quick"),
        ("epocs: 7", {}, "cpu/01.yaml has unknown epocs: its notebook knows ['data_dir', 'epochs']"),
        ("7", {}, "holds one int"),
        ("epochs: 7", {"data": "nowhere"}, "data directory 'nowhere' does not exist"),
        ("epochs: 7", {"only": "09"}, "no notebook 09_"),
    ],
)
def test_wrong_requests_get_one_sentence_and_nothing_runs(folder, tmp_path, text, arguments, sentence):
    (folder / "profiles/cpu/01.yaml").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        notebooks.replicate(**{"profile": "cpu", **arguments}, folder=folder, results=tmp_path / "results")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_main_exits_2_with_the_sentence(capsys):
    with pytest.raises(SystemExit) as stopped:
        notebooks.main(["replicate", "--profile", "no such profile"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("unknown profile 'no such profile'")


def test_a_failing_notebook_is_named_and_the_others_run(folder, tmp_path, capsys):
    write(folder / "00_story.ipynb", "x = 1", "# why\nraise RuntimeError('no\\nluck')")
    runs = tmp_path / "results/cpu/runs"
    runs.mkdir(parents=True)
    for seed, accuracy in enumerate([90.0, 92.0]):
        config, metrics = {"arm": "saol", "seed": seed, "epochs": 7}, {"top1_saol_last": accuracy}
        (runs / f"{seed}.json").write_text(json.dumps({"config": config, "metrics": metrics, "status": "finished"}))
    (runs / "bad.json").write_text(json.dumps({"config": {"arm": "gap_fc"}, "metrics": {}, "status": "failed"}))

    failed = notebooks.replicate("cpu", folder, tmp_path / "results", data=tmp_path)

    told = capsys.readouterr()
    assert failed == 1
    assert told.err.splitlines()[-3:] == [
        "FAILED 00_story.ipynb",
        "  cell [2] # why raise RuntimeError('no\\nluck')",
        "  RuntimeError: no luck",
    ]
    assert "02_other.ipynb" in told.out and "skipped: profiles/cpu has no 02.yaml" in told.out
    assert told.out.splitlines()[-1].split() == ["saol", "-", "91.0", "2"]
    copy = notebooks.read(tmp_path / "results/cpu/01_train.ipynb")
    assert copy.cells[-1].outputs[0].text == f"7 {tmp_path}\n"
    assert 'data_dir = "DATA"' in copy.cells[1].source
    assert not any("papermill" in holder.metadata for holder in [copy, *copy.cells])


def test_a_dead_kernel_is_named(tmp_path):
    path = write(tmp_path / "01_dies.ipynb", "x = 1", "import os; os._exit(1)", "y = 1")
    cell, error = notebooks.run(path, {}, tmp_path / "copy.ipynb")
    assert cell == "import os; os._exit(1)" and error.startswith("DeadKernelError")


def test_the_arms_table_keeps_unlike_runs_apart(tmp_path):
    for seed, width in enumerate([1, 2]):
        config = {"arm": "saol", "seed": seed, "width": width}
        run = {"config": config, "metrics": {"top1_saol_last": 50.0 + width}, "status": "finished"}
        (tmp_path / f"{seed}.json").write_text(json.dumps(run))
    lines = notebooks.arms_table(tmp_path).splitlines()
    assert [line.split() for line in lines[2:]] == [["saol", "1", "-", "51.0", "1"], ["saol", "2", "-", "52.0", "1"]]
    assert notebooks.arms_table(tmp_path / "empty") == "Arms: no finished run"


def test_refresh_twice_gives_the_same_bytes_that_check_accepts(tmp_path):
    sources = ["import sys, time\nfor i in range(30):\n    print(i)\n    sys.stdout.flush()", "1 + 1"]
    path, app = write(tmp_path / "00_story.ipynb", *sources), executed(tmp_path / "explorer.ipynb")
    notebooks.refresh([path, app])
    first = path.read_bytes()
    notebooks.refresh([path])
    assert path.read_bytes() == first
    assert notebooks.read(app).cells[0].outputs == [] and notebooks.read(app).cells[0].execution_count is None
    assert notebooks.check(tmp_path, tmp_path / "results") == []


def test_refresh_leaves_a_failing_notebook_as_it_was(tmp_path):
    path = write(tmp_path / "00_story.ipynb", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(notebooks.CellExecutionError, match="ZeroDivisionError"):
        notebooks.refresh([path])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def set_output(output):
    return lambda notebook: notebook.cells[0].update(outputs=[output])


IMAGE = {"image/png": "A" * 500_000}
WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}


@pytest.mark.parametrize(
    ("sentence", "change", "source"),
    [
        ("execution counts are [2], not 1..1", lambda n: n.cells[0].update(execution_count=2), "1"),
        ("ends in ValueError", set_output(v4.new_output("error", ename="ValueError", evalue="", traceback=[])), "1"),
        ("writes to stderr: oh", set_output(v4.new_output("stream", name="stderr", text="oh")), "1"),
        ("absolute path: /" + "home/me", set_output(v4.new_output("stream", text="at /" + "home/me")), "1"),
        ("at most 500000", set_output(v4.new_output("display_data", data=IMAGE)), "1"),
        ("holds a widget", set_output(v4.new_output("display_data", data=WIDGET)), "1"),
        ("kernelspec is 'other'", lambda n: n.metadata.kernelspec.update(name="other"), "1"),
        ("not normalised", lambda n: n.metadata.update(papermill={"duration": 1}), "1"),
        ("not normalised", lambda n: n.cells[0].metadata.update(execution={"shell": "now"}), "1"),
        ("has 16 lines", lambda n: None, "1\n" * 16),
        ("Net belongs in the library", lambda n: None, "class Net: pass"),
        ("f belongs in the library", lambda n: None, "%matplotlib inline\ndef f():\n" + "    x = 1\n" * 5),
    ],
)
def test_the_gate_finds_each_fault(tmp_path, sentence, change, source):
    executed(tmp_path / "00_story.ipynb", change, source)
    (found,) = notebooks.check(tmp_path, tmp_path / "results")
    assert sentence in found and "\n" not in found


def test_the_gate_passes_what_is_just_within_the_rules(tmp_path):
    executed(tmp_path / "00_story.ipynb", source="def f():\n" + "    x = 1\n" * 4 + "1\n" * 10)
    assert notebooks.check(tmp_path, tmp_path / "results") == []


def test_the_gate_looks_at_profiles_copies_and_parameter_cells(tmp_path):
    folder, results = tmp_path / "notebooks", tmp_path / "results"
    for place in (folder / "profiles/cpu", results / "cpu", results / "quick"):
        place.mkdir(parents=True)
    executed(folder / "01_train.ipynb")
    (folder / "profiles/cpu/01.yaml").write_text("epocs: 1")
    executed(results / "cpu/01_train.ipynb", lambda n: n.cells[0].update(execution_count=5), "1\n" * 20)
    executed(results / "quick/01_train.ipynb", lambda n: n.cells[0].update(execution_count=5))
    untagged, copy, profile = notebooks.check(folder, results)
    assert "without a cell tagged `parameters`" in untagged
    assert "execution counts are [5]" in copy
    assert "unknown epocs" in profile


def test_the_committed_notebooks_pass_the_gate():
    assert list(notebooks.NOTEBOOKS.glob("0[01]_*.ipynb")), "no notebook to check"
    assert notebooks.check() == []
