#!/bin/sh
# Builds the pinned Go tools, then runs every interop test against kvd and the differ over a few combinations.
#
#   KVD_BIN          the server under test; default ../../target/release/kvd, then ../../target/debug/kvd
#   DIFFER_REQUESTS  requests of the differ over all its combinations, default 5000
#   DIFFER_SEED      seed of the differ, default 1
#   DIFFER_ENGINE    "none" passes no engine flag to the server under test
#   RUN_LOGS         folder for the complete output, default bin/logs
#
# The last line is "N passed, N failed, N skipped". The exit code is 0 when nothing failed.
set -u
cd "$(dirname "$0")"
started=$(date +%s)
passed=0
failed=0
skipped=0

finish() {
    echo "took $(($(date +%s) - started)) s"
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ]
    exit
}

skip_all() {
    echo "SKIPPED interop: $1"
    skipped=1
    finish
}

command -v go >/dev/null 2>&1 || skip_all "Go is not installed"
if [ -z "${KVD_BIN:-}" ]; then
    for candidate in ../../target/release/kvd ../../target/debug/kvd; do
        if [ -x "$candidate" ]; then
            KVD_BIN=$candidate
            break
        fi
    done
    [ -n "${KVD_BIN:-}" ] || skip_all "no kvd binary, build it or set KVD_BIN"
elif [ ! -x "$KVD_BIN" ]; then
    echo "KVD_BIN=$KVD_BIN is not an executable file"
    failed=1
    finish
fi
KVD_BIN=$(cd "$(dirname "$KVD_BIN")" && pwd)/$(basename "$KVD_BIN")
export KVD_BIN

logs=${RUN_LOGS:-bin/logs}
mkdir -p "$logs"
# Data folders of servers that a time limit cut off go with this folder. A server dies with the program that started it.
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

part() { # name, log file, command...
    name=$1 log=$2
    shift 2
    part_started=$(date +%s)
    "$@" >"$log" 2>&1
    code=$?
    echo "$name: exit $code, $(($(date +%s) - part_started)) s"
    return $code
}

if ! part "build" "$logs/build.log" ./build.sh; then
    tail -20 "$logs/build.log"
    failed=1
    finish
fi

echo "server under test: $KVD_BIN"
part "go test" "$logs/gotest.log" timeout 720 nice -n 5 go test -p 1 -count=1 -timeout 300s -v ./...
code=$?
grep -E '^ *--- (PASS|FAIL|SKIP)|^(FAIL|ok|panic)|SKIPPED' "$logs/gotest.log"
# Tests with parts are counted by their parts.
count() {
    awk -v want="$1" '/^ *--- (PASS|FAIL|SKIP)/ {
        indented = $0 ~ /^ /
        if (last != "" && !indented) n += last == want
        if (indented) { n += $2 == want ":"; last = "" } else { last = $2; sub(":", "", last) }
    } END { if (last != "") n += last == want; print n + 0 }' "$logs/gotest.log"
}
passed=$((passed + $(count PASS)))
failed=$((failed + $(count FAIL)))
skipped=$((skipped + $(count SKIP) + $(grep -c '^SKIPPED interop' "$logs/gotest.log")))
# A package that does not build or hangs has no test line of its own.
if [ $code -ne 0 ]; then
    [ "$(count FAIL)" -gt 0 ] || failed=$((failed + 1))
    grep -vE '^=== (RUN|PAUSE|CONT)|^ *--- PASS' "$logs/gotest.log" | tail -60
fi

log=$logs/differ.log
if part "differ" "$log" timeout 900 nice -n 5 bin/differ --etcd-bin=bin/etcd --kvd-bin="$KVD_BIN" --plan=short \
    --engine="${DIFFER_ENGINE:-}" --requests="${DIFFER_REQUESTS:-5000}" --seed="${DIFFER_SEED:-1}"; then
    passed=$((passed + 1))
    tail -1 "$log"
else
    failed=$((failed + 1))
    grep -A5 '^DIFFERENCE' "$log" | cut -c1-600 | head -60
    tail -20 "$log" | cut -c1-600
fi
finish
