"""The front doors agree, the library keeps its shape, and no file names a machine."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DEPENDENCIES = sorted({*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)})
MODULES = sorted((ROOT / "saol_lib").glob("*.py"))

# A module imports from lower floors, or from what stands before it on its own floor, so there can be no circle. A new
# module needs a place here.
FLOORS = [
    ["layers", "peers", "cutmix", "backbones", "data", "imagenet", "runs", "figures"],
    ["losses", "models", "config", "recipe", "distributed", "boxes", "localization", "pairs", "evidence"],
    ["training", "lens", "shipped", "explorer"],
    ["study", "cost"],
    ["__init__"],
]
ORDER = [name for floor in FLOORS for name in floor]


def pins():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len({canonicalize_name(pin.name) for pin in found}) == len(found), "a package is pinned twice"
    return {canonicalize_name(pin.name): pin for pin in found}


@pytest.mark.parametrize("text", DEPENDENCIES)
def test_every_dependency_is_pinned_within_its_range(text):
    wanted = Requirement(text)
    pin = pins()[canonicalize_name(wanted.name)]
    version = str(pin.specifier).removeprefix("==")
    assert wanted.specifier.contains(version), f"{text} does not allow the pinned {version}"
    assert wanted.extras == pin.extras
    assert wanted.specifier, f"{text} has no range"


def test_every_pin_is_exact_and_leaves_cuda_to_torch():
    for name, pin in pins().items():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin} is not one exact version"
        assert not re.match(r"nvidia-|cuda-|triton$", name), f"{name} is torch's own business"


def test_conda_installs_the_same_file_and_the_package():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip_lines = next(entry["pip"] for entry in dependencies if isinstance(entry, dict))
    assert pip_lines == ["-r requirements.txt", "-e ."], "conda users must get the pinned file and nothing else"
    python = next(entry.split("=")[1] for entry in dependencies if str(entry).startswith("python="))
    assert f"Python {python}" in (ROOT / "requirements.txt").read_text().splitlines()[0]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert f"({lowest.replace('.', ', ')})" in (ROOT / "Makefile").read_text(), "make asks for another Python"


def test_citation_names_the_paper_and_the_replication():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert "replicated" in citation["title"] and citation["authors"]
    (paper,) = citation["references"]
    assert paper["title"] == "Spatially Attentive Output Layer for Image Classification"
    assert [author["family-names"] for author in paper["authors"]] == ["Kim", "Baek", "Kim"]
    assert paper["year"] == 2020


def test_every_make_target_has_a_help_text():
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split()
    targets = re.findall(r"^([a-z][a-z-]*):", text, re.M)
    assert sorted(phony) == sorted(targets)
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in targets:
        assert re.search(rf"^  make {target} +\S", shown, re.M), f"make help does not explain {target}"


def imports(path):
    """Names of the saol_lib modules that one module imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("saol_lib."))
            yield from ("__init__" for a in node.names if a.name == "saol_lib")
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "saol_lib"):
            inner = (node.module or "").removeprefix("saol_lib").strip(".")
            found = [inner.split(".")[0]] if inner else [a.name for a in node.names]
            yield from (name if name in ORDER or inner else "__init__" for name in found)


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem != "__init__"], ids=lambda path: path.stem)
def test_imports_go_downhill(path):
    assert path.stem in ORDER, f"{path.name} has no floor: give it one in this file"
    uphill = set(imports(path)) - set(ORDER[: ORDER.index(path.stem)])
    assert not uphill, f"{path.name} imports {uphill}, which does not stand below it"


def test_imports_sees_every_way_to_import(tmp_path):
    source = tmp_path / "module.py"
    lines = [
        "import saol_lib",
        "import saol_lib.training.runs",
        "from saol_lib import SAOL, data",
        "from .layers import SAOL",
    ]
    source.write_text("\n".join(lines))
    assert list(imports(source)) == ["__init__", "runs", "__init__", "data", "layers"]


def code_lines(source):
    """Lines that are neither blank nor comment nor docstring."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = [
        node.body[0] for node in ast.walk(ast.parse(source)) if isinstance(node, documented) and ast.get_docstring(node)
    ]
    skipped = {line for doc in docs for line in range(doc.lineno, doc.end_lineno + 1)}
    lines = enumerate(source.splitlines(), 1)
    return sum(1 for n, line in lines if n not in skipped and line.strip() and not line.strip().startswith("#"))


def test_the_library_stays_thin():
    sources = {path.name: path.read_text() for path in MODULES}
    longest = max(sources, key=lambda name: len(sources[name].splitlines()))
    assert len(sources[longest].splitlines()) <= 300, f"{longest} is over 300 lines"
    total = sum(map(code_lines, sources.values()))
    assert 0 < total < 3000, f"the library has {total} lines of code, docstrings not counted"


def test_no_file_names_a_machine_or_a_registry():
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    hosts = ["pypi" + ".org", "python" + "hosted", "npm" + "js.org", "deb." + "debian", "anaconda" + ".org"]
    place = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/|" + "|".join(map(re.escape, hosts)))
    names = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    assert "pyproject.toml" in names
    for name in names:
        found = place.search((ROOT / name).read_bytes().decode("utf-8", errors="replace"))
        assert not found, f"{name} names {found[0]}"
