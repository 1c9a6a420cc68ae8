#!/usr/bin/env bash
# An array of Slurm jobs that share nothing but the output, until the dataset is complete:
#
#     mkdir -p logs && sbatch launch/slurm.sh [options of extract/run.py]     from the root of the checkout
#
# Each task does its share of the units. Before its time ends, or when it is preempted, it stops with everything safe and
# goes back into the queue if units are left; `scancel` ends it for good. Submit again to repeat what failed.

#SBATCH --job-name=stillroom
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%A_%a.log

# What to edit, or to set in the environment of sbatch.
: "${PYTHON:=python}"                         # after `module load …` or `source …/bin/activate`, if need be
: "${NUM_JOBS:=$SLURM_ARRAY_TASK_COUNT}"      # fixed for a dataset: name it to run a part of the array again
: "${MAX_RESTARTS:=50}"                       # of each task, for whatever reason
# The cache keeps the unit in hand and chunks that are not uploaded yet. On scratch that all nodes see, they wait for a
# task that goes on elsewhere. A node's own disk (STILLROOM_CACHE=$SLURM_TMPDIR) also gives a right dataset: what the last
# 15 s before an end could not upload is then computed again.
export STILLROOM_CACHE="${STILLROOM_CACHE:-${SCRATCH:-$HOME/.cache}/stillroom}"

trap 'signalled=1; kill -s TERM "$run" 2>/dev/null' TERM # Slurm tells this shell alone; the run has to hear it too

"$PYTHON" extract/run.py "$@" --resume --incomplete-exit-code 75 \
    --num-jobs "$NUM_JOBS" --job-index "$SLURM_ARRAY_TASK_ID" &
run=$!
wait "$run"
code=$?
if [[ ${signalled:-} ]]; then # it ended the wait, not the run
    wait "$run"
    code=$?
elif ((code == 75)); then
    echo "slurm.sh: this task's share is done; units of other tasks are missing"
    exit 0
fi
if ((code == 0 || code == 2)); then exit "$code"; fi # complete; a bad job

# Only a running task: one that Slurm requeues itself, or that scancel ends, is COMPLETING by now. SLURM_JOB_ID would not
# do as its name: that of one task is the number of the whole array.
task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
state=$(squeue --noheader --format=%T --job "$task")
if [[ $state == RUNNING ]] && ((${SLURM_RESTART_COUNT:-0} < MAX_RESTARTS)); then
    echo "slurm.sh: exit code $code, units are left: requeue"
    scontrol requeue "$task"
fi
exit "$code"
