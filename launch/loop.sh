#!/usr/bin/env bash
# Run a job on this machine, on all its GPUs, until its dataset is complete:
#
#     launch/loop.sh [options of extract/run.py]
#
# Exit code 0: complete. 2: the job is bad. 1: it failed $TRIES times in a row. 128 + N: signal N stopped it, with
# everything safe; a second Ctrl-C leaves at once.

# What to edit, or to set in the environment.
: "${LAUNCHER:=accelerate launch}" # or: python; or: python -m torch.distributed.run --standalone --nproc_per_node 8
: "${PYTHON:=python}"
: "${MINUTES:=55}"      # of one run
: "${TRIES:=5}"         # failures in a row
: "${WAIT_SECONDS:=10}" # between two runs; twice as long after each failure in a row

set -um # -m: every run is a process group of its own, so that a signal reaches all of it, and once
run=$(dirname "$(readlink -f "$0")")/../extract/run.py
group="" signal="" failures=0

pass_on() {
    signal=$1
    [[ -z $group ]] || kill -s "$1" -- "-$group" 2>/dev/null
}
trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT

# Run a command in a group of its own and set `code`; after a signal, wait for its drain and end.
run_group() {
    "$@" </dev/null &
    group=$!
    [[ -z $signal ]] || pass_on "$signal" # it came just before there was a group
    wait "$group"
    code=$?
    while kill -0 -- "-$group" 2>/dev/null; do pause 0.5; done # workers outlive an accelerate that is told to end
    group=""
    end_if_signalled
}

pause() {
    sleep "$1" &
    wait $! # which a signal ends
}

end_if_signalled() {
    [[ -z $signal ]] || exit $((128 + $(kill -l "$signal")))
}

while true; do
    # shellcheck disable=SC2086 # a launcher is several words
    run_group $LAUNCHER "$run" "$@" --resume --max-runtime-minutes "$MINUTES"
    launched=$code
    # accelerate and torchrun turn every exit code but 0 into 1. A run without a launcher and with no time says how it
    # stands: 0 complete, 75 units are left, 2 the job is bad. It loads no model.
    run_group "$PYTHON" "$run" "$@" --resume --max-runtime-minutes 0 --incomplete-exit-code 75
    case $code in 0 | 2) exit "$code" ;; esac
    if ((launched == 0 && code == 75)); then failures=0; else failures=$((failures + 1)); fi
    if ((failures >= TRIES)); then
        echo "loop.sh: failed $failures times in a row: the reason is in the lines above" >&2
        exit 1
    fi
    pause $((WAIT_SECONDS << failures))
    end_if_signalled
done
