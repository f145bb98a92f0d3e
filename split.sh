#!/usr/bin/env bash
# Splitting: hardens what group.sh learned into a tree of branches and fine-tunes it; the settings are train.py's
# defaults, and the network is the grouping checkpoint's. Arguments are train.py's and win over these:
#   ./split.sh --basemodel runs/group/ckpt-15000 --epochs 10
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"
need_stage "$runs/group" "$runs/split" --basemodel "there are no groups in '$runs/group': learn them with ./group.sh, \
or name a grouping run with --basemodel" "$@"
find_python
need_data "$@"
exec "$python" "$project/train.py" --mode split --data_dir "$data" --train_dir "$runs/split" --basemodel "$runs/group" "$@"
