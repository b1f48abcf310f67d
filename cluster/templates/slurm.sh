#!/usr/bin/env bash
@OPTIONS@
#
# Submit with: sbatch FILE. The same job again goes on with what it has left, and so does a job that Slurm queues again.
set -euo pipefail

@REQUIRED@
@ENVIRONMENT@
@SETUP@
@AUTH@
export RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
# the address that the other nodes reach: names of nodes may stand for 127.0.0.1 on the node itself
address=$(getent ahostsv4 "$head" | awk '$1 !~ /^127\./ { print $1; exit }' || true)
address=${address:-$(hostname -I | awk '{ print $1 }')}
# ports of its own for every job, so that two may share a node
port=$((20000 + SLURM_JOB_ID % 1000 * 10))
scratch=/tmp/ray-$SLURM_JOB_ID
common=(@RESOURCES@ --disable-usage-stats --block
    --min-worker-port=0 --max-worker-port=0
    --dashboard-agent-listen-port=$((port + 1)) --metrics-export-port=$((port + 2)))

steps=()
on_nodes() { # NUMBER NODES COMMAND...: in the background, beside other steps of the job
    srun --overlap --nodes="$1" --ntasks="$1" --ntasks-per-node=1 --nodelist="$2" "${@:3}" &
    steps+=($!)
}

end_ray() {
    if ((${#steps[@]})); then
        kill -TERM "${steps[@]}" 2> /dev/null || true
        wait "${steps[@]}" 2> /dev/null || true
        steps=()
    fi
}
trap end_ray EXIT

driver=
asked=
taken=
ask_to_save() {
    asked=1
    if [[ -n $driver ]]; then kill -TERM "$driver" 2> /dev/null || true; fi
}
trap ask_to_save USR1 # Slurm's, before the time limit
trap 'taken=1; ask_to_save' TERM # scancel, or a job that takes the nodes: then Slurm itself queues this one again

on_nodes 1 "$head" ray start --head --node-ip-address="$address" --port="$port" --temp-dir="$scratch" \
    --dashboard-port=$((port + 3)) --ray-client-server-port=$((port + 4)) "${common[@]}"
for _ in $(seq 60); do
    if ray health-check --address "$address:$port" > /dev/null 2>&1; then break; fi
    if ! kill -0 "${steps[0]}" 2> /dev/null; then break; fi
    sleep 2 &
    wait $! || true # a signal ends the wait
done
if ((${#nodes[@]} > 1)); then
    others=$(IFS=,; echo "${nodes[*]:1}")
    on_nodes $((${#nodes[@]} - 1)) "$others" ray start --address="$address:$port" "${common[@]}"
fi
# until all nodes have joined; fewer than all are the command's to judge
python -c '
import sys, time, ray
ray.init(address=sys.argv[1], logging_level="error")
end = time.monotonic() + 300
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]) and time.monotonic() < end:
    time.sleep(2)
' "$address:$port" "${#nodes[@]}" &
wait $! || true

export RAY_ADDRESS=$address:$port
@COMMAND@ &
driver=$!
if [[ -n $asked ]]; then ask_to_save; fi
while kill -0 "$driver" 2> /dev/null; do
    sleep 1 &
    wait $! || true # a signal ends this wait, and the trap passes it on
done
code=0
wait "$driver" || code=$?

if ((code == 0)); then # else its logs are worth a look
    end_ray
    srun --overlap --ntasks-per-node=1 rm -rf "$scratch" || true
fi
if [[ -z $taken ]] && ((code == 75 && ${SLURM_RESTART_COUNT:-0} < @RETRIES@)); then
    echo "saved; queued again to go on"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
