#!/bin/bash
#SBATCH --job-name=lightningdit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
# Two nodes of eight GPUs. Five minutes before the end of its time the job is told to stop: it saves its state,
# queues itself again, and goes on from there. Set RECIPE and RUN, on a file system that all nodes see.
set -euo pipefail
: "${RECIPE:?a recipe}" "${RUN:?a run folder}"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" \
    --no-python vavae train-dit "$RECIPE" --output "$RUN" &
steps=$!

stop() {
    scancel --signal=TERM --full "$SLURM_JOB_ID.0"  # torchrun passes it on to its processes
    wait "$steps" || true
    scontrol requeue "$SLURM_JOB_ID"
}
trap stop TERM
wait "$steps"
