# Sourced by examples/quickstart.sh and tests/run.sh, from the repository's root. Sets PY to a Python in which this
# package is installed with the extras of $1 (may be empty).
#
#   THREEVP_PYTHON=/path/to/python  use that one and do not touch any other
#   VIRTUAL_ENV (an active one)     use that one
#   otherwise                       .venv in the repository, made from Python 3.11 if there is none yet
#
# Installing is skipped while pyproject.toml is as it was when this last installed into the same environment.

supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3.10 python3 python; do
        if command -v "$candidate" >/dev/null && supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.10 to 3.12 on PATH (3.11 is the one that is tested). Install it, or name one with THREEVP_PYTHON." >&2
    return 1
}

prepare_environment() {
    local extras=$1 base target="." stamp wanted
    if [[ -n ${THREEVP_PYTHON:-} ]]; then
        PY=$THREEVP_PYTHON
    elif [[ -n ${VIRTUAL_ENV:-} ]]; then
        PY=$VIRTUAL_ENV/bin/python
    else
        if [[ ! -x .venv/bin/python ]]; then
            base=$(find_python)
            echo "Making .venv with $base"
            "$base" -m venv .venv
        fi
        PY=$PWD/.venv/bin/python
    fi
    supported "$PY" || { echo "error: $PY is not a Python 3.10 to 3.12" >&2; return 1; }
    [[ -z $extras ]] || target=".[$extras]"
    stamp=$("$PY" -c 'import sys; print(sys.prefix)')/.threevp-installed-${extras:-base}
    wanted="$PWD $("$PY" -c 'import hashlib, sys; print(hashlib.sha256(open("pyproject.toml", "rb").read()).hexdigest())')"
    if [[ ! -f $stamp || $(cat "$stamp") != "$wanted" ]] && ! installed "$extras"; then
        echo "Installing the package and what it needs (about 8 GB with CUDA builds of torch; minutes on a first run)"
        "$PY" -m pip install --quiet -e "$target"
    fi
    echo "$wanted" >"$stamp" 2>/dev/null || true # an environment that may not be written to is checked anew each time
    BIN=$(dirname "$PY")
}

# Is this checkout, with this pyproject.toml's requirements, importable already? For environments made by hand.
installed() {
    "$PY" - "$1" <<'PYTHON' 2>/dev/null
import importlib.metadata as md, json, pathlib, re, sys, urllib.parse
dist = md.distribution("threevp_nerfstudio")
url = json.loads(dist.read_text("direct_url.json"))["url"]
if pathlib.Path(urllib.parse.unquote(urllib.parse.urlparse(url).path)).resolve() != pathlib.Path.cwd().resolve():
    sys.exit(1)
import tomllib
from packaging.requirements import Requirement
project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
wanted = list(project["dependencies"])
for extra in filter(None, sys.argv[1].split(",")):
    wanted += project["optional-dependencies"][extra]
for text in wanted:
    r = Requirement(text)
    if not r.specifier.contains(md.version(r.name), prereleases=True):
        sys.exit(1)
scripts = {e.name for e in dist.entry_points}
sys.exit(not (set(project["scripts"]) <= scripts))
PYTHON
}
