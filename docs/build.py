"""`python docs/build.py` writes docs/api: the docstrings of all public names as static pages that need no network."""

import sys
from pathlib import Path

import pdoc

import saol_lib

HERE = Path(__file__).parent


def build(output: Path = HERE / "api") -> None:
    for name in saol_lib.__all__:  # they are imported when they are first used; pdoc documents what is there
        setattr(saol_lib, name, getattr(saol_lib, name))
    pdoc.render.configure(template_directory=HERE, show_source=False, footer_text="SAOL, replicated")
    pdoc.pdoc("saol_lib", output_directory=output)


if __name__ == "__main__":
    build(*map(Path, sys.argv[1:]))
    print("open docs/api/index.html")
