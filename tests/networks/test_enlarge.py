"""The last stage's stride taken out, for any kernel: the old values where the old map had them, or a sentence."""

import re

import pytest
import torch
from torch import nn

from saol_lib.attach import attach_saol
from saol_lib.networks import enlarge


class Net(nn.Module):
    """A stem, a strided layer, what comes after it, and a classifier."""

    def __init__(self, strided, *after, width=8):
        super().__init__()
        self.stem, self.strided, self.after = nn.Conv2d(3, 6, 3, 2, 1), strided, nn.Sequential(*after)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(width, 4)

    def forward(self, x):
        x = self.after(self.strided(self.stem(x).relu()))
        return self.head(self.pool(x).flatten(1))


class Slice(nn.Module):
    def forward(self, x):
        return x[:, :, ::2, ::2]


def attached(strided, *after, width=8):
    torch.manual_seed(0)
    return attach_saol(Net(strided, *after, width=width).double(), seed=0).eval()


def strided(kernel=3, padding=1, **more):
    return nn.Conv2d(6, 8, kernel, 2, padding, **more)


def images(height=32, width=48):
    return torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def last_map(model):
    return model.look(images())[1]


EXACT = {  # after the stride a map is read at every second place only
    "3x3": (strided(), nn.Conv2d(8, 8, 3, padding=1)),
    "5x5": (strided(), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2)),
    "1x7 and 5x1": (strided(), nn.Conv2d(8, 8, (1, 7), padding=(0, 3)), nn.Conv2d(8, 8, (5, 1), padding=(2, 0))),
    "7x7 of each channel": (strided(), nn.Conv2d(8, 8, 7, padding=3, groups=8)),
    "dilated before": (strided(), nn.Conv2d(8, 8, 3, padding=2, dilation=2)),
    "padding by name": (strided(), nn.Conv2d(8, 8, 5, padding="same")),
    "a kernel of 1": (strided(1, 0), nn.Conv2d(8, 8, 3, padding=1)),
    "an even kernel that halves": (strided(2, 0), nn.Conv2d(8, 8, 3, padding=1)),
    "a kernel of 4": (strided(4, 1), nn.Conv2d(8, 8, 3, padding=1)),
}


@pytest.mark.parametrize("name", EXACT)
def test_with_dilation_the_old_map_lies_in_the_new_one(name):
    model = attached(*EXACT[name])
    before, after = last_map(model), last_map(enlarge(model, dilation=True))
    assert after.shape[2:] == (2 * before.shape[2], 2 * before.shape[3])
    torch.testing.assert_close(after[..., ::2, ::2], before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", EXACT)
def test_without_dilation_every_weight_and_the_original_stay(name):
    model = attached(*EXACT[name])
    before, weights = last_map(model), model.state_dict()
    larger = enlarge(model)
    after = last_map(larger)
    assert after.shape[2:] == (2 * before.shape[2], 2 * before.shape[3])
    assert torch.equal(last_map(model), before)
    assert all(torch.equal(value, weights[key]) for key, value in larger.state_dict().items())
    assert larger(images()).attention.shape[2:] == after.shape[2:]


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, 1)])
def test_shrinking_pools_go(pool):
    model = attached(pool, nn.Conv2d(6, 8, 3, padding=1))
    assert isinstance(enlarge(model).body.strided, nn.Identity) and last_map(enlarge(model)).shape[2:] == (16, 24)


def test_saols_own_convolutions_are_not_dilated():
    larger = enlarge(attached(strided(), nn.Conv2d(8, 8, 3, padding=1)), dilation=True)
    assert larger.body.after[0].dilation == (2, 2)
    assert {m.dilation for m in larger.saol.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}


PADDED = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(8, 8, 3))


@pytest.mark.parametrize(
    ("layers", "dilation", "message"),
    [
        ((Slice(), nn.Conv2d(6, 8, 3, padding=1)), False, "cannot be enlarged: no stride of its backbone gives"),
        ((nn.Conv2d(6, 8, 3, 3, 1), nn.Conv2d(8, 8, 1)), False, "not twice as large"),
        ((strided(), PADDED), True, "'after.0.1' with a kernel of 3x3 is padded outside of the convolution"),
        ((strided(), nn.Conv2d(8, 8, 2, padding="same")), True, "'after.0' with a kernel of 2x2 is even"),
        ((strided(), nn.LayerNorm([8, 8, 8])), False, "without its last stride it does not run"),
    ],
)
def test_what_cannot_be_enlarged_gets_one_sentence(layers, dilation, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        enlarge(attached(*layers), dilation)
    assert "\n" not in str(caught.value)
