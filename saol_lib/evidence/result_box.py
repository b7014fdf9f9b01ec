"""Three lines at the head of a notebook that say what came out, written by its last cells from the numbers."""

from IPython.display import Markdown, display

LINES = 3
NOT_YET = "*The result stands here once the notebook has run to its end.*"


class ResultBox:
    """A place where a notebook opens; `tell` fills it when the numbers are there, wherever that is called.

    box = ResultBox()
    ...
    box.tell("SAOL is 1.6 points above GAP-FC.", "It is in 3 of 3 seeds.", "Three seeds decide nothing.")
    """

    def __init__(self) -> None:
        self._place = display(Markdown(NOT_YET), display_id=True)  # None outside a notebook

    def tell(self, *lines: str) -> None:
        """Write the three lines, Markdown, into the box; ValueError for another number of lines."""
        text = Markdown(three_lines(*lines))
        if self._place is None:
            display(text)
        else:
            self._place.update(text)


def three_lines(*lines: str) -> str:
    """Three lines as a Markdown quotation; ValueError for another number, or for one that holds a line break."""
    if len(lines) != LINES:
        raise ValueError(f"{len(lines)} lines for a result box; give {LINES}")
    for line in lines:
        if "\n" in line:
            raise ValueError(f"{line!r} is more than one line; give {LINES} single ones")

    first, *others = lines
    quoted = [f"> **Result.** {first}", *(f"> {line}" for line in others)]
    return "  \n".join(quoted)
