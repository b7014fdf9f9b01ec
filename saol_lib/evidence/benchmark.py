"""What SAOL and its peers cost, table by table, as notebook 06 shows it; and the flat numbers that the claims read.

Counts are exact. Times are medians of calls made in turn, by one thread, and are told as ratios.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from saol_lib.evidence import cost, figures
from saol_lib.evidence.tables import in_words
from saol_lib.localization import score_maps
from saol_lib.networks import build_backbone, build_model, multiply_adds
from saol_lib.training.config import RunConfig
from saol_lib.training.files import resolve, write_json

LAYERS = {  # an output layer, and how `build_model` makes it
    "GAP-FC": {"heads": ("gap",)},
    "SAOL": {"heads": ("saol",)},
    "SAOL, separable": {"heads": ("saol",), "separable": True},
    "SAOL, separable, 4 blocks": {"heads": ("saol",), "separable": True, "blocks": 4},
    "ABN": {"heads": ("abn",)},
}
COUNTED = (  # network, classes, pixels a side
    ("resnet-8", 10, 32),
    ("wrn-16-4", 10, 32),
    ("wrn-28-10", 100, 32),
    ("resnet50", 1000, 224),
    ("resnet101", 1000, 224),
    ("resnext50_32x4d", 1000, 224),
)
PEERS = (  # network, output layer; at 224 pixels, 1000 classes
    ("resnet50", "GAP-FC"),
    ("resnet50", "SAOL, separable"),
    ("resnet50", "ABN"),
    ("resnet101", "GAP-FC"),
    ("resnet101", "SAOL, separable"),
    ("resnet101", "SAOL, separable, 4 blocks"),
    ("resnet101", "ABN"),
    ("resattnet56", "RAN"),
    ("resattnet92", "RAN"),
)
TERMS = ("gap_fc_cutmix", "saol_cutmix", "saol_cutmix_ss1", "saol_cutmix_ss2", "saol_cutmix_ss", "saol_cutmix_ss_sd")
OPTIONS = {
    "default": {},
    "separable": {"separable": True},
    "1x1 kernels": {"kernel_size": 1},
    "logit branches K = 10 wide": {"logit_width": 10},
    "one block": {"blocks": 1},
    "average pooling to resize": {"resize": "adaptive"},
    "output twice as large": {"output_size": 16},
}
MAP_LAYERS = ("GAP-FC", "SAOL, separable", "ABN")
BATCH = 4  # images of one call of inference
DROP = 0.15  # seconds that the explorer's answer may take


def make_network(name: str, layer: str, classes: int = 1000) -> nn.Module:
    """A network with an output layer of LAYERS, its mask branch left out; "RAN" is pytorchcv's."""
    if layer == "RAN":
        from pytorchcv.model_provider import get_model

        return get_model(name)
    return build_model(name, classes, mask_source="none", **LAYERS[layer])


def count(name: str, layer: str, classes: int = 1000, size: int = 224) -> tuple[float, float]:
    """Millions of parameters, and 10^9 multiply-adds of one image in evaluation mode; nothing is computed."""
    with torch.device("meta"):
        model = make_network(name, layer, classes)
    parameters = sum(p.numel() for p in model.parameters())
    return parameters / 1e6, multiply_adds(model, (size, size)) / 1e9


class Benchmark:
    """Each method measures something, shows it as a table and keeps its numbers in `measured`, by name.

    backbone: what is trained, in batches of batch_size; inference_backbones, attention_networks (Residual Attention
    Networks) and map_backbone are run at image_size. rounds: calls of each function; seconds: of a throughput.
    """

    def __init__(
        self,
        backbone: str,
        batch_size: int,
        inference_backbones: list[str],
        attention_networks: list[str],
        map_backbone: str,
        image_size: int,
        rounds: int,
        seconds: float,
    ) -> None:
        self.shared = {"backbone": backbone, "batch_size": batch_size, "train_images": 1000}
        self.gap = RunConfig.of(arm="gap_fc", **self.shared)
        self.networks, self.attention_networks = inference_backbones, attention_networks
        self.map_backbone, self.size = map_backbone, image_size
        self.rounds, self.seconds = rounds, seconds
        self.measured: dict[str, float] = {}
        self._functions: cost.Functions = {}

    # --- counts -------------------------------------------------------------------------------------------------------

    def counts(self) -> pd.DataFrame:
        """Parameters and multiply-adds of GAP-FC and SAOL on several networks."""
        rows = []
        for name, classes, size in COUNTED:
            base = None
            for layer in ("GAP-FC", "SAOL", "SAOL, separable"):
                parameters, adds = count(name, layer, classes, size)
                base = base or adds
                rows.append((name, size, layer, parameters, adds, adds / base))
        columns = ["network", "pixels", "output layer", "M parameters", "G multiply-adds", "of GAP-FC's"]
        return pd.DataFrame(rows, columns=columns).set_index(columns[:3]).round(3)

    def peers(self) -> pd.DataFrame:
        """SAOL beside ABN and the Residual Attention Network, at 224 pixels."""
        rows = []
        for name, layer in PEERS:
            parameters, adds = count(name, layer)
            self.measured[f"M parameters of {name} at 224, {layer}"] = parameters
            self.measured[f"G multiply-adds of {name} at 224, {layer}"] = adds
            rows.append((name, layer, parameters, adds))
        columns = ["network", "output layer", "M parameters", "G multiply-adds"]
        return pd.DataFrame(rows, columns=columns).set_index(columns[:2]).round(2)

    def paper_row(self) -> pd.DataFrame:
        """ResNet-101 at 224, the paper's one figure: what each layer adds to GAP-FC's multiply-adds. After `peers`."""
        plain = self.measured["G multiply-adds of resnet101 at 224, GAP-FC"]
        rows = []
        for layer in ("SAOL, separable", "SAOL, separable, 4 blocks", "ABN"):
            adds = self.measured[f"G multiply-adds of resnet101 at 224, {layer}"]
            more = 100 * (adds - plain) / plain
            self.measured[f"more multiply-adds of resnet101 at 224 with {layer}, percent"] = more
            rows.append((layer, plain, adds, more))
        columns = ["ResNet-101 with", "G before", "G with it", "more (%)"]
        return pd.DataFrame(rows, columns=columns).set_index(columns[0]).round(2)

    # --- training -----------------------------------------------------------------------------------------------------

    def machine(self) -> pd.DataFrame:
        """10^9 multiply-adds a second of this machine at its best, and of a bare training step."""
        with cost.threads(1):
            rates = cost.ceilings()
            bare = cost.side_by_side({"step": cost.bare_step(self.gap)}, self.rounds)["step"]
        model = build_model(self.gap.backbone, 10, heads=("gap",))
        work = 3 * self.gap.batch_size * multiply_adds(model, (32, 32))  # the backward pass is twice the forward one
        rates["bare training step"] = work / bare
        self.measured["bare step / matrix product"] = rates["bare training step"] / rates["matrix product"]
        table = pd.DataFrame({"G multiply-adds a second": rates}) / 1e9
        return table.round(1)

    def loop(self) -> pd.DataFrame:
        """Images a second of our training loop and evaluation, as a share of what the bare network does."""
        with cost.threads(1):
            steps = cost.side_by_side(
                {"bare": cost.bare_step(self.gap)} | cost.steps({"train": self.gap}), 3 * self.rounds
            )
            whole = cost.side_by_side(cost.evaluations(self.gap), self.rounds)
        found = {
            "train / bare step, images per second": steps["bare"] / steps["train"],
            "evaluate / bare inference, images per second": whole["bare inference"] / whole["evaluate"],
        }
        return self._kept(found, "ratio")

    def terms(self) -> pd.DataFrame:
        """A training step of each arm with CutMix, in steps of GAP-FC; and what L_SS2 costs by a second pass."""
        full = {"arm": TERMS[-1]} | self.shared
        self._functions = cost.steps({arm: RunConfig.of(arm=arm, **self.shared) for arm in TERMS})
        by_source = RunConfig.of(cutmix_schedule="sample", **full)
        functions = self._functions | cost.steps({"full, second pass over the sources": by_source})
        functions["full, second pass over the batch"] = cost.with_whole_batch_pass(RunConfig.of(**full))
        with cost.threads(1):
            seconds = cost.side_by_side(functions, 3 * self.rounds)
        ratios = cost.ratios(seconds, TERMS[0])
        self.measured |= {f"step of {name} / {TERMS[0]}": ratio for name, ratio in ratios.items()}
        return _column(_by_name(ratios), "time of a step, of GAP-FC's")

    def options(self) -> pd.DataFrame:
        """A training step with each option of SAOL, in steps of SAOL as it is by default."""
        configs = {name: RunConfig.of(arm="saol", **self.shared, **values) for name, values in OPTIONS.items()}
        with cost.threads(1):
            seconds = cost.side_by_side(cost.steps(configs), 3 * self.rounds)
        ratios = cost.ratios(seconds, "default")
        self.measured |= {f"step of SAOL with {name} / default": ratio for name, ratio in ratios.items()}
        return _column(ratios, "time of a step, of the default's")

    def memory(self) -> pd.DataFrame:
        """Peak memory of a training step, of GAP-FC's; and two workers' throughput over one's. After `terms`."""
        used = {arm: cost.peak_memory(self._functions[arm]) for arm in (TERMS[0], "saol_cutmix", TERMS[-1])}
        found = {f"memory of a step of {arm} / {TERMS[0]}": used[arm] / used[TERMS[0]] for arm in list(used)[1:]}
        found["two workers / one, images per second"] = cost.worker_speedup(self.gap, seconds=self.seconds)
        return self._kept(found, "ratio")

    # --- inference ----------------------------------------------------------------------------------------------------

    def inference(self) -> pd.DataFrame:
        """Time and peak memory of an image, for a batch of four, all networks called in turn."""
        images = self._images()
        pairs = [(name, layer) for name in self.networks for layer in MAP_LAYERS]
        pairs += [(name, "RAN") for name in self.attention_networks]
        models = {pair: _ready(make_network(*pair)) for pair in pairs}
        calls = {pair: lambda model=model: model(images) for pair, model in models.items()}
        with cost.threads(1), torch.inference_mode():
            times = cost.side_by_side(calls, 2 * self.rounds)
            memory = {pair: cost.peak_memory(call) for pair, call in calls.items()}

        rows = []
        for name, layer in pairs:
            base = (name, "GAP-FC") if layer != "RAN" else pairs[0]
            row = [times[name, layer] / times[base], memory[name, layer] / memory[base]]
            told = f"{layer} / GAP-FC, {name}" if layer != "RAN" else f"{name} / GAP-FC, {base[0]}"
            if (name, layer) != base:
                self.measured[f"inference time of {told} at {self.size}"] = row[0]
                self.measured[f"inference memory of {told} at {self.size}"] = row[1]
            rows.append((name, layer, 1000 * times[name, layer] / BATCH, *row))
        columns = ["network", "output layer", "ms an image", "time, of GAP-FC's", "memory, of GAP-FC's"]
        return pd.DataFrame(rows, columns=columns).set_index(columns[:2]).round(2)

    def maps(self) -> pd.DataFrame:
        """Time and peak memory of one localisation map an image, in forward passes of GAP-FC."""
        images = self._images()
        calls = self._map_calls(images)
        sizes = {call().shape[-2:] for name, call in calls.items() if "forward" not in name}
        if sizes != {images.shape[2:]}:
            raise ValueError(f"maps of {sizes} for images of {images.shape[2:]}; each method resizes to the image")

        with cost.threads(1):
            times = cost.side_by_side(calls, 2 * self.rounds)
            memory = {name: float(cost.peak_memory(call)) for name, call in calls.items()}
        first = next(iter(calls))
        at = f", {self.map_backbone} at {self.size}"
        relative = {"time": cost.ratios(times, first), "memory": cost.ratios(memory, first)}
        for what, ratios in relative.items():
            for name, ratio in ratios.items():
                if name != first:
                    self.measured[f"{what} of {name} / forward pass of GAP-FC{at}"] = ratio
        own = times["SAOL, A * Y_k"] / times["SAOL, forward pass alone"]
        self.measured["map of SAOL / forward pass of SAOL" + at] = own

        milliseconds = {name: 1000 * taken / BATCH for name, taken in times.items()}
        table = pd.DataFrame({"ms an image": milliseconds} | relative)
        return table.set_axis(["ms an image", "time, GAP-FC passes", "memory, of GAP-FC's"], axis=1).round(2)

    def _map_calls(self, images: torch.Tensor) -> cost.Functions:
        """Every way to a map. The packages captum and grad-cam take Grad-CAM's gradient by a backward pass."""
        from captum.attr import LayerAttribution, LayerGradCam
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        nets = {layer: _ready(make_network(self.map_backbone, layer)) for layer in MAP_LAYERS}
        plain, nodes = build_backbone(self.map_backbone, 1000)
        last = _ready(plain).get_submodule(nodes[-1])
        captum, package = LayerGradCam(plain, last), GradCAM(plain, [last])
        classes = torch.arange(BATCH)
        targets = [ClassifierOutputTarget(int(k)) for k in classes]

        def forward(layer: str):
            return torch.inference_mode()(lambda: nets[layer](images))

        def scored(layer: str, method: str):
            return lambda: score_maps(nets[layer], images, classes, method)

        def by_captum():
            small = captum.attribute(images, classes, relu_attributions=True)
            return LayerAttribution.interpolate(small, images.shape[2:], "bilinear")

        return {
            "GAP-FC, forward pass alone": forward("GAP-FC"),
            "CAM": scored("GAP-FC", "cam"),
            "Grad-CAM, closed form": scored("GAP-FC", "grad_cam"),
            "Grad-CAM by captum": by_captum,
            "Grad-CAM by grad-cam": lambda: package(images, targets),
            "SAOL, forward pass alone": forward("SAOL, separable"),
            "SAOL, A * Y_k": scored("SAOL, separable", "saol"),
            "ABN, M": scored("ABN", "abn"),
        }

    # --- around the network -------------------------------------------------------------------------------------------

    def streaming(self, images: int = 64, side: int = 375) -> pd.DataFrame:
        """Images a second of our streamed decoding, over those of a bare torchvision DataLoader on the same files."""
        with tempfile.TemporaryDirectory() as folder, cost.threads(1):
            cost.write_image_tree(Path(folder), images, side)
            passes = cost.streaming_passes(Path(folder), workers=0)
            seconds = cost.side_by_side(passes, self.rounds)
        ratio = seconds["bare DataLoader"] / seconds["Stream"]
        return self._kept({"streamed / bare torchvision DataLoader, images per second": ratio}, "ratio")

    def drag(self, explorer) -> pd.DataFrame:
        """Seconds from a new place of the patch to all that an `AttentionExplorer` sends its page."""
        boxes = cycle((x, y, x + 12, y + 12) for x in range(20) for y in range(20))
        calls = {}
        for name in explorer.lenses:
            start = explorer.first(name)
            calls[name] = lambda start=start: setattr(explorer, "state", replace(start, box=next(boxes)))
        with cost.threads(1):
            seconds = cost.side_by_side(calls, 10 * self.rounds)
        self.measured |= {f"seconds of a drop in the explorer, {name}": taken for name, taken in seconds.items()}
        rows = {name: (1000 * taken, "yes" if taken < DROP else "no") for name, taken in seconds.items()}
        columns = ["ms from pointer to picture", f"within {1000 * DROP:.0f} ms"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns).round(0)

    # --- the end ------------------------------------------------------------------------------------------------------

    def targets(self) -> pd.DataFrame:
        """The targets that the project set itself for its cpu profile, and what was measured."""
        latency = f"inference time of SAOL, separable / GAP-FC, {self.networks[-1]} at {self.size}"
        own_map = f"map of SAOL / forward pass of SAOL, {self.map_backbone} at {self.size}"
        targets = {
            "train / bare step, images per second": 0.92,
            "evaluate / bare inference, images per second": 0.90,
            f"step of {TERMS[-1]} / {TERMS[0]}": 1.25,
            latency: 1.10,
            own_map: 1.10,
        }
        rows = []
        for name, target in targets.items():
            measured = self.measured[name]
            met = measured >= target if target < 1 else measured <= target
            bound = "at least" if target < 1 else "at most"
            rows.append((name, f"{bound} {target:.2f}", f"{measured:.3f}", "yes" if met else "no"))
        columns = ["ratio", "target", "measured", "met"]
        return pd.DataFrame(rows, columns=columns).set_index("ratio")

    def figure(self, table: pd.DataFrame, column: str, label: str) -> Figure:
        """One column of a table as bars, with a line at 1."""
        return figures.bars(table[column], label)

    def in_words(self, profile: str) -> tuple[str, str, str]:
        """Three lines for the result box."""
        plain = self.measured["G multiply-adds of resnet101 at 224, GAP-FC"]
        layers = ("SAOL, separable", "SAOL, separable, 4 blocks", "ABN")
        adds = [self.measured[f"G multiply-adds of resnet101 at 224, {layer}"] for layer in layers]
        more = [100 * (value - plain) / plain for value in adds]
        step = self.measured[f"step of {TERMS[-1]} / {TERMS[0]}"]
        own_map = self.measured[f"map of SAOL / forward pass of SAOL, {self.map_backbone} at {self.size}"]
        met = (self.targets().met == "yes").sum()
        noisy = ", a few calls each: noisy" if profile == "quick" else ""
        return (
            f"SAOL takes ResNet-101 from {plain:.2f} to {adds[0]:.2f} G multiply-adds ({more[0]:.1f} % more; with four "
            f"blocks {more[1]:.1f} %), ABN to {adds[2]:.2f} ({more[2]:.0f} %).",
            f"A training step with all of the paper's losses takes {step:.2f} times as long as GAP-FC's with CutMix, a "
            f"map {own_map:.2f} times as long as the forward pass that classifies.",
            f"{met} of {len(self.targets())} targets are met ({profile} profile{noisy}; times of one thread, here).",
        )

    def save(self, results: str) -> None:
        """Write what was measured to <results>/06_cost.json, which the claims read; ValueError for an empty measure."""
        empty = [name for name, value in self.measured.items() if not value > 0]
        if empty:
            raise ValueError(f"{empty} are not above 0; run the notebook again from its start")
        rounded = {name: round(float(value), 4) for name, value in self.measured.items()}
        write_json(resolve(results) / "06_cost.json", rounded)

    def _kept(self, found: Mapping[str, float], column: str) -> pd.DataFrame:
        self.measured |= found
        return _column(found, column)

    def _images(self) -> torch.Tensor:
        images = torch.randn(BATCH, 3, self.size, self.size)
        return images.contiguous(memory_format=torch.channels_last)


def _by_name(ratios: Mapping[str, float]) -> dict[str, float]:
    """Steps by the names that their arms have in figures; "full" is the last of TERMS."""
    named = {}
    for key, ratio in ratios.items():
        arm, *rest = key.replace("full", TERMS[-1]).split(", ")
        name, _ = in_words(arm)
        named[", ".join([name, *rest])] = ratio
    return named


def _column(values: Mapping[str, float], name: str) -> pd.DataFrame:
    return pd.DataFrame({name: dict(values)}).round(3)


def _ready(model: nn.Module) -> nn.Module:
    return model.eval().to(memory_format=torch.channels_last)


def stored(results: str) -> dict[str, float]:
    """What a notebook 06 wrote to this folder; empty where none has run."""
    path = resolve(results) / "06_cost.json"
    return json.loads(path.read_text()) if path.exists() else {}
