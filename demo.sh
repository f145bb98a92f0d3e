#!/usr/bin/env bash
# The whole way in a few minutes on a CPU: data, dense baseline, grouping, splitting and fine-tuning, evaluation.
#   ./demo.sh          synthetic images (no network needed beyond pip)
#   ./demo.sh --real   CIFAR-100, fetched if it is missing
#   ./demo.sh --seed 3 other images, initial values and shuffling (after --real, if both)
# A small network (WRN-10-1) and short runs: it shows that everything works, not the paper's numbers.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"
kind=synthetic seed=0
if [ "${1:-}" = --real ]; then kind=real && shift; fi
if [ "${1:-}" = --seed ] && [[ ${2:-} =~ ^[0-9]{1,9}$ ]]; then seed=$2 && shift 2; fi
if [ $# -gt 0 ]; then
  echo "demo.sh: cannot use '$*': ./demo.sh takes nothing, --real for CIFAR-100, or --seed and a number" >&2
  exit 2
fi
make_venv requirements.txt
python=$venv/bin/python
out=${DEMO_DIR:-$project/demo}/$kind
if [ "$seed" != 0 ]; then out=$out-seed$seed; fi
if [ $kind = synthetic ]; then
  data=$out/data
  "$python" "$project/download_cifar100.py" --synthetic --images_per_class 100 --seed "$seed" --data_dir "$data"
  baseline_steps=600 group_steps=300 split_steps=200
else
  need_data
  baseline_steps=2000 group_steps=2000 split_steps=1500
fi

# Epochs are counted from the step counts: 90 images a step.
images=$("$python" -c 'import sys, numpy; print(len(numpy.load(sys.argv[1])["labels"]))' "$data/train.npz")
epoch_of() { "$python" -c 'import sys; print(float(sys.argv[1]) * 90 / float(sys.argv[2]))' "$1" "$images"; }
stage() {
  local mode=$1 steps=$2
  shift 2
  printf '\n--- %s ---\n' "$mode"
  "$python" "$project/train.py" --mode "$mode" --data_dir "$data" --train_dir "$out/$mode" --max_steps "$steps" \
    --lr_schedule cosine --display 100 --val_interval 500 --group_summary_interval 500 \
    --seed "$seed" --dropout_keep_prob 1 --checkpoint_interval 500 "$@" | grep --line-buffered -E '^(step|  split_q1|done|going on)'
}
evaluate() {
  "$python" "$project/eval.py" --data_dir "$data" --output_file "$out/$1.json" --checkpoint "$2" "${@:3}" >"$out/$1.txt"
}

stage baseline $baseline_steps --k 1 --num_residual_units 1 --initial_lr 0.2 \
  --lr_warmup_epoch "$(epoch_of $((baseline_steps / 5)))"
# Grouping from the trained baseline and its spectral structure, with a larger weight of the split, which rises, and a
# larger learning rate of the assignments than the paper's: what takes it 400 epochs has to happen within a few.
stage group $group_steps --basemodel "$out/baseline" --assignment_start spectral \
  --gamma1 5 --gamma2 20 --gamma2_ramp_epoch "$(epoch_of $((group_steps / 2)))" --gamma3 30 --assignment_lr_scale 40 --initial_lr 0.05
stage split $split_steps --basemodel "$out/group" --initial_lr 0.05

printf '\n--- evaluation on the test images ---\n'
evaluate dense "$out/baseline"
evaluate grouped "$out/group"
evaluate hardened "$out/group" --harden
evaluate fine-tuned "$out/split/best"
"$python" -m splitnet.reporting.compare dense="$out/dense.json" grouped="$out/grouped.json" hardened="$out/hardened.json" \
  fine-tuned="$out/fine-tuned.json"
echo "weights ordered by group, from start to end: $out/group/pictures"
echo "curves: $venv/bin/tensorboard --logdir $out"
