"""From runs to verdicts, tables and figures; and what the notebooks ask and show."""

from importlib import import_module

_HOME = {
    "ablations": ("Ablations",),
    "benchmark": ("Benchmark",),
    "beyond": ("attention_by_arm",),
    "checks": ("CheckFailed", "check"),
    "choosing": ("precision_chosen", "precisions", "rates", "regime_chosen", "regimes"),
    "gallery": ("attention_in_boxes", "attention_pictures", "evaluated_on"),
    "parameters": ("configs_of", "finished_of", "finished_stages", "stages_of"),
    "plans": ("finished", "planned", "progress"),
    "report": ("show",),
    "statistics": ("Comparison", "compare"),
    "claims": ("load_claims", "verdicts"),
    "result_box": ("ResultBox",),
    "tables": ("ARMS_IN_WORDS", "above_chance", "accuracies", "caveat", "faults", "lead", "paired", "summary"),
}
__all__ = sorted(name for names in _HOME.values() for name in names)


def __getattr__(name: str):
    """Import a public name when it is first used: pandas and scipy are slow to load."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"saol_lib.evidence.{module}"), name)
    raise AttributeError(f"saol_lib.evidence has no {name!r}; it has {', '.join(__all__)}")
