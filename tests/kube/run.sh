#!/usr/bin/env bash
# Runs unmodified kube-apiservers on the store and checks it through them. Arguments go to kubescenario, such as
#   -self-check    to see that the scenario notices a store that breaks its promises
#   -kills 20      for a longer load
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
exec "$here/bin/kubescenario" "$@"
