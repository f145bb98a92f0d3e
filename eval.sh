#!/usr/bin/env bash
# Evaluates the best checkpoint (by validation accuracy) of split.sh on all 10,000 test images; with one device per
# branch if there are several. The results go to runs/split/eval.json; those of another checkpoint, of other images or
# in another precision go to --output_file, if it is given. Further arguments are eval.py's and override these:
#   ./eval.sh --checkpoint runs/group --output_file runs/group/eval.json
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"
need_stage "$runs/split/best" "$runs/split/best" --checkpoint "there is no split network in '$runs/split/best': make \
one with ./split.sh, or name a checkpoint with --checkpoint" "$@"
find_python
images=()
if ! of_other_data "$@"; then
  need_data "$@"
  images=(--data_dir "$data")
fi
output=(--output_file "$runs/split/eval.json")
for argument in "$@"; do
  case ${argument%%=*} in --checkpoint | --split | --test_iter | --precision) output=() ;; esac
done
exec "$python" "$project/eval.py" ${images[@]+"${images[@]}"} --checkpoint "$runs/split/best" ${output[@]+"${output[@]}"} "$@"
