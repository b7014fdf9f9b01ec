"""What a notebook claims of its numbers is checked where it says so, whatever switches Python was started with."""


class CheckFailed(AssertionError):
    """A number is not what the notebook says of it."""


def check(condition: object, sentence: object) -> None:
    """Raise CheckFailed with the sentence unless the condition holds; `assert` would be silent under PYTHONOPTIMIZE.

    condition: anything that is true or false as a whole; a table is asked with `.all()` first.
    """
    if not bool(condition):
        raise CheckFailed(str(sentence))
