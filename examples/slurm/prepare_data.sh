#!/bin/bash
# Prepare tokens as a Slurm array: each task does its share of the input files on its own, and a last job that depends
# on all of them writes the indexes. Run from the repository's folder, in the environment that has genesis_hf:
#
#   CPUS=8 examples/slurm/prepare_data.sh RECIPE.yaml PREPARED_DIR NUM_TASKS [--key value … of prepare_data.py]
#
# The same line again goes on from the last finished pieces, whatever was cancelled, preempted or killed. Partition,
# account and time limit: sbatch reads SBATCH_PARTITION, SBATCH_ACCOUNT and SBATCH_TIMELIMIT.
set -euo pipefail

if [ -z "${SLURM_JOB_ID:-}" ]; then
    prepared_dir=$2 last=$(($3 - 1))
    mkdir -p "$prepared_dir/logs"
    submit=(sbatch --parsable --cpus-per-task="${CPUS:-8}" --requeue --open-mode=append)
    array=$("${submit[@]}" --job-name=prepare --array="0-$last" --output="$prepared_dir/logs/%A-%a.log" "$0" "$@")
    index=$("${submit[@]}" --job-name=prepare-index --dependency="afterok:${array%%;*}" --kill-on-invalid-dep=yes \
        --output="$prepared_dir/logs/%j-index.log" "$0" "$@")
    echo "array $array, then index $index; logs: $prepared_dir/logs"
    exit
fi

task=()
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    task=(--task_index "$SLURM_ARRAY_TASK_ID" --num_tasks "$3")
fi
exec python scripts/prepare_data.py --config "$1" --prepared_dir "$2" --num_proc "$SLURM_CPUS_PER_TASK" \
    "${task[@]}" "${@:4}"
