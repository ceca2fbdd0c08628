#!/bin/sh
# Builds the fuzz targets with clang and runs them.
#
#     tests/fuzz/run.sh [SECONDS each, default 10] [TARGET...]
#
# What is found goes to build/fuzz/found/TARGET (a crash as crash-*); seeds are in
# tests/fuzz/corpus/TARGET. Exits with 1 when a target crashed, hung or grew past its memory.
set -eu
cd "$(dirname "$0")/../.."

seconds=${1:-10}
[ $# -eq 0 ] || shift
targets=${*:-codec_set_fuzz slab_fuzz request_fuzz}
flags="-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all"
cmake -S . -B build/fuzz -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DFQ_FUZZ=ON -DFQ_TESTS=OFF \
  -DFQ_CUDA=OFF -DCMAKE_C_COMPILER=clang-14 -DCMAKE_CXX_COMPILER=clang++-14 \
  -DCMAKE_CXX_FLAGS="$flags" > build/fuzz-configure.log || { cat build/fuzz-configure.log; exit 1; }
# shellcheck disable=SC2086  # the list is meant to be split
cmake --build build/fuzz --target $targets

for target in $targets; do
  found=build/fuzz/found/$target
  mkdir -p "$found" "tests/fuzz/corpus/$target"
  echo "== $target, $seconds s"
  # Debian's Abseil and protobuf are not instrumented, so container checks would be wrong.
  ASAN_OPTIONS=detect_container_overflow=0 "build/fuzz/bin/$target" "$found" \
    "tests/fuzz/corpus/$target" -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=60 \
    -max_len=8192 -artifact_prefix="$found/" -print_final_stats=1 -verbosity=0
done
