#!/bin/sh
# Runs every client that is not ours against one kvd binary: Go with a real etcd beside it, etcdctl changing
# the members of a cluster, Python, Rust.
#
#   KVD_BIN        the server under test; default ../target/release/kvd
#   INTEROP_LIMIT  seconds for everything, default 1170; a part that does not fit counts as failed
#   GO_BUILD_JOBS  packages that Go compiles at once, default 2
#
# Each part prints its own counts. The last line is "N passed, N failed, N skipped", the sum of them. The exit code is 0 when
# nothing failed.
set -u
cd "$(dirname "$0")"
begun=$(date +%s)
limit=${INTEROP_LIMIT:-1170}
KVD_BIN=${KVD_BIN:-../target/release/kvd}
export KVD_BIN
export GO_BUILD_JOBS="${GO_BUILD_JOBS:-2}"
passed=0
failed=0
skipped=0

if [ ! -x "$KVD_BIN" ]; then
    echo "FAILED interop: no binary at KVD_BIN=$KVD_BIN, build it with cargo build --release -p kv-server"
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi
KVD_BIN=$(cd "$(dirname "$KVD_BIN")" && pwd)/$(basename "$KVD_BIN")

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

part() { # name, command
    name=$1 log=$logs/$1
    part_begun=$(date +%s)
    left=$((begun + limit - part_begun))
    echo "-- $name"
    if [ "$left" -le 0 ]; then
        echo "-- $name FAILED: no time left of $limit s"
        failed=$((failed + 1))
        return
    fi
    # The exit code goes through a file: a pipe keeps only tee's.
    { timeout --kill-after=20 "$left" "$2" 2>&1 || echo $? >"$log.code"; } | tee "$log"
    code=$(cat "$log.code" 2>/dev/null || echo 0)
    echo "-- $name took $(($(date +%s) - part_begun)) s"
    counts=$(grep -Ex '[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped' "$log" | tail -n 1)
    if [ -z "$counts" ]; then
        echo "-- $name FAILED: exit code $code and no counts"
        counts="0 passed, 1 failed, 0 skipped"
    fi
    # shellcheck disable=SC2086  # split into words on purpose
    set -- $counts
    [ "$code" -eq 0 ] || [ "$3" -gt 0 ] || set -- "$1" passed, 1 failed, "$5"
    passed=$((passed + $1)) failed=$((failed + $3)) skipped=$((skipped + $5))
}

part go interop/run.sh
# With the tools that the part before has built.
part members interop/members.sh
part python python/run.sh
part rust-client rust-client/run.sh

echo "interop took $(($(date +%s) - begun)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
