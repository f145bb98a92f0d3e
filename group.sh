#!/usr/bin/env bash
# Grouping: WRN-16-8 learns its weights together with the assignments of a 2-2-2 deep split, with the paper's settings.
# Further arguments are train.py's and win over these:  ./group.sh --k 1 --max_steps 5000
# These settings take 400 epochs. From a trained baseline a few epochs do, with other weights of the same objective:
#   ./group.sh --basemodel runs/baseline/best --assignment_start spectral --gamma2 20 --gamma2_ramp_epoch 2 --gamma3 30 \
#     --assignment_lr_scale 40 --dropout_keep_prob 1 --initial_lr 0.05 --lr_step_epoch 8 --max_steps 5000
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_python
need_data "$@"
exec "$python" "$project/train.py" --mode group \
  --data_dir "$data" \
  --train_dir "$runs/group" \
  --batch_size 90 \
  --ngroups1 2 \
  --ngroups2 2 \
  --ngroups3 2 \
  --gamma1 1.0 \
  --gamma2 1.0 \
  --gamma3 10.0 \
  --weighted_group_loss True \
  --dropout_keep_prob 0.5 \
  --l2_weight 0.0001 \
  --initial_lr 0.1 \
  --lr_step_epoch 240.0,300.0 \
  --lr_decay 0.1 \
  --bn_no_scale True \
  --max_steps 200000 \
  --checkpoint_interval 5000 \
  --group_summary_interval 5000 \
  --display 100 \
  "$@"
