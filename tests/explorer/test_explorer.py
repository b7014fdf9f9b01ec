"""The explorer without a browser: states, what they show, foreign pictures, and the widget's answers to its page."""

import io
import json
import struct
import zlib
from collections import Counter
from dataclasses import asdict, replace
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from saol_lib import build_model
from saol_lib.data import digit_scenes, mean_and_std
from saol_lib.explorer import drawings, shipped
from saol_lib.explorer import lens as core
from saol_lib.explorer import widget as widgets
from saol_lib.explorer.lens import Lens
from saol_lib.explorer.pictures import Pictures, gather, read_picture
from saol_lib.explorer.state import COLOURS, State
from saol_lib.explorer.widget import THUMBS, AttentionExplorer
from saol_lib.localization import score_maps, stretch

SPLIT = digit_scenes(30, test=True)
SCENES = Pictures(SPLIT.images, SPLIT.labels, SPLIT.boxes)
DIGITS = tuple("0123456789")
BOX = (4, 6, 20, 16)


@cache
def network(**options):
    return build_model("resnet-8", 10, seed=0, **options)


@pytest.fixture
def lens():
    return Lens(network(), SCENES, DIGITS)


@pytest.fixture
def widget():
    return AttentionExplorer.of({"model": Lens(network(), SCENES, DIGITS)})


def as_seen(image):
    """A picture (3, H, W) as a network sees it: scaled by the pictures' own mean and deviation."""
    mean, std = mean_and_std(SCENES.images)
    scaled = (image / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    return scaled.float()


def ask(widget, number=1, **change):
    """What the page does when something is moved."""
    widget._asked({"ask": {**widget.choices, **change}, "number": number})


def png(array):
    file = io.BytesIO()
    Image.fromarray(np.uint8(array)).save(file, "PNG")
    return file.getvalue()


# --- states ----------------------------------------------------------------------------------------------------------


def test_a_state_survives_json(lens):
    state = lens.check(State(base=3, box=BOX, k=7, opacity=1, scale="shared"))
    assert State.of(json.loads(json.dumps(asdict(state)))) == state


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"base": 30}, "picture 30 is not there; choose 0 to 29"),
        ({"source": -1}, "picture -1 is not there"),
        ({"source": True}, "base and source must each be the number of a picture"),
        ({"base": {"number": 1}}, "base and source must"),
        ({"base": [[{}]]}, "base and source must"),
        ({"source": "no base64"}, "the picture of this state is no whole picture"),
        ({"source": "bäse64"}, "the picture of this state is no whole picture"),
        ({"source": "bm8gcGljdHVyZQ=="}, "the picture of this state is no whole picture"),
        ({"box": [0, 0, 33, 8]}, "box=(0, 0, 33, 8) must be x0, y0, x1, y1 in 32 x 32 pixels"),
        ({"box": [8, 0, 4, 8]}, "box="),
        ({"box": [0.5, 0, 4, 8]}, "box="),
        ({"box": [0, 4, 8]}, "box="),
        ({"box": "all"}, "box="),
        ({"overlay": "saliency"}, "overlay='saliency' must be one of none, attention"),
        ({"overlay": {}}, "overlay={} must"),
        ({"box": [4, 6, 20, 16], "shift": [5, 0]}, "shift=(5, 0) must be -12 to 4 pixels right"),
        ({"shift": 3}, "shift=3 must be"),
        ({"model": 3}, "model=3 is not here"),
        ({"k": 10}, "k=10 must be null or a class, 0 to 9"),
        ({"k": 1.0}, "k=1.0 must"),
        ({"opacity": float("nan")}, "opacity=nan must be in 0..1"),
        ({"opacity": "1"}, "opacity='1' must"),
        ({"threshold": 1}, "threshold=1 must be in 0..1, below 1"),
        ({"scale": None}, "scale=None must be own or shared"),
        ({"colours": "jet"}, "colours='jet' must be one of viridis, cividis"),
        ({"model": "big"}, "model='big' is not here; choose one of model"),
        ({"zoom": 2}, "is no state"),
        (["box"], "is no state"),
        (None, "is no state"),
    ],
)
def test_foreign_states_get_one_sentence_and_change_nothing(widget, change, sentence):
    before, numbers = widget.state, widget.numbers
    widget._asked({"name": "a.json", "text": json.dumps(change)})
    assert sentence in widget.message and "\n" not in widget.message
    assert widget.state == before and widget.numbers == numbers
    with pytest.raises(ValueError):
        widget.state = State.of(change)


def test_a_first_patch_surrounds_the_sources_object(lens):
    x0, y0, x1, y1 = SCENES.boxes[1].tolist()
    box = lens.check(State()).box
    assert box[0] <= x0 and box[1] <= y0 and box[2] > x1 and box[3] > y1


# --- what is seen ----------------------------------------------------------------------------------------------------


def test_the_mixed_picture_and_its_true_shares(lens):
    image, shares = lens.mixed((0, 1, BOX, (0, 0)))
    expected = SCENES.images[0].clone()
    expected[:, 6:16, 4:20] = SCENES.images[1, :, 6:16, 4:20]
    assert torch.equal(image, expected) and SCENES.labels[0] != SCENES.labels[1]
    assert shares[SCENES.labels[1]] == pytest.approx(160 / 1024) and shares[SCENES.labels[0]] == pytest.approx(
        864 / 1024
    )


def test_the_second_picture_moves_under_the_patch(lens):
    image, _ = lens.mixed((0, 1, BOX, (3, -2)))
    expected = SCENES.images[0].clone()
    expected[:, 6:16, 4:20] = SCENES.images[1, :, 8:18, 1:17]
    assert torch.equal(image, expected)

    x0, y0, x1, y1 = SCENES.boxes[1].tolist()
    label = int(SCENES.labels[1])
    whole = State(box=(x0 - 3, y0, x1 - 2, y1 + 1), shift=(-3, 0), k=label)
    assert (x0 - 3, y0, x1 - 3, y1) in lens._truths(lens.check(whole))


def test_a_picture_of_unknown_class_is_called_unknown_everywhere(widget):
    widget.upload(png(np.full((40, 40, 3), 90)), "base")
    lens = widget.lenses["model"]
    state = widget.state
    area = (state.box[2] - state.box[0]) * (state.box[3] - state.box[1]) / 1024
    assert widget.numbers["unknown"] == pytest.approx(1 - area)
    told = f"true shares of the area: “unknown” {100 - 100 * area:.0f} %, “{SCENES.labels[1]}” {100 * area:.0f} %"
    assert lens.summary(state).endswith(told) and widget.render(state).get_suptitle().endswith(told)
    ask(widget, box=[0, 0, 0, 0])
    assert lens.summary(widget.state).endswith("true shares of the area: “unknown” 100 %")
    ask(widget, base=0)
    assert widget.numbers["unknown"] == 0 and "unknown" not in lens.summary(widget.state)


def test_what_is_told_is_what_the_model_says(lens):
    state = lens.check(State(box=BOX, k=2))
    image = as_seen(lens.mixed(state.scene)[0])
    with torch.inference_mode():
        outputs, numbers = lens.model(image[None]), lens.numbers(state)
    assert numbers["saol"] == pytest.approx(outputs.saol_log_probs[0].exp().tolist(), abs=1e-6)
    assert numbers["gap"] == pytest.approx(outputs.gap_logits[0].softmax(0).tolist(), abs=1e-6)
    assert float(lens.map(state.scene, "saol", 2).sum()) == pytest.approx(numbers["saol"][2], abs=1e-6)
    assert lens.numbers(replace(state, box=(0, 0, 32, 32)))["held"] == pytest.approx(1)
    assert lens.numbers(replace(state, box=(0, 0, 16, 32)))["held"] == pytest.approx(
        float(lens.map((0, 1, (0, 0, 16, 32), (0, 0)), "attention", 0)[:, :4].sum())
    )
    assert lens.numbers(replace(state, box=(5, 5, 5, 9)))["held"] == 0


def test_no_pass_through_the_network_but_for_what_it_sees(lens):
    passes = []
    hook = lens.model.body.register_forward_pre_hook(lambda *_: passes.append(1))
    state = lens.check(State(box=BOX))
    lens.view(state)
    assert len(passes) == 1
    for change in ({"opacity": 0.1}, {"overlay": "grad_cam"}, {"k": 4}, {"threshold": 0.2}, {"scale": "shared"}):
        state = replace(state, **change)
        lens.view(state)
    lens.render(state)
    assert len(passes) == 1
    lens.view(replace(state, box=(0, 0, 9, 9)))
    hook.remove()
    assert len(passes) == 2


@pytest.mark.parametrize("method", core.OVERLAYS)
def test_the_maps_are_those_of_score_maps(lens, method):
    state = State(box=BOX, overlay=method, k=3)
    image = as_seen(lens.mixed(state.scene)[0])
    expected = score_maps(lens.model, image[None], torch.tensor([3]), method)
    assert torch.allclose(stretch(lens.enlarged(state)[None]), expected, atol=1e-4)


def test_box_and_overlap_are_the_literal_ones(lens, monkeypatch):
    heat = torch.zeros(32, 32)
    heat[8:16, 4:20] = 1
    monkeypatch.setattr(lens, "enlarged", lambda state: heat)
    told = lens.found(State(box=BOX, overlay="mask"))  # the patch: rows 6 to 15, columns 4 to 19
    assert told == {"box": (4, 8, 19, 15), "truth": (4, 6, 19, 15), "iou": pytest.approx(128 / 160)}
    label, (x0, y0, x1, y1) = int(SCENES.labels[0]), SCENES.boxes[0].tolist()
    half = (x0, y0, (x0 + x1) // 2, y1 + 1)
    told = lens.found(State(source=1, box=half, k=label, overlay="saol"))
    assert told["truth"] == (half[2], y0, x1, y1)  # the part that the patch leaves
    a = {(x, y) for x in range(4, 20) for y in range(8, 16)}
    b = {(x, y) for x in range(half[2], x1 + 1) for y in range(y0, y1 + 1)}
    assert told["iou"] == pytest.approx(len(a & b) / len(a | b))
    other = next(k for k in range(10) if k not in SCENES.labels[:2])
    assert lens.found(State(box=BOX, k=other, overlay="saol")) == {"box": (4, 8, 19, 15), "truth": None, "iou": None}
    assert lens.found(State(box=BOX, overlay="none")) == {"box": None, "truth": None, "iou": None}
    nothing = State(box=(4, 6, 4, 16), overlay="mask")
    assert lens.found(nothing)["box"] is None, "there is no patch to find"
    heat.zero_()
    assert lens.found(State(box=BOX, overlay="mask"))["box"] is None


def test_a_higher_threshold_never_gives_a_larger_box(lens):
    boxes = [lens.found(State(box=BOX, k=1, threshold=t / 20))["box"] for t in range(20)]
    areas = [(x1 - x0 + 1) * (y1 - y0 + 1) for x0, y0, x1, y1 in boxes]
    assert areas[0] == 1024 and areas[-1] < 300


@pytest.mark.parametrize("colours", COLOURS)
def test_colours_are_matplotlibs(lens, colours):
    state = State(box=BOX, k=0, colours=colours)
    values = lens.map(state.scene, "spatial", 0)
    low, high = lens.limits(state, "spatial")
    expected = plt.colormaps[colours]((values.numpy() - low) / (high - low), bytes=True)[..., :3]
    found = core.PALETTES[colours][lens.steps(state, "spatial", values).long()].numpy()
    assert np.abs(found.astype(int) - expected).max() <= 4  # one step of 256
    assert (low, high) == (float(values.min()), float(values.max()))


def test_a_shared_scale_is_one_for_all_classes(lens):
    for overlay in core.OVERLAYS:
        limits = {lens.limits(State(box=BOX, k=k, scale="shared"), overlay) for k in range(10)}
        most = max(float(lens.map((0, 1, BOX, (0, 0)), overlay, k).max()) for k in range(10))
        assert len(limits) == 1 and limits.pop()[1] >= most - 1e-6


def test_view_is_pure_and_draws_pngs(lens):
    state = lens.check(State(box=BOX))
    once, twice = lens.view(state), Lens(network(), SCENES, DIGITS).view(state)
    assert once == twice
    steps = lens.steps(state, state.overlay, lens.enlarged(state))
    assert once["overlay"] == {"shape": [32, 32], "values": steps.numpy().tobytes()}
    assert steps.min() == 0 and steps.max() == 255
    assert {tuple(tile["shape"]) for tile in once["tiles"].values()} == {(8, 8)}

    k = lens.target(state)
    attention, votes, best, classes = np.frombuffer(once["cells"]["values"], "<f4").reshape(4, *once["cells"]["shape"])
    spatial = lens.look(state.scene)[0].spatial_log_probs[0].exp().numpy()
    assert attention.sum() == pytest.approx(1, abs=1e-5) and np.array_equal(classes, spatial.argmax(0))
    assert np.array_equal(best, spatial.max(0)) and np.array_equal(votes, spatial[k])
    assert (attention * votes).sum() == pytest.approx(once["numbers"]["saol"][k], abs=1e-5)


def test_networks_with_one_layer_alone():
    lens = Lens(network(heads=("saol",)), SCENES, DIGITS)
    assert lens.overlays == ["none", "attention", "spatial", "saol", "mask"]
    assert lens.numbers(lens.check(State()))["gap"] is None
    lens.render(lens.check(State()))
    assert "mask" not in Lens(network(mask_source="none"), SCENES, DIGITS).overlays

    lens = Lens(network(heads=("gap",)), SCENES, DIGITS)
    state = lens.check(State())
    told = lens.numbers(state)
    assert lens.overlays == ["none", "cam", "grad_cam"] and state.overlay == "cam"
    assert told["saol"] is None and told["held"] is None and lens.view(state)["cells"] == {}
    assert told["k"] == int(np.argmax(told["gap"]))
    lens.render(state)


def test_what_does_not_fit_is_told_at_once():
    with pytest.raises(ValueError, match="the network knows 10 classes, but 3 names are given"):
        Lens(network(), SCENES, ("a", "b", "c"))
    with pytest.raises(ValueError, match="label 10 is no class; give 0 to 9"):
        Lens(network(), SCENES._replace(labels=SCENES.labels + 10 * (SCENES.labels == 0)))
    assert Lens(network(), SCENES).classes[3] == "class 3"


def test_a_network_that_wants_larger_pictures_is_given_them_while_boxes_stay_in_the_pictures_pixels():
    sizes = []

    def enlarge(pictures):
        assert pictures.dtype == torch.uint8 and pictures.shape[1:] == (3, 32, 32)
        seen = torch.nn.functional.interpolate(pictures / 255, scale_factor=2)
        sizes.append(tuple(seen.shape))
        return seen

    small, large = Lens(network(), SCENES, DIGITS), Lens(network(), SCENES, DIGITS, enlarge)
    state = large.check(State(box=BOX, overlay="attention"))
    assert small.cells(state)["shape"] == [8, 8] and large.cells(state)["shape"] == [16, 16]
    assert large.size == (32, 32) and large.enlarged(state).shape == (32, 32) and set(sizes) == {(1, 3, 64, 64)}

    with torch.inference_mode():
        outputs = network()(enlarge(large.mixed(state.scene)[0][None]))
    assert large.numbers(state)["saol"] == pytest.approx(outputs.saol_log_probs[0].exp().tolist(), abs=1e-6)
    explorer = AttentionExplorer(network(), SCENES.images, SCENES.labels, DIGITS, scaling=enlarge)
    assert explorer.tiles["attention"]["shape"] == [16, 16]


# --- what a user holds ------------------------------------------------------------------------------------------------


class Folder:
    """As torchvision's data sets: pairs of a PIL image and a label, and the names of the classes."""

    classes = tuple(f"digit {k}" for k in range(10))

    def __len__(self):
        return 30

    def __getitem__(self, i):
        return Image.fromarray(SCENES.images[i].permute(1, 2, 0).numpy()), int(SCENES.labels[i])


def held():
    floats = SCENES.images.float() / 255
    last = SCENES.images.permute(0, 2, 3, 1)
    return {
        "tensor": SCENES.images,
        "floats": floats,
        "array": last.numpy(),
        "array, channels first": SCENES.images.numpy(),
        "float array": last.numpy() / 255,
        "pil": [Image.fromarray(image) for image in last.numpy()],
        "list of tensors": list(SCENES.images),
        "data set": Folder(),
        "pairs of tensors": TensorDataset(floats, SCENES.labels),
    }


@pytest.mark.parametrize("kind", held())
def test_pictures_of_every_kind_become_the_same(kind):
    pictures, classes = gather(held()[kind], labels=None if "data" in kind or "pairs" in kind else SCENES.labels)
    assert torch.equal(pictures.images, SCENES.images) and torch.equal(pictures.labels, SCENES.labels)
    assert classes == (Folder.classes if kind == "data set" else None)


def test_an_explorer_of_ones_own():
    explorer = AttentionExplorer(network(), held()["pil"][:3], classes=DIGITS)
    assert explorer.numbers["unknown"] == 1 and explorer.setup["model"]["classes"] == list(DIGITS)
    assert AttentionExplorer(network(heads=("gap",)), SCENES.images[:1]).choices["source"] == 0
    explorer = AttentionExplorer(network(), Folder())
    assert explorer.setup["model"]["classes"][4] == "digit 4" and explorer.numbers["unknown"] == 0


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (3, None, "images is of type int; give a tensor, an array, a list of PIL images or a data set"),
        ([], None, "images is empty"),
        (["a.png"], None, "a picture is of type str"),
        (torch.zeros(2, 5, 5), None, r"images has shape \(2, 5, 5\)"),
        (
            torch.zeros(2, 3, 8, 8, dtype=torch.int64),
            None,
            "images is torch.int64; give uint8 in 0..255",
        ),
        (torch.randn(2, 3, 8, 8), None, "give floats in 0..1 as they are before normalisation"),
        (torch.full((2, 3, 8, 8), torch.nan), None, "give floats in 0..1"),
        (torch.zeros(2, 3, 8, 8), [1], r"labels has shape \(1,\); give one class number a picture"),
    ],
)
def test_odd_pictures_are_refused(images, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        gather(images, labels)


def test_figures_are_drawn_from_the_state_alone(widget):
    before = widget.state
    assert widget.file("svg") == widget.file("svg") and widget.file("png").startswith(b"\x89PNG")
    figure = widget.render(State(box=BOX, k=3, overlay="none", colours="cividis", scale="shared"))
    assert widget.state == before
    titles = ("A: where it looks", "Yₖ: what each place says", "A·Yₖ: together")
    maps = [tile.images[0] for tile in figure.axes if tile.images and tile.get_title() in titles]
    lens = widget.lenses["model"]
    for shown, name in zip(maps, ("attention", "spatial", "saol"), strict=True):
        assert (
            np.array_equal(shown.get_array(), lens.map((0, 1, BOX, (0, 0)), name, 3))
            and shown.get_cmap().name == "cividis"
        )
        assert shown.get_clim() == pytest.approx(lens.limits(State(box=BOX, k=3, scale="shared"), name))
    assert "maps for “3”" in figure.get_suptitle() and "SAOL: " in figure.get_suptitle()


# --- uploads ---------------------------------------------------------------------------------------------------------


def stored(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb():
    """A PNG of a few bytes that says it has 400 million pixels."""
    data = bytearray(stored(Image.new("L", (8, 8))))
    data[16:24] = struct.pack(">II", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


LARGE, CUT = bomb(), stored(Image.effect_noise((64, 64), 80))[:900]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "a.png is no whole picture; give a PNG, JPEG, WEBP, GIF, BMP file"),
        (b"%PDF-1.7 not a picture", "a.png is no whole picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a.png is no whole picture"),
        (stored(Image.new("RGB", (64, 64)), "TIFF"), "a.png is no whole picture"),
        (CUT, "a.png is no whole picture"),
        (LARGE, "a.png is too large: at most 8 MB and 50 million pixels are read"),
        (stored(Image.new("1", (8000, 7000))), "a.png is too large"),
        (b"\0" * 8_000_001, "a.png"),
        (stored(Image.new("RGB", (1, 1))), "a.png is 1 x 1 pixels; give one of at least 8 a side"),
        (stored(Image.new("RGB", (900, 7))), "a.png is 900 x 7 pixels"),
    ],
    ids=["empty", "pdf", "svg", "tiff", "cut", "bomb", "large", "heavy", "one pixel", "thin"],
)
def test_bad_uploads_get_one_sentence_and_the_explorer_goes_on(widget, data, sentence):
    before = widget.state
    widget._asked({"slot": "base", "name": "a.png"}, [memoryview(data)])
    assert sentence in widget.message and "\n" not in widget.message and widget.state == before
    widget._asked({"slot": "base", "name": "b.png"}, [memoryview(stored(Image.new("RGB", (40, 40), "red")))])
    assert isinstance(widget.state.base, str)
    told = "b.png was cut and shrunk to 32 x 32 pixels. The network knows only: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9."
    assert widget.message == told


def pixel(data, x, y, size=(32, 32)):
    image, _ = read_picture(data, "a", size)
    assert image.shape == (3, *size) and image.dtype == torch.uint8
    return image[:, y, x].tolist()


def test_unusual_pictures_are_read_as_they_look():
    assert pixel(stored(Image.new("L", (40, 40), 77)), 5, 5) == [77] * 3
    assert pixel(stored(Image.fromarray(np.full((40, 40), 77 * 257, np.uint16))), 5, 5) == [77] * 3
    assert pixel(stored(Image.new("RGBA", (40, 40), (9, 9, 9, 0))), 5, 5) == [255] * 3
    assert pixel(stored(Image.new("CMYK", (40, 40), (0, 0, 0, 0)), "JPEG"), 5, 5) == [255] * 3
    palette = Image.new("P", (40, 40), 3)
    palette.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2, 10, 200, 30])
    assert pixel(stored(palette), 5, 5) == [10, 200, 30]


def test_exif_turns_the_picture():
    upright = Image.new("RGB", (64, 64), "black")
    upright.paste("white", (0, 0, 64, 32))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: the upper half comes to the right
    data = stored(upright, "JPEG", exif=exif, quality=95)
    assert min(pixel(data, 28, 16)) > 240 and max(pixel(data, 3, 16)) < 15


def test_the_middle_of_a_wide_picture_is_kept():
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    assert pixel(stored(wide), 1, 16) == pixel(stored(wide), 30, 16) == [0, 0, 255]
    assert read_picture(stored(wide), "a", (20, 60))[0].shape == (3, 20, 60)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame_and_says_so(widget, kind):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "green")]
    data = stored(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    widget.upload(data, "source", "a.gif")
    assert widget.message.startswith("a.gif is animated; its first of 3 frames is used. a.gif was cut and shrunk")
    image, label, box = widget.lenses["model"].picture(widget.state.source)
    assert image[:, 5, 5].tolist() == [255, 0, 0] and label == -1 and box is None


def test_an_upload_is_part_of_the_state(widget):
    widget.upload(png(np.random.default_rng(0).integers(0, 256, (32, 32, 3))), "base")
    state = State.of(json.loads(json.dumps(asdict(widget.state))))
    other = AttentionExplorer.of(widget.lenses)
    other.state = state
    assert other.numbers == widget.numbers and other.pictures == widget.pictures
    area = (state.box[2] - state.box[0]) * (state.box[3] - state.box[1]) / 1024
    assert sum(widget.numbers["true"]) == pytest.approx(area)  # of the patch alone: the rest is of no known class


# --- the widget ------------------------------------------------------------------------------------------------------


PARTS = ["pictures", "tiles", "overlay", "cells", "numbers"]


def test_the_page_asks_and_is_answered_with_what_differs(widget):
    ask(widget, 1, box=list(BOX), overlay="cam", k=4)
    assert widget.state.box == BOX and widget.numbers["k"] == 4 and widget.message == "" and widget.answered == 1
    assert widget.numbers == widget.lenses["model"].numbers(widget.state)

    sent = []
    widget.observe(lambda change: sent.append(change["name"]), PARTS)
    ask(widget, 2, opacity=0.2)
    assert widget.state.opacity == 0.2 and not sent and widget.answered == 2
    ask(widget, 3, threshold=0.93)
    assert sent == ["numbers"]
    ask(widget, 4, box=[5, 6, 21, 16])
    assert set(sent) == {"tiles", "overlay", "cells", "numbers"}  # the pictures are the page's already
    ask(widget, 5, source=9)
    assert set(sent) == set(PARTS)

    ask(widget, 6, opacity=7)
    assert "opacity=7 must be in 0..1" in widget.message and widget.choices["opacity"] == 0.2 and widget.answered == 6
    widget._asked({"ask": {"model": "model"}, "number": 7})
    assert widget.state == widget.lenses["model"].check(widget.first("model")) and widget.message == ""


@pytest.mark.parametrize("overlay", ["none", *core.OVERLAYS])
def test_every_overlay_answers_a_drag(widget, overlay):
    ask(widget, 1, overlay=overlay, box=list(BOX))
    before = widget.numbers
    ask(widget, 2, box=[0, 0, 30, 30])
    assert widget.message == "" and widget.answered == 2 and widget.numbers["saol"] != before["saol"]
    assert bool(widget.overlay) == (overlay != "none")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"slot": "base", "name": "a.png"}, "a.png came without its bytes; upload it again"),
        ({"slot": "source"}, "the page came without its bytes"),
        ({"text": 5, "name": "x.json"}, "x.json is a int; give a state as text"),
        ({"text": [1], "name": "x.json"}, "x.json is a list; give a state as text"),
        ({"text": None}, "the page is a NoneType; give a state as text"),
        ({"text": "{'not': json", "name": "x.json"}, "x.json is not JSON; give a state that was saved here"),
        ({"text": "[" * 100_000}, "is not JSON"),
        ({"text": ""}, "is not JSON"),
        ({"text": "[1]"}, "[1] is no state"),
        ([1, 2], "the page sent a list where an object was expected"),
        ("text", "the page sent a str where an object was expected"),
        (None, "the page sent a NoneType"),
        ({}, "which is not known here"),
        ({"slot": "attic"}, "which is not known here"),
        ({"slot": ["base"]}, "which is not known here"),
        ({"figure": "exe"}, "which is not known here"),
        ({"ask": 3, "number": 4}, "3 is no state"),
        ({"ask": ["box"], "number": 4}, "is no state"),
        ({"ask": {}, "number": "4"}, "the page sent number='4'; a whole number was expected"),
    ],
)
def test_odd_messages_get_one_sentence_and_the_explorer_goes_on(widget, content, sentence):
    before = widget.state
    widget._asked(content, [])
    assert sentence in widget.message and "\n" not in widget.message and widget.state == before
    ask(widget, 9, box=[1, 1, 9, 9])
    assert widget.message == "" and widget.state.box == (1, 1, 9, 9)


def test_the_page_gets_files(widget, monkeypatch):
    sent = []
    monkeypatch.setattr(widget, "send", lambda content, buffers: sent.append((content["name"], buffers[0][:4])))
    for kind in ("svg", "png"):
        widget._asked({"figure": kind})
    assert sent == [("saol.svg", b"<?xm"), ("saol.png", b"\x89PNG")]


def test_several_models_in_one_explorer():
    small = Pictures(SCENES.images[:5], SCENES.labels[:5])
    scene = shipped.Scene("whole", "nothing pasted", State(base=3, box=(0, 0, 0, 0)))
    lenses = {"first": Lens(network(), SCENES, DIGITS), "second": Lens(network(), small, DIGITS)}
    widget = AttentionExplorer.of(lenses, {"second": [scene]})
    assert widget.state.model == "first" and widget.setup["second"]["count"] == 5
    widget._asked({"ask": {"model": "second"}, "number": 1})
    assert widget.choices["model"] == "second" and widget.choices["base"] == 3
    widget._asked({"text": json.dumps({"model": "second", "base": 5})})
    assert "picture 5 is not there; choose 0 to 4" in widget.message


def test_the_page_is_one_module_without_imports():
    page = widgets.page()
    assert "\nimport " not in page and page.count("export ") == 1 and "export default { render: mount }" in page
    assert {path.stem for path in widgets.PAGE.glob("*.js")} == set(widgets.MODULES)


def test_the_shipped_models_open_and_know_their_pictures():
    widget = AttentionExplorer.shipped()
    assert "digits" in widget.lenses
    for name, lens in widget.lenses.items():
        weights = shipped.FOLDER / f"{name}.safetensors"
        assert weights.stat().st_size < 2e6 and lens.overlays == ["none", *core.OVERLAYS]
    lens = widget.lenses["digits"]
    right = [lens.target(State(base=i, box=(0, 0, 0, 0))) == lens.pictures.labels[i] for i in range(60)]
    assert shipped.shipped_run("digits").metrics["top1_saol_last"] > 90 and sum(right) >= 50
    assert widget.state.overlay == "attention"


@pytest.mark.parametrize("name", list(shipped.shipped_scenes()))
def test_scenes_show_what_their_captions_say(name):
    pytest.importorskip("skimage")
    lens = shipped.shipped_lenses()[name]
    scenes = {scene.title: lens.check(scene.state) for scene in shipped.shipped_scenes()[name]}
    opening, whole, *_ = scenes.values()
    fails = scenes["Where SAOL fails"]

    def said(state):
        told = lens.numbers(state)
        return int(np.argmax(told["saol"])), int(np.argmax(told["gap"])), int(lens.pictures.labels[state.base])

    assert opening.base == whole.base and len(set(said(whole))) == 1  # it opens on a picture that both get right
    assert said(fails)[0] != said(fails)[2]
    if name == "digits":
        told = lens.numbers(opening)
        first, second = (int(lens.pictures.labels[i]) for i in (opening.base, opening.source))
        assert min(told["saol"][first], told["saol"][second]) > 0.3 and 0.2 < told["held"] < 0.8
        assert said(fails)[1] == said(fails)[2]
        hidden = scenes["The patch hides the object"]
        x0, y0, x1, y1 = lens.pictures.boxes[hidden.base].tolist()
        assert hidden.box[0] <= x0 and hidden.box[1] <= y0 and hidden.box[2] > x1 and hidden.box[3] > y1
    else:
        ship, airplane, cat, horse, frog = map(lens.classes.index, ("ship", "airplane", "cat", "horse", "frog"))

        def there(state):
            return [int(lens.pictures.labels[i]) for i in (state.base, state.source)]

        told, alone = lens.numbers(opening), lens.numbers(whole)
        assert there(opening) == [ship, airplane] and said(whole) == (ship, ship, ship)
        assert min(told["saol"][ship], told["saol"][airplane]) > 0.3 and 0.2 < told["held"] < 0.8
        assert min(alone["saol"][ship], alone["gap"][ship]) > 0.5
        pair = scenes["A cat and a horse"]
        both = lens.numbers(pair)["saol"]
        assert there(pair) == [cat, horse] and min(both[cat], both[horse]) > 0.25
        assert abs(both[cat] - both[horse]) < 0.1
        assert said(scenes["Where the layers differ"]) == (cat, frog, cat)
        assert said(fails) == (airplane, airplane, lens.classes.index("truck"))
        assert lens.pictures.labels[scenes["A class it does not know"].base] == -1


def test_twenty_drawings_show_every_class_and_no_two_are_alike():
    drawn = torch.stack([drawings.draw(one, (32, 32)) for one in drawings.DRAWINGS])
    assert drawn.shape == (20, 3, 32, 32) and drawn.dtype == torch.uint8
    assert Counter(one.name for one in drawings.DRAWINGS) == dict.fromkeys(
        shipped.shipped_lenses()["cifar10"].classes, 2
    )
    assert len({image.numpy().tobytes() for image in drawn}) == 20
    wide = drawings.draw(drawings.DRAWINGS[0], (16, 48))
    assert wide.shape == (3, 16, 48)
    plain, turned = (drawings.draw(drawings.DRAWINGS[0]._replace(mirrored=side), (32, 32)) for side in (False, True))
    assert (plain.int() - turned.flip(2).int()).abs().max() <= 1


def test_the_network_gets_some_drawings_right_and_some_wrong():
    """So that both can be looked at; all of them are on the page, behind the photographs."""
    pytest.importorskip("skimage")
    lens = shipped.shipped_lenses()["cifar10"]
    labels = lens.pictures.labels
    right = [lens.target(State(base=i, box=(0, 0, 0, 0))) == labels[i] for i in range(9, 29)]
    assert len(labels) == 29 <= THUMBS and 10 <= sum(right) <= 18
    assert (labels != -1).sum() >= 20


def test_photographs_come_with_scikit_image():
    pytest.importorskip("skimage")
    images, labels, boxes = shipped.photographs((32, 32))
    assert images.shape == (9, 3, 32, 32) and labels.tolist() == [7, 3, 3, 3, -1, -1, -1, -1, -1] and boxes is None
    assert images.float().std(dim=(1, 2, 3)).min() > 10
