#!/usr/bin/env bash
# All checks: ruff, then the tests, the end-to-end run of the real ns-* commands included. Arguments go to pytest.
# Makes .venv and installs what is needed on a first run; examples/environment.sh says how to use another Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source examples/environment.sh
prepare_environment dev

export PATH="$BIN:$PATH" PYTHONDONTWRITEBYTECODE=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # small batches: more threads per process are slower
status=0
"$PY" -m ruff check . || status=$?
"$PY" -m pytest -n "${THREEVP_TEST_WORKERS:-2}" --dist loadfile "$@" || status=$?
exit "$status"
