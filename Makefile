# Everything runs in .venv, made from requirements.lock.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= runs/quickstart

# Two test workers want one thread each; a training wants all cores.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup quickstart test test-slow test-processors test-launchers test-lowest test-highest lint format docs examples clean

help:
	@echo "make setup        .venv with the pinned packages"
	@echo "make quickstart   the whole of PAFO on the shipped corpus (OUT=folder, ARGS='more flags')"
	@echo "make test         ruff, mypy and the tests"
	@echo "make docs         the documentation as a site: site/README.html"
	@echo "make examples     the examples that need no data of your own, one after the other (over an hour)"
	@echo "make test-slow    the tests that take minutes"
	@echo "make test-processors  the tests as they run on other processors: older instructions, two threads, other rounding"
	@echo "make test-launchers  DDP, FSDP2, ZeRO-1 to 3 on two processes, with DeepSpeed (tens of minutes)"
	@echo "make test-lowest  the tests with the lowest versions of all requirements (docs/versions.md)"
	@echo "make test-highest the tests with the newest versions within the ranges"

setup: $(STAMP)

# The locks name all that is needed, so pip has nothing to resolve.
$(STAMP): requirements.lock requirements-nodeps.lock setup.cfg pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed (for 3.12 and 3.13 see docs/versions.md): make setup PYTHON=path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python -r requirements-nodeps.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

quickstart: setup
	HF_HUB_OFFLINE=1 $(BIN)/trl-pafo quickstart --output_dir $(OUT) $(ARGS)

test: setup lint
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -q --cov --cov-fail-under=92

examples: quickstart
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/best_of_n.py $(OUT)
	HF_HUB_OFFLINE=1 $(BIN)/python examples/grpo_fair_reward.py --run $(OUT)
	HF_HUB_OFFLINE=1 $(BIN)/trl-pafo run --config examples/lora.yaml
	HF_HUB_OFFLINE=1 $(BIN)/trl-pafo run --config examples/swissmetro.yaml
	HF_HUB_OFFLINE=1 $(BIN)/python examples/portfolio_grpo.py

docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-docs.lock
	HF_HUB_OFFLINE=1 $(BIN)/python docs/site/build.py
	@echo "Open site/README.html"

test-slow: setup
	$(TEST_ENV) $(BIN)/python -m pytest -q -m slow

# What the best processor of today computes otherwise than others: instructions of torch, oneDNN, MKL and OpenBLAS, threads, and how
# sums are rounded, which tests/helpers/other_rounding.py changes for what no variable can imitate.
OLDEST := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Nehalem
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2 OPENBLAS_CORETYPE=Haswell
BEST := MKL_CBWR=AUTO
test-processors: setup
	@set -e; for threads in 1 2; do for processor in "$(OLDEST)" "$(AVX2)" "$(BEST)"; do \
		echo "== $$processor, threads: $$threads"; \
		env $(TEST_ENV) OMP_NUM_THREADS=$$threads $$processor $(BIN)/python -m pytest -n 2 -q; \
	done; done
	$(TEST_ENV) PYTHONPATH=tests $(BIN)/python -m pytest -n 2 -q -p helpers.other_rounding

test-launchers:
	$(PYTHON) -m venv .venv-launchers
	.venv-launchers/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	DS_BUILD_OPS=0 .venv-launchers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -r requirements-deepspeed.lock
	.venv-launchers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python -r requirements-nodeps.lock
	.venv-launchers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(TEST_ENV) .venv-launchers/bin/python -m pytest -q -m "slow or not slow" tests/distributed tests/cli/test_cli_portfolio_train.py

# Environments of their own, so that .venv stays what the lock says.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-lowest.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c requirements-lowest.txt -e ".[dev,gguf,serve]"
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python -r requirements-nodeps.lock
	$(TEST_ENV) .venv-lowest/bin/python -m pytest -n 2 -q

test-highest:
	$(PYTHON) -m venv .venv-highest
	.venv-highest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade torch==2.13.0 -e ".[dev,gguf,serve]"
	.venv-highest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python -r requirements-nodeps.lock
	$(TEST_ENV) .venv-highest/bin/python -m pytest -n 2 -q

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
