"""The run store: files whole or not at all, runs and checkpoints there and back, and every way to damage one."""

import dataclasses
import errno
import json
import logging
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from saol_lib.training import checkpoints, files, run_study, runs, train
from saol_lib.training.checkpoints import load_checkpoint, resume, save_checkpoint
from saol_lib.training.config import RunConfig
from saol_lib.training.files import write_json, write_whole
from saol_lib.training.runs import OtherData, Run, load_run, load_runs, save_run


def make(seed=0, status="finished", **origin):
    config = RunConfig(seed=seed, data_dir="/secret/place", device="cpu").identity()
    history = [{"epoch": 1, "lr": 0.1, "loss_total": 1 / 3, "top1_gap": 12.3}]
    return Run(config, {"top1_gap_last": 12.3}, history, runs.provenance() | {"seconds": 1.5} | origin, status)


# --- files -----------------------------------------------------------------------------------------------------------


def test_write_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second" and os.listdir(path.parent) == ["file"]


KILLED = """
import os, sys
from pathlib import Path
from saol_lib.training import files
target = {"replace": (Path, "replace"), "fsync": (os, "fsync")}[sys.argv[2]]
setattr(*target, lambda *args: os.kill(os.getpid(), 9))
files.write_whole(Path(sys.argv[1]), b"new" * 100_000)
"""


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_before_the_rename_leaves_the_old_file(tmp_path, moment):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    died = subprocess.run([sys.executable, "-c", KILLED, str(path), moment])
    assert died.returncode == -9 and path.read_bytes() == b"old"
    assert [name for name in os.listdir(tmp_path) if name.endswith(".part")], "it was not killed while writing"
    write_whole(path, b"newer")
    assert path.read_bytes() == b"newer"


LIMITED = """
import resource, sys
from pathlib import Path
from saol_lib.training import files
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    files.write_whole(Path(sys.argv[1]), b"new" * 1000)
except OSError as error:
    sys.exit(str(error))
"""


def test_file_size_limit(tmp_path):
    path = tmp_path / "results" / "file"
    write_whole(path, b"old")
    died = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True)
    assert died.returncode == 1 and died.stderr.count("\n") == 1
    assert "file could not be written to results/" in died.stderr and "File too large" in died.stderr
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["file"]


def test_full_disk_is_one_sentence_and_leaves_everything(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"value": 1})

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError) as error:
        write_json(tmp_path / "a.json", {"value": 2})
    assert re.fullmatch(r"a\.json could not be written .*No space left on device.*start again.*", str(error.value))
    assert json.loads((tmp_path / "a.json").read_text()) == {"value": 1} and os.listdir(tmp_path) == ["a.json"]


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "results").write_text("a file")
    for path in (tmp_path / "results" / "x.json", tmp_path / "results" / "runs" / "x.json"):
        with pytest.raises(OSError) as error:
            write_json(path, {})
        assert "cannot be made" in str(error.value) and "\n" not in str(error.value)
    assert (tmp_path / "results").read_text() == "a file"


def test_a_number_that_is_none_is_never_written(tmp_path):
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError):
            write_json(tmp_path / "x.json", {"loss": value})
    assert not list(tmp_path.iterdir())


# --- runs ------------------------------------------------------------------------------------------------------------


def test_run_there_and_back(tmp_path):
    run = make()
    save_run(tmp_path, run)
    path = tmp_path / "runs" / f"{run.id}.json"
    assert load_run(path) == run and load_runs(tmp_path) == [run]


def test_a_run_file_names_no_place(tmp_path):
    save_run(tmp_path, make())
    text = next((tmp_path / "runs").iterdir()).read_text()
    places = ["/secret", str(tmp_path), str(Path.home()), str(files.ROOT), sys.prefix]
    assert not [place for place in places if place in text]
    assert not re.search(r'"/|\\\\', text) and "data_dir" not in text and '"device"' not in text


def test_failed_runs_enter_no_table(tmp_path):
    good, bad = make(0), make(1, "failed")._replace(error="NaN")
    save_run(tmp_path, bad), save_run(tmp_path, good)
    measure = good._replace(config=good.config | {"method": "saol"})
    save_run(tmp_path, measure, folder="measures")
    assert load_runs(tmp_path) == [good] and load_runs(tmp_path, folder="measures") == [measure]
    assert load_run(tmp_path / "runs" / f"{bad.id}.json").error == "NaN"


def test_no_runs_yet(tmp_path):
    assert load_runs(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    "content", [b"", b'{"config": {', b"[1, 2]", b'{"config": {}}', b"\xff\xfe", b'{"a": 1}', b"7"]
)
def test_damaged_run_file(tmp_path, content):
    path = tmp_path / "runs" / "saol-s0-0123456789.json"
    path.parent.mkdir()
    path.write_bytes(content)
    for read in (lambda: load_run(path), lambda: load_runs(tmp_path)):
        with pytest.raises(ValueError) as error:
            read()
        assert "saol-s0-0123456789.json is not a readable run" in str(error.value) and "\n" not in str(error.value)


def written(folder, change):
    """A good run's file with something changed in it, under its first name."""
    run = make()
    save_run(folder, run)
    path = folder / "runs" / f"{run.id}.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v: v["config"].pop("arm"), "no arm and seed"),
        (lambda v: v["config"].pop("seed"), "no arm and seed"),
        (lambda v: v.update(config=None), "no arm and seed"),
        (lambda v: v.update(metrics=None), "metrics and provenance must be tables"),
        (lambda v: v.update(provenance=[]), "metrics and provenance must be tables"),
        (lambda v: v.update(epochs=None), "epochs must be a list"),
        (lambda v: v["metrics"].update(top1_gap_last=None), "its metric top1_gap_last is None, not a number"),
        (lambda v: v["metrics"].update(top1_gap_last="12"), "its metric top1_gap_last is '12', not a number"),
        (lambda v: v["metrics"].update(top1_gap_last=math.nan), "its metric top1_gap_last is nan, not a number"),
        (lambda v: v.update(status="done"), "its status is 'done'"),
        (lambda v: v["config"].update(lr=0.2), "was edited or renamed"),
        (lambda v: v["config"].update(seed=7), "was edited or renamed"),
    ],
)
def test_a_run_file_that_is_not_what_it_seems(tmp_path, change, sentence):
    path = written(tmp_path, change)
    for read in (lambda: load_run(path), lambda: load_runs(tmp_path)):
        with pytest.raises(ValueError) as error:
            read()
        assert path.name in str(error.value) and sentence in str(error.value) and "\n" not in str(error.value)


def test_every_committed_run_keeps_its_id():
    """Ids and contents of what is published never change; `load_run` holds each config against its file's name."""
    paths = sorted(files.RESULTS.glob("*/runs/*.json")) + sorted(files.RESULTS.glob("*/measures/*.json"))
    committed = [path for path in paths if path.parts[-3] not in ("quick", "own")]
    assert len(committed) >= 63
    for path in committed:
        run = load_run(path)
        assert run.id == path.stem and run.status == "finished" and run.provenance["data"]


def test_an_ordinary_install_writes_into_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "REPOSITORY", None)
    monkeypatch.chdir(tmp_path)
    assert files.resolve("results/own") == tmp_path / "results" / "own"


def test_relative_results_lie_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.resolve("results/quick") == files.ROOT / "results" / "quick"
    assert files.resolve(tmp_path) == tmp_path


def test_provenance():
    found = runs.provenance()
    assert re.fullmatch("[0-9a-f]{16}", found["sources"]) and torch.__version__.startswith(found["versions"]["torch"])
    named = [*runs.COMPUTING, *(f"training/{name}" for name in runs.SCHEDULING)]
    missing = [name for name in named if not (files.LIBRARY / name).exists()]
    assert not missing
    assert runs.processor(torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "before", "after", "counts"),
    [
        ("losses.py", "\nfrom ", "\n# said anew\nfrom ", False),
        ("losses.py", '"""', '"""Said anew. ', False),
        ("losses.py", "(\n", "(  # said anew\n\n", False),
        ("networks/abn.py", "return ", "return 2 * ", True),
        ("training/batch_norm.py", "\nfrom ", "\nimport math\nfrom ", True),
        ("training/study.py", "\nfrom ", "\nimport math\nfrom ", False),
        ("evidence/statistics.py", "\nfrom ", "\nimport math\nfrom ", False),
    ],
)
def test_the_hash_of_the_sources_counts_what_computes_numbers(tmp_path, monkeypatch, name, before, after, counts):
    shutil.copytree(files.LIBRARY, tmp_path / "saol_lib", ignore=shutil.ignore_patterns("__pycache__", "explorer"))
    monkeypatch.setattr(runs, "LIBRARY", tmp_path / "saol_lib")
    hash_now = runs.source_hash.__wrapped__  # past its cache
    whole = hash_now()
    assert whole == runs.source_hash()
    path = tmp_path / "saol_lib" / name
    source = path.read_text()
    assert before in source
    path.write_text(source.replace(before, after, 1))
    assert (hash_now() != whole) == counts


# --- data ------------------------------------------------------------------------------------------------------------


def other_data(error, name):
    """One sentence that names the run and says what to do."""
    text = str(error.value)
    assert f"run {name} was computed from other data" in text and "choose another results folder" in text
    assert "\n" not in text
    return True


SMALL = {"dataset": "cifar10", "backbone": "resnet-8-8", "batch_size": 4, "epochs": 2, "arm": "gap_fc"}


def image_tree(folder, order):
    """Ten classes of two training images and one test image, each of one colour; `order` names the classes."""
    for label, name in enumerate(order):
        for part, count in (("train", 2), ("test", 1)):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                colour = (20 * label, 10 * number, 200 - 20 * label)
                Image.new("RGB", (32, 32), colour).save(folder / part / name / f"{number}.png")
    return str(folder)


@pytest.fixture
def two_folders(tmp_path):
    """One data set, and the same with two class folders exchanged."""
    names = [f"class{n}" for n in range(10)]
    exchanged = [names[1], names[0], *names[2:]]
    return image_tree(tmp_path / "a", names), image_tree(tmp_path / "b", exchanged)


def test_a_finished_run_never_stands_in_for_other_data(tmp_path, two_folders, capsys, caplog):
    first, other = (RunConfig(data_dir=folder, **SMALL) for folder in two_folders)
    run = train(first, tmp_path / "results", progress=False)
    assert train(first, tmp_path / "results", progress=False) == run

    path = tmp_path / "results" / "runs" / f"{run.id}.json"
    before = path.read_bytes()
    for again in (
        lambda: train(other, tmp_path / "results", progress=False),
        lambda: run_study([other], tmp_path / "results"),
    ):
        with pytest.raises(OtherData) as error:
            again()
        assert other_data(error, run.id) and path.read_bytes() == before
    assert train(other, tmp_path / "another", progress=False).provenance["data"] != run.provenance["data"]

    capsys.readouterr()
    not_given = dataclasses.replace(first, data_dir=None)
    assert run_study([not_given], tmp_path / "results", progress=False) == [run]
    assert capsys.readouterr().out.splitlines()[0].startswith("1 finished runs are shown as results/runs has them")


def test_an_interrupted_run_never_goes_on_with_other_data(tmp_path, two_folders):
    first, other = (RunConfig(data_dir=folder, **SMALL) for folder in two_folders)
    results = tmp_path / "results"
    whole = train(first, results, progress=False)
    (results / "runs" / f"{whole.id}.json").unlink()
    for path in (results / "checkpoints" / whole.id).glob("00002-*"):
        path.unlink()

    with pytest.raises(OtherData) as error:
        train(other, results, progress=False)
    assert other_data(error, whole.id) and not list(results.glob("runs/*.json"))
    with pytest.raises(OtherData), ThreadPoolExecutor(1) as executor:
        run_study([other], results, executor, progress=False)
    assert not list(results.glob("runs/*.json")), "a refused request is no failed run"
    assert train(first, results, progress=False).metrics == whole.metrics


def test_one_id_with_two_data_folders_is_refused(tmp_path, two_folders):
    configs = [RunConfig(data_dir=folder, **SMALL) for folder in two_folders]
    with pytest.raises(ValueError, match=r"run gap_fc-s0-\w+ is asked for with two data folders"):
        run_study(configs, tmp_path / "results")
    assert not (tmp_path / "results").exists()


# --- checkpoints -----------------------------------------------------------------------------------------------------


def tensors(value, size=40):
    return {"model.weight": torch.full((size, 3), float(value)), "model.count": torch.tensor(value)}


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints were written, two are there: 2 and 3."""
    folder = tmp_path / "checkpoints" / "saol-s0-0123456789"
    for value in (1, 2, 3):
        save_checkpoint(folder, (value, 0), tensors(value), {"history": [{"top1": value / 7}], "seconds": 0.5})
    return folder


def loaded(folder):
    """The epoch of the checkpoint that is loaded, checked to be whole; None if there is none."""
    if not (found := load_checkpoint(folder)):
        return None
    value = found[1]["position"][0]
    assert found[0].keys() == tensors(value).keys()
    assert all(torch.equal(found[0][name], tensor) for name, tensor in tensors(value).items())
    assert found[1]["history"] == [{"top1": value / 7}] and found[1]["seconds"] == 0.5
    return value


def test_checkpoint_there_and_back(folder):
    assert loaded(folder) == 3
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{n:05d}-0000000.{suffix}" for n in (2, 3) for suffix in ("json", "safetensors")]


def test_mid_epoch_positions_are_in_order(folder):
    save_checkpoint(folder, (3, 12), tensors(4) | {"model.count": torch.tensor(3)}, {})
    assert load_checkpoint(folder)[1]["position"] == [3, 12]


def test_channels_last_tensors_keep_their_values(tmp_path):
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "run", (0, 0), {"w": weight}, {})
    assert torch.equal(load_checkpoint(tmp_path / "run")[0]["w"], weight)


def damage(path, how):
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "pickle":
        path.write_bytes(pickle.dumps({"model.weight": [1.0]}))
    elif how == "other":
        path.write_bytes(safetensors.torch.save(tensors(5, size=9)) if path.suffix == ".safetensors" else b"[]")
    else:
        start = {"empty": 0, "half": len(content) // 2, "short": len(content) - 1}.get(how)
        path.write_bytes(content[:start])
    assert not path.exists() or path.read_bytes() != content


HOWS = [
    (suffix, how) for suffix in ("safetensors", "json") for how in ("empty", "half", "short", "pickle", "other", "gone")
]
HOWS.remove(("json", "short"))  # its last byte is a line feed


@pytest.mark.parametrize(("suffix", "how"), HOWS)
def test_damaged_checkpoint_falls_back_with_a_warning(folder, caplog, suffix, how):
    damage(folder / f"00003-0000000.{suffix}", how)
    with caplog.at_level(logging.WARNING):
        assert loaded(folder) == 2
    warned = [record.getMessage() for record in caplog.records]
    if (suffix, how) == ("json", "gone"):  # never was valid: the JSON comes last
        assert not warned
    else:
        assert len(warned) == 1 and "00003-0000000 of saol-s0-0123456789 is damaged" in warned[0]
    damage(folder / f"00002-0000000.{suffix}", how)
    assert loaded(folder) is None


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_every_flipped_bit_is_noticed(folder, suffix, caplog):
    """No bit of a checkpoint can change and be believed, unless it changes nothing (a space in the JSON)."""
    path = folder / f"00003-0000000.{suffix}"
    whole, before = path.read_bytes(), load_checkpoint(folder)[1]
    noticed, step = 0, 1 if suffix == "json" else 7
    for place in range(0, len(whole), step):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        position = load_checkpoint(folder)[1]
        noticed += position["position"] == [2, 0]
        assert position["position"] == [2, 0] or position == before
    assert noticed > 0.8 * len(whole) / step


def test_a_pickle_is_never_unpickled(folder, monkeypatch):
    monkeypatch.setattr(pickle, "loads", lambda *a, **k: pytest.fail("unpickled"))
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("unpickled"))
    for path in folder.glob("*.safetensors"):
        torch.save({"w": torch.ones(2)}, path)
    assert load_checkpoint(folder) is None


def test_another_runs_checkpoint_is_passed_over(folder, caplog):
    """Whole, of the same shapes even, and newer: but of another run."""
    other = folder.parent / "saol-s1-9876543210"
    save_checkpoint(other, (9, 0), tensors(9), {"history": [], "seconds": 0.0})
    for path in list(other.iterdir()):
        (folder / path.name).write_bytes(path.read_bytes())
    with caplog.at_level(logging.WARNING):
        assert loaded(folder) == 3
    assert "saol-s1-9876543210" in caplog.text
    save_checkpoint(folder, (4, 0), tensors(4), {"history": [{"top1": 4 / 7}], "seconds": 0.5})
    assert sorted(path.stem for path in folder.glob("*.json")) == ["00003-0000000", "00004-0000000"]


def test_the_newest_two_are_kept_after_a_fall_back(folder, caplog):
    """Going on from 2 because 3 is damaged, 2 must not make room for it."""
    damage(folder / "00003-0000000.safetensors", "half")
    save_checkpoint(folder, (2, 5), tensors(2), {"history": [{"top1": 2 / 7}], "seconds": 0.5})
    assert sorted(path.stem for path in folder.glob("*.json")) == ["00002-0000000", "00002-0000005"]


def test_a_killed_process_leaves_no_rubbish(folder):
    (folder / ".00004-0000000.safetensors.77.part").write_bytes(b"half")
    (folder / "00004-0000000.safetensors").write_bytes(b"its JSON never came")
    assert loaded(folder) == 3
    save_checkpoint(folder, (4, 0), tensors(4), {"history": [{"top1": 4 / 7}], "seconds": 0.5})
    assert loaded(folder) == 4 and len(list(folder.iterdir())) == 4


def test_full_disk_keeps_the_earlier_checkpoints(folder, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, (4, 0), tensors(4), {})
    assert loaded(folder) == 3 and len(list(folder.iterdir())) == 4


def test_a_checkpoint_of_other_sources_is_told(folder, caplog, monkeypatch):
    assert resume(folder, "any data")[1]["sources"] == runs.source_hash()
    assert not caplog.records
    monkeypatch.setattr(checkpoints, "source_hash", lambda: "0123456789abcdef")
    assert loaded(folder) == 3 and not caplog.records, "to look at weights is not to go on"
    assert resume(folder, "any data")
    (record,) = caplog.records
    told = record.getMessage()
    assert "saol-s0-0123456789 goes on from a checkpoint of other sources" in told and "0123456789abcdef" in told


def test_a_checkpoint_of_other_data_is_refused(folder):
    save_checkpoint(folder, (4, 0), tensors(4), {"data": "aaaa"})
    assert load_checkpoint(folder, "aaaa") and load_checkpoint(folder)
    with pytest.raises(OtherData) as error:
        load_checkpoint(folder, "bbbb")
    assert other_data(error, folder.name)


def test_who_is_in_training(folder):
    results = folder.parents[1]
    assert checkpoints.in_training(results) == []
    with checkpoints.lock(folder):
        assert checkpoints.in_training(results) == [folder.name]
    assert checkpoints.in_training(results) == []


def test_no_checkpoint(tmp_path):
    assert load_checkpoint(tmp_path / "nowhere") is None
