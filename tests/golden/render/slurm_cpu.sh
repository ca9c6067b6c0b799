#!/bin/bash -l
#SBATCH --job-name=rlhf-base-5e6f7a8b
#SBATCH --comment=rlhf:rlhf-base-5e6f7a8b
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=3
#SBATCH --mem=11G
#SBATCH --signal=B:TERM@660
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --export=NIL
#SBATCH --output=/shared/jobs/rlhf-base-5e6f7a8b/job-%j.log

place=/shared/jobs/rlhf-base-5e6f7a8b
folder="$SLURM_SUBMIT_DIR"
num_gpus=0
grace_s=600
join_s=300
command=(rlhf run /shared/base.yaml)
activate() {
    :
}

# Start Ray on the nodes of this job, run the command on it, and end with the command's exit code.
# A job that loses a node, or reaches its time limit, goes back into the queue; its run goes on from its checkpoint.
# shellcheck disable=SC2154 # the lines above set: place folder num_gpus grace_s join_s command activate
if ! activate; then
    echo "rlhf: the target's activate line failed" >&2
    exit 3
fi
set -uo pipefail
ulimit -Sn "$(ulimit -Hn)"
export num_gpus SLURM_EXPORT_ENV=ALL PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
export private=$place/private-$SLURM_JOB_ID scratch=${TMPDIR:-/tmp}/rlhf-$SLURM_JOB_ID
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$private/token
[ ${#scratch} -le 43 ] || scratch=/tmp/rlhf-$SLURM_JOB_ID # the path of a socket has at most 107 letters
run='' told='' head='' workers=''

tell() { printf 'rlhf: %s\n' "$*" >&2; }

note() { # WORD…: how far the job is
    local file=$place/state-$SLURM_JOB_ID
    echo "$*" > "$file.new" && mv "$file.new" "$file"
}

address_of() { # NODE: the address at which Slurm itself reaches it
    local name
    name=$(scontrol show node "$1" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    { getent ahostsv4 "${name:-$1}" | cut -d ' ' -f 1; hostname -I | tr ' ' '\n'; } | grep -v '^127\.' | grep -m 1 '\.'
}

serve() { # ARGUMENT…: run Ray on this node until it ends; if nobody has ended it, print its last words
    local node=$SLURMD_NODENAME log=$private/ray-$SLURMD_NODENAME.log ray code
    if ! : > "$log" || ! [ -r "$RAY_AUTH_TOKEN_PATH" ]; then
        tell "$node cannot use $private: work_dir must be on storage that every node sees"
        return 3
    fi
    [ -z "${SLURM_STEP_ID:-}" ] || echo "$SLURM_JOB_ID.$SLURM_STEP_ID" > "$private/step"
    (
        rm -rf "$scratch" && mkdir -m 700 "$scratch" && exec ray start --block --disable-usage-stats \
            --node-name="$node" --node-ip-address="$(address_of "$node")" --temp-dir="$scratch" \
            --num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="$num_gpus" --min-worker-port=0 --max-worker-port=0 \
            --dashboard-agent-listen-port=0 "$@"
    ) > "$log" 2>&1 &
    ray=$!
    trap 'kill "$ray" 2> /dev/null' TERM
    while kill -0 "$ray" 2> /dev/null; do wait "$ray"; done
    wait "$ray"
    code=$?
    rm -rf "$scratch"
    [ ! -e "$private/ending" ] || return 0
    tell "Ray has ended on $node with exit code $code; its last words:"
    tail -n 15 "$log" | sed "s/^/$node: /" >&2
    return $((code ? code : 1))
}

alive() { kill -0 "$1" 2> /dev/null; }

whole() { # whether Ray runs on every node, as far as this one knows
    alive "$head" && { [ -z "$workers" ] || alive "$workers"; }
}

all_nodes() { # SECONDS: wait until all nodes are in the Ray cluster
    # shellcheck disable=SC2046
    exec python -P -m orchestrator.cluster.ray_nodes --within "$1" $(scontrol show hostnames "$SLURM_JOB_NODELIST")
}

stop_ray() {
    trap '' TERM
    touch "$private/ending"
    if [ -n "$workers" ] && alive "$workers"; then
        scancel --signal=TERM "$(cat "$private/step")" 2> /dev/null
        for _ in {1..60}; do alive "$workers" && sleep 0.5; done
    fi
    # shellcheck disable=SC2086
    kill $workers $head 2> /dev/null
    wait
    rm -rf "$private"
}

end() { # CODE: end the job
    stop_ray
    note ended "$1"
    exit "$1"
}

again() { # CODE WHY: end the job and let Slurm start it again, unless a person has stopped or cancelled it
    if [ -e "$place/stop" ] || [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" != RUNNING ]; then
        end "$1"
    fi
    if [ "${SLURM_RESTART_COUNT:-0}" -ge 100 ]; then
        tell "$2, and the job has been started 100 times: it is not started again; rlhf resume goes on"
        end "$1"
    fi
    tell "$2: the job goes back into the queue, and its run goes on from the newest checkpoint"
    stop_ray
    note requeued
    scontrol requeue "$SLURM_JOB_ID" || note ended "$1"
    exit "$1"
}

unjoined() { # end a job whose Ray did not start; one that has run before tries again, up to three times in a row
    echo "$SLURM_JOB_ID" >> "$place/unjoined"
    if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ "$(grep -c "^$SLURM_JOB_ID$" "$place/unjoined")" -le 3 ]; then
        again 3 "Ray did not start on every node"
    fi
    end 3
}

# shellcheck disable=SC2317 # called by the trap
asked() { # Slurm wants the nodes back soon: the run is told once, and ends with a checkpoint
    [ -z "$told" ] || return
    told=$SECONDS
    [ -z "$run" ] || kill -TERM "$run" 2> /dev/null
}
trap asked TERM

# ---------------------------------------------------------------------------------------- Ray on every node

mkdir -p "$place" && rm -rf "$private" "$scratch" && mkdir -m 700 "$private" || exit 3
note starting
(umask 077 && od -An -tx1 -N32 /dev/urandom | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")
# Ray chooses its ports, so that jobs can share a node; this one, which nobody uses, it cannot choose.
port=$(python -c 'import socket; s = socket.create_server(("", 0)); print(s.getsockname()[1])')
serve --head --port=0 --ray-client-server-port="$port" --include-dashboard=false &
head=$!
while alive "$head" && ! [ -s "$scratch/ray_current_cluster" ]; do sleep 0.5; done
alive "$head" || unjoined
RAY_ADDRESS=$(< "$scratch/ray_current_cluster")
export RAY_ADDRESS
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    others=$((SLURM_JOB_NUM_NODES - 1))
    srun --quiet --overlap --nodes=$others --ntasks=$others --ntasks-per-node=1 --exclude="$SLURMD_NODENAME" \
        --kill-on-bad-exit=1 bash -c "$(declare -f tell address_of serve); serve --address=$RAY_ADDRESS" &
    workers=$!
fi
all_nodes "$join_s" &
joined=$!
while alive "$joined" && whole && [ -z "$told" ]; do sleep 0.5; done
kill "$joined" 2> /dev/null
wait "$joined"
joined=$?
[ -z "$told" ] || again 143 "Slurm wants the nodes back before the run has begun"
[ "$joined" -eq 0 ] || unjoined
rm -f "$place/unjoined"

# ---------------------------------------------------------------------------------------- the run

cd "$folder" || end 3
[ ! -e "$place/stop" ] || end 143
"${command[@]}" &
run=$!
[ -z "$told" ] || kill -TERM "$run" # it came a moment before
note running
lost=''
while alive "$run"; do
    sleep 0.5
    whole || lost=${lost:-$SECONDS}
    if [ -n "$lost" ] && [ $((SECONDS - lost)) -gt 90 ]; then kill -KILL "$run"; fi # Ray ends it after 60 s
    if [ -n "$told" ] && [ $((SECONDS - told)) -gt $((grace_s + 30)) ]; then kill -KILL "$run"; fi
done
wait "$run"
code=$?
[ "$code" -ne 0 ] || end 0
[ -z "$told" ] || again "$code" "Slurm wants the nodes back"
case $code in 2 | 5 | 6 | 130 | 143) end "$code" ;; esac # the run itself has decided to end
if [ -n "$lost" ] || ! (all_nodes 0); then again "$code" "a node is lost"; fi
end "$code"
