"""A stream of files: the same for any number of workers, from any batch on, each process its own rows."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from making import picture, sentence
from torchvision.transforms.v2.functional import resized_crop

from saol_lib.data import SCALING, Stream, load, streaming
from saol_lib.data.streaming import Chunk, Reader
from saol_lib.networks import build_model
from saol_lib.streams import stream
from saol_lib.training.config import RunConfig
from saol_lib.training.loop import evaluate, train

CPU = torch.device("cpu")


@pytest.fixture
def large(tmp_path):
    for part, each in (("train", 4), ("val", 2)):
        for number, wnid in enumerate(("n1", "n2")):
            for i in range(each):
                picture(tmp_path / part / wnid / f"{i}.png", (30 + i, 40), 7 * number + i + (part == "val") * 50)
    return tmp_path


def everything(batches):
    return [torch.cat([part.flatten().float() for part in batch]) for batch in batches]


def test_a_stream_is_the_same_for_any_workers_and_goes_on_anywhere(large):
    files = load("imagenet", str(large), image_size=16).train
    assert files.labels.tolist() == [0] * 4 + [1] * 4
    before = torch.random.get_rng_state()
    alone = everything(Stream(files, torch.device("cpu")).epoch(2, 3, 1))
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was used"
    helped = everything(Stream(files, torch.device("cpu"), workers=2).epoch(2, 3, 1))
    later = everything(Stream(files, torch.device("cpu")).epoch(2, 3, 1, first=2))
    assert len(alone) == 4 and all(map(torch.equal, alone, helped)) and all(map(torch.equal, alone[2:], later))
    assert not all(map(torch.equal, alone, everything(Stream(files, torch.device("cpu")).epoch(2, 3, 2))))


def test_evaluation_takes_the_middle_in_order(large):
    stream = Stream(load("imagenet", str(large), image_size=16).test, torch.device("cpu"))
    images, labels = next(stream.all(10))
    assert labels.tolist() == [0, 0, 1, 1] and images.shape == (4, 3, 16, 16)
    assert abs(float(images.mean())) < 1.5, "not scaled"


def test_a_damaged_file_in_the_middle_of_a_stream(large, caplog):
    path = large / "train" / "n2" / "1.png"
    path.write_bytes(b"no picture")
    files = load("imagenet", str(large), image_size=16).train
    with pytest.raises(ValueError, match=r"1.png cannot be read as an image .* or set skip_damaged to go on without"):
        list(Stream(files, torch.device("cpu")).epoch(2, 0, 0))
    stream = Stream(files, torch.device("cpu"), skip_damaged=True)
    assert sum(len(labels) for _, labels in stream.epoch(2, 0, 0)) == 8
    assert sum(len(labels) for _, labels in stream.epoch(2, 0, 1)) == 8
    assert {name.rsplit("/", 1)[-1] for name in stream.damaged} == {"1.png"}
    assert caplog.text.count("cannot be read and was skipped, 1 so far") == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_left_out_of_the_evaluation(large, workers):
    """The next one took its place, so that every row of boxes after it, and its own, was another image's."""
    files = load("imagenet", str(large), image_size=16).test
    images, labels = next(Stream(files, CPU).all(4))
    model = build_model("resnet-8-8", 2, heads=("gap",), seed=0).eval()
    right = (model(images).gap_logits.argmax(dim=1) == labels).tolist()
    files.path(1).write_bytes(b"no picture")
    for size in (1, 3, 4):
        stream = Stream(files, CPU, workers, skip_damaged=True)
        left = list(stream.all(size))
        assert stream.kept.tolist() == [0, 2, 3] and {Path(path).name for path in stream.damaged} == {"1.png"}
        assert torch.equal(torch.cat([part for part, _ in left]), images[stream.kept])
        assert torch.equal(torch.cat([own for _, own in left]), labels[stream.kept])
        assert evaluate(model, stream)["top1_gap"] == pytest.approx(100 * sum(right[i] for i in (0, 2, 3)) / 3)
    with pytest.raises(ValueError, match=r"1\.png"):
        list(Stream(files, CPU, workers).all(4))


def test_files_whose_size_cannot_be_read_are_named_too(large):
    for name in ("n1", "n2"):
        for path in (large / "val" / name).glob("*.png"):
            box = "<object><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></object>"
            path.with_suffix(".xml").write_text(f"<annotation>{box}</annotation>")
    (large / "val" / "n2" / "0.png").write_bytes(b"no picture")
    files = load("imagenet", str(large), image_size=16, skip_damaged=True).test
    assert len(files.boxes) == len(files.labels) == 3
    assert {Path(path).name for path in Stream(files, CPU, skip_damaged=True).damaged} == {"0.png"}


def test_training_streams_names_what_it_skipped_and_goes_on(large, tmp_path, monkeypatch):
    (large / "train" / "n1" / "2.png").write_bytes(b"no picture")
    values = {"dataset": "imagenet", "data_dir": str(large), "classes": 2, "image_size": 16, "backbone": "resnet-8-8"}
    config = RunConfig(**values, arm="saol_cutmix_ss_sd", epochs=2, batch_size=4, skip_damaged=True)
    run = train(config, tmp_path / "a", progress=False)
    assert run.status == "finished" and run.provenance["damaged"] == ["2.png"]
    again = train(RunConfig(**vars(config) | {"workers": 1}), tmp_path / "b", progress=False)
    assert again.id == run.id and again.metrics == run.metrics and again.epochs == run.epochs
    with pytest.raises(ValueError, match=r"2\.png"):
        train(RunConfig(**vars(config) | {"skip_damaged": False}), tmp_path / "c", progress=False)


def test_the_scaling_is_that_of_torchvisions_weights():
    import torchvision

    preset = torchvision.models.ResNet50_Weights.DEFAULT.transforms()
    assert tuple(preset.mean) == SCALING[0] and tuple(preset.std) == SCALING[1]


class Counting(streaming.Reader):
    """Notes which files are decoded."""

    decoded: list[int]

    def _read(self, index, damaged):
        self.decoded.append(index)
        return super()._read(index, damaged)


def counted(files, **options):
    found = Stream(files, CPU, **options)
    found._reader = Counting(files)
    found._reader.decoded = []
    return found


@pytest.fixture
def files(large):
    return load("imagenet", str(large), image_size=16).train


def test_only_the_rows_asked_for_are_decoded(files):
    whole = list(Stream(files, CPU).epoch(4, 0, 1))
    chosen = {step: torch.randperm(4, generator=stream(step, "rows"))[:1] for step in range(2)}
    own = counted(files)
    parts = list(own.epoch(4, 0, 1, rows=chosen.get))
    assert len(own._reader.decoded) == 2  # of 8: it decoded the whole batch and threw three quarters away
    for step, (images, labels) in enumerate(parts):
        assert torch.equal(images, whole[step][0][chosen[step]]) and torch.equal(labels, whole[step][1][chosen[step]])


def test_going_on_at_a_batch_decodes_nothing_before_it(files):
    later = counted(files)
    assert len(list(later.epoch(2, 0, 1, first=3))) == 1 and len(later._reader.decoded) == 2


def test_evaluation_in_parts_decodes_each_image_once(files):
    whole = list(Stream(files, CPU).all(3))
    streams = [counted(files) for _ in range(2)]
    parts = [list(own.all(3, (number, 2))) for number, own in enumerate(streams)]
    decoded = [own._reader.decoded for own in streams]
    assert decoded == [[0, 1, 2, 6, 7], [3, 4, 5]]
    for number, batch in enumerate(whole):
        assert all(map(torch.equal, batch, parts[number % 2][number // 2]))


def test_an_empty_share_is_an_empty_batch(files):
    none = torch.zeros(0, dtype=torch.int64)
    batches = list(Stream(files, CPU).epoch(4, 0, 1, rows=lambda step: none))
    assert [tuple(images.shape) for images, _ in batches] == [(0, 3, 16, 16)] * 2


def test_workers_stay_and_a_pass_may_be_left(files):
    helped, alone = Stream(files, CPU, workers=2), Stream(files, CPU)
    passing = helped.epoch(2, 0, 0)
    next(passing)
    workers = {worker.pid for worker in helped._loader._iterator._workers}
    assert all(map(torch.equal, everything(helped.epoch(2, 0, 1)), everything(alone.epoch(2, 0, 1))))
    assert all(map(torch.equal, everything(helped.all(3)), everything(alone.all(3))))
    assert {worker.pid for worker in helped._loader._iterator._workers} == workers
    with pytest.raises(RuntimeError, match=r"cannot go on after another one"):
        next(passing)


def test_chunks_are_small_and_make_the_batch(files, monkeypatch):
    """Evaluation asked for 500 images at once, 75 MB at 224 pixels: more than a container's 64 MB of shared memory."""
    monkeypatch.setattr(streaming, "_free_shared_memory", lambda: 64 * 2**20)
    for workers in (1, 2, 8, 64):
        slots = Stream(files._replace(side=224), CPU, workers)._new_slots(500)
        assert slots.is_shared() and slots.nbytes <= max(16 * 2**20, workers * 3 * 3 * 224 * 224) < 64 * 2**20
    monkeypatch.undo()
    assert Stream(files, CPU, 2)._new_slots(4).shape[1] == 4
    monkeypatch.setattr(streaming, "MOST_ROWS", 3)
    cut = everything(Stream(files, CPU).all(8))
    monkeypatch.undo()
    assert all(map(torch.equal, cut, everything(Stream(files, CPU).all(8))))


def test_workers_fill_the_same_slots_again_and_no_picture_is_overwritten(files, monkeypatch):
    """More chunks than slots; each is looked at only after all others that may be under way had time to arrive."""
    monkeypatch.setattr(streaming, "MOST_ROWS", 1)
    helped, alone = Stream(files, CPU, workers=2), Stream(files, CPU)
    for epoch in range(2):
        found = []
        for images, _ in helped.epoch(2, 0, epoch):
            found.append(images)
            time.sleep(0.2)
        wanted = [images for images, _ in alone.epoch(2, 0, epoch)]
        assert all(map(torch.equal, found, wanted))
        assert 2 * len(wanted) > len(helped._reader.slots)
        assert not any(images.is_shared() for images in found)


def test_too_little_shared_memory_is_a_sentence(files, monkeypatch):
    def refuse(self):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)\nand more")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(RuntimeError) as error:
        list(Stream(files, CPU, workers=1).all(4))
    sentence(error, "No space left", "give more shared memory, or workers=0")


def test_a_dead_worker_ends_the_wait(files, monkeypatch):
    def dies(self, index, damaged):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(streaming.Reader, "_read", dies)
    with pytest.raises(RuntimeError) as error:
        list(Stream(files, CPU, workers=1).all(4))
    sentence(error, "a process that decodes images ended", "workers=0")


def hangs(self, index, damaged):
    signal.pause()


def test_workers_that_never_answer_are_given_up(files, monkeypatch):
    monkeypatch.setattr(streaming.Reader, "_read", hangs)
    monkeypatch.setattr(streaming, "LOOK", 0.2)
    monkeypatch.setattr(streaming, "PATIENCE", 0.6)
    with pytest.raises(RuntimeError) as error:
        list(Stream(files, CPU, workers=1).all(4))
    sentence(error, "gave none for", "workers=0")


def test_the_wait_ends_when_told_to_stop(files, monkeypatch):
    """A handler that only notes a signal could never end it."""
    monkeypatch.setattr(streaming.Reader, "_read", hangs)
    monkeypatch.setattr(streaming, "LOOK", 0.2)
    waiting = Stream(files, CPU, workers=1)
    waiting.stop = lambda: True
    assert list(waiting.all(4)) == []


def test_a_damaged_file_is_one_sentence_from_a_worker_too(large):
    path = large / "train" / "n2" / "1.png"
    path.write_bytes(b"no picture")
    files = load("imagenet", str(large), image_size=16).train
    with pytest.raises(ValueError) as error:
        list(Stream(files, CPU, workers=1).epoch(2, 0, 0))
    sentence(error, "1.png cannot be read", "set skip_damaged")


def test_the_scaling_can_be_the_networks_own(files):
    images = files.pictures(torch.arange(8))
    half = Stream(files, CPU, scaling=((0.5,) * 3, (0.5,) * 3), dtype=torch.float64)
    exact = images.double() / 127.5 - 1
    torch.testing.assert_close(half.normalise(images), exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(next(half.all(8))[0], exact, rtol=0, atol=1e-12)


MEASURE = """
import sys
import numpy as np, torch
from saol_lib.data import Files
from saol_lib.data.streaming import Reader, Stream
from saol_lib.streams import stream

count = 1_000_000
names = np.array([b"train/n01440764/n01440764_%08d.JPEG" % i for i in range(count)])
files = Files(sys.argv[1], names, torch.zeros(count, dtype=torch.int64), side=16)

class Light(Reader):
    def _read(self, index, damaged):
        self.files.path(index)
        return torch.zeros(3, 16, 16, dtype=torch.uint8), index
    def __getitem__(self, chunk):
        found = super().__getitem__(chunk)
        if chunk.index[0] in MARKED:
            line = [line for line in open("/proc/self/smaps_rollup") if "Private_Dirty" in line][0]
            print(line.split()[1], flush=True)
        return found

loaded = Stream(files, torch.device("cpu"), workers=1)
loaded._reader = Light(files)
order = torch.randperm(count, generator=stream(0, "order", 0))
MARKED = order[[100_000, 990_000]].tolist()
print(names.nbytes // 2**20, flush=True)
for _ in loaded.epoch(10_000, 0, 0, rows=lambda step: torch.arange(0, 10_000, 200)):
    pass
"""


def test_memory_of_a_worker_stays_flat_over_a_million_names(tmp_path):
    """A list of paths is copied page by page into every worker, as each look at it counts a reference."""
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    names, early, late = map(int, done.stdout.split())
    assert names < 40  # megabytes
    assert late - early < 4096  # kilobytes of the worker's own


def test_a_crop_is_torchvisions_own_and_lies_as_pictures_do(large):
    """Cut before it is resized, so that nothing is repacked; on processors without 8-bit resizing by way of floats."""
    reader = Reader(load("imagenet", str(large), image_size=48).train)
    for seed in range(40):
        height, width = (20 + 7 * seed, 260 - 5 * seed)
        pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8).permute(2, 0, 1)
        found = reader._crop(pixels, seed)
        torch.default_generator.manual_seed(seed)
        place = reader._anywhere.make_params([pixels])
        wanted = resized_crop(pixels, **place, size=[48, 48], antialias=True)
        wanted = wanted.flip(2) if torch.rand(1) < 0.5 else wanted
        assert (found.int() - wanted.int()).abs().max() <= 1
        assert found.permute(1, 2, 0).is_contiguous()


def test_a_batch_of_one_chunk_is_not_copied(files):
    stream = Stream(files, CPU)
    chunk = stream._reader[Chunk([0, 1], None, ends=True)]
    images, _ = stream._joined([chunk])
    assert images.data_ptr() == chunk.images.data_ptr()
    two, _ = stream._joined([chunk, chunk])
    assert torch.equal(two, torch.cat([images, images]))
