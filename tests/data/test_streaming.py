"""A stream of files: the same for any number of workers, from any batch on, each process its own rows."""

import pytest
import torch
from making import picture

from saol_lib.data import SCALING, Stream, load
from saol_lib.training.config import RunConfig
from saol_lib.training.loop import train


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
