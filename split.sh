#!/usr/bin/env bash
# Splitting: hardens what group.sh learned into a tree of branches and fine-tunes it, with the paper's settings. The
# network is the grouping checkpoint's. Further arguments are train.py's and win over these:
#   ./split.sh --basemodel runs/group/ckpt-15000 --max_steps 5000
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"
find_python
need_data "$@"
exec "$python" "$project/train.py" --mode split \
  --data_dir "$data" \
  --train_dir "$runs/split" \
  --basemodel "$runs/group" \
  --batch_size 90 \
  --l2_weight 0.0005 \
  --initial_lr 0.1 \
  --lr_step_epoch 100.0,140.0 \
  --lr_decay 0.1 \
  --max_steps 120000 \
  --checkpoint_interval 5000 \
  --display 100 \
  "$@"
