"""SAOL, replicated: the Spatially Attentive Output Layer (Kim, Baek and Kim, CVPR 2020) in PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING

# Where each public name lives; a module is imported when one of its names is first used.
_HOME = {
    "layers": ("GAPFC", "Outputs", "SAOL", "SaolOptions"),
    "cutmix": ("Mixed", "draw", "mix", "paste", "unmixed"),
    "losses": ("LossOptions", "consistency_loss", "mask_loss", "saol_loss", "self_distillation_loss", "total_loss"),
    "attach": ("attach_saol",),
    "networks": ("build_model", "enlarge"),
    "training.config": ("ARMS", "RunConfig", "finetuning"),
    "training.runs": ("Run", "load_runs"),
    "localization": (
        "BoxAccuracy",
        "BoxMeter",
        "Localizer",
        "PairMeasures",
        "area_share",
        "best_centred_box",
        "box_accuracy",
        "box_iou",
        "fixed_box_accuracy",
        "largest_box",
        "localize",
        "mass_inside",
        "score_maps",
    ),
    "explorer": ("AttentionExplorer",),
    "evidence.statistics": ("Comparison", "compare"),
    "training.recipe": ("load_model",),
    "training.loop": ("train",),
    "training.study": ("run_study",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:  # the same names for type checkers, which run nothing; tests/test_packaging.py compares
    from saol_lib.attach import attach_saol as attach_saol
    from saol_lib.cutmix import Mixed as Mixed
    from saol_lib.cutmix import draw as draw
    from saol_lib.cutmix import mix as mix
    from saol_lib.cutmix import paste as paste
    from saol_lib.cutmix import unmixed as unmixed
    from saol_lib.evidence.statistics import Comparison as Comparison
    from saol_lib.evidence.statistics import compare as compare
    from saol_lib.explorer import AttentionExplorer as AttentionExplorer
    from saol_lib.layers import GAPFC as GAPFC
    from saol_lib.layers import SAOL as SAOL
    from saol_lib.layers import Outputs as Outputs
    from saol_lib.layers import SaolOptions as SaolOptions
    from saol_lib.localization import BoxAccuracy as BoxAccuracy
    from saol_lib.localization import BoxMeter as BoxMeter
    from saol_lib.localization import Localizer as Localizer
    from saol_lib.localization import PairMeasures as PairMeasures
    from saol_lib.localization import area_share as area_share
    from saol_lib.localization import best_centred_box as best_centred_box
    from saol_lib.localization import box_accuracy as box_accuracy
    from saol_lib.localization import box_iou as box_iou
    from saol_lib.localization import fixed_box_accuracy as fixed_box_accuracy
    from saol_lib.localization import largest_box as largest_box
    from saol_lib.localization import localize as localize
    from saol_lib.localization import mass_inside as mass_inside
    from saol_lib.localization import score_maps as score_maps
    from saol_lib.losses import LossOptions as LossOptions
    from saol_lib.losses import consistency_loss as consistency_loss
    from saol_lib.losses import mask_loss as mask_loss
    from saol_lib.losses import saol_loss as saol_loss
    from saol_lib.losses import self_distillation_loss as self_distillation_loss
    from saol_lib.losses import total_loss as total_loss
    from saol_lib.networks import build_model as build_model
    from saol_lib.networks import enlarge as enlarge
    from saol_lib.training.config import ARMS as ARMS
    from saol_lib.training.config import RunConfig as RunConfig
    from saol_lib.training.config import finetuning as finetuning
    from saol_lib.training.loop import train as train
    from saol_lib.training.recipe import load_model as load_model
    from saol_lib.training.runs import Run as Run
    from saol_lib.training.runs import load_runs as load_runs
    from saol_lib.training.study import run_study as run_study


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: what a user does not need is not loaded."""
    if name not in _MODULE_OF:
        raise AttributeError(f"saol_lib has no {name!r}; it has {', '.join(__all__)}")
    module = import_module(f"saol_lib.{_MODULE_OF[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
