#!/bin/sh
# All of them at once, a file to a process for the sake of their fixtures, in the order of their names: the flow's, which
# are the longest, come first. Only the quick ones, in under three minutes: pytest -n auto -m "not slow and not flow"
set -eu
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
.venv/bin/pytest -n "$cores" --dist loadfile --no-loadscope-reorder -m "not platform" "$@"
