#!/usr/bin/env bash
# Grouping: WRN-16-8 learns its weights together with the assignments of a 2-2-2 deep split. It starts from what
# baseline.sh trained, and the assignments near a spectral clustering of its weights, which as a rule they keep: 40 epochs,
# where the paper has 400 (docs/groups.md finds groups from noise, too). The weight of the split rises
# slowly to a larger value than the paper's, and the assignments learn faster. The objective is the same. For the paper's
# way, from nothing, with train.py's defaults:
#   ./group.sh --paper
# Further arguments are train.py's and win over these:
#   ./group.sh --k 1 --epochs 10
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"
paper= given=()
for argument in "$@"; do
  if [ "$argument" = --paper ]; then paper=1; else given+=("$argument"); fi
done
set -- ${given[@]+"${given[@]}"}
settings=()
if [ -z "$paper" ]; then
  settings=(
    --basemodel "$runs/baseline/best"
    --assignment_start spectral
    --assignment_lr_scale 40
    --gamma1 5.0
    --gamma2 20.0
    --gamma2_ramp 0.5
    --gamma3 30.0
    --dropout_keep_prob 1.0
    --initial_lr 0.05
    --lr_step 0.75
    --max_steps 20000
  )
  need_stage "$runs/baseline/best" "$runs/group" --basemodel "there is no baseline in '$runs/baseline/best': train one \
with ./baseline.sh, name one with --basemodel, or group from scratch as the paper does with ./group.sh --paper" "$@"
fi
find_python
need_data "$@"
exec "$python" "$project/train.py" --mode group --data_dir "$data" --train_dir "$runs/group" \
  ${settings[@]+"${settings[@]}"} "$@"
