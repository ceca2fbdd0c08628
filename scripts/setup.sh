#!/bin/sh
# Installs what the build, the demo and the tests need; a second run takes a second.
#
#     scripts/setup.sh [system|all]
#
# system: Debian packages (requirements/debian.txt; as root). all (default): also .venv with the
# Python packages of requirements/base.txt, and of cuda.txt where this machine has no CUDA 13
# libraries (torch loads them, on a CPU too).
set -eu
cd "$(dirname "$0")/.."

uv_version=0.13.9
stamp=.venv/setup.stamp
cuda_libraries="libcublas.so.13 libcublasLt.so.13 libcudart.so.13 libcudnn.so.9 libcufft.so.12
  libcupti.so.13 libcurand.so.10 libcusolver.so.12 libcusparse.so.12 libnvrtc.so.13
  libnvJitLink.so.13"

install_system() {
  missing=
  for package in $(grep -v '^#' requirements/debian.txt | cut -d ' ' -f 1); do
    case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true) in
      "install ok installed") ;;
      *) missing="$missing $package" ;;
    esac
  done
  [ -n "$missing" ] || return 0
  if [ "$(id -u)" != 0 ]; then
    echo "setup: these Debian packages are missing; install them as root:$missing" >&2
    exit 1
  fi
  echo "setup: installing$missing"
  apt-get -q update
  # shellcheck disable=SC2086  # the list is meant to be split
  DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $missing
}

# The requirement lists this machine needs, one word each.
python_lists() {
  printf '%s' requirements/base.txt
  known=$(/sbin/ldconfig -p)
  for library in $cuda_libraries; do
    case $known in
      *"$library "*) ;;
      *) printf ' %s' requirements/cuda.txt && return ;;
    esac
  done
}

install_python() {
  lists=$(python_lists)
  # shellcheck disable=SC2086
  wanted=$(cat $lists scripts/setup.sh proto/flashquant/v1/*.proto client/python/pyproject.toml |
    sha256sum)
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return 0
  fi
  echo "setup: .venv from $lists"
  python=/usr/bin/python3.11
  [ -x "$python" ] || python=python3.11
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install -q --disable-pip-version-check "uv==$uv_version"
  export UV_HTTP_TIMEOUT=300 VIRTUAL_ENV="$PWD/.venv"
  # The lists are complete, so nothing is resolved here.
  set --
  for list in $lists; do
    set -- "$@" -r "$list"
  done
  .venv/bin/uv pip install -q --no-deps "$@"
  # This also makes the gRPC stubs of client/python (setup.py).
  .venv/bin/uv pip install -q --no-deps --no-build-isolation -e client/python
  echo "$wanted" > "$stamp"
}

install_system
case ${1:-all} in
  system) ;;
  all) install_python ;;
  *) echo "usage: scripts/setup.sh [system|all]" >&2 && exit 2 ;;
esac
