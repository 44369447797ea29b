# Thin wrappers: no logic lives here, so that the shell, CI and a person drive the same code.

PYTHON  ?= python3
ENGINE  ?= auto
PROFILE ?= auto
VENV    ?= .venv
NB      ?= 20_architecture
P       ?=
# Narrow or limit a profile:
ONLY ?=
MODELS ?=
LAUNCHES ?=
PROMPTS ?=
BUDGET ?=
# Anything: try what failed before anew, as when its cause is mended.
RETRY ?=
# Where CPU builds of torch are, if pip does not find them where it looks already.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

CHOICE = --profile $(PROFILE) $(if $(ONLY),--only "$(ONLY)") $(if $(MODELS),--models "$(MODELS)") \
  $(if $(LAUNCHES),--launches $(LAUNCHES)) $(if $(PROMPTS),--prompts "$(PROMPTS)")
AGAIN = $(if $(RETRY),--retry)
LIMIT = $(if $(BUDGET),--budget "$(BUDGET)") $(AGAIN)
PY    := $(VENV)/bin/python
# Tests of timing, alone. A busy machine can fail them, so what failed is run again, twice at most:
# a defect fails each time.
QUIET := $(PY) -m pytest -m quiet
# One stamp whatever the engine, and one per engine: who asks for another one gets it installed.
READY := $(VENV)/ready$(if $(filter auto,$(ENGINE)),,-$(ENGINE))
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup reproduce plan run report test check lab doctor clean

help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PROFILE=auto|smoke|cpu|gpu   ENGINE=auto|system|cpu|cuda|rocm   PYTHON=python3.11"
	@echo '  ONLY=block_size,offload   MODELS=gqa-dense,mla-dense   LAUNCHES=5   BUDGET=2h   PROMPTS=my.jsonl   RETRY=1'
	@echo '  make run NB=20_architecture P="levels=[1,16] launches=5"'

$(READY): $(wildcard requirements/*)
	$(PYTHON) requirements/install.py $(VENV) $(ENGINE) --torch-index $(TORCH_CPU_INDEX)
	@touch $(VENV)/ready $@

setup: $(READY) ## Make the environment in .venv

reproduce: $(READY) ## Run the whole study and write report/report.html
	@$(PY) -m study reproduce $(CHOICE) $(LIMIT)

plan: $(READY) ## Say what `make reproduce` would measure, and how long it would take
	@$(PY) -m study plan $(CHOICE) $(LIMIT)

run: $(READY) ## Run one notebook: make run NB=20_architecture P="levels=[1,16] launches=5"
	@$(PY) -m study run $(AGAIN) $(NB) $(P)

report: $(READY) ## Render the report from what has been measured
	@$(PY) -m study report $(CHOICE)

doctor: $(READY) ## Say what this machine and this engine are
	@$(PY) -m study doctor

check: $(READY) ## ruff, mypy --strict
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

test: check ## Everything: checks, tests, the real engine
	@$(PY) -m pytest -m "not quiet" --numprocesses 3 --dist loadfile --no-loadscope-reorder
	@$(QUIET) || $(QUIET) --last-failed || $(QUIET) --last-failed

lab: $(READY) ## Open JupyterLab on the notebooks
	@$(PY) -m jupyterlab notebooks

clean: ## Remove what can be made again; measurements in data/raw stay
	rm -rf build data/derived/[!R]* figures/[0-9]* report/*.html report/*.json
