"""The pages of `make docs`: every public name with its docstring, and nothing that needs a network."""

import importlib
import os
import re
import runpy
from pathlib import Path

import pytest

import saol_lib

BUILD = Path(__file__).parents[1] / "docs/build.py"
if os.environ.get("CI") != "true":
    pytest.importorskip("pdoc", reason="pdoc is not installed: pip install -r requirements.txt")


def test_every_public_name_is_documented_offline(tmp_path):
    importlib.import_module("pdoc")
    runpy.run_path(str(BUILD))["build"](tmp_path)
    page = (tmp_path / "saol_lib.html").read_text()
    for name in saol_lib.__all__:
        assert f'id="{name}"' in page, f"{name} is not on the page"
    assert "(B, K, Ho, Wo)" in page, "docstrings are shown"
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="([^"]*)"', page)
    assert not [address for address in loaded if address.startswith(("http", "//"))]
