#!/usr/bin/env bash
# The dense WRN-16-8 that the paper compares with. Further arguments are train.py's and win over these:
#   ./baseline.sh --k 1 --max_steps 10000 --lr_step_epoch 12,17
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"
find_python
need_data "$@"
exec "$python" "$project/train.py" --mode baseline \
  --data_dir "$data" \
  --train_dir "$runs/baseline" \
  --batch_size 90 \
  --l2_weight 0.0005 \
  --initial_lr 0.1 \
  --lr_step_epoch 100.0,140.0 \
  --lr_decay 0.1 \
  --bn_no_scale True \
  --max_steps 120000 \
  --checkpoint_interval 5000 \
  --display 100 \
  "$@"
