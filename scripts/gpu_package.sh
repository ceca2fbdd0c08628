#!/bin/sh
# Packs what a machine with GPUs needs beside a checkout when it has CUDA and torch but nothing that
# setup.sh installs: programs of a build with the libraries they load, and the gRPC stubs. Unpack it
# there in the checkout's root.
#
#     scripts/gpu_package.sh BUILD OUTPUT.txz PROGRAM...
set -eu
cd "$(dirname "$0")/.."
build=$1 output=$2
shift 2

# That machine's own: its CUDA, and C and C++ libraries at least as new as ours.
own='lib(nvrtc|cuda|c|m|dl|rt|pthread|resolv|stdc\+\+|gcc_s)\.so|ld-linux'

folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
mkdir -p "$folder/$build/bin" "$folder/$build/lib"
for program; do
  strip -o "$folder/$build/bin/$program" "$build/bin/$program"
  # For the libraries that libraries load too; --force-rpath is what makes it count for them.
  # shellcheck disable=SC2016  # the loader knows ORIGIN
  patchelf --force-rpath --set-rpath '$ORIGIN/../lib' "$folder/$build/bin/$program"
  libraries=$(ldd "$build/bin/$program")
  case $libraries in
    *"not found"*) echo "gpu_package: $program: $libraries" >&2 && exit 1 ;;
  esac
  for library in $(echo "$libraries" | awk '$2 == "=>" {print $3}' | grep -Ev "$own"); do
    cp -L "$library" "$folder/$build/lib/"
  done
done
mkdir -p "$folder/client/python/src/flashquant"
cp -r client/python/src/flashquant/v1 "$folder/client/python/src/flashquant/"
mkdir -p "$(dirname "$output")"
XZ_OPT=-T0 tar -C "$folder" -cJf "$output" .
