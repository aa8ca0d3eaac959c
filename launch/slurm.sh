#!/bin/bash
# One task per node starts one process per GPU. Options of your site go here or on sbatch's line:
#     sbatch --nodes 4 --gpus-per-node 8 launch/slurm.sh ddp_nodes train/recipes/paper.toml runs/paper
#SBATCH --job-name=adde
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# To this script, five minutes before the time is up; before a preemption too where the site's
# PreemptParameters have send_user_signal.
#SBATCH --signal=B:USR1@300
set -euo pipefail

file=${1:?usage: sbatch launch/slurm.sh FILE RECIPE RUN}
recipe=${2:?usage: sbatch launch/slurm.sh FILE RECIPE RUN}
run=${3:?usage: sbatch launch/slurm.sh FILE RECIPE RUN}
nodes=$SLURM_JOB_NUM_NODES
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

# The ranks finish their step and save; the launcher between them would only die of the signal.
# What takes longer, such as an evaluation, is given up a minute before the time is: a job that is
# not requeued by then never is.
go_on_later() {
    trap '' USR1
    srun --overlap --ntasks-per-node=1 pkill -USR1 -f 'python[0-9.]* (-u )?train/main[.]py' &
    timeout 240 tail --pid="$step" -f /dev/null || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap go_on_later USR1

# --resume starts afresh where there is no checkpoint yet. The batch is the recipe's whatever the
# number of GPUs.
export file recipe run nodes first port
# A SIGTERM (scancel, a preemption) too has the ranks save; torch's launcher kills them 30 s later
# if it is not told otherwise. How long they have is then the site's KillWait or GraceTime.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300
# A node whose launcher has failed takes the others with it: they would wait for it.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch \
    --config_file "launch/$file.yaml" --max_restarts 3 \
    --num_machines "$nodes" --num_processes $((nodes * SLURM_GPUS_ON_NODE)) \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$first" --main_process_port "$port" \
    train/main.py --recipe "$recipe" --run "$run" --resume' &
step=$!
wait "$step"
