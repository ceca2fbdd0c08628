# The verbs of this repository; `make help` lists them. A fresh Debian 12 with package registries needs nothing else.
PYTHON := .venv/bin/python
BUILD := build/release
MODEL := build/models/smollm2
CODEC_SET := codec_sets/smollm2-135m-instruct.fqcs
EVAL = $(PYTHON) -m flashquant eval --model $(MODEL) --codec-set $(CODEC_SET) --text build/text/test/*.txt
GPU_SUITE = $(PYTHON) tests/gpu/suite.py --build $(BUILD)
# Cache hits for checkouts in other folders.
export CCACHE_BASEDIR := $(CURDIR)
export CCACHE_NOHASHDIR := 1

.PHONY: help setup build node model demo test test-asan test-tsan test-gpu test-gpu2 bench-gpu bench-gpu2 gpu-programs gpu-package lint bench text quality quality-amount quality-gate quality-vllm fuzz format lock
help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup:  ## install Debian packages and .venv
	@scripts/setup.sh

build:  ## everything, in build/release
	@scripts/setup.sh system
	cmake --preset release
	cmake --build $(BUILD)

node:  ## only flashquantd and fqctl
	@scripts/setup.sh system
	cmake --preset release
	cmake --build $(BUILD) --target flashquantd fqctl

model: setup  ## the model folder of demo and tests
	$(PYTHON) scripts/prepare_model.py -o $(MODEL)

demo: node model  ## vLLM with and without FlashQuant, side by side
	$(PYTHON) demo/run.py

test: setup model text  ## build everything and run every test; ends with `N passed, N failed`
	cmake --preset release
	$(PYTHON) tests/run_all.py --build $(BUILD)

test-asan test-tsan: test-%san:  ## C++ tests under AddressSanitizer + UBSan, ThreadSanitizer
	@scripts/setup.sh system
	cmake --preset $*san
	cmake --build build/$*san
	ctest --test-dir build/$*san --output-on-failure

test-gpu: gpu-programs  ## on a machine with a GPU: conformance, workers killed, a node with workers, compute-sanitizer
	$(GPU_SUITE) checks

test-gpu2: gpu-programs  ## on a machine with two GPUs: peer links between them
	$(GPU_SUITE) checks2

bench-gpu: gpu-programs  ## on a machine with a GPU: encode, decode, slabs, attention beside FP16, a node with workers; kept in tests/bench/results
	$(GPU_SUITE) bench

bench-gpu2: gpu-programs  ## on a machine with two GPUs: pages between them by NCCL, right, fast, and while processes die; kept in tests/bench/results
	$(GPU_SUITE) bench2

gpu-programs: setup
	cmake --preset release
	cmake --build $(BUILD) --target $$($(GPU_SUITE) --programs)

gpu-package: gpu-programs  ## for a machine with GPUs, CUDA and torch but no tools: unpack in a checkout there, then tests/gpu/suite.py
	scripts/gpu_package.sh $(BUILD) build/gpu/package.txz $$($(GPU_SUITE) --programs)

lint: build  ## clang-tidy over every C++ file (make test does a few)
	$(PYTHON) tests/lint.py --all --build $(BUILD)

bench:  ## benchmarks of kernels and store, kept in tests/bench/results
	@scripts/setup.sh system
	cmake --preset bench
	cmake --build build/bench
	tests/bench/run.py

text:  ## texts to calibrate on, to choose by and to test on, from Debian packages
	scripts/prepare_text.sh build/text

quality: model text  ## the comparison of kernels/QUALITY.md, in build/quality (hours on a CPU)
	$(EVAL) --device $(or $(DEVICE),cpu) --all-codecs --protocol running prefix --tokens 2048 4096 8192 \
	  --prefix 1024 2048 4096 --prefix-windows $(if $(DEVICE),8,4) --tasks copy greedy recall human-eval --recall-keys 25 100 --problems 140 \
	  -o build/quality/quality.json --plot build/quality/quality.svg

quality-amount: model text  ## what half the calibration text costs, kept in tests/bench/results (hours on a CPU)
	$(PYTHON) tests/bench/calibration_amount.py --device $(or $(DEVICE),cpu) --seeds 0 1 2

quality-gate: model text  ## the figures that make test holds the codec set to (minutes)
	$(EVAL) --codecs compact near-lossless --tokens 1024 -o tests/bench/results/quality_gate.json

quality-vllm: node model text  ## the loss measured through a node and vLLM, kept in tests/bench/results (half an hour)
	$(PYTHON) tests/bench/quality_through_vllm.py

fuzz:  ## fuzz for FUZZ_SECONDS (600) a target
	@scripts/setup.sh system
	tests/fuzz/run.sh $(or $(FUZZ_SECONDS),600)

format:  ## clang-format all C++
	git ls-files '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format-14 -i

lock:  ## requirements/base.txt from base.in
	.venv/bin/uv pip compile -q --python-version 3.11 --no-annotate --no-header --override requirements/overrides.txt \
	  requirements/base.in -o requirements/base.txt
