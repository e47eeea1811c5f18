# The two commands: `make run` and `make test`. Both set up .venv first, and reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKDIR ?= runs/ota_pruning_fast
# More arguments for pytest, such as TESTS="-k conv".
TESTS ?=

PYTEST = $(BIN)/python -m pytest -n 3 --dist=worksteal
QUICKLY = XLA_FLAGS="--xla_backend_optimization_level=0 $$XLA_FLAGS"

.PHONY: run test test-quick test-tfds test-mlflow nightly docs lint clean

run: $(STAMP)
	$(BIN)/fedprune run ota_pruning:fast --workdir=$(WORKDIR)

# Most tests are compilation, which is three times as fast where XLA optimizes nothing. Those with the
# mark "optimized" are compiled as users compile, and in `make nightly` all are.
test: $(STAMP)
	$(QUICKLY) $(PYTEST) -m "not optimized and not nightly" $(TESTS) || test $$? = 5
	$(PYTEST) -m "optimized and not nightly" $(TESTS) || test $$? = 5

test-quick: $(STAMP)
	$(QUICKLY) $(PYTEST) -m "not slow and not optimized and not nightly" $(TESTS) || test $$? = 5

# Everything, compiled as users compile: about an hour on 2 cores.
nightly: $(STAMP) test-tfds test-mlflow
	$(PYTEST) $(TESTS)

# The readers of TensorFlow Datasets' files, with that library in an environment of its own.
# And the writer of MLflow's runs, likewise.
test-tfds test-mlflow: test-%: $(VENV)-%/.installed
	$(VENV)-$*/bin/python -m pytest tests/test_$*.py

$(VENV)-tfds/.installed $(VENV)-mlflow/.installed: $(VENV)-%/.installed: pyproject.toml constraints.txt
	test -x $(VENV)-$*/bin/python || $(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e '.[$*]' pytest hypothesis pytest-xdist
	touch $@

# The documentation site, in build/site; a link or an anchor that leads nowhere is an error.
docs: $(STAMP)
	$(BIN)/python docs/pages.py build
	$(BIN)/zensical build --strict -f build/mkdocs.yml

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-tfds $(VENV)-mlflow build dist .pytest_cache .mypy_cache .ruff_cache
