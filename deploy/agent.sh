#!/bin/sh
# Run one of several agents that share a folder, such as the replicas of a compose service. Each takes the first
# number that no other holds, and with it a client id, an outbox and a shard of the data. The lock goes with the
# process, however it ends; whoever takes the number next goes on with the outbox.
#
#   agent.sh STATE DATA [FLAG ...]
#
# STATE  folder for the outboxes, on one host: locks do not reach over every network file system
# DATA   folder of shard-0.npz, shard-1.npz …; with more agents than shards, some share one
set -eu
state=$1 data=$2
shift 2

shards=0
while [ -e "$data/shard-$shards.npz" ]; do shards=$((shards + 1)); done
if [ "$shards" -eq 0 ]; then
    echo "agent.sh: $data holds no shard-0.npz: run the setup first" >&2
    exit 2
fi

number=0
while :; do
    exec 9>"$state/agent-$number.lock"
    taken=0
    flock --nonblock --conflict-exit-code 75 9 || taken=$?
    case $taken in
        0) break ;;
        75) number=$((number + 1)) ;;
        *) exit "$taken" ;;
    esac
done

# The lock's descriptor stays open across exec.
exec fedmq agent \
    --client "agent-$number" \
    --outbox-folder "$state/agent-$number" \
    --trainer-settings "data=$data/shard-$((number % shards)).npz" \
    "$@"
