#!/bin/sh
# Makes .venv in the checkout: exact versions from requirements.lock, then aut itself, editable.
# Does nothing when neither the lock nor pyproject.toml changed since the last time.
#
#   PYTHON            the interpreter (3.11 or 3.12)
#   AUT_TORCH_INDEX   address of a package index with the torch build you want (for CPU builds see pytorch.org)
set -eu
python=${PYTHON:-python3}
stamp=.venv/.aut-stamp
wanted=$(cat requirements.lock pyproject.toml scripts/setup.sh | cksum)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || {
    echo "aut needs Python 3.11 or 3.12, and $python is $("$python" --version 2>&1). Name another: make PYTHON=python3.11 setup" >&2
    exit 2
}
echo "setting up .venv (some minutes the first time)" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip() { .venv/bin/python -m pip "$@" --quiet --disable-pip-version-check --no-input; }

# torch first: what needs it must find it. Without a GPU its CPU build, where an index offers one by that name.
torch=$(sed -n 's/^torch==//p' requirements.lock)
if [ -n "${AUT_TORCH_INDEX:-}" ]; then
    pip install "torch==$torch" --index-url "$AUT_TORCH_INDEX"
elif [ -e /proc/driver/nvidia/version ]; then
    pip install "torch==$torch"
else
    pip install "torch==$torch+cpu" 2>/dev/null || pip install "torch==$torch"
fi
pip install -r requirements.lock
pip install --no-deps --no-build-isolation -e .
.venv/bin/python -m pip check --disable-pip-version-check >/dev/null || .venv/bin/python -m pip check --disable-pip-version-check >&2
echo "$wanted" >"$stamp"
