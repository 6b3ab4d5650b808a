#!/bin/sh
# The quick tests first: what is plainly broken is told within three minutes. Then the slow ones and the flow, a file to a
# process for the sake of their fixtures, in the order of their names: the flow's, which are the longest, come first.
set -eu
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
.venv/bin/pytest -n "$cores" -m "not slow and not flow and not platform" "$@"
.venv/bin/pytest -n "$cores" --dist loadfile --no-loadscope-reorder -m "(slow or flow) and not platform" "$@"
