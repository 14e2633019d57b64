#!/bin/bash
#SBATCH --job-name=vavae
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=256G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
# Any command of vavae on two nodes of eight GPUs:
#   VAVAE_CACHE=/shared/vavae-cache sbatch examples/slurm.sh train-dit RECIPE --output /shared/runs/NAME
# Five minutes before its time ends, the job gets a signal: it saves its state, queues itself again with the same
# arguments, and resumes. Paths must be on a file system that all nodes see.
# Memory: a checkpoint is copied by each process before it is written, 86 GB on a node for LightningDiT-XL/1.
set -euo pipefail
: "${1:?a command of vavae, such as train-dit RECIPE --output RUN}"
: "${VAVAE_CACHE:?a folder that all nodes see and that stays}"
export VAVAE_CACHE
# How long torchrun leaves its processes between SIGTERM and SIGKILL: less than the five minutes above. From torch 2.12
# on; before, it is 30 seconds whatever is said.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=280

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Since SLURM 22.05 srun does not take the number of CPUs from the job; without it torchrun would have one.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" \
    --no-python vavae "$@" &
steps=$!

stop() {
    # It reaches every process of the step, and torchrun sends its own another one: the two count as one.
    scancel --signal=TERM "$SLURM_JOB_ID.0"
    wait "$steps" || true
    scontrol requeue "$SLURM_JOB_ID"
}
trap stop TERM
wait "$steps"
