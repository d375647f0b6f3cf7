#!/usr/bin/env bash
# Fault runs of three members with every checker: MINUTES (default 30) behind links, then NAMESPACE_MINUTES (default 5) in
# network namespaces, and the pauses of a killed and of a moved leader. As root it installs what it needs.
#
#   MINUTES, NAMESPACE_MINUTES   how long; 0 leaves a part out
#   SEED                         of the schedule, default 1
#   FAULTS                       some of them, separated by commas; default all
#   KEEP                         folder for histories and logs of rounds that failed
#   KVD_BIN, FAULTS_BIN          programs built before, with --features disk-faults; built here otherwise
#
# What this machine cannot do is said and counted. The last line is "N passed, N failed, N skipped", in parts of the run;
# the exit code is 0 when nothing failed.
set -uo pipefail
cd "$(dirname "$0")/.."
minutes=${MINUTES:-30} namespace_minutes=${NAMESPACE_MINUTES:-5} seed=${SEED:-1}
target=${CARGO_TARGET_DIR:-$PWD/target}
keep=${KEEP:-$target/faults-kept}
passed=0 failed=0 skipped=0

is_root() { [[ $(id -u) -eq 0 ]]; }

missing=()
for pair in ip:iproute2 nft:nftables mkfs.ext4:e2fsprogs faketime:faketime; do
	command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [[ ${#missing[@]} -gt 0 ]] && is_root; then
	apt-get update -q && apt-get install -yq "${missing[@]}" || echo "some of ${missing[*]} cannot be installed"
fi

if [[ -z ${KVD_BIN:-} ]]; then
	# Never a build that anything else uses.
	cargo build --release -p kv-server --features disk-faults --target-dir "$target/disk-faults" || exit 1
	export KVD_BIN=$target/disk-faults/release/kvd
fi
if [[ -z ${FAULTS_BIN:-} ]]; then
	cargo build --release -p kv-tests --bin faults || exit 1
	FAULTS_BIN=$target/release/faults
fi

part() { # name, command...
	local name=$1 log code
	shift
	log=$(mktemp)
	echo "== $name"
	"$@" 2>&1 | tee "$log"
	code=${PIPESTATUS[0]}
	skipped=$((skipped + $(grep -c '^SKIPPED: .*: ' "$log") / 2))
	rm -f "$log"
	if [[ $code -eq 0 ]]; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		echo "== $name FAILED (exit $code)"
	fi
}

skip() {
	echo "SKIPPED $1: $2"
	skipped=$((skipped + 1))
}

choice=()
[[ -n ${FAULTS:-} ]] && choice=(--faults "$FAULTS")

if [[ $minutes != 0 ]]; then
	part links "$FAULTS_BIN" run --minutes "$minutes" --seed "$seed" --keep "$keep" "${choice[@]}"
fi
if [[ $namespace_minutes != 0 ]]; then
	if ! is_root || ! unshare --net true 2>/dev/null; then
		skip namespaces "network namespaces need root"
	elif ! command -v nft >/dev/null || ! command -v ip >/dev/null; then
		skip namespaces "nft or ip is missing"
	else
		# The bridge and the members' namespaces are within one that ends with the run.
		part namespaces unshare --net "$FAULTS_BIN" run --namespaces --minutes "$namespace_minutes" --seed "$seed" \
			--keep "$keep" "${choice[@]}"
	fi
fi
part failover "$FAULTS_BIN" failover --rounds 10
part move-leader "$FAULTS_BIN" move-leader --rounds 10

echo "$passed passed, $failed failed, $skipped skipped"
[[ $failed -eq 0 ]]
