"""README keeps its word: its tables come from results/, its commands exist, its code runs, its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import torch

from saol_lib import Outputs

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
PROSE = re.sub(r"<!-- (claims|verdicts):begin -->.*?<!-- \1:end -->", "", TEXT, flags=re.DOTALL)


def check():
    return subprocess.run(
        [sys.executable, "-m", "saol_lib.evidence", "--check"], cwd=ROOT, capture_output=True, text=True
    )


def test_generated_blocks_are_up_to_date():
    found = check()
    assert found.returncode == 0, found.stderr
    assert "[C15](" in TEXT and "<!-- verdicts:begin -->" in TEXT


def test_every_make_command_is_a_target():
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) + re.findall(r"`(make [^`\n]*)`", TEXT)
    used = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(code)))
    assert {"replicate", "test"} <= used <= targets, used - targets


def test_make_variables_are_known():
    makefile = (ROOT / "Makefile").read_text()
    for name in set(re.findall(r"\bmake [a-z-]+ ([A-Z]+)=", TEXT)):
        assert re.search(rf"^{name} \?=", makefile, re.MULTILINE), name


def test_the_python_runs():
    code, study = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    scope = {}
    exec(code, scope)
    outputs, loss = scope["outputs"], scope["loss"]
    assert isinstance(outputs, Outputs) and outputs.gap_logits.shape == (4, 10)
    assert torch.allclose(outputs.attention.sum(dim=(1, 2, 3)), torch.ones(4))
    assert torch.isfinite(loss) and loss > 0
    lines = [line for line in code.splitlines() if line and "import" not in line]
    assert len(lines) == 3, "it says three lines"
    assert {name for name in re.findall(r"`(\w+)`", TEXT) if name in Outputs._fields} == set(Outputs._fields[:5])
    exec(study, scope)
    scope["run_study"] = lambda configs, results, executor: (configs, results, executor)
    configs, results, executor = scope["my_study"]("an executor")
    assert len(set(configs)) == 4 and (results, executor) == ("results/mine", "an executor")


def test_every_room_and_file_of_the_method_is_explained_and_no_other():
    told = set(re.findall(r"^saol_lib/(\w+(?:\.py|/)) +\S", TEXT, re.MULTILINE))
    library = ROOT / "saol_lib"
    there = {path.name for path in library.glob("*.py")} - {"__init__.py"}
    there |= {f"{path.parent.name}/" for path in library.glob("*/__init__.py")}
    assert told == there, f"not the same: {told ^ there}"


def test_every_link_leads_somewhere():
    """What the cpu profile makes is looked for as soon as it has run."""
    ran = (ROOT / "results" / "cpu" / "runs").is_dir()
    links = set(re.findall(r"\]\(([^)#:]+)\)", TEXT)) | set(
        re.findall(r"^((?:notebooks|results|tests)/\S*) ", TEXT, re.M)
    )
    assert len(links) > 6
    missing = [link for link in links if not (ROOT / link).exists() and (ran or not link.startswith("results/cpu"))]
    assert not missing, missing


def test_no_measured_accuracy_is_typed_by_hand():
    """Anything like 71.3 or 71.3 % outside the generated blocks; the paper's own cost is the one decimal allowed."""
    found = re.findall(r"(?<![\w.])[+-]?\d{1,2}\.\d+(?![\w.]*\d)(?=\s*(?:%|points|percent))|\b[1-9]\d\.\d+\b", PROSE)
    assert not found, found
    assert re.findall(r"\b[1-9]\d\.\d+\b", "a mean of 71.30 by hand") == ["71.30"], "the pattern sees one"


def test_the_caveats_stand_where_the_numbers_are():
    results = TEXT.split("## Results of profile cpu")[1].split("\n## ")[0]
    assert "JPEG copy of CIFAR-10" in results and "do not set them beside published" in " ".join(results.split())
    assert "held_out" in results and "CPUs only" in TEXT.split("## Never run on a GPU")[1]
