"""README keeps its word: its blocks come from files, its commands exist, its code runs, its links lead somewhere."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gate
import pictures
import pytest
import torch

import saol_lib
from saol_lib import Outputs
from saol_lib.evidence.claims import load_claims
from saol_lib.evidence.readme import Judged, render

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "notebooks/README.md", "notebooks/profiles/README.md"]
TEXT = (ROOT / "README.md").read_text()
GENERATED = re.compile(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", re.DOTALL)
PROSE = GENERATED.sub("", TEXT)
MAKEFILE = (ROOT / "Makefile").read_text()


def blocks(language, text=PROSE):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands():
    """Every line of the pages' shell blocks, and every `make ...` in their prose, without comments."""
    for page in PAGES:
        text = (ROOT / page).read_text().replace("\\\n", "")
        lines = "\n".join(blocks("sh", text)).splitlines() + re.findall(r"`(make [^`\n]*)`", text)
        for line in lines:
            words = shlex.split(line, comments=True)
            if words:
                yield page, words


# --- generated --------------------------------------------------------------------------------------------------------


def test_generated_blocks_are_up_to_date():
    command = [sys.executable, "-m", "saol_lib.evidence", "--check"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert set(GENERATED.findall(TEXT)) == {"verdicts", "claims", "example", "systems", "bibtex"}


def test_the_surest_results_read_like_sentences():
    claims = {claim.id: claim.statement for claim in load_claims().claims}
    told = re.findall(r"^The surest result (for the paper|against it) is (.*)$", TEXT, re.MULTILINE)
    assert [side for side, _ in told] == ["for the paper", "against it"]
    for _, sentence in told:
        (name,) = re.findall(r"^\*\*(\w+)\*\*", sentence)
        assert f"“{claims[name]}”" in sentence and sentence.count(":") <= 1 and sentence.endswith(".")


def test_what_is_deleted_from_the_blocks_comes_back_byte_by_byte():
    judged = Judged(ROOT / "results")
    emptied = GENERATED.sub(r"<!-- \1:begin --><!-- \1:end -->", TEXT)
    assert len(emptied) < len(TEXT) and render(emptied, judged) == TEXT
    with pytest.raises(ValueError, match="no <!-- systems:begin -->"):
        render(TEXT.replace("<!-- systems:begin -->", ""), judged)


def test_the_example_is_quoted_as_it_is_run():
    code = (ROOT / "examples/own_network.py").read_text()
    (quoted,) = [block for block in blocks("python", TEXT) if "DataLoader" in block]
    assert code.endswith(quoted) and len(quoted) > 0.9 * len(code)


# --- what can be run --------------------------------------------------------------------------------------------------


def test_every_make_command_is_a_target_with_known_variables():
    targets = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
    used = set()
    for page, (program, *words) in commands():
        if program != "make":
            continue
        for word in words:
            name, is_variable, _ = word.partition("=")
            if is_variable:
                assert re.search(rf"^{name} \?=", MAKEFILE, re.MULTILINE), f"{page}: {word}"
            else:
                assert name in targets, f"{page}: make {name}"
                used.add(name)
    assert {"replicate", "test", "explore", "study", "claims", "docs", "lab"} <= used


def test_papermill_takes_its_line_as_written(tmp_path):
    (line,) = [words for _, words in commands() if words[0] == "papermill"]
    notebook, output = line[1:3]
    written = tmp_path / output
    command = [sys.executable, "-m", "papermill", notebook, str(written), *line[3:], "--prepare-only"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr

    given = gate.read(written).metadata.papermill.parameters
    assert given["data_dir"] == "DIR" and given["profile"] == "cpu" and given["results"] == "results/own"
    assert set(given) <= set(gate.defaults(gate.read(ROOT / notebook)))


def test_the_three_lines_run():
    code = next(block for block in blocks("python") if "attach_saol" in block)
    scope = {}
    exec(code, scope)
    outputs, loss = scope["outputs"], scope["loss"]
    assert isinstance(outputs, Outputs) and outputs.gap_logits.shape == (4, 10)
    assert torch.allclose(outputs.attention.sum(dim=(1, 2, 3)), torch.ones(4))
    assert torch.isfinite(loss) and loss > 0
    lines = [line for line in code.splitlines() if line and "import" not in line]
    assert len(lines) == 3, "it says three lines"
    told = {name for name in re.findall(r"`(\w+)`", PROSE) if name in Outputs._fields}
    assert told == set(Outputs._fields[:5])


def test_the_study_runs_behind_its_guard(monkeypatch):
    code = next(block for block in blocks("python") if "run_study" in block)
    asked = []
    monkeypatch.setattr(saol_lib, "run_study", lambda configs, results: asked.append((configs, results)))
    exec(code, {"__name__": "a worker, which imports the script anew"})
    assert not asked, "without the guard every worker would start the study again"

    exec(code, {"__name__": "__main__"})
    ((configs, results),) = asked
    assert len(set(configs)) == 4 and results == "results/mine"


def test_lab_opens_on_the_start_page_and_reaches_the_results():
    told = subprocess.run(["make", "-n", "lab", f"VENV={sys.prefix}"], cwd=ROOT, capture_output=True, text=True)
    (root,) = re.findall(r'root_dir="([^"]+)"', told.stdout)
    (start,) = re.findall(r"default_url=/lab/tree/(\S+)", told.stdout)
    assert (Path(root) / start).is_file() and (Path(root) / "results").is_dir()

    (settings,) = re.findall(r'app_settings_dir="([^"]+)"', told.stdout)
    overrides = json.loads((Path(settings) / "overrides.json").read_text())
    viewers = overrides["@jupyterlab/docmanager-extension:plugin"]["defaultViewers"]
    assert viewers == {"markdown": "Markdown Preview"}, "the start page is shown, not its source"


def test_no_block_of_code_is_forgotten():
    assert len(blocks("python")) == 2, "a new block needs a test here"
    others = [words for _, words in commands() if words[0] not in ("make", "papermill", "sbatch")]
    assert others == [["pip", "install", "."]], "CI installs the package; another command needs a test here"


# --- what is said -----------------------------------------------------------------------------------------------------


def test_every_room_and_file_of_the_method_is_explained_and_no_other():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    told = set(re.findall(r"^saol_lib/(\w+(?:\.py|/)) +\S", text, re.MULTILINE))
    library = ROOT / "saol_lib"
    there = {path.name for path in library.glob("*.py")} - {"__init__.py"}
    there |= {f"{path.parent.name}/" for path in library.glob("*/__init__.py")}
    assert told == there, f"not the same: {told ^ there}"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_picture_is_there(page):
    text = (ROOT / page).read_text()
    links = set(re.findall(r"\]\(([^)#:]+)\)", text))
    assert links
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert not missing, missing


EXECUTED = [path for path in sorted(ROOT.glob("results/*/[0-9]*.ipynb")) if path.parent.name != "quick"]
NOTEBOOKS = [*sorted(ROOT.glob("notebooks/[0-9]*.ipynb")), *EXECUTED]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_notebooks_text_is_there(path):
    cells = json.loads(path.read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    links = set(re.findall(r"\]\(([^)#:]+)\)", "\n".join(texts)))
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing, missing


def test_every_notebook_is_on_the_start_page_and_every_profile_on_theirs():
    notebooks = ROOT / "notebooks"
    told = set(re.findall(r"\]\(([\w.]+\.ipynb)\)", (notebooks / "README.md").read_text()))
    assert told == {path.name for path in notebooks.glob("*.ipynb")}
    told = set(re.findall(r"\]\((\w+)\)", (notebooks / "profiles/README.md").read_text()))
    assert told == {path.name for path in (notebooks / "profiles").iterdir() if path.is_dir()}


def test_readme_stays_short():
    words = len(re.sub(r"```.*?```", "", PROSE, flags=re.DOTALL).split())
    assert words < 1000, f"{words} words: move what few need to CONTRIBUTING.md or notebooks/"


def test_no_measured_number_is_typed_by_hand():
    """Anything like 71.3 or 71.3 % outside the generated blocks."""
    pattern = r"(?<![\w.])[+-]?\d{1,2}\.\d+(?![\w.]*\d)(?=\s*(?:%|points|percent))|\b[1-9]\d\.\d+\b"
    for page in PAGES:
        found = re.findall(pattern, GENERATED.sub("", (ROOT / page).read_text()))
        assert not found, f"{page}: {found}"
    assert re.findall(pattern, "a mean of 71.30 by hand") == ["71.30"], "the pattern sees one"


def test_the_caveats_stand_where_the_numbers_are():
    claims = TEXT.split("## What became of the paper's claims")[1].split("\n## ")[0]
    assert "JPEG copy of CIFAR-10" in claims and "do not set them beside published" in " ".join(claims.split())
    assert "smaller than 4x4" in PROSE
    on_gpu = (ROOT / "results/gpu/README.md").is_file()
    assert ("Never run on a GPU" in TEXT) != on_gpu


def test_the_film_is_animated_and_small():
    from PIL import Image

    film = ROOT / "notebooks/explorer.webp"
    assert film.stat().st_size < 2_000_000
    with Image.open(film) as picture:
        assert picture.n_frames > 10 and picture.width >= 800


def test_make_pictures_makes_every_picture_of_the_notebooks_folder(monkeypatch):
    """Those that the pages and explorer.ipynb show, so that none stays behind when the explorer changes."""
    there = {path for path in (ROOT / "notebooks").iterdir() if path.suffix in (".png", ".svg", ".webp")}
    assert there == {pictures.FILM, pictures.STILL}
    told = subprocess.run(["make", "-n", "pictures", f"VENV={sys.prefix}"], cwd=ROOT, capture_output=True, text=True)
    assert "pictures.py film" in told.stdout and "pictures.py attention" in told.stdout


def test_a_wrong_answer_is_marked_in_words():
    says = {"SAOL": torch.tensor([0.1, 0.9]), "GAP-FC": torch.tensor([0.8, 0.2])}
    assert pictures.title(0, says, ["cat", "dog"]) == "a cat\nSAOL: dog, 90 % WRONG\nGAP-FC: cat, 80 %"


def test_the_slurm_line_names_what_exists():
    """No cluster is here: its script is read by bash, and its experiment is one of the paper profile's."""
    lines = [words for _, words in commands() if words[0] == "sbatch"]
    assert lines
    for _, _, script, experiment, _ in lines:
        subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)
        assert (ROOT / script).with_name(f"{experiment}.yaml").is_file()
