#!/usr/bin/env bash
# The dense WRN-16-8 that the paper compares with; the settings are train.py's defaults. Arguments are train.py's:
#   ./baseline.sh --k 1 --epochs 20
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"
find_python
need_data "$@"
exec "$python" "$project/train.py" --mode baseline --data_dir "$data" --train_dir "$runs/baseline" "$@"
