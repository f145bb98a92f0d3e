#!/usr/bin/env bash
# The paper's tables, from runs of this project: ./tables.sh 1 | 2 | 3 | 4 | 5 | all | groups | counts | plan (./tables.sh
# --help explains each; further arguments are those of paper/tables.py, of paper/table5.py for 5, of paper/estimate.py for
# plan):
#   ./tables.sh 1 --k 1 --seeds 0,1,2
#   ./tables.sh all --recipe short --print
#   ./tables.sh 3 --dataset imagenet --data_dir imagenet --recipe paper
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"
if [ $# = 0 ]; then
  echo "tables.sh: name a table: ./tables.sh 1 | 2 | 3 | 4 | 5 | all | groups | counts | plan (./tables.sh --help explains" \
    "each)" >&2
  exit 2
fi
find_python
case $1 in # both time networks that they make themselves
  5) exec "$python" -m paper.table5 "${@:2}" ;;
  plan) exec "$python" -m paper.estimate "${@:2}" ;;
esac
given=(--data_dir "$data")
case "$1 $* " in
  *' counts '* | *' --print '*) ;; # no images needed
  '3 '* | '4 '* | *' --dataset'* | *' --network'*) given=() ;; # other images
  *) need_data "$@" ;;
esac
exec "$python" -m paper.tables ${given[@]+"${given[@]}"} "$@"
