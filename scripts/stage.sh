#!/bin/sh
# Train a recipe up to and including one stage; what is done already is not done again.
#   scripts/stage.sh STAGE RECIPE [key=value ...]
#   PROCESSES=8 scripts/stage.sh sft recipe.yaml out=runs/mine     one process per GPU (or per core), through torchrun
# Several machines: accelerate launch (its own settings) -m train RECIPE until=STAGE
set -eu
if [ $# -lt 2 ]; then
    sed -n '2,4s/^# *//p' "$0" >&2
    exit 2
fi
stage=$1 recipe=$2
shift 2
python=${PYTHON:-python}
if [ "${PROCESSES:-1}" -gt 1 ]; then
    exec "$python" -m torch.distributed.run --standalone --nproc-per-node "$PROCESSES" -m train "$recipe" "$@" "until=$stage"
fi
exec "$python" -m train "$recipe" "$@" "until=$stage"
