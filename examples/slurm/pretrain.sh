#!/bin/bash
# Pretrain on any number of nodes: one launcher a node, shards within a node, replicas across. Run from the repository's
# folder, in the environment that has genesis_hf; all nodes must see this folder and output_dir:
#
#   sbatch --nodes=4 --gpus-per-node=8 examples/slurm/pretrain.sh RECIPE.yaml [--key value … of pretrain.py]
#
# TOPOLOGY=ddp_multinode keeps a whole model on each GPU. Ten minutes before the time limit the run finishes its step,
# saves and leaves, and the job queues itself again; so it does after a preemption. After a crash all nodes begin again
# together, three times at most. Partition and account: sbatch reads SBATCH_PARTITION and SBATCH_ACCOUNT.
#SBATCH --job-name=pretrain
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=pretrain-%j.log
set -euo pipefail

topology=${TOPOLOGY:-hsdp_multinode}
gpus=${SLURM_GPUS_ON_NODE:?give --gpus-per-node}
nodes=$SLURM_JOB_NUM_NODES
options=(
    --config_file "accelerate_configs/$topology.yaml"
    --num_machines "$nodes" --num_processes $((nodes * gpus))
    --main_process_ip "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
    --main_process_port $((20000 + SLURM_JOB_ID % 20000))
)
if [ "$topology" = hsdp_multinode ]; then
    options+=(--parallelism_config_dp_replicate_size "$nodes" --parallelism_config_dp_shard_size "$gpus")
fi
# The launcher kills what has not left so many seconds after TERM; its default, 30, is shorter than a step and a save.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=540

# TERM comes to this shell; srun hands it on to the launchers, and they to the training processes.
step='' stopped=''
trap 'stopped=1; [ -z "$step" ] || kill -TERM "$step"' TERM

# A process that dies takes all launchers with it: only together can they begin again.
for attempt in 1 2 3; do
    srun --ntasks-per-node=1 --kill-on-bad-exit=1 \
        bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' launch \
        "${options[@]}" scripts/pretrain.py --config "$@" &
    step=$! code=0
    wait "$step" || code=$?
    if [ -n "$stopped" ]; then
        wait "$step" || true   # the first wait ended with the signal
        scontrol requeue "$SLURM_JOB_ID"
        exit 0
    fi
    [ "$code" -ne 0 ] || exit 0
    echo "attempt $attempt ended with exit code $code"
done
exit "$code"
