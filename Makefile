# SAOL, replicated. `make` alone lists what can be done.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PROFILE ?= quick
DATA ?=
ONLY ?=
SET ?=
RESULTS ?=
PROCESSES ?=
WORKERS ?=
PER_GPU ?=
VENV ?=
PYTHON ?= $(or $(shell command -v python3.11 2> /dev/null),python3)

ifeq ($(strip $(VENV)),)
READY := .venv/.stamp
PY := .venv/bin/python
else
READY := check-venv
PY := "$(VENV)/bin/python"
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
endif
DATA_FLAG = $(if $(DATA),--data "$(DATA)")
SHOWN_FLAGS = $(if $(ONLY),--only "$(ONLY)") $(foreach one,$(SET),--set "$(one)") \
	$(if $(WORKERS),--workers $(WORKERS)) $(if $(RESULTS),--results "$(RESULTS)")
STUDY_FLAGS = $(SHOWN_FLAGS) $(if $(PROCESSES),--processes $(PROCESSES)) $(if $(PER_GPU),--per-gpu $(PER_GPU))
AS_ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)
NBVAL = --nbval-lax --nbval-current-env --nbval-cell-timeout=900 -p no:cacheprovider
NUMERIC = tests/test_layers.py tests/test_cutmix.py tests/test_losses.py tests/test_attach.py
# Three processes, since some tests wait for others more than they compute; files whole, in the order of conftest.py.
THREE = -n 3 --dist loadfile --no-loadscope-reorder

# Freed memory is kept for the next step: on a CPU the pages that the kernel would clear anew for each are up to a third of
# its time. Read by the C library of Linux (glibc) alone.
study replicate: export MALLOC_MMAP_MAX_ = 0
study replicate: export MALLOC_TRIM_THRESHOLD_ = 100000000000

.PHONY: help setup replicate test test-faults test-numeric test-browser lab explore study dryrun gpu-check claims report docs pictures refresh lint lint-js format check-venv

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PROFILE=quick|cpu|...     how much to run (now: $(PROFILE)); notebooks/profiles says which there are, and what each costs"
	@echo "  DATA=DIR                  folder of a data set of your own, CIFAR-10 say"
	@echo "  ONLY=02                   for replicate: this notebook alone; for both ONLY=cifar10-wrn: this experiment of the profile"
	@echo "  PYTHON=python3.11         the Python, 3.11 or newer, from which .venv is made"
	@echo "  VENV=DIR                  use this environment of yours as it is; nothing is installed in it"

setup: $(READY) ## make .venv with the pinned packages, or check that of VENV (6 GB, some 4 minutes)

replicate: $(READY) ## run every numbered notebook in PROFILE, on DATA if given; executed copies go to results/PROFILE
	@$(PY) notebooks/run.py replicate --profile "$(PROFILE)" $(DATA_FLAG) $(SHOWN_FLAGS)

test: $(READY) ## everything that CI checks: style, tests, notebooks, claims; stops at the first failure
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) notebooks/run.py check
	$(PY) -m saol_lib.evidence --check
	@if command -v npm > /dev/null; then $(MAKE) --no-print-directory lint-js; else echo "No npm here: the page's checks are left out."; fi
	$(PY) notebooks/run.py alone $(PY) -m pytest $(THREE) --durations=15 $(NBVAL) tests notebooks/[0-9]*.ipynb
	@echo "Passed: ruff, notebooks normalised, README's claims up to date, pytest, notebooks executed."

test-faults: $(READY) ## the long fault-injection tests (kill -9, full disk, damaged checkpoints)
	$(PY) -m pytest -m faults tests

test-numeric: $(READY) ## the numeric tests with each instruction set of oneDNN, and with one and two threads
	@for isa in SSE41 AVX2 AVX512_CORE AVX512_CORE_BF16; do for threads in 1 2; do echo $$isa $$threads; done; done \
	| xargs -P 2 -L 1 sh -c 'told=$$(ONEDNN_MAX_CPU_ISA=$$0 TEST_THREADS=$$1 $(PY) -m pytest -q -m numeric $(NUMERIC)); \
	status=$$?; echo "== ONEDNN_MAX_CPU_ISA=$$0, threads: $$1"; echo "$$told"; exit $$status'

test-browser: $(READY) ## of these the explorer in JupyterLab and Voila alone, driven in Debian's chromium
	$(PY) -m pytest -m browser tests/explorer/test_explorer_browser.py

lab: $(READY) ## JupyterLab on this machine only, with its token: opens on the start page, reaches notebooks and results
	$(PY) -m jupyterlab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir="$(CURDIR)" $(AS_ROOT) \
	--LabApp.default_url=/lab/tree/notebooks/README.md --LabApp.app_settings_dir="$(CURDIR)/notebooks/lab"

explore: notebooks/explorer.ipynb $(READY) ## the attention explorer in a browser: this machine only, nothing from elsewhere
	env JUPYTER_PATH=notebooks $(PY) -m voila notebooks/explorer.ipynb --Voila.ip=127.0.0.1 --Voila.config_file_paths=notebooks --template=offline

study: $(READY) ## train every run of PROFILE's study on DATA, several at a time; goes on where it stopped
	$(PY) -m saol_lib.training study --profile "$(PROFILE)" $(DATA_FLAG) $(STUDY_FLAGS)

dryrun: $(READY) ## the paper profile without GPU and data: every network counted and rehearsed, results/paper/README.md
	$(PY) -m saol_lib.evidence.dryrun $(if $(SMALL),--small) $(if $(MISSING),--missing)

gpu-check: $(READY) ## under ten minutes on a GPU: its tests, speeds, precisions; results/gpu. Without one it says so
	$(PY) -m saol_lib.evidence.gpu_check

claims: $(READY) ## write README's verdicts and claims, and results/README.md, anew from results/
	$(PY) -m saol_lib.evidence

report: $(READY) ## the report as one page that needs no network: results/report.html
	$(PY) -m saol_lib.evidence report

docs: $(READY) ## write the library's docstrings as pages to docs/api, readable without a network
	$(PY) docs/build.py

pictures: $(READY) ## make the pictures of README and explorer.ipynb anew: the explorer, and where a network looks (needs chromium)
	$(PY) notebooks/pictures.py film
	$(PY) notebooks/pictures.py attention

refresh: $(READY) ## execute all notebooks in place, quick profile, and normalise them
	$(PY) notebooks/run.py refresh

lint: $(READY) ## look for faults of style
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

lint-js: ## the same for the explorer's page, and its pure parts' tests (needs node and npm; users need neither)
	npm ci --no-audit --no-fund --silent --fetch-retries=5
	npm run --silent lint
	npm test --silent

format: $(READY) ## mend faults of style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

check-venv: ## (with VENV) say what the environment lacks
	@test -x $(PY) || { echo "VENV=$(VENV) has no bin/python: give the folder of a virtual or conda environment." >&2; exit 1; }
	@$(PY) -c 'import importlib.util as u, sys; old = sys.version_info < (3, 11); \
	gone = [name for name in sys.argv[1:] if u.find_spec(name) is None]; \
	old and sys.exit("VENV has Python " + sys.version.split()[0] + ": 3.11 or newer is needed."); \
	gone and sys.exit("VENV lacks " + ", ".join(gone) + ": run its pip install -r requirements.txt, or leave VENV out.")' \
	saol_lib torch torchvision pytorchcv scipy seaborn sklearn safetensors yaml tqdm filelock papermill nbstripout ipykernel

.venv/.stamp: requirements.txt pyproject.toml
	@command -v "$(PYTHON)" > /dev/null || { echo "No $(PYTHON) here: install Python 3.11, or name yours by PYTHON=." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version.split()[0]; \
	sys.version_info < (3, 11) and sys.exit("$(PYTHON) is Python " + v + ": 3.11 or newer is needed, name one by PYTHON=.")'
	@echo "Setting up .venv with the packages of requirements.txt: 6 GB, some 4 minutes the first time."
	"$(PYTHON)" -m venv .venv
	.venv/bin/python -m pip install $(if $(CI),--quiet) -r requirements.txt
	.venv/bin/python -m pip install --quiet --no-deps -e .
	@touch $@

notebooks/explorer.ipynb:
	@echo "There is no notebooks/explorer.ipynb in this version, so there is nothing to explore yet." >&2; exit 1

