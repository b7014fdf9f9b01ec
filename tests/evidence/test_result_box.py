"""The result box opens a notebook and is filled by a later cell."""

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import v4

from saol_lib.evidence.result_box import ResultBox, three_lines


def test_three_lines_are_one_quotation_with_line_breaks():
    assert three_lines("a", "b", "c") == "> **Result.** a  \n> b  \n> c"


@pytest.mark.parametrize("lines", [("a", "b"), ("a", "b", "c", "d"), ("a", "b\nc", "d")])
def test_another_number_of_lines_is_refused(lines):
    with pytest.raises(ValueError, match="give 3"):
        three_lines(*lines)


def test_a_later_cell_fills_the_box_in_the_executed_notebook():
    """What is committed is what nbclient keeps: the box where the notebook opens, without a stray output below."""
    cells = [
        v4.new_code_cell("from saol_lib.evidence import ResultBox\n\nbox = ResultBox()"),
        v4.new_code_cell("box.tell('one', 'two', 'three')"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = v4.new_notebook(cells=cells, metadata=kernel)
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()

    nbformat.validate(notebook)
    (box,) = notebook.cells[0].outputs
    assert box.data["text/markdown"] == three_lines("one", "two", "three")
    assert notebook.cells[1].outputs == []


def test_a_box_outside_a_notebook_does_no_harm(capsys):
    ResultBox().tell("one", "two", "three")
    capsys.readouterr()
