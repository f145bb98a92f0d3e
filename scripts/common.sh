# Sourced by the scripts: the project's folder, its Python, and its data. No experiment's setting stands here.
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH} # for python -m, from any folder
venv=$project/.venv
data=$project/cifar100/train_val_split
runs=$project/runs

# Makes .venv and installs the given requirements files into it; each is installed again only if it has changed.
make_venv() {
  local file candidate interpreter=
  # Without Debian's python3-venv, making one fails half-way and leaves a Python without pip.
  if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
      if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
        interpreter=$candidate
        break
      fi
    done
    if [ -z "$interpreter" ]; then
      echo "$(basename "$0"): there is no Python 3.10 to 3.13, which TensorFlow 2.21 needs: install one, or name it with PYTHON=/path/to/python" >&2
      exit 1
    fi
    echo "making ${venv#"$PWD"/}"
    rm -f "$venv"/installed-*
    "$interpreter" -m venv "$venv"
  fi
  for file in "$@"; do
    if cmp -s "$project/$file" "$venv/installed-$file"; then continue; fi
    echo "installing $file into ${venv#"$PWD"/} (if it is new: 0.7 GB to fetch, 2.6 GB on the disk, some minutes)"
    if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$project/$file"; then
      echo "$(basename "$0"): pip could not install $file (see above): it needs a package registry" >&2
      exit 1
    fi
    cp "$project/$file" "$venv/installed-$file"
  done
}

# Sets $python: the project's .venv, else a Python on the path that has all of requirements.txt, else a new .venv. A
# .venv into which nothing could be installed, because there was no network, does not count.
find_python() {
  local check='import importlib.util, sys
wanted = "tensorflow numpy six tqdm matplotlib tensorboard sklearn scipy pydantic jinja2".split()
sys.exit(not (3, 10) <= sys.version_info < (3, 14) or not all(map(importlib.util.find_spec, wanted)))'
  if [ ! -e "$venv/installed-requirements.txt" ] && ! "$venv/bin/python" -c "$check" 2>/dev/null &&
    python3 -c "$check" 2>/dev/null; then
    python=python3
    return
  fi
  make_venv requirements.txt
  python=$venv/bin/python
}

# Ends the script with a sentence if the stage before it has not been run. It is not needed if the arguments (from the
# fifth on) name another with the flag, another folder to train in, or only ask for help.
need_stage() { # folder of the stage before, folder of this one, flag, sentence, arguments...
  local before=$1 own=$2 flag=$3 sentence=$4 argument
  shift 4
  for argument in "$@"; do
    case $argument in "$flag" | "$flag"=* | --train_dir | --train_dir=* | --help | -h) return ;; esac
  done
  if [ ! -e "$before/checkpoint" ] && [ ! -e "$own/checkpoint" ]; then
    echo "$(basename "$0"): $sentence" >&2
    exit 1
  fi
}

# Tells whether the arguments name a checkpoint that was trained on other data, or such data.
of_other_data() {
  local argument before= folder other='"dataset": "(image_folder|imagenet)"'
  for argument in "$@"; do
    case $before in --checkpoint | --dataset) argument=$before=$argument ;; esac
    case $argument in
      --dataset=cifar100) return 1 ;;
      --dataset=*) return 0 ;;
      --checkpoint=*)
        folder=${argument#*=}
        if [ ! -d "$folder" ]; then folder=$(dirname "$folder"); fi
        if grep -Eqs "$other" "$folder/config.json"; then return 0; fi
        ;;
    esac
    before=$argument
  done
  return 1
}

# Downloads CIFAR-100 if it is missing, unless the arguments name another folder or only ask for help.
need_data() {
  local argument
  for argument in "$@"; do
    case $argument in --data_dir | --data_dir=* | --help | -h) return ;; esac
  done
  if [ ! -e "$data/names.json" ]; then "$python" "$project/download_cifar100.py" --data_dir "$data"; fi
}
