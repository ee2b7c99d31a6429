# `make chat` and `make test` each work alone, first, on a machine with nothing but Python, pip, make and a package
# index. What is installed lands in .venv; .venv/.bindlm holds one stamp per finished step, so a second run starts at
# once, and the file `unfinished` from the birth of .venv until pip is done, so an interrupted run is seen and repaired.

PYTHON ?= python3
ARGS ?=
MARKERS := not network and not exhaustive

PY := .venv/bin/python
STAMPS := .venv/.bindlm
REQUIREMENTS := pyproject.toml constraints.txt

# Packages and settings from outside .venv must not leak into it; and without byte code each start takes 10 s longer.
unexport PYTHONHOME PYTHONPATH PYTHONDONTWRITEBYTECODE

# The steps are in line anyway, and two pips in one .venv would tread on each other.
.NOTPARALLEL:
.PHONY: help chat test test-all check mini senses bench clean stale

help:
	@echo "make chat   install, then ask the mini about the bundled picture and stay in the conversation"
	@echo "make test   install, then lint, types and the test suite, as CI does"
	@echo "make test-all  the same with the exhaustive tests: every setting, and compilers at work"
	@echo "make check  while working: format, lint, types, fast tests"
	@echo "make mini   train the mini again from nothing (ARGS=... goes to bindlm.training.mini)"
	@echo "make senses bind the mini's other senses again (SENSES='audio point depth text')"
	@echo "make bench  run every benchmark in benchmarks/"
	@echo "make clean  remove .venv, caches and build folders"
	@echo
	@echo "PYTHON=python3.12 names the interpreter that .venv is made from (3.11 or newer)."

chat: $(STAMPS)/base
	@echo "[3/3] asking the model about the bundled picture"
	@$(PY) -m bindlm chat --demo $(ARGS)

# Nothing may print after pytest: its summary is the last line, here and in .ci/run. The types are one of its tests, so
# that the other process does not wait for mypy. A file's tests stay in one process, which has its fixtures.
test: $(STAMPS)/test
	@echo "[3/3] checking: ruff, mypy, pytest"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m pytest -m "$(MARKERS)" \
	  --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: MARKERS := not network
test-all: test

check: $(STAMPS)/test
	@$(PY) -m ruff format .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) -m pytest $(ARGS)

mini: $(STAMPS)/train
	@$(PY) -m bindlm.training.mini $(ARGS)
	@$(MAKE) --no-print-directory senses ARGS="--model runs/mini/export"

# The player's other dependency, pyaudio, is for loudspeakers and needs a compiler.
senses: $(STAMPS)/train
	@$(PY) -c 'import tinysoundfont' 2>/dev/null || $(PY) -m pip install -q --no-deps tinysoundfont
	@$(PY) -m bindlm.binding.mini $(SENSES) $(ARGS)

bench: $(STAMPS)/base
	@for script in benchmarks/*.py; do echo "== $$script"; $(PY) "$$script" $(ARGS) || exit 1; done

clean:
	rm -rf .venv build dist src/bindlm.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment -------------------------------------------------------------------------------------------------

# Stale: never finished, moved here from elsewhere, or its Python is gone.
ifneq ($(shell { test ! -e $(STAMPS)/unfinished && $(PY) -c '' && cat $(STAMPS)/place; } 2>/dev/null),$(CURDIR))
$(STAMPS)/place: stale
endif

# A .venv that somebody made by hand is kept if it is whole and new enough; any other is made afresh.
IS_WHOLE := import os, pip, sys; sys.exit(sys.version_info < (3, 11) or os.path.realpath(sys.prefix) != os.path.realpath(".venv"))

$(STAMPS)/place:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "bindlm needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)" >&2; \
	  echo "Name a newer one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@if [ ! -e $(STAMPS) ] && $(PY) -c '$(IS_WHOLE)' 2>/dev/null; then \
	  echo "[1/3] using the .venv that is here"; mkdir -p $(STAMPS); \
	else \
	  echo "[1/3] making .venv"; \
	  rm -rf .venv && mkdir -p $(STAMPS) && touch $(STAMPS)/unfinished; \
	  $(PYTHON) -m venv .venv >$(STAMPS)/log 2>&1 \
	  || { $(PYTHON) -m venv --without-pip .venv && $(PYTHON) -m pip --python $(PY) install -q pip; } >>$(STAMPS)/log 2>&1 \
	  || { cat $(STAMPS)/log >&2; \
	       echo "'$(PYTHON) -m venv' failed (its words are above). On Debian and Ubuntu it needs the system package" >&2; \
	       echo "python3-venv; elsewhere name another Python: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }; \
	fi
	@printf '%s' "$(CURDIR)" > $@

# $(call install,WHAT,EXTRA). At a terminal pip shows its progress bars. Its warnings (retries, odd index entries) are
# shown only if it fails. No byte-compiling: that doubles the time, and Python compiles what it uses at the first start.
define install
	@touch $(STAMPS)/unfinished
	@echo "[2/3] installing $(1) (0.3 GB to fetch with a CPU build of PyTorch, several with CUDA)"
	@started=$$(date +%s); if [ -t 1 ]; then quiet=; else quiet=-q; fi; \
	PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 \
	  $(PY) -m pip install $$quiet --no-compile -c constraints.txt -e '.$(2)' 2>$(STAMPS)/log \
	|| { cat $(STAMPS)/log >&2; echo "pip could not install $(1): mend what it says above, then run make again." >&2; exit 1; }; \
	echo "      done in $$(( $$(date +%s) - started )) s"
	@rm -f $(STAMPS)/unfinished
endef

$(STAMPS)/base: $(REQUIREMENTS) $(STAMPS)/place
	$(call install,bindlm and what it needs,)
	@touch $@

$(STAMPS)/train: $(REQUIREMENTS) $(STAMPS)/place
	$(call install,bindlm and what training it needs,[train])
	@touch $(STAMPS)/base $@

$(STAMPS)/test: $(REQUIREMENTS) $(STAMPS)/place
	$(call install,bindlm and what testing it needs,[test])
	@touch $(STAMPS)/base $(STAMPS)/train $@
