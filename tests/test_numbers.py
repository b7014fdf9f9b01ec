"""Numbers in README's and the report notebooks' own words have a source: what is measured is generated or computed."""

import json
import re

import pytest

from saol_lib.evidence.statistics import LEVEL
from saol_lib.layers import default_logit_width
from saol_lib.training.files import ROOT

GENERATED = re.compile(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", re.DOTALL)
NOT_WORDS = re.compile(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$|\]\([^)]*\)", re.DOTALL)
NAMES = [  # digits that tell no quantity
    r"\bC\d+[ab]?\b",  # claims
    r"CIFAR-\d+",
    r"CVPR 2020",
    r"Python 3\.\d+",
    r"^#+ \d+\b",  # headings of notebooks
    r"\[\d\d\b",  # links to notebooks
    r"[Nn]otebook \d\d\b",
    r"[Tt]op-1",
    r"MaxBoxAccV2",
    r"\b\d+x\d+\b",  # sizes of maps
]
SOURCES = {  # a phrase with a number: whether what it says is so
    "two-sided 95 % t intervals; one-sided t tests at 5 %": LEVEL == 0.05,
    "so ours have at least 40; with 40 classes or more nothing changes": default_logit_width(10) == 40,
    "the same arm with 40 and with\n> 10 channels": default_logit_width(10) == 40,
    "is 1 inside a random rectangle": True,  # what a mask is
    "A patch of a 7 is pulled over a 3": True,  # what the film shows: digits by name
}


def left(text):
    """The lines of a text that still have a digit when names, code, formulas and sourced phrases are taken out."""
    text = GENERATED.sub("", text)
    for phrase, holds in SOURCES.items():
        text = text.replace(phrase, "") if holds else text
    text = NOT_WORDS.sub("", text)
    for name in NAMES:
        text = re.sub(name, "", text, flags=re.MULTILINE)
    return [line for line in text.splitlines() if re.search(r"\d", line)]


def words_of(path):
    """A page's text; of a notebook the cells in Markdown, whose outputs are computed from results/."""
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


@pytest.mark.parametrize("name", ["README.md", "notebooks/00_method.ipynb", "notebooks/07_claims.ipynb"])
def test_no_number_without_a_source(name):
    assert left(words_of(ROOT / name)) == []


def test_a_number_somebody_types_is_found():
    for typed in ("SAOL gains 1.6 points.", "It took 20 core-hours.", "| SAOL | 71.2 |", "with 3 seeds"):
        assert left(f"CIFAR-10, claim C12a, `x = 5`\n{typed}") == [typed]
    assert left("<!-- claims:begin -->\n+1.6\n<!-- claims:end -->") == []
