#!/bin/sh
# Unit and contract tests in parallel, then the slow ones and the flow, which want the cores to themselves.
set -eu
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
.venv/bin/pytest -n "$cores" -m "not slow and not flow and not platform" "$@"
.venv/bin/pytest -m "(slow or flow) and not platform" "$@"
