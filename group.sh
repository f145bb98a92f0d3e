#!/usr/bin/env bash
# Grouping: WRN-16-8 learns its weights together with the assignments of a 2-2-2 deep split. It starts from what
# baseline.sh trained, and the assignments near a spectral clustering of its weights, which as a rule they keep: 40 epochs,
# where the paper has 400 (README, "Groups"; docs/groups.md finds groups from noise, too). The weight of the split rises
# slowly to a larger value than the paper's, and the assignments learn faster. The objective is the same. For the paper's
# way, from nothing:
#   ./group.sh --paper
# Further arguments are train.py's and win over these (epochs do not follow the steps, so give them too):
#   ./group.sh --k 1 --max_steps 5000 --gamma2_ramp_epoch 5 --lr_step_epoch 7.5
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"
paper= given=()
for argument in "$@"; do
  if [ "$argument" = --paper ]; then paper=1; else given+=("$argument"); fi
done
set -- ${given[@]+"${given[@]}"}
if [ -n "$paper" ]; then
  settings=(
    --gamma1 1.0
    --gamma2 1.0
    --gamma3 10.0
    --dropout_keep_prob 0.5
    --initial_lr 0.1
    --lr_step_epoch 240.0,300.0
    --max_steps 200000
  )
else
  settings=(
    --basemodel "$runs/baseline/best"
    --assignment_start spectral
    --assignment_lr_scale 40
    --gamma1 5.0
    --gamma2 20.0
    --gamma2_ramp_epoch 20.0
    --gamma3 30.0
    --dropout_keep_prob 1.0
    --initial_lr 0.05
    --lr_step_epoch 30.0
    --max_steps 20000
  )
  case " $* " in *' --basemodel'* | *' --train_dir'* | *' --help '* | *' -h '*) ;; *)
    if [ ! -e "$runs/baseline/best/checkpoint" ] && [ ! -e "$runs/group/checkpoint" ]; then
      echo "group.sh: there is no baseline in '$runs/baseline/best': train one with ./baseline.sh, name one with" \
        "--basemodel, or group from scratch as the paper does with ./group.sh --paper" >&2
      exit 1
    fi
    ;;
  esac
fi
find_python
need_data "$@"
exec "$python" "$project/train.py" --mode group \
  --data_dir "$data" \
  --train_dir "$runs/group" \
  --batch_size 90 \
  --ngroups1 2 \
  --ngroups2 2 \
  --ngroups3 2 \
  --weighted_group_loss True \
  --l2_weight 0.0001 \
  --lr_decay 0.1 \
  --bn_no_scale True \
  --checkpoint_interval 5000 \
  --group_summary_interval 5000 \
  --display 100 \
  "${settings[@]}" \
  "$@"
