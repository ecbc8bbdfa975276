#!/bin/sh
# Make what a federation needs to begin: a share of a data set for each agent, test images for the evaluator and
# the initial model. Does nothing when the folder is there already.
#
#   setup.sh FOLDER
#
# SHARDS  how many shares; 8
# DATA    what `fedmq shards --data` takes; digits
set -eu
folder=$1

if [ -d "$folder" ]; then
    echo "$folder is there already; nothing is changed"
    exit
fi
# The folder appears whole or not at all, however often this is interrupted.
rm -rf "$folder.new"
mkdir -p "$folder.new"
fedmq shards "$folder.new" --clients "${SHARDS:-8}" --data "${DATA:-digits}"
fedmq init "$folder.new/initial.safetensors" --trainer mlp --local "data=$folder.new/test.npz"
rm -rf "$folder.new/cache"
mv "$folder.new" "$folder"
