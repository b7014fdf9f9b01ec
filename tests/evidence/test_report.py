"""The report: what each part shows with and without runs, and one page that needs no network."""

import re

import pytest
from made_runs import gap, make
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from saol_lib.evidence.report import NOT_RUN, Report, hide_formulas, to_html
from saol_lib.training.runs import RESULTS, save_run

pytest.importorskip("latex2mathml")  # the extra `notebooks`


@pytest.fixture
def results(tmp_path):
    (tmp_path / "claims.yaml").write_text((RESULTS / "claims.yaml").read_text())
    return tmp_path


def test_without_runs_every_part_says_so(results):
    report = Report(results)
    assert report.forest() == report.curves() == report.slopes() == report.cost_against_accuracy() == NOT_RUN
    assert "17 claims, at CPU scale: 17 not run" in report.summary()
    assert report.scope().count("\n") == 18 and "12 and 8" not in report.scope() and "8 and 12; 5" in report.scope()


def test_parts_show_the_runs_of_the_study(results):
    for run in gap([70.0, 71.0]) + make([72.0, 73.0]) + make([71.0, 72.0], "saol_sd"):
        entries = [{"epoch": 1} | {name.removesuffix("_last"): 60.0 for name in run.metrics}]
        save_run(results / "study", run._replace(epochs=entries))
    report = Report(results)
    for figure in (report.curves(), report.slopes(), report.cost_against_accuracy()):
        assert isinstance(figure, Figure)
    assert "| study | 6 | 3.0 |" in report.compute() and "3.0 core-hours in all" in report.compute()


def test_curves_and_costs_are_of_runs_with_every_option_at_its_default(results):
    for run in make([72.0]) + make([20.0], blocks=1) + make([30.0], kernel_size=1):
        save_run(results / "study", run._replace(epochs=[{"epoch": 1, "top1_saol": run.metrics["top1_saol_last"]}]))
    report = Report(results)
    lines = [list(line.get_ydata()) for line in report.curves().axes[0].lines]
    assert [values for values in lines if values] == [[72.0]]
    drawn = report.cost_against_accuracy()
    assert [text.get_text() for text in drawn.legends[0].texts] == ["SAOL read, without CutMix"]
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()] == ["SAOL"]


def test_links_of_the_claims_lead_from_the_notebooks_folder(results):
    links = set(re.findall(r"\]\(([^)]+)\)", Report(results).claims()))
    assert len(links) > 5 and all((RESULTS.parent / "notebooks" / link).exists() for link in links)


def test_formulas_become_mathml_and_code_and_prices_stay():
    formulas = {}
    text = hide_formulas("a $x_i$ and $$y = 1$$, `$z$`, costs $5 or $6\n```\n$q$\n```", formulas)
    assert text == "a formula00000 and formula00001, `$z$`, costs $5 or $6\n```\n$q$\n```"
    inline, block = formulas.values()
    assert "<msub>" in inline and 'display="block"' in block and block.endswith("</math>")


def test_the_page_needs_no_network():
    output = new_output("display_data", {"text/markdown": "of $A$"})
    cells = [new_markdown_cell("# Title\n\n$$L = 1$$"), new_code_cell("secret = 1", outputs=[output])]
    page = to_html(new_notebook(cells=cells))
    assert page.count("<math") == 2 and "<mi>L</mi>" in page and "formula0" not in page
    assert "Title" in page and "secret" not in page
    assert "<script" not in page and not re.search(r"(?:src|href)=\"https?:", page)


def test_what_would_be_loaded_from_elsewhere_is_refused():
    remote = new_notebook(cells=[new_markdown_cell('<img src="https://example.org/x.png">')])
    with pytest.raises(ValueError, match="the report would load <img"):
        to_html(remote)
