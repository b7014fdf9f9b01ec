"""The front doors agree, the library keeps its shape, and no file names a machine."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import saol_lib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DEPENDENCIES = sorted({*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)})
PACKAGE = ROOT / "saol_lib"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Imports run one way: a room imports from rooms that stand before it. The method's own files have an order too.
METHOD = ["options", "layers", "streams", "cutmix", "losses", "finding", "attach"]
ROOMS = ["method", "networks", "data", "training", "localization", "evidence", "explorer"]
BARE = {"torch", "torchvision"}  # all that the method may import


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
    """Full names of the modules that a file imports, wherever in it; relative imports are not allowed in this house."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} has a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module):
    """The room of a module of ours, "method" for the files on top, None for the package itself and for others."""
    parts = module.split(".")
    if parts[0] != "saol_lib" or len(parts) < 2:
        return None
    if parts[1] in METHOD:
        return "method"
    return parts[1] if parts[1] in ROOMS else None


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", [path for path in MODULES if path != PACKAGE / "__init__.py"], ids=module_name)
def test_imports_run_one_way(path):
    own = room(module_name(path))
    assert own, f"{path.name} is in no room: give it one in this file"
    uphill = {name for name in imports(path) if room(name) and ROOMS.index(room(name)) > ROOMS.index(own)}
    assert not uphill, f"{module_name(path)} imports {uphill}, of a room that builds on this one"


@pytest.mark.parametrize("name", [name for name in METHOD if (PACKAGE / f"{name}.py").exists()])
def test_the_method_imports_torch_alone_and_in_order(name):
    found = set(imports(PACKAGE / f"{name}.py"))
    outside = {module.split(".")[0] for module in found} - set(sys.stdlib_module_names) - BARE - {"saol_lib"}
    assert not outside, f"{name} imports {outside}"
    inside = {module.split(".")[1] for module in found if module.startswith("saol_lib.")}
    assert inside <= set(METHOD[: METHOD.index(name)])


def test_imports_sees_every_way_to_import(tmp_path):
    source = tmp_path / "module.py"
    source.write_text("import saol_lib.training.runs\nif True:\n    from saol_lib.networks import abn\n")
    assert set(imports(source)) == {"saol_lib.training.runs", "saol_lib.networks", "saol_lib.networks.abn"}
    assert room("saol_lib.networks.abn") == "networks" and room("saol_lib.layers") == "method"
    assert room("torch.nn") is room("saol_lib") is None


# --- public names ----------------------------------------------------------------------------------------------------

PUBLIC = [
    "Outputs",
    "SAOL",
    "attach_saol",
    "build_model",
    "enlarge",
    "mix",
    "saol_loss",
    "mask_loss",
    "consistency_loss",
    "self_distillation_loss",
    "total_loss",
    "RunConfig",
    "ARMS",
    "train",
    "run_study",
    "load_model",
    "score_maps",
    "localize",
    "box_accuracy",
    "largest_box",
    "mass_inside",
    "compare",
    "AttentionExplorer",
    "SaolOptions",
    "LossOptions",
    "Mixed",
    "Run",
    "Comparison",
]


def test_every_public_name_is_there_and_shown():
    assert {*PUBLIC} <= {*saol_lib.__all__} <= {*dir(saol_lib)}
    with pytest.raises(AttributeError, match=r"saol_lib has no 'attach_soal'; it has ARMS, "):
        saol_lib.attach_soal  # noqa: B018


@pytest.mark.parametrize("name", saol_lib.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(saol_lib, name) is not None


def test_type_checkers_see_what_is_imported_lazily():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    lazily = {name: f"saol_lib.{module}" for name, module in saol_lib._MODULE_OF.items()}
    assert seen == lazily
    assert all(alias.asname == alias.name for node in block.body for alias in node.names)  # "as" exports it


def test_type_information_is_shipped():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert (PACKAGE / "py.typed").exists() and "py.typed" in setuptools["package-data"]["saol_lib"]
    folders = {module_name(path.parent / "x").removesuffix(".x") for path in PACKAGE.rglob("__init__.py")}
    assert folders | {"saol_lib.models"} == set(setuptools["packages"])


# --- a bare environment ----------------------------------------------------------------------------------------------

BARE_RUN = """
import importlib.machinery
import sys

allowed = set(sys.argv[1:]) | set(sys.stdlib_module_names) | {"saol_lib"}


class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in allowed or top.startswith("_sysconfigdata"):  # the standard library's, named by the platform
            return super().find_spec(name, path, target)
        return None  # as if it were not installed


sys.meta_path = [importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, Bare]
import torch
import torchvision

import saol_lib
from saol_lib import attach_saol, mix, total_loss

model = attach_saol(torchvision.models.resnet18(), ["layer2", "layer3", "layer4"], num_classes=10)
mixed = mix(torch.rand(4, 3, 64, 64), torch.arange(4), num_classes=10)
terms = total_loss(model(mixed.images), mixed)
terms["total"].backward()
print(sorted(terms))
assert saol_lib.SaolOptions().kernel_size == 3
for blocked in ("scipy", "yaml", "pytorchcv", "pandas"):
    assert blocked not in sys.modules, blocked
"""


def closure(names):
    """Distributions that these need, themselves included."""
    found = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        requirements = [Requirement(text) for text in needed]
        waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def test_the_readme_s_lines_run_with_torch_and_torchvision_alone(tmp_path):
    allowed = closure(BARE)
    owners = metadata.packages_distributions()
    modules = [module for module, dists in owners.items() if {canonicalize_name(dist) for dist in dists} & allowed]
    script = tmp_path / "bare.py"
    script.write_text(BARE_RUN)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, *modules], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "['sd', 'sl', 'ss1', 'ss2', 'total']"


INSTALLED = """
import saol_lib
from saol_lib.explorer.shipped import load_shipped, shipped_scenes
from saol_lib.training import resolve
print(saol_lib.__file__, resolve("results/own"))
for name in shipped_scenes():
    load_shipped(name)
"""


def test_an_ordinary_install_has_the_models_and_writes_into_the_working_directory(tmp_path):
    pytest.importorskip("setuptools")
    copy, wheels, site, elsewhere = (tmp_path / name for name in ("copy", "wheels", "site", "elsewhere"))
    shutil.copytree(ROOT / "saol_lib", copy / "saol_lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "results/models", copy / "results/models", ignore=shutil.ignore_patterns("checkpoints"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)

    build = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(wheels),
        str(copy),
    ]
    done = subprocess.run([sys.executable, *build], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(wheels.iterdir())) as wheel:
        wheel.extractall(site)

    elsewhere.mkdir()
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", INSTALLED]
    told = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.split() == [str(site / "saol_lib/__init__.py"), str(elsewhere / "results/own")]


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
