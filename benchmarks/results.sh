#!/usr/bin/env bash
# Write docs/RESULTS.md and its pictures: benchmarks/results.sh DATA
#
# DATA holds homography/ (folders in HPatches form) and pose/ (scenes in Strecha's layout). Every table stands above the
# command that printed it. Run it again when the weights change; about 15 minutes on one core.
set -euo pipefail
data=${1:?give the folder that holds homography/ and pose/}
cd "$(dirname "$0")/.."
data=$(realpath "$data")
pictures=docs/results
mkdir -p "$pictures"

features=(--weights weights/sekd.safetensors)  # the first row is what times are ratios to
for weights in weights/sekd-*.safetensors; do features+=(--weights "$weights"); done
features+=(--method sekd --method sift --method rootsift --method orb)

# table TITLE ARGUMENT...: what `sekd evaluate ARGUMENT...` prints, and the command
table() {
    local command="sekd evaluate ${*:2}"
    printf '\n## %s\n\n' "$1"
    python -m sekd_cli evaluate "${@:2}" --markdown
    printf '\n`%s`\n' "${command//$data/DATA}"
}

# picture NAME ARGUMENT...: the same with a plot
picture() {
    table "$2" "${@:3}" --plot "$pictures/$1.png"
    printf '\n![%s](results/%s.png)\n' "$2" "$1"
}

{
    cat <<'TEXT'
# Results

Written by `benchmarks/results.sh DATA`; DATA holds four sequences of the Oxford affine covariant regions set (longer
edge 640 px) and fountain-P11 of Strecha et al. (1024 px). All figures but pixels, degrees, counts and times are in
percent. Rows are the weights in `weights/` and the features that OpenCV ships, each with the same budget of keypoints,
mutual nearest neighbours and the same estimators; figures of robust estimators are medians over seeds.
TEXT
    printf '\nOn %s with ' "$(uname -m)"
    python - <<'PYTHON'
import cv2, torch
from sekd_cli.networks.precision import resolve_precision
precision = resolve_precision("auto", torch.device("cpu"), quantisable=True)
print(f"{torch.backends.cpu.get_cpu_capability()} ({precision}), with OpenCV {cv2.__version__} and torch {torch.__version__}.")
PYTHON

    picture homography "Homographies, 500 keypoints" homography "$data/homography" "${features[@]}"
    cat <<'TEXT'

HA: share of pairs whose corners are right to 1, 2, ... 10 px, averaged; the mean of RANSAC and MAGSAC. AUC: under the
curve of corner errors, MAGSAC. MMA: share of matches that are right. rep. and loc.: repeatability and localisation
error of keypoints at 3 px.
TEXT
    table "Homographies, 2048 keypoints" homography "$data/homography" --max-keypoints 2048 "${features[@]}"
    table "Homographies, 2048 keypoints, more and finer sizes" homography "$data/homography" --max-keypoints 2048 \
        --scales 1 --scales 1,0.5 --scales 1,0.71,0.5 --scales 1.41,1,0.71,0.5
    table "Homographies, 500 keypoints, refined" homography "$data/homography" --refine "${features[@]}"
    cat <<'TEXT'

Refined: the matches of `sekd match --verify homography --refine`, in poses and models `--verify fundamental --refine`;
pairs that agree on none have no matches. Structure from motion has keypoints as `sekd refine` moves them.
TEXT
    picture pose "Relative pose, 2048 keypoints" pose "$data/pose" "${features[@]}"
    cat <<'TEXT'

mAA@10: share of pairs whose rotation and translation are right to 1, 2, ... 10 degrees, averaged. With one scene of 41
pairs the seed of the estimator alone moves it by the range shown.
TEXT
    table "Relative pose, 2048 keypoints, refined" pose "$data/pose" --refine "${features[@]}"
    picture sfm "Structure from motion, 2048 keypoints" sfm "$data/pose" "${features[@]}"
    table "Structure from motion, 2048 keypoints, refined" sfm "$data/pose" --refine "${features[@]}"
    picture speed "Speed, 2048 keypoints, one thread" speed examples/china.jpg "${features[@]}"
} > docs/RESULTS.md.part
mv docs/RESULTS.md.part docs/RESULTS.md
echo "docs/RESULTS.md" "$pictures"/*.png >&2
