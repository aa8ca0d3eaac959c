#!/bin/bash
# Machines reached by ssh, this project at the same path on each, runs/ and shards on a shared disk:
#     launch/hosts.sh ddp_nodes 8 train/recipes/paper.toml runs/paper node1 node2 node3
# Ctrl-C stops them all after their step, once more at once; the same command then goes on. Two runs
# on the same machines need two ports (PORT=29501 launch/hosts.sh ...).
set -euo pipefail

usage='usage: launch/hosts.sh FILE GPUS_PER_HOST RECIPE RUN HOST...'
file=${1:?$usage} gpus=${2:?$usage} recipe=${3:?$usage} run=${4:?$usage}
shift 4
first=${1:?$usage}
port=${PORT:-29500}
# This run's launcher on a host; the ranks are its children.
launcher="python[0-9.]* [^ ]*accelerate launch .*--main_process_port $port train/main[.]py"
find="found=\$(pgrep -d, -f '$launcher')"

hosts=("$@")
asked=

on_all() {
    local host all=()
    for host in "${hosts[@]}"; do
        setsid ssh -n "$host" "$1" &
        all+=($!)
    done
    wait "${all[@]}" || true
}
stop() {
    asked=yes
    trap end INT TERM
    on_all "$find && pkill -USR1 -P \"\$found\""
}
# The launchers and their ranks, which they would start again. KILL, as torch's rendezvous, where a
# launcher waits ten minutes for the others, hears of no other signal; again, for those that had
# not yet begun.
end() {
    asked=yes
    trap - INT TERM
    while [[ $(jobs -rp) ]]; do
        on_all "$find && { pgrep -f '$launcher'; pgrep -P \"\$found\"; } | xargs kill -KILL"
        sleep 1
    done
}
trap stop INT TERM

for number in "${!hosts[@]}"; do
    # In a session of its own, so that Ctrl-C comes to `stop` alone. A machine that is gone has
    # failed after a minute and a half.
    setsid ssh -n -o ServerAliveInterval=30 "${hosts[$number]}" \
        "cd $(printf %q "$PWD") && exec accelerate launch --config_file launch/$file.yaml \
        --max_restarts 3 --num_machines ${#hosts[@]} \
        --num_processes $((${#hosts[@]} * gpus)) --machine_rank $number \
        --main_process_ip $first --main_process_port $port \
        train/main.py --recipe $(printf %q "$recipe") --run $(printf %q "$run") --resume" &
done

status=0
while [[ $(jobs -rp) ]]; do
    wait -n || status=$?
    # A host that failed takes the others with it: they would wait for it.
    if [[ $status -ne 0 && ! $asked ]]; then
        end
    fi
done
exit "$status"
