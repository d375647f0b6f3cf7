#!/usr/bin/env bash
# Simulated clusters in large numbers: tests/simulate.sh [SEEDS] [FIRST_SEED]; 1,000 seeds from 1 on take some minutes.
# Built with tokio_unstable, which lets a seed replay event by event, in a folder of its own.
# A failure prints its seed and what happened before: tests/simulate.sh 1 SEED runs it again.
set -euo pipefail
cd "$(dirname "$0")/.."

export KVD_SIM_SEEDS=${1:-1000} KVD_SIM_FIRST_SEED=${2:-1}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/simulation
export RUSTFLAGS="${RUSTFLAGS:-} --cfg tokio_unstable"

started=$(date +%s)
cargo test --release -p kv-raft --test simulation -- --nocapture
echo "$KVD_SIM_SEEDS seeds from $KVD_SIM_FIRST_SEED on passed in $(($(date +%s) - started)) s"
