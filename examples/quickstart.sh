#!/usr/bin/env bash
# From a fresh clone to an avatar and a film of it: installs, checks the bundled sample capture, trains, evaluates on
# held-out views and expressions, renders a turntable. About 10 minutes on 2 CPU cores after the installation.
#
#   bash examples/quickstart.sh [CAPTURE [ns-train options...]]   results go to outputs/quickstart (or $THREEVP_OUTPUT)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source examples/environment.sh
prepare_environment ""

export PATH="$BIN:$PATH" PYTHONUNBUFFERED=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"        # on a CPU, small batches are fastest on one thread
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore}"     # nerfstudio 1.1.5 uses what newer torch releases deprecate
CAPTURE=${1:-examples/portrait_sample}
shift $(($# > 0 ? 1 : 0))
OUT=${THREEVP_OUTPUT:-$PWD/outputs/quickstart}
RUN=$OUT/avatar/threevp-small/$(date +%Y-%m-%d_%H%M%S)
DEVICE=$("$PY" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')
mkdir -p "$OUT"

step() { printf '\n== %s\n' "$*"; }

step "Checking the capture $CAPTURE"
threevp validate "$CAPTURE" --output "$OUT/capture"

step "Training on: $DEVICE"
ns-train threevp-small --vis tensorboard --machine.device-type "$DEVICE" --logging.local-writer.max-log-size 0 --logging.steps-per-log 100 \
    --output-dir "$OUT" --experiment-name avatar --timestamp "$(basename "$RUN")" "$@" --data "$CAPTURE"

step "Evaluating on held-out views and expressions"
ns-eval --load-config "$RUN/config.yml" --output-path "$OUT/metrics.json"

step "Filming a turn"
threevp turntable --load-config "$RUN/config.yml" --output "$OUT/turntable.mp4" --fps 16 --sheet "$OUT/turntable.png"

step "Done"
"$PY" - "$OUT/metrics.json" <<'PYTHON'
import json, sys
results = json.load(open(sys.argv[1]))["results"]
names = {"psnr_subject": "subject", "psnr_face": "eyes and mouth", "psnr_subject_static": "unseen views",
         "psnr_subject_dynamic": "unseen expressions"}
for key, name in names.items():
    if key in results:
        print(f"  PSNR, {name:<20} {results[key]:.1f} dB")
PYTHON
echo "  video    $OUT/turntable.mp4"
echo "  sheet    $OUT/turntable.png"
echo "  numbers  $OUT/metrics.json"
echo "  capture  $OUT/capture (report.json, overlay.png)"
echo "  view it  $BIN/ns-viewer --load-config $RUN/config.yml"
