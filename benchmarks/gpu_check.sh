#!/usr/bin/env bash
# Check the losses, hippynn and CHGNet on one NVIDIA GPU: four to five minutes, eight at most.
#
#     bash benchmarks/gpu_check.sh                      # where kd_plugins[hippynn,chgnet] is installed
#     bash benchmarks/gpu_check.sh --wheels FOLDER      # where there is nothing but Python and torch
#
# FOLDER holds the wheels of kd_plugins, hippynn, chgnet and of what they need besides torch. They are
# installed into a folder of their own, which is gone afterwards. Other options are those of
# gpu_check.py.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}

if [[ ${1:-} == --wheels ]]; then
    wheels=${2:?"--wheels needs a folder"}
    shift 2

    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi

# The report is written after each part, so that of a run that is ended here most is there.
timeout --signal=INT 480 "$python" "$here/gpu_check.py" "$@"
