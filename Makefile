# make demo    train the bundled miniature to a taste, on this machine (minutes, no download of weights)
# make test    the tests in two processes, without those marked slow
# make lint    formatting, lint and types
# make chaos   a seeded storm of kills over one tiny run; writes docs/chaos.md (half an hour)
# make bench   throughput of one rollout worker and one learner rank
# make ablations          do the objectives do what the papers say? Writes docs/ablations.md (one to two and a half hours)
# make ablations QUICK=1  one seed of the essential cells (half an hour at most); both go on where they were stopped
#
# Each creates .venv first where it is missing, with the exact versions of constraints.txt. Those need Python 3.11 or
# newer; on 3.10, or to try newer libraries: make test CONSTRAINTS=
# Bytecode is compiled on all cores, which pip does not do.
# Another place or interpreter: make test VENV=/path/to/venv PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt

PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.atelier-installed

.PHONY: demo test lint bench chaos ablations

demo: $(INSTALLED)
	$(PY) -m learner.main --config configs/quickstart.yaml

test: $(INSTALLED)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(INSTALLED)
	$(PY) -m tests.benchmarks.throughput --model miniature

ablations: $(INSTALLED)
	$(PY) -m tests.benchmarks.ablations $(if $(QUICK),--quick)

chaos: $(INSTALLED)
	$(PY) -m tests.chaos.storm --kills 33 --seed 0

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check --no-compile $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[dev]"
	$(PY) -m compileall -qq -j 0 $(VENV) || true # a package may hold files for a newer Python
	touch $@
