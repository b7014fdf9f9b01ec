"""The report: what notebook 07 shows, and the same as one HTML file that needs no network.

`python -m saol_lib.evidence report` executes notebooks/07_claims.ipynb and writes results/report.html.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from saol_lib.evidence import beyond, choosing, figures, readme
from saol_lib.evidence.forecast import count
from saol_lib.evidence.tables import NOT_RUN, effects_table, glossary
from saol_lib.training.config import RunConfig
from saol_lib.training.runs import RESULTS, ROOT, Run, load_runs, write_whole

MAIN = "resnet-8"  # the study's main family
STEPS = (("gap_fc", "GAP-FC"), ("saol_sd", "GAP-FC"), ("saol_sd", "SAOL"), ("saol", "SAOL"))
_MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\w)", re.DOTALL)
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL)  # a static page needs none: no diagrams, no widgets


class Report:
    """What the report shows, each part a text in Markdown, a table or a figure; nothing is trained.

    A part whose runs are not there is `NOT_RUN`.
    """

    def __init__(self, results: Path = RESULTS):
        self.results = results
        self.judged = readme.Judged(results)

    def summary(self) -> str:
        """One paragraph: how many claims held, did not, could not be decided."""
        told = []
        for scale, name in readme.SCALES_IN_WORDS.items():
            words = Counter(verdict.word for _, verdict in self.judged.scales[scale].values())
            each = ", ".join(f"{count} {word}" for word, count in words.most_common())
            told.append(f"{name}: {each}")
        count = len(self.judged.ledger.claims)
        return f"Of {count} claims, {'; '.join(told)}.\n\n{readme.verdict_box(self.judged)}"

    def scope(self) -> str:
        """The claims, what would be seen as too small, and how many seeds decide them."""
        lines = [
            "| claim | section | what is claimed | smallest effect | seeds (cpu; paper) |",
            "|---|---|---|---|---|",
        ]
        for claim in self.judged.ledger.claims:
            seeds = "; ".join(_seeds(plan) for plan in (claim.cpu, claim.paper))
            smallest = "counted" if claim.counted else f"{claim.smallest_effect} points"
            lines.append(f"| {claim.id} | {claim.section} | {claim.statement} | {smallest} | {seeds} |")
        return "\n".join(lines)

    def arms(self) -> str:
        return glossary()

    def choices(self) -> str:
        """How the rules chose regime, rates and precision, edges told, in this repository's profiles."""
        told = [
            f"CIFAR-10: {choosing.regime_chosen()} {choosing.gains_by_rate('gap_fc_cutmix', 'gap_fc')}",
            f"CIFAR-10: {choosing.edges()} {choosing.gains_by_rate('saol', 'gap_fc')}",
            f"CIFAR-10: {choosing.precision_chosen()}",
            f"Tiny-ImageNet: {choosing.edges('imagenet')}",
        ]
        return "\n".join(f"- {sentence}" for sentence in told)

    def rates(self, profile: str) -> pd.DataFrame | str:
        """What every family of arms scored at every rate of a profile's rates.yaml, in that profile's own folder."""
        return choosing.rates(profile)

    def compute(self) -> str:
        """What was trained, on what, and for how long."""
        lines = ["| folder | runs | core-hours | processors |", "|---|---|---|---|"]
        total = 0.0
        for path in sorted(self.results.glob("*/runs")):
            runs = load_runs(path.parent)
            if path.parent.name == "quick" or not runs:
                continue
            hours = sum(_core_seconds(run) for run in runs) / 3600
            processors = sorted({str(run.provenance.get("processor")) for run in runs})
            lines.append(f"| {path.parent.name} | {len(runs)} | {hours:.1f} | {', '.join(processors)} |")
            total += hours
        return "\n".join([*lines, "", f"{total:.1f} core-hours in all."])

    def claims(self) -> str:
        return readme.claims_table(self.judged).replace("](notebooks/", "](")

    def tests(self, scale: str = "cpu") -> str:
        return readme.tests_table(self.judged, scale)

    def forest(self, scale: str = "cpu") -> Figure | str:
        """Every effect of the claims with its interval and the smallest effect that counts."""
        found = {name: found for name, (found, _) in self.judged.scales[scale].items()}
        table = effects_table(self.judged.ledger.claims, found)
        return figures.forest(table) if len(table) else NOT_RUN

    def curves(self) -> Figure | str:
        return self._by_default(figures.curves)

    def slopes(self) -> Figure | str:
        return self._by_default(lambda runs: figures.slopes(runs, STEPS))

    def cost_against_accuracy(self) -> Figure | str:
        """Against what a training image costs, counted."""
        return self._by_default(lambda runs: figures.cost_against_accuracy(runs, _training_costs(runs)))

    def calibration(self) -> pd.DataFrame | str:
        """The calibration error of every layer, and how often two layers agree."""
        return self._of_main_family(beyond.calibration)

    def reliability(self) -> Figure | str:
        """Accuracy by confidence, of the arms of `beyond.SHOWN`."""
        table = beyond.reliability_table(self._main_family())
        return NOT_RUN if table.empty else figures.reliability(table)

    def both_layers(self) -> pd.DataFrame | str:
        """What averaging both layers' distributions at test time gives."""
        return self._of_main_family(beyond.both_layers)

    def attention(self) -> pd.DataFrame | str:
        """How far the attention of each arm is spread."""
        return self._of_main_family(beyond.attention_by_arm)

    def cam_of_taught(self) -> pd.DataFrame | str:
        """The boxes of GAP-FC's own CAM with and without L_SD, from notebook 03's measures."""
        return beyond.cam_of_taught(load_runs(self.results / "imagenet", "measures"))

    def _by_default(self, draw) -> Figure | str:
        """Of the main family, with every option at its default."""
        runs = [run for run in self._main_family() if not beyond.variant(run)]
        return draw(runs) if runs else NOT_RUN

    def _of_main_family(self, draw) -> Figure | pd.DataFrame | str:
        runs = self._main_family()
        return draw(runs) if runs else NOT_RUN

    def _main_family(self) -> list[Run]:
        return [run for run in load_runs(self.results / "study") if run.config["backbone"] == MAIN]


def _seeds(plan) -> str:
    numbers = sorted({test.seeds for test in plan.tests})
    return " and ".join(map(str, numbers)) or "–"


def _core_seconds(run: Run) -> float:
    return (run.provenance.get("seconds") or 0.0) * (run.provenance.get("threads") or 1)


def _training_costs(runs: Sequence[Run]) -> dict[str, float]:
    """Millions of multiply-adds of training on one image, a backward pass taken for two forward ones, by run's id."""
    return {run.id: count(RunConfig.of(**run.config)).training / 1e6 for run in runs}


def show(part: str | Figure | pd.DataFrame) -> None:
    """Display a part of the report in a notebook; text is Markdown, and cells of a table are shown whole."""
    from IPython.display import Markdown, display

    with pd.option_context("display.max_colwidth", None):
        display(Markdown(part) if isinstance(part, str) else part)


# --- one HTML file ----------------------------------------------------------------------------------------------------


def write(notebook: Path = ROOT / "notebooks" / "07_claims.ipynb", target: Path = RESULTS / "report.html") -> Path:
    """Execute the notebook and write it as one HTML file; ValueError where something of it would need a network."""
    import nbformat
    from nbclient import NotebookClient

    content = nbformat.read(notebook, as_version=4)
    NotebookClient(content, kernel_name="python3").execute(cwd=str(notebook.parent))
    write_whole(target, to_html(content).encode())
    return target


def to_html(notebook) -> str:
    """A notebook's HTML without its code, with figures inside and mathematics as MathML."""
    from nbconvert import HTMLExporter

    formulas: dict[str, str] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = hide_formulas(cell.source, formulas)
        for output in cell.get("outputs", ()):
            told = output.get("data", {})
            if "text/markdown" in told:
                told["text/markdown"] = hide_formulas(told["text/markdown"], formulas)

    exporter = HTMLExporter(template_name="lab", exclude_input=True, exclude_input_prompt=True, embed_images=True)
    exporter.exclude_output_prompt = True
    page, _ = exporter.from_notebook_node(notebook)
    page = _SCRIPT.sub("", page)
    for name, markup in formulas.items():
        page = page.replace(name, markup)

    left = re.search(r"<(?:link|img)\b[^>]*(?:src|href)=\"https?:[^>]*>", page)
    if left:
        raise ValueError(f"the report would load {left[0][:120]}; take it out of the notebook")
    return page


def hide_formulas(text: str, formulas: dict[str, str]) -> str:
    """Markdown with a name for each formula ($...$, $$...$$), whose MathML is added to `formulas`; code stays as it is.

    The renderer of Markdown would take MathML's tags apart.
    """

    def name(found: re.Match) -> str:
        name = f"formula{len(formulas):05d}"
        formulas[name] = _mathml(found[1] or found[2], "block" if found[1] else "inline")
        return name

    parts = _CODE.split(text)
    parts[::2] = [_MATH.sub(name, part) for part in parts[::2]]
    return "".join(parts)


def _mathml(formula: str, display: str) -> str:
    try:
        from latex2mathml.converter import convert
    except ImportError:
        raise ValueError("formulas of the report need the package latex2mathml: pip install latex2mathml") from None
    return convert(formula, display=display)
