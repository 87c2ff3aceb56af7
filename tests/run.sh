#!/usr/bin/env bash
# All checks: ruff, then the tests, the end-to-end run of the real ns-* commands included. Arguments go to pytest.
# Makes .venv and installs what is needed on a first run; examples/environment.sh says how to use another Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source examples/environment.sh
prepare_environment dev

# The browser tests drive the system's Chromium. Where there is none and none can be installed, they are skipped and say so.
install_chromium() {
    local as_root=()
    command -v chromium chromium-browser google-chrome >/dev/null && return
    command -v apt-get >/dev/null && [[ -z ${THREEVP_NO_APT:-} ]] || return 0
    [[ $(id -u) == 0 ]] || as_root=(sudo -n)
    "${as_root[@]}" true 2>/dev/null || return 0
    echo "Installing Chromium for the browser tests (THREEVP_NO_APT=1 leaves them out)"
    { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" apt-get install -y -qq --no-install-recommends chromium; } \
        >/dev/null 2>&1 || echo "Chromium could not be installed: the browser tests will be skipped"
}
install_chromium

export PATH="$BIN:$PATH" PYTHONDONTWRITEBYTECODE=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # small batches: more threads per process are slower
status=0
"$PY" -m ruff check . || status=$?
"$PY" -m pytest -rs -n "${THREEVP_TEST_WORKERS:-2}" --dist loadfile "$@" || status=$?
exit "$status"
