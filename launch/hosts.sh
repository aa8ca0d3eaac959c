#!/bin/bash
# Machines reached by ssh, this project at the same path on each, runs/ and shards on a shared disk:
#     launch/hosts.sh ddp_nodes 8 train/recipes/paper.toml runs/paper node1 node2 node3
# Ctrl-C stops them all after their step; the same command then goes on.
set -euo pipefail

usage='usage: launch/hosts.sh FILE GPUS_PER_HOST RECIPE RUN HOST...'
file=${1:?$usage} gpus=${2:?$usage} recipe=${3:?$usage} run=${4:?$usage}
shift 4
first=${1:?$usage}
port=${PORT:-29500}
ranks='python[0-9.]* (-u )?train/main[.]py'

hosts=("$@")
asked=

signal_ranks() {
    for host in "${hosts[@]}"; do ssh "$host" "pkill -$1 -f '$ranks'" || true; done
}
stop() {
    asked=yes
    trap '' INT TERM
    signal_ranks USR1
}
trap stop INT TERM

for number in "${!hosts[@]}"; do
    # In a session of its own, so that Ctrl-C comes to `stop` alone.
    setsid ssh "${hosts[$number]}" "cd $(printf %q "$PWD") && exec accelerate launch \
        --config_file launch/$file.yaml --max_restarts 3 --num_machines ${#hosts[@]} \
        --num_processes $((${#hosts[@]} * gpus)) --machine_rank $number \
        --main_process_ip $first --main_process_port $port \
        train/main.py --recipe $(printf %q "$recipe") --run $(printf %q "$run") --resume" &
done

status=0
while [[ $(jobs -rp) ]]; do
    wait -n || status=$?
    # A host that failed takes the others with it: they would wait for it in a collective.
    if [[ $status -ne 0 && ! $asked ]]; then
        signal_ranks KILL
    fi
done
exit "$status"
