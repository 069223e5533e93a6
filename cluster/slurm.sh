#!/usr/bin/env bash
# sbatch cluster/slurm.sh --config sd15_spo run.dir=/shared/runs/sd15
# One Ray cluster inside the allocation: driver and learner on the first node, rollout workers and evaluator elsewhere.
# Slurm signals this script two minutes before the time limit; the run then saves, and the job is queued again.
#SBATCH --job-name=atelier
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?run this with sbatch, from the root of the repository}"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN="$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')" # this job's own; srun hands it on
export RAY_AUTH_TOKEN

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# As Ray sees it: the host's name may stand for a loopback address in /etc/hosts.
head_address="$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
    python -c 'import ray; print(ray.util.get_node_ip_address())' | tail -n 1)"
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs may share a node

start_node() { # node, arguments of ray start
    srun --nodes=1 --ntasks=1 --nodelist="$1" --overlap ray start --block --temp-dir="/tmp/ray-$SLURM_JOB_ID" "${@:2}" &
}
start_node "${nodes[0]}" --head --node-ip-address="$head_address" --port="$port" --include-dashboard=false \
    --resources='{"learner_node": 1}'
head=$!
until ray status --address="$head_address:$port" >/dev/null 2>&1; do
    kill -0 "$head" 2>/dev/null || { echo "ray start ended on ${nodes[0]}: see its lines above" >&2; exit 1; }
    sleep 2
done
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap \
        ray start --block --address="$head_address:$port" --resources='{"rollout_node": 1}' &
done

python -m learner.main --address "$head_address:$port" --resume auto \
    learner.resources.custom.learner_node=0.01 rollout.workers.resources.custom.rollout_node=0.01 \
    evaluation.resources.custom.rollout_node=0.01 "$@" &
driver=$!
trap 'kill -TERM "$driver"' TERM INT # the driver alone: it saves, then ends everything of its own
status=0
wait "$driver" || status=$?
while kill -0 "$driver" 2>/dev/null; do wait "$driver" && status=0 || status=$?; done
if [ "$status" = 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
