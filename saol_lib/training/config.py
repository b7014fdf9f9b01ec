"""One run's configuration: `RunConfig`, and the arms that the study compares."""

import dataclasses
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from saol_lib.cutmix import SCHEDULES
from saol_lib.data import CLASSES, FOLDERS, NAMES, SIZES, SPLITS
from saol_lib.layers import SaolOptions
from saol_lib.losses import LossOptions
from saol_lib.networks import build_backbone, check_backbone, find_weights, weights_fingerprint
from saol_lib.options import check_options, nearest, option
from saol_lib.training.runs import run_id


class Arm(NamedTuple):
    """What an arm of the study switches on. CutMix is part of the arm."""

    heads: tuple[str, ...]
    terms: tuple[str, ...]  # of sl, ss1, ss2, sd, gap_ce, aux_ce
    cutmix: bool = False


_BOTH = ("gap", "saol")
ARMS = {
    "gap_fc": Arm(("gap",), ("gap_ce",)),
    "saol": Arm(("saol",), ("sl",)),
    "saol_sd": Arm(_BOTH, ("sl", "sd")),
    "saol_ce": Arm(_BOTH, ("sl", "gap_ce")),
    "gap_fc_cutmix": Arm(("gap",), ("gap_ce",), True),
    "saol_cutmix": Arm(("saol",), ("sl",), True),
    "saol_cutmix_ss1": Arm(("saol",), ("sl", "ss1"), True),
    "saol_cutmix_ss2": Arm(("saol",), ("sl", "ss2"), True),
    "saol_cutmix_ss": Arm(("saol",), ("sl", "ss1", "ss2"), True),
    "saol_cutmix_sd": Arm(_BOTH, ("sl", "sd"), True),
    "saol_cutmix_ss_sd": Arm(_BOTH, ("sl", "ss1", "ss2", "sd"), True),
    "abn": Arm(("abn",), ("gap_ce", "aux_ce")),
    "abn_cutmix": Arm(("abn",), ("gap_ce", "aux_ce"), True),
}

SIZED = ("digits", "tiny-imagenet", "imagenet")  # data sets whose images can be had in another size
# Where a run happens, not what it computes: never hashed, never written.
WHERE = ("data_dir", "device", "processes", "workers", "sync_batch_norm", "checkpoint_minutes", "weights")


@dataclass(frozen=True)
class RunConfig(SaolOptions, LossOptions):
    """Everything that one training depends on. `RunConfig()` is the quick profile's first run.

    Its fields are those below, the options of SAOL (`SaolOptions`) and those of the losses (`LossOptions`).
    Unknown names (`RunConfig.of`), unknown options and values out of range raise ValueError with one sentence.
    """

    # The data.
    dataset: str = option("digits", choices=NAMES)
    data_dir: str | None = None  # where the data lie; None: embedded, or the user's cache folder
    image_size: int | None = option(None, low=8)  # pixels a side of what the network sees; None: the data set's own
    classes: int | None = option(None, low=2)  # of (Tiny-)ImageNet: so many, evenly spaced in their sorted list
    skip_damaged: bool = False  # go on without images that cannot be read
    train_images: int | None = option(None, low=2)  # a fixed class-balanced part of the training images; None: all
    eval_split: str = option("test", choices=SPLITS)  # "held_out": a fixed part of the training images, see `select`
    held_out: int = option(5000, low=1)  # how many images "held_out" sets aside

    # The network.
    backbone: str = "resnet-8"
    arm: str = option("gap_fc", choices=tuple(ARMS))
    blocks: int = option(3, low=1)  # how many of the last stages feed the spatial logits
    output_size: int | None = option(None, low=1)
    mask_source: str = option("branch", choices=("branch", "attention"))
    pretrained: bool = False  # the public ImageNet weights of torchvision's and timm's networks
    weights: str | None = None  # a file of weights to start from, or a name of packaged ones; their content counts
    weights_content: str | None = None  # `networks.weights_fingerprint` of them; None: found out from `weights`
    start: str | None = None  # fine-tune the network of this finished run, an id, of the same results folder
    enlarge: bool = False  # the last stage's stride taken out: twice the output's resolution
    dilation: bool = False  # with enlarge: its later convolutions widened, so that they see as far as before

    # The training.
    seed: int = option(0, low=0)
    epochs: int = option(4, low=1)
    batch_size: int = option(64, low=2)  # of one update, over all processes
    accumulate: int = option(1, low=1)  # passes of an update, one after the other: a share of the memory
    lr: float = option(0.1, above=0)  # the peak
    schedule: str = option("one_cycle", choices=("one_cycle", "cosine", "step"))  # see `recipe.learning_rate`
    warmup_epochs: int = option(0, low=0)  # linear, before "cosine" and "step"
    milestones: tuple = option((), low=1)  # of "step": after so many epochs the rate is multiplied by gamma
    gamma: float = option(0.1, above=0)
    momentum: float = option(0.9, low=0)  # Nesterov's
    weight_decay: float = option(5e-4, low=0)
    decay: str = option("kernels", choices=("kernels", "all"))  # "all": on norms and biases too
    clip_norm: float | None = option(None, above=0)  # the most that the gradient's norm may be
    pad: int = option(4, low=0)  # random crops after reflecting this many pixels
    eval_every: int = option(1, low=0)  # epochs; the last one is always evaluated; 0: only that one
    cutmix_schedule: str = option("paired", choices=SCHEDULES)
    cutmix_probability: float = option(0.5, low=0, high=1)
    cutmix_alpha: float = option(1.0, above=0)
    autocast: str = option("none", choices=("none", "bfloat16", "float16"))  # float16: on GPUs, gradients scaled
    compile: bool = False

    # Where it happens.
    device: str = "auto"  # "cuda" if there is one, else "cpu"; or a torch device
    workers: int = option(0, low=0)  # processes that decode images
    processes: int = option(1, low=1)  # data-parallel processes on this machine; the global batch stays batch_size
    sync_batch_norm: bool = True  # over all processes; if not, several processes compute another run, with its own id
    checkpoint_minutes: float = option(10.0, above=0)  # inside an epoch; at its end there is one anyway

    def __post_init__(self) -> None:
        self._set("milestones", _as_tuple(self.milestones))
        check_options(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and field.type in (float, float | None):
                self._set(field.name, float(value))  # 1 and 1.0 are one run
        self._check_together()
        self._read_weights()
        check_backbone(self.backbone)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_together(self) -> None:
        """Raise ValueError for settings that do not go together."""
        if self.momentum >= 1:
            raise ValueError(f"momentum={self.momentum} must be below 1")
        if self.cutmix_schedule == "paired" and self.cutmix_probability != 0.5:
            raise ValueError(f"cutmix_probability={self.cutmix_probability}: paired halves always mix half, use 0.5")
        if self.image_size is not None and self.dataset not in SIZED:
            raise ValueError(f"image_size={self.image_size}: {self.dataset} has its own size; leave it out")
        if self.classes is not None and not (self.dataset in FOLDERS and self.classes <= self._most):
            raise ValueError(f"classes={self.classes}: only (tiny-)imagenet can give fewer classes, 2 to {self._most}")
        if self.dilation and not self.enlarge:
            raise ValueError("dilation goes with enlarge=True; leave it out")
        self._check_beginnings()
        self._check_schedule()
        if self.batch_size % self.accumulate or self.batch_size < 2 * self.accumulate:
            raise ValueError(
                f"accumulate={self.accumulate}: batch_size={self.batch_size} must be a multiple of it, twice it or more"
            )

    def _check_beginnings(self) -> None:
        """A network starts from one place."""
        given = {"pretrained": self.pretrained, "start": self.start, "weights": self.weights or self.weights_content}
        named = [name for name, value in given.items() if value]
        if len(named) > 1:
            raise ValueError(f"{named[0]} does not go with {named[1]}: a network starts from one place; leave one out")

    def _check_schedule(self) -> None:
        if bool(self.milestones) != (self.schedule == "step"):
            raise ValueError(
                f"milestones={list(self.milestones)} with schedule={self.schedule!r}: give milestones with "
                "schedule='step', and with no other"
            )
        whole = all(isinstance(epoch, int) for epoch in self.milestones)
        if not whole or list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones={list(self.milestones)} must be whole numbers of epochs in rising order")
        if self.warmup_epochs and self.schedule == "one_cycle":
            raise ValueError(f"warmup_epochs={self.warmup_epochs}: one_cycle has its own warm-up; leave it out")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must be less than epochs={self.epochs}")

    def _read_weights(self) -> None:
        """The content of the weights' file, which identifies the run, is read here, once."""
        if self.weights is None:
            return
        path = find_weights(self.weights)
        found = _content(path, path.stat().st_mtime_ns)
        if self.weights_content not in (None, found):
            raise ValueError(
                f"weights={self.weights!r} has the content {found}, but weights_content={self.weights_content!r}; give "
                "the file of that run, or leave weights_content out"
            )
        self._set("weights_content", found)

    @classmethod
    def of(cls, **values) -> "RunConfig":
        """A config from values that may hold unknown names: those raise ValueError with the nearest known one."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"config key {name!r} is not known; {nearest(name, known)}")
        return cls(**values)

    @property
    def num_classes(self) -> int:
        return self.classes or self._most

    @property
    def _most(self) -> int:
        return CLASSES[self.dataset]

    @property
    def side(self) -> int:
        """Pixels a side of what the network sees."""
        return self.image_size or SIZES[self.dataset]

    @property
    def data_options(self) -> dict[str, Any]:
        """What `saol_lib.data.load` gets besides the data set's name and folder."""
        asked = {name: getattr(self, name) for name in ("image_size", "classes", "skip_damaged")}
        return {name: value for name, value in asked.items() if value}

    @property
    def terms(self) -> tuple[str, ...]:
        return ARMS[self.arm].terms

    @property
    def saol_options(self) -> SaolOptions:
        """SAOL's options as the network gets them: what predicts a mask is there where a loss reads it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(SaolOptions)}
        if "ss1" not in self.terms:
            values["mask_source"] = "none"
        return SaolOptions(**values)

    @property
    def needs_second_pass(self) -> bool:
        """L_SS2 needs Y of the clean sources; only the paired schedule has them in the batch."""
        return "ss2" in self.terms and self.cutmix_schedule != "paired"

    def identity(self) -> dict[str, Any]:
        """The fields that can change a number, as written into the run's file and hashed into its id.

        How many processes there are belongs to them where each has its own statistics, or its own dropout.
        """
        found = {name: value for name, value in dataclasses.asdict(self).items() if name not in WHERE}
        found["milestones"] = list(self.milestones)
        if self.processes > 1 and not self.sync_batch_norm:
            found |= {"processes": self.processes, "sync_batch_norm": False}
        elif self.processes > 1 and _draws_in_forward(self.backbone):
            found["processes"] = self.processes
        return found


@lru_cache(maxsize=8)
def _content(path: Path, changed: int) -> str:
    """What identifies a file of weights; read again when the file has `changed`."""
    return weights_fingerprint(path)


@lru_cache(maxsize=64)
def _draws_in_forward(backbone: str) -> bool:
    """Whether a network draws random numbers when it trains: dropout, ShakeDrop and their like."""
    with torch.device("meta"):
        network = build_backbone(backbone, 2).network
    return any(_drops(module) for module in network.modules())


def _drops(module: nn.Module) -> bool:
    """Named so in torch, torchvision, timm and here; those that are switched off have a rate of 0."""
    if "drop" not in type(module).__name__.lower():
        return False
    rates = [getattr(module, name, None) for name in ("p", "drop_prob", "drop_rate")]
    told = [rate for rate in rates if isinstance(rate, int | float)]
    return not told or any(told)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# --- many ------------------------------------------------------------------------------------------------------------


def grid(arms: list, seeds: list[int], **values) -> list[RunConfig]:
    """One config for every arm and seed; an arm is a name, or a dict of "arm" and the options it changes.

    Raises ValueError for arms that are no list of those, and seeds that are no list of whole numbers: from a shell,
    papermill passes `seeds 0` as a number and `seeds [0,1]` as text.
    """
    changes = [_changes_of(arm) for arm in listed("arms", arms, str | dict)]
    seeds = listed("seeds", seeds, int)
    return [RunConfig.of(**(values | change | {"seed": seed})) for change in changes for seed in seeds]


def _changes_of(arm: str | dict) -> dict:
    return {"arm": arm} if isinstance(arm, str) else arm


def listed(name: str, value: Any, of: Any) -> list:
    """A list as papermill's parameters give it: a list, its text in JSON, or one element alone.

    Raises ValueError with one sentence for anything else.
    """
    given = value
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    elif isinstance(value, of) and not isinstance(value, bool):
        value = [value]

    fits = isinstance(value, list | tuple) and all(isinstance(v, of) and not isinstance(v, bool) for v in value)
    if not fits:
        example = "[0, 1, 2]" if of is int else '["gap_fc", "saol"]'
        raise ValueError(f"{name}={given!r} is not a list; write for example {name}: {example}")
    return list(value)


def finetuning(
    arms: list, seeds: list[int], *, trained: dict, continued: dict | None = None, **values
) -> dict[str, list[RunConfig]]:
    """The stages of notebooks 02 and 03, in the order of training; each starts from networks of the one before.

    "trained": a GAP-FC network a seed, with the settings `trained` (no such stage where `values` have pretrained=True
    or weights: those take its place). "fine-tuned": every arm from that network. "continued" and "enlarged": every arm
    again from its fine-tuned network, as it was and with twice the resolution: the same budget for both. ABN, whose
    map has twice the resolution as it is, is not enlarged.
    continued: the settings of the last two stages where they differ; its "arms" are the names of the arms that go on,
    all by default.
    """
    given = any(values.get(name) for name in ("pretrained", "weights", "weights_content"))
    base = [] if given else grid(["gap_fc"], seeds, **(values | trained))
    first = {config.seed: run_id(config.identity()) for config in base}

    tuned = [replace(config, start=first.get(config.seed)) for config in grid(arms, seeds, **values)]
    return {"trained": base, "fine-tuned": tuned} | continuing(tuned, continued)


def continuing(configs: list[RunConfig], changes: dict | None = None) -> dict[str, list[RunConfig]]:
    """The stages "continued" and "enlarged": configs once more, started from what they have trained.

    changes: fields of the two stages that are others, and "arms", the only ones that go on. ABN is not enlarged: its
    map has twice the resolution as it is.
    """
    changes = dict(changes or {})
    going_on = changes.pop("arms", None)
    again = [_continued(config, changes) for config in configs if going_on is None or config.arm in going_on]
    larger = [replace(config, enlarge=True) for config in again if "abn" not in config.arm]
    return {"continued": again, "enlarged": larger}


def _continued(config: RunConfig, changes: dict) -> RunConfig:
    """The same settings but for the changes, started from what they have trained."""
    name = run_id(config.identity())
    values = vars(config) | {"pretrained": False, "weights": None, "weights_content": None}
    return RunConfig.of(**(values | changes | {"start": name}))
