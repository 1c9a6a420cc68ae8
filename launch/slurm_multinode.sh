#!/usr/bin/env bash
# One Slurm job over several nodes, all workers taking units from one counter, until the dataset is complete:
#
#     mkdir -p logs && sbatch launch/slurm_multinode.sh [options of extract/run.py]     from the root of the checkout
#
# The nodes begin and end together; an array (slurm.sh) starts sooner and needs no network between nodes.

#SBATCH --job-name=stillroom
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.log

# What to edit, or to set in the environment of sbatch.
: "${PYTHON:=python}"                           # after `module load …` or `source …/bin/activate`, if need be
: "${WORKERS_PER_NODE:=$SLURM_GPUS_ON_NODE}"
: "${PORT:=$((20000 + SLURM_JOB_ID % 10000))}"  # of the rendezvous, on the first node
: "${MAX_RESTARTS:=50}"
# Scratch that all nodes see, with a folder for each: a cache has one machine's workers at a time, and what waits in it
# goes up when the job comes back, on whichever nodes.
: "${CACHE:=${SCRATCH:-$HOME/.cache}/stillroom}"

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
rendezvous=(--rdzv_backend c10d --rdzv_endpoint "$first_node:$PORT" --rdzv_id "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}")

# Slurm tells this shell alone; every step has to hear it too.
trap 'signalled=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM

# shellcheck disable=SC2016 # the number of the node is known there
srun --kill-on-bad-exit=1 bash -c 'STILLROOM_CACHE="$0/node-$SLURM_PROCID" exec "$@"' "$CACHE" \
    "$PYTHON" -m torch.distributed.run --nnodes "$SLURM_NTASKS" --nproc_per_node "$WORKERS_PER_NODE" "${rendezvous[@]}" \
    extract/run.py "$@" --resume &
step=$!
wait "$step"
[[ -z ${signalled:-} ]] || wait "$step" # a signal ended the wait, not the step

# torchrun turns every exit code but 0 into 1. A run with no time, and no model, says how it stands: 0 complete, 75 units
# are left, 2 the job is bad.
STILLROOM_CACHE="$CACHE/node-0" "$PYTHON" extract/run.py "$@" --resume --max-runtime-minutes 0 --incomplete-exit-code 75
code=$?
if ((code == 0 || code == 2)); then exit "$code"; fi

# Only a running job: one that Slurm requeues itself, or that scancel ends, is COMPLETING by now.
state=$(squeue --noheader --format=%T --job "$SLURM_JOB_ID")
if [[ $state == RUNNING ]] && ((${SLURM_RESTART_COUNT:-0} < MAX_RESTARTS)); then
    echo "slurm_multinode.sh: units are left: requeue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
