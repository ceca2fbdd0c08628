# The verbs of this repository; `make help` lists them. A fresh Debian 12 with package registries needs nothing else.
PYTHON := .venv/bin/python
BUILD := build/release
MODEL := build/models/smollm2
CODEC_SET := codec_sets/smollm2-135m-instruct.fqcs
EVAL = $(PYTHON) -m flashquant eval --model $(MODEL) --codec-set $(CODEC_SET) --text build/text/test/*.txt
# What compute-sanitizer runs: every kernel of encode and decode, on a few pages.
SMALL_SCENES := *PageKernels*64x16*:*PageKernels*128x16*:*PageKernels*Universal96*:*PageKernels*Exact96*
# Whole slabs of every kind through a Device.
SMALL_SLABS := *DeviceCoding*Whole*/d64t0:*DeviceCoding*QueuedBehind*/d64t0:*DeviceCoding*OtherKind*/d64t0
# The same for attention: all kinds of pages, head sizes 64 and 256, in a block's smallest layout too.
SMALL_ATTENTION := *Sink*/0:*Sink*/2:*QueryHeads*/0:*Refinements*/0:*BFloat16*/0:*Rope*/0
ATTEND_TEST = $(BUILD)/bin/attend_device_test --cache-folder=$(BUILD)/attend_cache
NCCL_TEST = $(BUILD)/bin/nccl_device_test --library=.venv/lib/python3.11/site-packages/nvidia/nccl/lib/libnccl.so.2
# Cache hits for checkouts in other folders.
export CCACHE_BASEDIR := $(CURDIR)
export CCACHE_NOHASHDIR := 1

.PHONY: help setup build node model demo test test-asan test-tsan test-gpu test-gpu2 bench-gpu bench-gpu2 lint bench text quality quality-amount quality-gate quality-vllm fuzz format lock
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

test-gpu: setup  ## on a machine with a GPU: conformance, workers killed, a node with workers, compute-sanitizer
	cmake --preset release
	cmake --build $(BUILD) --target flashquantd fqctl codec_device_test attend_device_test cuda_device_test agreement_device_test device_node_test memory_device_test nccl_device_test tiers_device_test
	$(BUILD)/bin/codec_device_test
	$(BUILD)/bin/memory_device_test
	$(BUILD)/bin/tiers_device_test
	$(NCCL_TEST) --gtest_filter='OneGpu.*'
	$(BUILD)/bin/cuda_device_test
	$(BUILD)/bin/agreement_device_test $(CODEC_SET)
	for tool in memcheck racecheck synccheck initcheck; do FQ_TEST_WITHOUT_LISTS=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	  $(BUILD)/bin/cuda_device_test --gtest_brief=1 --gtest_filter='$(SMALL_SCENES)' || exit 1; done
	$(BUILD)/bin/device_node_test
	for tool in memcheck racecheck synccheck; do FQ_TEST_WITHOUT_LISTS=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	  $(BUILD)/bin/device_node_test --gtest_brief=1 --gtest_filter='$(SMALL_SLABS)' || exit 1; done
	mkdir -p $(BUILD)/attend_cache
	$(ATTEND_TEST)
	for tables in 2 1; do $(ATTEND_TEST) --quick --replicated-tables=$$tables || exit 1; done
	for tool in memcheck racecheck synccheck initcheck; do for tables in 3 1; do \
	  compute-sanitizer --tool $$tool --error-exitcode 1 $(ATTEND_TEST) --replicated-tables=$$tables \
	  --gtest_brief=1 --gtest_filter='$(SMALL_ATTENTION)' || exit 1; done; done
	$(PYTHON) tests/gpu/check_nccl.py
	$(PYTHON) tests/gpu/check_device_memory.py
	PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True $(PYTHON) tests/gpu/check_device_memory.py
	for check in order full_gpu pinned; do $(PYTHON) tests/gpu/check_$$check.py --build $(BUILD) || exit 1; done
	$(PYTHON) tests/gpu/check_sanitized.py --build $(BUILD)
	$(PYTHON) tests/gpu/check_sanitized.py --build $(BUILD) --tool racecheck --exclude MakeCoderLists

test-gpu2: setup  ## on a machine with two GPUs: peer links between them
	cmake --preset release
	cmake --build $(BUILD) --target nccl_device_test
	$(NCCL_TEST)

bench-gpu: setup  ## on a machine with a GPU: encode, decode, slabs, attention beside FP16, a node with workers; kept in tests/bench/results
	cmake --preset release
	cmake --build $(BUILD) --target flashquantd fqctl attend_bench device_bench pages_bench agreement_device_test
	tests/bench/pages_bench.py
	tests/bench/device_bench.py
	tests/bench/attend_bench.py
	$(PYTHON) tests/gpu/bench_node.py --build $(BUILD)

bench-gpu2: node  ## on a machine with two GPUs: pages between them by NCCL, right, fast, and while processes die; kept in tests/bench/results
	@scripts/setup.sh
	$(PYTHON) tests/gpu/bench_nccl.py --build $(BUILD)

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
