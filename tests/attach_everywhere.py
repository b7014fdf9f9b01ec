"""Attach SAOL to every convolutional family of torchvision, timm and pytorchcv, and write results/attach.md.

    python tests/attach_everywhere.py                 all of them, half an hour of one core; goes on where it was
    python tests/attach_everywhere.py --sample 6      six at random by a fixed seed; writes nothing, fails if one does

Each network is made without numbers (torch's meta device), gets a SAOL with no node named, takes one training step on
images that are not square, and is enlarged with and without dilation.
"""

import argparse
import gc
import json
import logging
import random
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from saol_lib.attach import attach_saol
from saol_lib.finding import QuickNorms
from saol_lib.losses import gap_loss, saol_loss
from saol_lib.networks import enlarge

ROOT = Path(__file__).resolve().parents[1]
NOT_CONVOLUTIONAL = {  # how the names begin of transformers and mixers, and of what is no classifier of images
    "torchvision": r"vit_|swin|maxvit",
    "timm": r"aimv2|beit|caformer|cait|coat|convformer|convit|crossvit|csatv2|davit|deepseek|deit|edgenext|"
    r"efficientformer|efficientvit|eva|fastvit|flexivit|focalnet|gcvit|gemma|gmixer|gmlp|hiera|jx_nest|lamhalo|levit|"
    r"maxvit|maxxvit|mixer|mobilevit|mvit|naflex|nest|nextvit|pe_|pit_|poolformer|pvt|qwen|resmlp|rmlp|sam2|samvit|sequencer|shvit|"
    r"swiftformer|swin|test_|tiny_vit|tnt|twins|visformer|vit|volo|xcit",
    "pytorchcv": r".*(_cub|_voc|_coco|_ade20k|_cityscapes|_cifar|_svhn|_in22k)|.*3d|alphapose|bisenet|centernet|cgnet|"
    r"conformer|contextnet|dabnet|danet|deeplab|enet_|erfnet|esnet|fastscnn|fcn|fpenet|ibppose|icnet|jasper|lednet|lffd|"
    r"linknet|lwopenpose|nvpattexp|pfpcnet|prnet|propainter|pspnet|quartznet|raft|segnet|simplepose|sinet|superpoint|unet|"
    r"visemenet|voca|wav2",
}  # fmt: skip
STEP = (128, 224), (192, 320), (224, 448)  # sizes (H, W) for the training step: the first that it takes


# --- which networks --------------------------------------------------------------------------------------------------


def networks() -> dict[str, Callable[[], nn.Module]]:
    """All of torchvision's, and one network of every family of timm and pytorchcv, the first by name and number."""
    import timm
    import torchvision
    from pytorchcv.model_provider import _models as published
    from pytorchcv.model_provider import get_model

    found = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        if not re.match(NOT_CONVOLUTIONAL["torchvision"], name):
            found[f"torchvision {name}"] = partial(torchvision.models.get_model, name, weights=None)
    for name in one_of_each_family(timm.list_models(), NOT_CONVOLUTIONAL["timm"]):
        found[f"timm {name}"] = partial(timm.create_model, name)
    for name in one_of_each_family(list(published), NOT_CONVOLUTIONAL["pytorchcv"]):
        found[f"pytorchcv {name}"] = partial(get_model, name)
    return found


def one_of_each_family(names: list[str], without: str) -> list[str]:
    """A family shares what stands before the first digit."""
    families = {}
    for name in sorted(names, key=_natural):
        family = re.split(r"\d", name)[0]
        if not re.match(without, name):
            families.setdefault(family, name)
    return list(families.values())


def _natural(name: str) -> list:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# --- one network -----------------------------------------------------------------------------------------------------


def check(make: Callable[[], nn.Module], enlarging: bool = True) -> dict:
    """What happens to one network: how it is attached, and the sentence where it is not."""
    begun = time.process_time()
    try:
        network = made_without_numbers(make)
    except Exception as error:
        return {"unmade": sentence(error)}
    found = {}
    try:
        net = attach_saol(network, logit_width=4, separable=True)
        found["nodes"] = [tap.name for tap in net.taps]
        found["own"] = net.gap is None
        training_step(net)
    except Exception as error:
        found["failed"] = sentence(error)
    if enlarging and "failed" not in found:
        for key, dilation in (("enlarged", False), ("dilated", True)):
            try:
                enlarge(net, dilation)
                found[key] = "yes"
            except Exception as error:
                found[key] = sentence(error)
    gc.collect()
    return found | {"seconds": round(time.process_time() - begun, 1)}


def made_without_numbers(make: Callable[[], nn.Module]) -> nn.Module:
    try:
        with torch.device("meta"):
            return make()
    except Exception:  # some need numbers to be made
        return make().to("meta")


def training_step(net: nn.Module) -> None:
    """Forward, loss and backward on images that are not square; every new layer's weight takes a gradient."""
    with QuickNorms():
        _training_step(net)


def _training_step(net: nn.Module) -> None:
    sizes = [*STEP, net.size] if net.size[0] != net.size[1] else [net.size]  # the last is one that it has taken
    for size in sizes:
        try:
            outputs = net.train()(torch.empty(2, net.channels, *size, device="meta"))
            break
        except Exception:  # a size that this network does not take
            if size == sizes[-1]:
                raise
    classes = outputs.saol_log_probs.shape[1]
    loss = saol_loss(outputs.saol_log_probs, torch.empty(2, classes, device="meta"))
    loss = loss + gap_loss(outputs.gap_logits, torch.empty(2, classes, device="meta"))
    (loss + outputs.mask_logits.mean()).backward()
    without = [name for name, weight in net.saol.named_parameters() if weight.grad is None]
    if without:
        raise RuntimeError(f"no gradient reaches {without[0]}")


def sentence(error: Exception) -> str:
    first = str(error).strip().split("\n")[0][:300]
    return first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}"


# --- all of them -----------------------------------------------------------------------------------------------------


def report(records: dict[str, dict], count: int) -> str:
    """results/attach.md."""
    made = {name: record for name, record in records.items() if "unmade" not in record}
    lines = [
        "# SAOL on networks that no list names",
        "",
        "Generated by `python tests/attach_everywhere.py`; do not edit. torchvision's convolutional classifiers, and",
        "one network of every convolutional family of timm and pytorchcv: SAOL attached without naming a node, one",
        "training step on images that are not square (on square ones where a network takes no others), then `enlarge`",
        "without and with dilation.",
        "",
    ]
    if len(records) < count:
        lines += [
            f"**Incomplete: {len(records)} of {count} networks were tried so far; the same command goes on.**",
            "",
        ]
    lines += ["| library | networks | attached | enlarged, of those tried | with dilation |", "|---|---|---|---|---|"]
    for library in ("torchvision", "timm", "pytorchcv", ""):
        part = [record for name, record in made.items() if name.startswith(library)]
        attached = [record for record in part if "failed" not in record]
        tried = sum("enlarged" in record for record in attached)
        counts = Counter(key for record in attached for key in ("enlarged", "dilated") if record.get(key) == "yes")
        share = f" ({100 * len(attached) / len(part):.1f} %)" if part else ""
        larger = [f"{counts[key]} of {tried}" for key in ("enlarged", "dilated")]
        cells = (library or "all", len(part), f"{len(attached)}{share}", *larger)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += _listed("Not attached", {n: r["failed"] for n, r in made.items() if "failed" in r})
    unlike = {n: r["enlarged"] for n, r in made.items() if r.get("enlarged", "yes") != "yes"}
    lines += _listed("Not enlarged", unlike)
    undilated = {n: r["dilated"] for n, r in made.items() if r.get("dilated", "yes") != "yes" and n not in unlike}
    lines += _listed("Enlarged, but not with dilation", undilated)
    lines += _listed("Not made", {n: r["unmade"] for n, r in records.items() if "unmade" in r})
    lines += ["", "## Where the maps were found", "", "| network | nodes |", "|---|---|"]
    lines += [f"| {name} | {', '.join(r['nodes'])} |" for name, r in sorted(made.items()) if "nodes" in r]
    return "\n".join(lines) + "\n"


def _listed(title: str, reasons: dict[str, str]) -> list[str]:
    if not reasons:
        return []
    return ["", f"## {title}: {len(reasons)}", "", *(f"- {name}: {reason}" for name, reason in sorted(reasons.items()))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, help="so many networks, chosen at random; nothing is written")
    parser.add_argument("--part", default="0/1", help="k/n: the networks k, k + n, ... (several processes)")
    parser.add_argument("--cache", type=Path, default=ROOT / "results" / "quick" / "attach", help="where to go on")
    parser.add_argument("--attach-only", action="store_true", help="try no enlarging, which takes half of the time")
    parser.add_argument("--report", action="store_true", help="write the report from what was tried, try nothing")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    every = networks()
    if given.sample:
        chosen = random.Random(0).sample(sorted(every), given.sample)
        records = {}
        for name in chosen:
            records[name] = check(every[name])
            print(name, records[name], flush=True)
        failed = {name: r.get("failed") or r.get("unmade") for name, r in records.items() if "nodes" not in r}
        sys.exit(f"failed: {failed}" if len(failed) > 0.05 * given.sample else 0)

    given.cache.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, given.part.split("/"))
    order = sorted(every)
    random.Random(0).shuffle(order)  # so that what is tried first stands for all
    order.sort(key=lambda name: not name.startswith("torchvision"))
    for name in [] if given.report else order[part::parts]:
        file = given.cache / f"{name.replace(' ', '-')}.json"
        if not file.exists():
            record = check(every[name], not given.attach_only)
            file.write_text(json.dumps(record))
            print(name, record, flush=True)
    records = {}
    for name in every:
        file = given.cache / f"{name.replace(' ', '-')}.json"
        if file.exists():
            records[name] = json.loads(file.read_text())
    (ROOT / "results" / "attach.md").write_text(report(records, len(every)))


if __name__ == "__main__":
    main()
