# Both targets set up what they need in .venv, once; an activated environment is neither needed
# nor touched. PYTHON chooses the interpreter that .venv is made from.

PYTHON ?= python3
VENV := .venv
IN_VENV := $(VENV)/bin/python
RUNTIME := $(VENV)/.runtime-ready
TESTING := $(VENV)/.testing-ready
# A file's tests stay together: they share built models. The cache of models is safe against two.
# In the order of the folders, or files with few tests, the longest of all, would come last.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
SYSTEM_FIX := sudo apt-get install g++ make perl python3-venv

.PHONY: demo test test-slow lint clean
.DELETE_ON_ERROR:
# Packages of another environment must not come before those of .venv.
unexport PYTHONPATH
unexport PYTHONHOME

demo: $(RUNTIME)
	@$(IN_VENV) -m nmsat bench resnet9

test: lint
	@$(IN_VENV) -m pytest $(PARALLEL)

test-slow: $(TESTING)
	@$(IN_VENV) -m pytest -m slow

lint: $(TESTING)
	@$(IN_VENV) -m ruff check .
	@$(IN_VENV) -m mypy
	@$(IN_VENV) -m mypy tests

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f algorithms/native/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +

$(RUNTIME): pyproject.toml algorithms/native/select.cpp
	@for tool in g++ perl $(PYTHON); do command -v $$tool >/dev/null || \
	  { echo "nmsat: $$tool is not installed; on Debian or Ubuntu: $(SYSTEM_FIX)" >&2; exit 1; }; done
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "nmsat: needs Python 3.11 or newer; try make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "nmsat: Python has no venv; on Debian or Ubuntu: $(SYSTEM_FIX)" >&2; exit 1; }
	@$(IN_VENV) -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing nmsat and what it needs into $(VENV), once; this takes minutes"
	@$(IN_VENV) -m pip install -qq --disable-pip-version-check -e .
	@touch $@

$(TESTING): $(RUNTIME)
	@echo "installing the test tools into $(VENV), once"
	@$(IN_VENV) -m pip install -qq --disable-pip-version-check -e '.[test]'
	@touch $@
