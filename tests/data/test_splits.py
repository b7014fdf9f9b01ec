"""Which images are trained on and which are held out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from making import CLASSES, sentence

from saol_lib.data import Dataset, Split, balanced, select
from saol_lib.streams import stream


@given(st.lists(st.integers(3, 9), min_size=2, max_size=5), st.integers(1, 3), st.integers(0, 99))
def test_balanced(sizes, each, seed):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=stream(seed, "test"))]
    index = balanced(labels, each * len(sizes), stream(seed, "x"))
    assert labels[index].bincount().tolist() == [each] * len(sizes)
    assert torch.equal(index, index.unique())  # in order, none twice


@pytest.mark.parametrize("count", [0, 7, 40])
def test_balanced_refuses(count):
    with pytest.raises(ValueError) as error:
        balanced(torch.arange(20) % 5, count, stream(0, "x"))
    sentence(error, str(count), "5 classes", "4")


def numbered(count=400):
    """A data set whose images tell their own number; 10 classes."""
    images = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()
    train = Split((images % 256).to(torch.uint8), torch.arange(count) % 10, torch.arange(count)[:, None].expand(-1, 4))
    return Dataset(train, train.subset(torch.arange(20)), tuple(CLASSES), "")


def test_held_out_is_fixed_balanced_and_never_trained_on():
    dataset = numbered()
    train, aside = select(dataset, "held_out", None, 100)
    trained, held = set(train.boxes[:, 0].tolist()), set(aside.boxes[:, 0].tolist())
    assert not trained & held and trained | held == set(range(400))
    assert aside.labels.bincount().tolist() == [10] * 10
    torch.manual_seed(99)
    part, again = select(dataset, "held_out", 200, 100)
    assert torch.equal(again.images, aside.images)  # whatever else is asked for, and whatever the global seed
    assert set(part.boxes[:, 0].tolist()) < trained and part.labels.bincount().tolist() == [20] * 10


def test_test_split_is_untouched():
    dataset = numbered()
    train, evaluation = select(dataset, "test", None, 100)
    assert train is dataset.train and evaluation is dataset.test
    small, _ = select(dataset, "test", 50, 100)
    assert small.labels.bincount().tolist() == [5] * 10 and torch.equal(small.labels, small.boxes[:, 0] % 10)


@given(st.integers(0, 99), st.integers(1, 5))
def test_groups_never_part(seed, each):
    generator = stream(seed, "test")
    groups = torch.randint(30, (200,), generator=generator)
    labels = groups % 3
    images = torch.arange(200).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).to(torch.uint8)
    whole = Split(images, labels, None, groups)
    train, aside = select(Dataset(whole, whole, ("a", "b", "c"), ""), "held_out", None, 3 * each)
    assert aside.labels.bincount(minlength=3).tolist() == [each] * 3
    assert not set(train.groups.tolist()) & set(aside.groups.tolist())
    lost = 200 - len(train.labels) - len(aside.labels)
    largest = groups.bincount().max().item()
    assert lost < 3 * largest  # the rest of one group a class


def test_pictures_and_sizes():
    images = torch.zeros(4, 3, 5, 7, dtype=torch.uint8)
    split = Split(images, torch.arange(4))
    assert split.size == split.source_size == (5, 7)
    larger = split._replace(side=20).subset(torch.tensor([2, 1]))
    assert larger.size == (20, 20) and larger.source_size == (5, 7)
    assert larger.pictures(torch.tensor([0])).shape == (1, 3, 5, 7)
