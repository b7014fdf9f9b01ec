"""One run's configuration: `RunConfig`, and the arms that the study compares."""

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from saol_lib import cutmix, data
from saol_lib.layers import SaolOptions, check_choice, check_options, nearest, option
from saol_lib.losses import LossOptions
from saol_lib.networks import check_backbone
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

_CHOICES = {
    "dataset": data.NAMES,
    "eval_split": data.SPLITS,
    "arm": tuple(ARMS),
    "schedule": ("one_cycle", "cosine"),
    "cutmix_schedule": cutmix.SCHEDULES,
    "autocast": ("none", "bfloat16"),
}
_SAOL_OPTIONS = tuple(field.name for field in dataclasses.fields(SaolOptions))
# Where a run happens, not what it computes: never hashed, never written.
WHERE = ("data_dir", "device", "processes", "workers")


@dataclass(frozen=True)
class RunConfig(SaolOptions, LossOptions):
    """Everything that one training depends on. `RunConfig()` is the quick profile's first run.

    Unknown names (`RunConfig.of`), unknown options and values out of range raise ValueError with one sentence.
    """

    dataset: str = "digits"
    data_dir: str | None = None  # where the data lie; None: embedded, or the user's cache folder
    image_size: int | None = None  # pixels a side of digits (None: 32), imagenet (224), or enlarged tiny-imagenet (64)
    classes: int | None = None  # of (Tiny-)ImageNet: so many, evenly spaced in their sorted list; None: all
    skip_damaged: bool = False  # go on without images that cannot be read
    train_images: int | None = None  # a fixed class-balanced part of the training images; None: all
    eval_split: str = "test"  # or "held_out": a fixed part of the training images, see `saol_lib.data.select`
    held_out: int = 5000  # how many images "held_out" sets aside
    backbone: str = "resnet-8"
    arm: str = "gap_fc"
    pretrained: bool = False  # torchvision's ImageNet weights
    start: str | None = None  # fine-tune the network of this finished run, an id, of the same results folder
    enlarge: bool = False  # the last stage's stride taken out: twice the output's resolution
    dilation: bool = False  # with enlarge: its later convolutions widened, so that they see as far as before
    seed: int = 0
    epochs: int = 4
    batch_size: int = 64
    lr: float = 0.1  # the peak
    schedule: str = "one_cycle"  # linear up over the first 30 %, linear down; or "cosine" without a warm-up
    momentum: float = 0.9  # Nesterov's
    weight_decay: float = 5e-4  # not on norms and biases
    pad: int = 4  # random crops after reflecting this many pixels
    eval_every: int = 1  # epochs; the last one is always evaluated; 0: only that one
    cutmix_schedule: str = "paired"
    cutmix_probability: float = 0.5
    cutmix_alpha: float = 1.0
    blocks: int = 3
    output_size: int | None = option(None, low=1)
    mask_source: str = option("branch", choices=("branch", "attention"))
    autocast: str = "none"
    compile: bool = False
    device: str = "auto"  # "cuda" if there is one, else "cpu"; or a torch device
    workers: int = 0  # processes that decode images of imagenet
    processes: int = 1  # data-parallel processes on this machine; the global batch stays batch_size

    def __post_init__(self) -> None:
        check_options(self)
        for field in dataclasses.fields(self):
            if field.type is float:  # 1 and 1.0 are one run
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name, low in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and not low <= value < math.inf:
                raise ValueError(f"{name}={value} must be at least {low} and finite")
        if not 0 < self.lr < math.inf or not 0 <= self.momentum < 1:
            raise ValueError(f"lr={self.lr} must be above 0 and finite, momentum={self.momentum} in [0, 1)")
        if self.cutmix_schedule == "paired" and self.cutmix_probability != 0.5:
            raise ValueError(f"cutmix_probability={self.cutmix_probability}: paired halves always mix half, use 0.5")
        if not 0 <= self.cutmix_probability <= 1 or not 0 < self.cutmix_alpha < math.inf:
            raise ValueError("cutmix_probability must lie in 0..1 and cutmix_alpha be above 0 and finite")
        if self.image_size is not None and self.dataset not in ("digits", "tiny-imagenet", "imagenet"):
            raise ValueError(f"image_size={self.image_size}: {self.dataset} has its own size; leave it out")
        if self.classes is not None and not (self.dataset in data.FOLDERS and 2 <= self.classes <= self._most):
            raise ValueError(f"classes={self.classes}: only (tiny-)imagenet can give fewer classes, 2 to {self._most}")
        if (self.dilation and not self.enlarge) or (self.pretrained and self.start):
            raise ValueError("dilation goes with enlarge=True, and pretrained does not go with start; leave one out")
        check_backbone(self.backbone)

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
        return data.CLASSES[self.dataset]

    @property
    def side(self) -> int:
        """Pixels a side of the images."""
        return self.image_size or data.SIZES[self.dataset]

    @property
    def data_options(self) -> dict:
        """What `saol_lib.data.load` gets besides the data set's name and folder."""
        asked = {name: getattr(self, name) for name in ("image_size", "classes", "skip_damaged")}
        return {name: value for name, value in asked.items() if value}

    @property
    def terms(self) -> tuple[str, ...]:
        return ARMS[self.arm].terms

    @property
    def saol_options(self) -> dict:
        options = {name: getattr(self, name) for name in _SAOL_OPTIONS}
        return options if "ss1" in self.terms else options | {"mask_source": "none"}

    @property
    def needs_second_pass(self) -> bool:
        """L_SS2 needs Y of the clean sources; only the paired schedule has them in the batch."""
        return "ss2" in self.terms and self.cutmix_schedule != "paired"

    def identity(self) -> dict:
        """The fields that can change a number, as written into the run's file and hashed into its id."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in WHERE}


_LOWEST = (
    {"train_images": 2, "batch_size": 2}
    | dict.fromkeys(("held_out", "epochs", "processes", "blocks"), 1)
    | {"image_size": 8}
    | dict.fromkeys(("seed", "workers", "weight_decay", "pad", "eval_every"), 0)
)


def grid(arms: list, seeds: list[int], **values) -> list[RunConfig]:
    """One config for every arm and seed; an arm is a name, or a dict of "arm" and the options it changes."""
    changes = [{"arm": arm} if isinstance(arm, str) else arm for arm in arms]
    return [RunConfig.of(**(values | change | {"seed": seed})) for change in changes for seed in seeds]


def finetuning(arms: list, seeds: list[int], *, trained: dict, **values) -> dict[str, list[RunConfig]]:
    """The stages of notebooks 02 and 03, in the order of training; each starts from networks of the one before.

    "trained": a GAP-FC network a seed, with the settings `trained` (no such stage where `values` have pretrained=True:
    torchvision's weights take its place). "fine-tuned": every arm from that network. "continued" and "enlarged": every
    arm again from its fine-tuned network, as it was and with twice the resolution: the same budget for both. ABN, whose
    map has twice the resolution as it is, is not enlarged.
    """
    base = grid(["gap_fc"], seeds, **(values | trained)) if not values.get("pretrained") else []
    first = {config.seed: run_id(config.identity()) for config in base}
    tuned = [replace(config, start=first.get(config.seed)) for config in grid(arms, seeds, **values)]
    again = [replace(config, start=run_id(config.identity()), pretrained=False) for config in tuned]
    larger = [replace(config, enlarge=True) for config in again if "abn" not in config.arm]
    return {"trained": base, "fine-tuned": tuned, "continued": again, "enlarged": larger}
