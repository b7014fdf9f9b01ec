"""The runner, the refresher and the gate, on notebooks of a few lines; then the gate on the real ones."""

import os
import signal
import subprocess
import sys
import time

import gate
import nbformat
import pytest
import run as notebooks
from nbformat import v4

from saol_lib.evidence import CheckFailed, check
from saol_lib.training import Run, files, grid, save_run
from saol_lib.training.checkpoints import lock
from saol_lib.training.runs import source_hash

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
    plan = {job.copy: job.parameters for job in notebooks.plan("quick", folder)}
    assert plan == {name: {} for name in names}
    plan = {job.copy: job.parameters for job in notebooks.plan("cpu", folder, data=tmp_path)}
    assert plan == {names[0]: {}, names[1]: {"epochs": 7, "data_dir": str(tmp_path)}, names[2]: None}


@pytest.mark.parametrize(
    ("text", "arguments", "sentence"),
    [
        ("epochs: 7", {"profile": "gpu"}, "unknown profile 'gpu': expected one of cpu, quick"),
        ("epocs: 7", {}, "cpu/01.yaml has unknown epocs: its notebook knows ['data_dir', 'epochs']"),
        ("7", {}, "holds one int"),
        ("epochs: 7", {"data": "nowhere"}, "data directory 'nowhere' does not exist"),
        ("epochs: 7", {"only": "09"}, "no notebook 09_"),
        ("epochs: 7", {"only": "wrn"}, "no notebook 'wrn', and no experiment: profile 'cpu' shows none by its name"),
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
    for seed, accuracy in enumerate([90.0, 92.0]):
        store(tmp_path / "results/cpu", {"arm": "saol", "seed": seed, "epochs": 7}, top1_saol_last=accuracy)
    store(tmp_path / "results/cpu", {"arm": "gap_fc", "seed": 0}, status="failed")
    earlier = tmp_path / "results/cpu/00_story.ipynb"
    earlier.write_text("an earlier copy")

    failed = notebooks.replicate("cpu", folder, tmp_path / "results", data=tmp_path)

    told = capsys.readouterr()
    assert failed == 1
    assert told.err.splitlines()[-4:-1] == [
        "FAILED 00_story.ipynb",
        "  cell [2] # why raise RuntimeError('no\\nluck')",
        "  RuntimeError: no luck",
    ]
    assert earlier.read_text() == "an earlier copy" and "an earlier copy stays as it was" in told.out
    draft = tmp_path / "results/cpu/failed/00_story.ipynb"
    assert "RuntimeError" in draft.read_text() and told.err.strip().endswith(str(draft))
    assert "02_other.ipynb" in told.out and "skipped: profiles/cpu has no 02.yaml" in told.out
    assert told.out.splitlines()[-1].split() == ["saol", "-", "91.0", "2"]
    copy = notebooks.read(tmp_path / "results/cpu/01_train.ipynb")
    assert copy.cells[-1].outputs[0].text == "7 DATA\n"
    assert 'data_dir = "DATA"' in copy.cells[1].source
    assert not any("papermill" in holder.metadata for holder in [copy, *copy.cells])


def test_a_dead_kernel_is_named(tmp_path):
    path = write(tmp_path / "01_dies.ipynb", "x = 1", "import os; os._exit(1)", "y = 1")
    cell, error = notebooks.run(path, {}, tmp_path / "copy.ipynb")
    assert cell == "import os; os._exit(1)" and error.startswith("DeadKernelError")
    assert not (tmp_path / "copy.ipynb").exists() and (tmp_path / "failed/copy.ipynb").exists()


def test_the_arms_table_keeps_unlike_runs_apart(tmp_path):
    for seed, width in enumerate([1, 2]):
        store(tmp_path, {"arm": "saol", "seed": seed, "width": width}, top1_saol_last=50.0 + width)
    lines = notebooks.summary(notebooks.load_runs(tmp_path)).splitlines()
    assert [line.split() for line in lines[2:]] == [["saol", "1", "-", "51.0", "1"], ["saol", "2", "-", "52.0", "1"]]
    assert notebooks.summary(notebooks.load_runs(tmp_path / "empty")) == "Arms: no finished run"


def test_refresh_twice_gives_the_same_bytes_that_check_accepts(tmp_path):
    sources = ["import sys, time\nfor i in range(30):\n    print(i)\n    sys.stdout.flush()", "1 + 1"]
    path, app = write(tmp_path / "00_story.ipynb", *sources), executed(tmp_path / "explorer.ipynb")
    notebooks.refresh([path, app], tmp_path / "results")
    first = path.read_bytes()
    notebooks.refresh([path], tmp_path / "results")
    assert path.read_bytes() == first
    assert notebooks.read(app).cells[0].outputs == [] and notebooks.read(app).cells[0].execution_count is None
    assert notebooks.check(tmp_path, tmp_path / "results") == []


def test_refresh_leaves_a_failing_notebook_as_it_was(tmp_path):
    path = write(tmp_path / "00_story.ipynb", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(notebooks.CellExecutionError, match="ZeroDivisionError"):
        notebooks.refresh([path], tmp_path / "results")
    assert path.read_bytes() == before and list(tmp_path.glob("*.*")) == [path]


# --- nothing is lost -------------------------------------------------------------------------------------------------


def store(results, config, status="finished", **metrics):
    save_run(results, Run(config, metrics, [], {"seconds": 1.0}, status))


def test_a_forgotten_data_folder_costs_no_committed_copy(folder, tmp_path, capsys):
    """All runs are finished and committed: the copy is shown as it is; with one missing the notebook runs and fails."""
    cell = "arms = ['gap_fc']\nseeds = [0]\ndataset = 'digits'\nepochs = 1\ndata_dir = None"
    write(folder / "01_train.ipynb", "raise FileNotFoundError('no data')", parameters=cell)
    values = {"arms": ["gap_fc"], "seeds": [0, 1], "dataset": "cifar10", "epochs": 1}
    (folder / "profiles/cpu/01.yaml").write_text(str(values))
    home = tmp_path / "results/cpu"
    first, second = grid(["gap_fc"], [0, 1], dataset="cifar10", epochs=1)
    store(home, first.identity())
    (home / "01_train.ipynb").write_text("committed")

    assert notebooks.replicate("cpu", folder, tmp_path / "results", only="01") == 1
    assert (home / "01_train.ipynb").read_text() == "committed"
    store(home, second.identity())
    capsys.readouterr()
    assert notebooks.replicate("cpu", folder, tmp_path / "results", only="01") == 0
    assert "its runs are finished, and DATA is not given" in capsys.readouterr().out
    assert (home / "01_train.ipynb").read_text() == "committed"


@pytest.fixture
def experiments(folder, monkeypatch):
    """Notebook 02 shows two experiments of the profile, whose runs are those of `configs_of`."""
    cell = "profile = 'quick'\nresults = ''\ndata_dir = None\nexperiment = None\nchanges = {}"
    write(folder / "02_other.ipynb", "print(experiment, changes, data_dir)", parameters=cell)
    (folder / "profiles/cpu/02.yaml").write_text("experiment: [one, two]\nchanges: {epochs: 3}")
    common = "{dataset: cifar10, backbone: resnet-8, epochs: 9}"
    for name, seeds in (("one", "[0, 1]"), ("two", "[5]")):
        text = f"results: results/cpu\ncommon: {common}\ngrids: [{{arms: [gap_fc], seeds: {seeds}}}]"
        (folder / "profiles/cpu" / f"{name}.yaml").write_text(text)
    (folder / "profiles/cpu/01.yaml").unlink()
    monkeypatch.setattr(files, "ROOT", folder.parent)
    return folder


def test_every_experiment_of_a_list_has_its_own_copy(experiments, tmp_path):
    jobs = notebooks.plan("cpu", experiments, data=tmp_path)
    assert [job.copy for job in jobs] == ["00_story.ipynb", "01_train.ipynb", "02_one.ipynb", "02_two.ipynb"]
    assert [notebooks.experiment_of(job) for job in jobs] == [None, None, "one", "two"]

    given = {"changes": {"epochs": 1, "seeds": [0]}, "results": "results/own"}
    (job,) = notebooks.plan("cpu", experiments, only="one", given=given)
    assert job.parameters == given | {"experiment": "one"} and len(notebooks.runs_of(job, "cpu")) == 1
    with pytest.raises(ValueError, match="no notebook 'three', and no experiment: choose one of one, two"):
        notebooks.plan("cpu", experiments, only="three")


def test_an_experiment_is_shown_once_a_run_of_it_is_finished(experiments, tmp_path, capsys):
    home = tmp_path / "results/cpu"
    (first, second) = grid(["gap_fc"], [0, 1], dataset="cifar10", backbone="resnet-8", epochs=3)
    store(home, first.identity())
    assert notebooks.replicate("cpu", experiments, tmp_path / "results", tmp_path, only="02") == 0
    told = capsys.readouterr().out
    assert "02_two.ipynb" in told and "make study PROFILE=cpu ONLY=two trains them" in told
    copy = notebooks.read(home / "02_one.ipynb")
    assert copy.cells[-1].outputs[0].text == "one {'epochs': 3} DATA\n" and not (home / "02_two.ipynb").exists()

    store(home, second.identity())
    assert notebooks.replicate("cpu", experiments, tmp_path / "results", only="one") == 0
    assert "its runs are finished, and DATA is not given" in capsys.readouterr().out


def test_settings_from_a_shell_change_the_one_notebook_that_is_named(folder):
    (job,) = notebooks.plan("cpu", folder, only="01", given={"changes": {"epochs": 7}})
    assert job.parameters["epochs"] == 7
    with pytest.raises(ValueError, match="has no parameter epoch: it knows data_dir, epochs"):
        notebooks.plan("cpu", folder, only="01", given={"changes": {"epoch": 7}})


def test_links_of_an_executed_copy_lead_where_they_led(tmp_path):
    written, read = tmp_path / "notebooks", tmp_path / "results" / "cpu"
    for file in (written / "02_next.ipynb", tmp_path / "results" / "README.md"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    text = "[a](02_next.ipynb#end), [b](../results/README.md), [c](https://x.org/y), [d](gone.md), [e](#here)"
    moved = notebooks.relink(text, written, read)
    assert moved == text.replace("02_next", "../../notebooks/02_next").replace("../results/README", "../README")


def test_settings_from_a_shell_name_what_they_change(capsys):
    options = ["replicate", "--profile", "paper", "--set", "epochs=1"]
    for wrong, sentence in (
        (options, "SET changes one experiment or one notebook"),
        ([*options, "--set", "x"], "--set x is"),
    ):
        with pytest.raises(SystemExit) as stopped:
            notebooks.main(wrong)
        assert stopped.value.code == 2 and capsys.readouterr().err.startswith(sentence)


def test_the_quick_folder_is_emptied_only_after_a_request_is_accepted(folder, tmp_path):
    kept = tmp_path / "results/quick/runs/mine.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    for wrong in ({"only": "09"}, {"data": "nowhere"}):
        with pytest.raises((ValueError, FileNotFoundError)):
            notebooks.replicate("quick", folder, tmp_path / "results", **wrong)
    with pytest.raises(FileNotFoundError):
        notebooks.refresh([folder / "09_none.ipynb"], tmp_path / "results")
    with pytest.raises(ValueError):
        notebooks.run_alone([], tmp_path / "results")
    assert kept.read_text() == "mine"
    assert notebooks.run_alone(["true"], tmp_path / "results") == 0
    assert not kept.exists()


def test_the_quick_folder_is_not_emptied_where_somebody_works(folder, tmp_path):
    results = tmp_path / "results"
    checkpoints = results / "quick/checkpoints/saol-s0-0123456789"
    checkpoints.mkdir(parents=True)
    calls = [
        lambda: notebooks.replicate("quick", folder, results),
        lambda: notebooks.refresh([folder / "00_story.ipynb"], results),
        lambda: notebooks.run_alone(["true"], results),
    ]
    for call in calls:
        with lock(checkpoints), pytest.raises(notebooks.Occupied, match=r"saol-s0-0123456789 is being trained"):
            call()
        with notebooks.alone(results / "quick"), pytest.raises(notebooks.Occupied, match="another make works"):
            call()
    assert checkpoints.exists()


def test_an_interrupted_quick_profile_goes_on(tmp_path, capsys):
    """What workers print on Ctrl-C is true: the next call goes on, unless the sources have changed meanwhile."""
    home = tmp_path / "results/quick"
    for sources, stays in ((source_hash(), True), ("0123456789abcdef", False)):
        home.mkdir(parents=True, exist_ok=True)
        (home / "run").write_text("begun")
        (home / ".unfinished").write_text(sources)
        with notebooks._prepared(home):
            assert (home / "run").exists() == stays
    assert not (home / ".unfinished").exists(), "it ended"
    with pytest.raises(KeyboardInterrupt), notebooks._prepared(home):
        raise KeyboardInterrupt
    assert (home / ".unfinished").read_text() == source_hash()


INTERRUPTED = """
import sys
from pathlib import Path
import run
run.RESULTS = Path(sys.argv[1]) / "results"
run.replicate.__defaults__ = (Path(sys.argv[1]) / "notebooks", run.RESULTS, None, None, None)
sys.exit(run.main(["replicate"]))
"""


@pytest.mark.faults
def test_ctrl_c_ends_a_replication(folder, tmp_path):
    """nbclient would take it for a dead kernel, and the next notebook would run."""
    write(folder / "00_story.ipynb", "import time; open('begun', 'w').close(); time.sleep(100)")
    environment = os.environ | {"PYTHONPATH": f"{gate.NOTEBOOKS}:{gate.ROOT}"}
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True, process_group=0)
    end = time.monotonic() + 120
    while not (folder / "begun").exists() and time.monotonic() < end:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "running 01" not in out
    assert errors.strip().splitlines()[-1] == "stopped; the same command goes on: finished runs and epochs are kept"
    assert (tmp_path / "results/quick/.unfinished").exists()


@pytest.mark.parametrize("name", ["plain", "jörg's Bilder", 'a "b" & c', "数据", "back\\slash"])
def test_a_users_folder_is_hidden_however_it_is_spelled(tmp_path, name):
    data = tmp_path / name
    path = executed(tmp_path / "01_x.ipynb", source=f"data_dir = {papermill_text(str(data))}")
    notebook = notebooks.read(path)
    told = f"{data} and {str(data)!r} and {str(data)!a}"
    notebook.cells[0].outputs = [v4.new_output("stream", text=told)]
    nbformat.write(notebook, path)
    notebooks._tidy(path, {"data_dir": str(data)}, tmp_path, tmp_path)
    cell = notebooks.read(path).cells[0]
    assert cell.source == 'data_dir = "DATA"' and str(tmp_path) not in path.read_text()
    assert cell.outputs[0].text.count("DATA") == 3


def papermill_text(text):
    from papermill.translators import PythonTranslator

    return PythonTranslator.translate(text)


def test_lists_in_a_profile_must_be_lists(folder):
    write(folder / "02_other.ipynb", parameters="seeds: list = [0]\narms = ['saol']")
    for text, sentence in (("seeds: 0", "seeds=0 must be a list, as in [0]"), ("arms: saol", "arms='saol' must be")):
        (folder / "profiles/cpu/02.yaml").write_text(text)
        with pytest.raises(ValueError) as error:
            notebooks.plan("cpu", folder)
        assert sentence in str(error.value) and "cpu/02.yaml" in str(error.value)


def test_the_gate_reads_study_files(folder, tmp_path):
    study = folder / "profiles/cpu/study.yaml"
    study.write_text("results: results/cpu\ncommon: {dataset: digits}\ngrids: [{arms: [saul], seeds: [0]}]")
    found = [line for line in notebooks.check(folder, tmp_path / "results") if "study.yaml" in line]
    assert len(found) == 1 and "saul" in found[0]
    study.write_text(study.read_text().replace("saul", "saol"))
    assert not [line for line in notebooks.check(folder, tmp_path / "results") if "study.yaml" in line]


def test_check_raises_under_pythonoptimize():
    check(True, "fine")
    with pytest.raises(CheckFailed, match="the sum is 2, not 3"):
        check(False, "the sum is 2, not 3")
    command = "from saol_lib.evidence import check; check(False, 'a sentence')"
    environment = os.environ | {"PYTHONOPTIMIZE": "1", "PYTHONPATH": str(gate.ROOT)}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip().endswith("a sentence")


def place(*parts, divider="/"):
    """A path, put together so that no file of ours holds one."""
    return divider.join(parts)


@pytest.mark.parametrize(
    "text",
    [
        place("", "données", "cifar"),
        place("", "home", "jörg", "x"),
        place("'", "数据", "a'")[1:],
        place("~", "data"),
        place("~jörg", "data"),
        place("C:", "Users", "me", divider="\\"),
        place("d:", "Bilder", "ü", divider="\\\\"),
        place("D:", "data", "x"),
        f"read from {place('', 'mnt', 'disk')}, then",
        f"({place('', 'data', 'x')})",
        f"data_dir={place('', 'srv', 'x')}",
    ],
)
def test_the_gate_finds_paths_in_any_letters(tmp_path, text):
    assert gate.ABSOLUTE.search(text)
    executed(tmp_path / "00_story.ipynb", set_output(v4.new_output("stream", text=text)), "1")
    (found,) = notebooks.check(tmp_path, tmp_path / "results")
    assert "absolute path" in found
    executed(tmp_path / "00_story.ipynb", source=f"where = {text!r}")
    assert len(notebooks.check(tmp_path, tmp_path / "results")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "and/or, 3/4 of 1/2",
        "results/quick/runs and ./here/too and ../there/too",
        "<b>bold</b><br/><p>text</p>",
        "https://example.org/a/b and file names a/b/c",
        "10:30 to 11:45; ratio a:b; x ~ y; ~5 %",
        "A / B / C; ms/image",
    ],
)
def test_the_gate_knows_what_is_no_path(text):
    assert not gate.ABSOLUTE.search(text)


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
        ("asserts: use check(...)", lambda n: None, "assert True"),
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
