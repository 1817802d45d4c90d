#!/bin/sh
# Train a recipe on several machines of a Slurm cluster: one torchrun per machine, one process per GPU.
#   sbatch --nodes 4 --gpus-per-node 8 scripts/cluster/slurm.sh RECIPE [key=value ...]
# Weights are spread over all processes with stages.NAME.parallel.shard=true, sequences with stages.NAME.parallel.sp_size=8.
# The job may be killed or requeued at any time: the same command goes on from the newest checkpoint.
#SBATCH --job-name=vlm
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --output=%x-%j.log
set -eu
if [ $# -lt 1 ]; then
    sed -n '2,5s/^# *//p' "$0" >&2
    exit 2
fi
python=${PYTHON:-python}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 "$python" -m torch.distributed.run \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend c10d --rdzv-endpoint "$head:${PORT:-29500}" --rdzv-id "$SLURM_JOB_ID" \
    -m train "$@" &
job=$!
trap 'kill -TERM $job' TERM # Slurm warns this shell; the trainer saves and leaves
set +e
wait $job
code=$?
if [ $code -gt 128 ]; then
    wait $job
    code=$?
fi
exit $code
