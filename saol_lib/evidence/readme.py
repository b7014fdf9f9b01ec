"""What is generated: README's blocks (verdicts, claims, example, systems, bibtex), and all of results/README.md."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from saol_lib.evidence import paper as paper_page
from saol_lib.evidence.claims import (
    SCALES,
    Claim,
    Count,
    Found,
    Ledger,
    Verdict,
    find,
    judge,
    load_claims,
    numbers,
    threshold,
)
from saol_lib.evidence.statistics import Comparison, p_above, shifted
from saol_lib.evidence.tables import glossary, runs_tables
from saol_lib.training.runs import RESULTS, ROOT, write_whole

EXAMPLE = ROOT / "examples/own_network.py"
CITATION = ROOT / "CITATION.cff"
_BLOCK = re.compile(r"(<!-- (verdicts|claims|example|systems|bibtex):begin -->).*?(<!-- \2:end -->)", re.DOTALL)
SCALES_IN_WORDS = {"cpu": "at CPU scale", "paper": "at the paper's scale"}
BOX = {  # a line of the verdict box: the words of its verdicts
    "held": ("supported",),
    "did not hold": ("contradicted", "smaller than that"),
    "undecided": ("inconclusive", "incomplete", "open"),
    "not testable at this scale": ("not testable at this scale",),
    "not run": ("not run", "no test"),
}
FOLDERS = {  # what a folder of results/ is; the order of results/README.md
    "study": "The study on CIFAR-10 (a JPEG copy, not the original data): test images, last epoch.",
    "imagenet": "An ImageNet-trained network fine-tuned on 30 classes of Tiny-ImageNet: first the rates, on held-out "
    "training images, then the study, on the val images.",
    "paper": "The paper's own networks and data sets.",
    "pilot": "The pilot, which chose the study's regime: on held-out training images, so that the study stayed blind.",
    "cpu": "First demonstrations by single notebooks: few seeds, short trainings. No claim reads them.",
}


class Judged:
    """The ledger and, for each scale, {claim: (what was found, its verdict)}; {claim or control: what was found}.

    beside: what is shown with the tests and decides nothing.
    """

    def __init__(self, results: Path):
        self.results = results
        self.ledger: Ledger = load_claims(results / "claims.yaml")
        self.scales = {scale: judge(self.ledger, scale, results) for scale in SCALES}
        controls = tuple(self.ledger.controls.values())
        self.controls = {scale: find(controls, scale, results) for scale in SCALES}
        self.beside = {scale: find(self.ledger.claims, scale, results, "beside") for scale in SCALES}


# --- README.md --------------------------------------------------------------------------------------------------------


def verdict_box(judged: Judged) -> str:
    """The short answer; how many claims held, did not, are undecided; then the surest result for and against.

    A column of the table a scale.
    """
    lines = [_in_short(judged), ""]
    lines += [f"| | {' | '.join(SCALES_IN_WORDS.values())} |", "|---|---|---|"]
    for name, words in BOX.items():
        cells = []
        for scale in SCALES:
            ids = [key for key, (_, verdict) in judged.scales[scale].items() if verdict.word in words]
            cells.append(f"{len(ids)}: {', '.join(ids)}" if ids else "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")

    surest_for = _surest(judged, BOX["held"])
    surest_against = _surest(judged, BOX["did not hold"])
    lines += ["", f"The surest result for the paper {surest_for}"]
    lines += ["", f"The surest result against it {surest_against}"]
    return "\n".join(lines)


def _in_short(judged: Judged) -> str:
    """The effects at CPU scale that claims.yaml has words for, a line each, decided or not."""
    lines = []
    for claim in judged.ledger.claims:
        found, _ = judged.scales["cpu"][claim.id]
        for one in [*found, *judged.beside["cpu"][claim.id]]:
            if one.test.in_short and one.comparison:
                lines.append(f"- {one.test.in_short}: {_numbers(one)} ({claim.id})")
    if not lines:
        return "Nothing has run yet that would tell what SAOL gains."
    head = "In short, on a small ResNet and CIFAR-10 (points of accuracy, 95 % interval over seeds):"
    return "\n".join([head, "", *lines])


def _surest(judged: Judged, words: Sequence[str]) -> str:
    """The decided claim with the smallest p, to be read on; those that are counted have none and come last."""
    candidates = []
    for scale in SCALES:
        for claim in judged.ledger.claims:
            found, verdict = judged.scales[scale][claim.id]
            if verdict.word in words:
                rank = (bool(claim.counted), verdict.p_value)
                candidates.append((rank, len(candidates), claim, found, verdict, scale))
    if not candidates:
        return "is still to come."
    _, _, claim, found, verdict, scale = min(candidates)
    if claim.counted:
        evidence = _surest_count(claim, judged.results, holds="supported" in words)
    else:
        clearest = _clearest(claim, found, holds="supported" in words)
        where = SCALES_IN_WORDS[scale]
        evidence = f"We found {_effect(clearest)} (percentage points); {where} that is {verdict}."
    return f"is **{claim.id}**, “{claim.statement}”. {evidence}"


def _clearest(claim: Claim, found: Sequence[Found], holds: bool) -> Found:
    """The test with the smallest p for the claim, or against it."""
    sign = 1 if holds else -1
    bar = threshold(claim)

    def p_value(one: Found) -> float:
        effect = one.claimed
        return float(p_above(sign * effect.mean, effect.spread, effect.n, sign * bar))

    return min(found, key=p_value)


def _surest_count(claim: Claim, results: Path, holds: bool) -> str:
    """The first of a counted claim's numbers that does, or does not, lie in its band; and how many do."""
    counted = [(count, number) for count, number in numbers(claim, results) if count.band]
    inside = [count.holds(number) for count, number in counted]
    count, number = counted[inside.index(holds)]
    low, high = count.band
    return (
        f"We counted {number:.2f} for “{count.label}”; to hold it had to lie between {low} and {high}, and "
        f"{sum(inside)} of {len(inside)} such numbers lie where they had to."
    )


def claims_table(judged: Judged) -> str:
    """Every claim, and at both scales: what was seen so far, and the verdict."""
    lines = ["| | the claim, in our words (section) | direction | effect | verdict at CPU scale | at the paper's |"]
    lines.append("|---|---|---|---|---|---|")
    for claim in judged.ledger.claims:
        _, verdict = judged.scales["cpu"][claim.id]
        name = f"[{claim.id}]({claim.notebook})"
        seen = "<br>".join(_effects(claim, judged, "cpu"))
        cells = [name, f"{claim.statement} ({claim.section})", _direction(verdict, seen), seen or "–", f"**{verdict}**"]
        lines.append(f"| {' | '.join([*cells, _paper_cell(claim, judged)])} |")
    return "\n".join(lines)


def _paper_cell(claim: Claim, judged: Judged) -> str:
    _, verdict = judged.scales["paper"][claim.id]
    if claim.counted or verdict.word == "not run":
        return str(verdict)
    effects = _effects(claim, judged, "paper")
    return "<br>".join([f"**{verdict}**, {_direction(verdict, effects)}", *effects])


def _direction(verdict: Verdict, seen: object) -> str:
    """Where what was seen lies, in a word: of several numbers some may agree and others not."""
    if verdict.direction != "none":
        return verdict.direction
    return "mixed" if seen else "–"


def _effects(claim: Claim, judged: Judged, scale: str) -> list[str]:
    """What was found about a claim; what stands beside its tests comes last, in italics."""
    if claim.counted:
        return [_counted(count, number) for count, number in numbers(claim, judged.results) if number is not None]
    found, _ = judged.scales[scale][claim.id]
    effects = [_effect(one) for one in found if one.comparison]
    if not effects:
        return []
    beside = [f"*beside it: {_effect(one)}*" for one in judged.beside[scale][claim.id] if one.comparison]
    return effects + beside


def _counted(count: Count, number: float) -> str:
    if count.band is None:
        return f"*beside it: {count.label}: {number:.2f}*"
    low, high = count.band
    return f"{count.label}: {number:.2f}, band {low} to {high}"


def _effect(one: Found) -> str:
    """The mean difference a - b in percentage points, its 95 % interval, pairs of those planned."""
    lower = "" if one.test.direction == "higher" else " (lower is claimed)"
    return f"{one.test.label}{lower}: {_numbers(one)}"


def _numbers(one: Found) -> str:
    t = one.comparison
    pairs = f"n = {t.n}" if one.complete else f"n = {t.n} of {one.test.seeds}"
    return f"{t.mean:+.2f}{_interval(t)}, {_unbroken(pairs)}"


def _interval(t: Comparison) -> str:
    """The 95 % interval behind its mean; nothing for one pair."""
    if t.n < 2:
        return ""
    return " " + _unbroken(f"[{t.low:+.2f}, {t.high:+.2f}]")


def _unbroken(text: str) -> str:
    """No line ends inside it."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def example(judged: Judged) -> str:
    """The example's code as it is run by the tests, without its first line, which README says in its own words."""
    code = EXAMPLE.read_text()
    docstring, rest = code.split("\n", 1)
    if not docstring.endswith('"""'):
        raise ValueError(f"{EXAMPLE.name} must begin with a docstring of one line")
    return f"```python\n{rest.strip()}\n```"


def systems(judged: Judged) -> str:
    """On what all of this was run: whether a GPU was among it is told by what there is in results/."""
    tested = "Tested on Linux, on CPUs of one machine at a time."
    if (judged.results / "gpu" / "README.md").is_file():
        return f"{tested} What ran on a GPU, and how fast: [results/gpu/README.md](results/gpu/README.md)."
    return (
        f"{tested} **Never run on a GPU**: CUDA, bfloat16 and `torch.compile` there, and the profile `paper`, are "
        "written and untried; time and memory on a GPU are unknown."
    )


def bibtex(judged: Judged) -> str:
    """The paper and this repository, from CITATION.cff."""
    ours = yaml.safe_load(CITATION.read_text())
    (paper,) = ours["references"]
    authors = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    entries = [
        _entry("inproceedings", "kim2020saol", {
            "title": f"{{{paper['title']}}}",
            "author": " and ".join(authors),
            "booktitle": paper["collection-title"],
            "year": paper["year"],
            "note": paper["identifiers"][0]["value"],
        }),
        _entry("software", "saol_replicated", {
            "title": f"{{{ours['title']}}}",
            "author": f"{{{ours['authors'][0]['name']}}}",
            "version": ours["version"],
            "license": ours["license"],
        }),
    ]  # fmt: skip
    return "\n".join(["```bibtex", *entries, "```"])


def _entry(kind: str, key: str, fields: Mapping[str, object]) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def render(text: str, judged: Judged) -> str:
    """README's text with its generated blocks written anew; ValueError if one is missing."""
    written = {
        "verdicts": verdict_box,
        "claims": claims_table,
        "example": example,
        "systems": systems,
        "bibtex": bibtex,
    }
    there = {found[2] for found in _BLOCK.finditer(text)}
    for name in written.keys() - there:
        raise ValueError(f"README.md has no <!-- {name}:begin --> ... <!-- {name}:end -->; put the two lines back")
    return _BLOCK.sub(lambda found: f"{found[1]}\n\n{written[found[2]](judged)}\n\n{found[3]}", text)


# --- results/README.md ------------------------------------------------------------------------------------------------


def results_page(judged: Judged) -> str:
    """results/README.md: every test of every claim, the arms in words, and every table of runs."""
    results = judged.results
    parts = ["# Results", "Written by `make claims` from the runs; not edited by hand. Accuracies in percent."]
    parts += [
        "The claims, their tests and the rule of the verdicts: [claims.yaml](claims.yaml).",
        "## Tests of the claims",
    ]
    by_margin = [claim.id for claim in judged.ledger.claims if claim.margin is not None]
    parts.append(
        "Differences a - b in percentage points, paired by seed; p: one-sided, unadjusted, in the claim's direction; "
        f"of {', '.join(by_margin)}, that a is not more than the margin behind."
    )
    for scale in SCALES:
        parts += [f"### Scale: {scale}", tests_table(judged, scale)]
    parts += ["## Arms in words", glossary()]
    parts.append("A second name in brackets is an option that differs from its default.")
    parts.append("## Runs")
    parts.append(
        "The last epoch counts. The best evaluated one was chosen on the images it is measured on: it decides nothing, "
        "and where it is higher it flatters. Differences are paired by seed; CutMix arms are compared with GAP-FC "
        "trained with CutMix; – where there is no GAP-FC run of the same sources and setting."
    )
    for folder in _folders(results):
        words = FOLDERS.get(folder, "")
        parts += [f"### {folder}", *([words] if words else []), runs_tables(folder, results)]
    return "\n\n".join(parts) + "\n"


def _folders(results: Path) -> list[str]:
    """The folders with runs: those that are known in their order, then others; quick is nobody's evidence."""
    there = sorted(path.parent.name for path in results.glob("*/runs"))
    known = [name for name in FOLDERS if name in there]
    return known + [name for name in there if name not in FOLDERS and name != "quick"]


def tests_table(judged: Judged, scale: str) -> str:
    """Every test at one scale with each seed's difference; what has not run has one line."""
    lines = [
        "| claim | test | mean [95 % interval] | n | p (t) | p (sign flip) | each seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in judged.controls[scale].items():
        lines += [_test_row(f"control: {name}", one, bar=0.0) for one in found if one.comparison]
    waiting = []
    for claim in judged.ledger.claims:
        found, _ = judged.scales[scale][claim.id]
        ran = [one for one in found if one.comparison]
        lines += [_test_row(claim.id, one, threshold(claim)) for one in ran]
        beside = [one for one in judged.beside[scale][claim.id] if ran and one.comparison]
        lines += [_test_row(f"beside {claim.id}", one, threshold(claim)) for one in beside]
        if found and not ran:
            waiting.append(claim.id)
    table = "\n".join(lines) if len(lines) > 2 else ""
    rest = f"Not run: {', '.join(waiting)}." if waiting else ""
    return "\n\n".join(part for part in (table, rest) if part)


def _test_row(name: str, one: Found, bar: float) -> str:
    """bar: what the mean has to be above, in the direction claimed."""
    t, claimed = one.comparison, shifted(one.claimed, bar)
    each = ", ".join(f"{seed}: {value:+.2f}" for seed, value in zip(t.seeds, t.differences, strict=True))
    pairs = _unbroken(f"{t.n} of {one.test.seeds}")
    cells = [name, one.test.label, f"{t.mean:+.2f}{_interval(t)}", pairs]
    cells += [_small(claimed.p_value), _small(claimed.sign_flip), each]
    return f"| {' | '.join(cells)} |"


def _small(p_value: float) -> str:
    return "< 0.0001" if p_value < 0.0001 else f"{p_value:.4f}"


# --- both -------------------------------------------------------------------------------------------------------------


def main(check: bool, readme: Path = ROOT / "README.md", results: Path = RESULTS) -> str | None:
    """None, or what is wrong: a page that is not up to date (with the lines that differ), or runs that do not fit."""
    try:
        judged = Judged(results)
        pages = {readme: render(readme.read_text(), judged), results / "README.md": results_page(judged)}
        if costs := paper_page.read_costs(results):
            pages[results / paper_page.PROFILE / "README.md"] = paper_page.render(costs, results)
    except ValueError as error:
        return str(error)
    if check:
        return "\n".join(filter(None, (_difference(path, text) for path, text in pages.items()))) or None
    for path, text in pages.items():
        write_whole(path, text.encode())
    return None


def _difference(path: Path, text: str) -> str | None:
    old = path.read_text() if path.exists() else ""
    if old == text:
        return None
    name = path.name if path.parent == ROOT else f"{path.parent.name}/{path.name}"
    lines = difflib.unified_diff(old.splitlines(), text.splitlines(), name, "from the runs", lineterm="", n=0)
    return "\n".join([f"{name} is not up to date with the runs; run make claims and commit it", *list(lines)[:20]])
