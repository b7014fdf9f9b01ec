"""SAOL, replicated: the Spatially Attentive Output Layer (Kim, Baek and Kim, CVPR 2020) in PyTorch."""

from importlib import import_module

_HOME = {
    "layers": ("SAOL", "GAPFC", "Outputs"),
    "cutmix": ("Mixed", "mix"),
    "losses": ("saol_loss", "mask_loss", "consistency_loss", "self_distillation_loss", "total_loss"),
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
__all__ = sorted(name for names in _HOME.values() for name in names)


def __getattr__(name: str):
    """Import a public name when it is first used: what a user does not need is not loaded."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"saol_lib.{module}"), name)
    raise AttributeError(f"saol_lib has no {name!r}; it has {', '.join(__all__)}")
