#!/usr/bin/env bash
# The crash tests in large numbers, random requests of every method to a cluster, and every decoder's fuzz target for a minute.
# Takes about half an hour.
# Counts: KILLS and CUTS per engine, STORM_SECONDS, FUZZ_SECONDS per target, SEED of the first round. Installs what it needs as root.
set -euo pipefail
cd "$(dirname "$0")/.."

kills=${KILLS:-50} cuts=${CUTS:-200} fuzz_seconds=${FUZZ_SECONDS:-60} seed=${SEED:-1}
target=${CARGO_TARGET_DIR:-$PWD/target}
export RUST_BACKTRACE=0

if ! command -v strace >/dev/null; then
	apt-get update -q && apt-get install -yq strace
fi
cargo build --release -p kv-server -p kv-tests --bins
export KVD_BIN=$target/release/kvd
torture=$target/release/torture

"$torture" kill --rounds "$kills" --seed "$seed"
"$torture" cut --rounds "$cuts" --seed "$seed"

# The control: a member without fsync must fail the same checks. Never a build that anything else uses.
cargo build --release -p kv-server --features unsafe-no-fsync --target-dir "$target/unsafe-no-fsync"
KVD_BIN=$target/unsafe-no-fsync/release/kvd "$torture" control --rounds 3 --seed "$seed"

if command -v go >/dev/null; then
	(cd tests/interop && go run ./storm --kvd-bin="$KVD_BIN" --seconds="${STORM_SECONDS:-300}" --seed="$seed")
else
	echo "SKIPPED: random requests need Go"
fi

if ! cargo +nightly --version >/dev/null 2>&1; then
	echo "SKIPPED: fuzzing needs a nightly compiler (rustup toolchain install nightly)"
	exit 0
fi
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
cd fuzz
# The leak check of the sanitizer itself is off as well: it runs before the threads are gone.
export ASAN_OPTIONS=detect_leaks=0
for name in command etcd_file gateway index_record raft snapshot_stream wal_record; do
	echo "== fuzzing $name for $fuzz_seconds s"
	# Threads that end take a moment longer than the process, which is no leak.
	cargo +nightly fuzz run "$name" -- -max_total_time="$fuzz_seconds" -seed="$seed" -detect_leaks=0 -print_final_stats=1
done
