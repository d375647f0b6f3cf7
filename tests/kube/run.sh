#!/usr/bin/env bash
# Runs unmodified kube-apiservers on the store and checks it through them: the whole scenario on one member, then start, load
# and verification on three. With arguments, which go to kubescenario, it is one run as they say, such as
#   -self-check            to see that the scenario notices a store that breaks its promises
#   -kills 20              for a longer load
#   -members 3 -kills 10   for the whole scenario on three members
# KVD_BIN names the store; anything that takes etcd's flags will do.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export KVD_BIN=${KVD_BIN:-$here/../../target/release/kvd}

if ! command -v go >/dev/null; then
	echo "SKIPPED: the kube-apiserver test needs Go ($(sed -n 's/^go //p' "$here/go.mod") or newer) on the PATH" >&2
	echo "0 passed, 0 failed, 1 skipped"
	exit 0
fi
if [[ ! -x $KVD_BIN ]]; then
	echo "no store at $KVD_BIN: run cargo build --release, or set KVD_BIN" >&2
	echo "0 passed, 1 failed"
	exit 1
fi

started=$(date +%s)
"$here/build.sh"
echo "build took $(($(date +%s) - started)) s"
[[ $# -eq 0 ]] || exec "$here/bin/kubescenario" "$@"

passed=0 failed=0
scenario() {
	echo "-- kubescenario $*"
	"$here/bin/kubescenario" "$@" | tee "$log" || true
	local counts
	counts=$(tail -n 1 "$log" | grep -E '^[0-9]+ passed, [0-9]+ failed$') || counts="0 passed, 1 failed"
	read -r p _ f _ <<<"$counts"
	passed=$((passed + p)) failed=$((failed + f))
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
scenario
scenario -members 3 -short -kills 2
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
