# Every target but gpu does all its own set-up in .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
OLDEST_TORCH := 2.11.0
MIDDLE_TORCH := 2.13.0

.PHONY: help demo test bench gpu lint readme abi build clean

help:
	@echo "make demo   train SQD on a small synthetic data set and write runs/demo/report.html"
	@echo "make test   style checks, build and the whole test suite"
	@echo "make bench  benchmarks against eager, torch.compile and peers, with a report"
	@echo "make gpu    build, test and measure on this machine's CUDA device, without .venv"
	@echo "make lint   style checks alone"
	@echo "make readme write the README's table of operators anew"
	@echo "make abi    prove that one wheel loads under torch $(OLDEST_TORCH), $(MIDDLE_TORCH) and the newest"
	@echo "make clean  remove build outputs and the environment"

# torch first and the package after it without build isolation: one torch download, not two.
$(INSTALLED): pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "setuptools>=77" wheel ninja "pybind11>=2.13"
	$(BIN)/pip install --quiet torch torchvision
	$(BIN)/pip install --quiet --no-build-isolation -e ".[model,test,bench]"
	touch $@

build: $(INSTALLED)
	$(BIN)/python setup.py --quiet build_ext --inplace

demo: build
	$(BIN)/python benchmarks/report.py throughput --output runs/demo/throughput.json
	$(BIN)/python -m avsmodel demo runs/demo --throughput runs/demo/throughput.json

test: build lint
	$(BIN)/python -m pytest --numprocesses 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')
	$(BIN)/mypy
	$(BIN)/python tests/tools/lint.py

# Needs the build, like the tests, one of which compares.
readme: build
	$(BIN)/python tests/tools/readme.py

bench: build
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-json runs/benchmark.json
	$(BIN)/python benchmarks/report.py tables runs/benchmark.json --output runs/benchmark.html

# The torch that knows the device is this machine's own.
gpu:
	$(PYTHON) tests/tools/gpu.py $(STEPS)

abi: $(INSTALLED)
	rm -rf build/abi && mkdir -p build/abi
	$(BIN)/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/abi .
	for version in $(OLDEST_TORCH) $(MIDDLE_TORCH); do \
	  $(PYTHON) -m venv build/abi/$$version && \
	  build/abi/$$version/bin/pip install --quiet "torch==$$version" numpy pytest hypothesis scipy && \
	  build/abi/$$version/bin/pip install --quiet --no-deps build/abi/*.whl && \
	  (cd build/abi && $$version/bin/python ../../tests/tools/abi.py) || exit 1; \
	done
	$(BIN)/python tests/tools/abi.py

clean:
	rm -rf $(VENV) build runs *.egg-info avskernels/*.so
