#!/bin/sh
# Sends generated requests to etcd and kvd in every combination of members, auth, TLS and engine and compares every answer.
#
#   KVD_BIN           the server under test; default ../target/release/kvd
#   DIFFER_REQUESTS   requests over all combinations, default 100000
#   DIFFER_SEED       seed of the first combination, the others count up from it; default 1
#   DIFFER_PARALLEL   combinations that run at the same time, default 2
#   RUN_LOGS          folder for the complete outputs, default interop/bin/logs/differ
#
# One line per combination as it ends; a failed one is repeated by the command that its log begins with. The last line is
# "N passed, N failed, N skipped". The exit code is 0 when nothing failed.
set -u
cd "$(dirname "$0")/interop"
KVD_BIN=${KVD_BIN:-../../target/release/kvd}
if [ ! -x "$KVD_BIN" ]; then
    echo "FAILED differ: no binary at KVD_BIN=$KVD_BIN, build it with cargo build --release -p kv-server"
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi
KVD_BIN=$(cd "$(dirname "$KVD_BIN")" && pwd)/$(basename "$KVD_BIN")
export KVD_BIN
DIFFER_LOGS=${RUN_LOGS:-bin/logs/differ}
export DIFFER_LOGS
rm -rf "$DIFFER_LOGS"
mkdir -p "$DIFFER_LOGS"
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
./build.sh >"$DIFFER_LOGS/build.log" 2>&1 || {
    tail -20 "$DIFFER_LOGS/build.log"
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
}

each=$((${DIFFER_REQUESTS:-100000} / 24))
seed=${DIFFER_SEED:-1}
for members in 3 1; do
    for auth in off simple jwt; do
        for tls in false true; do
            for engine in redb sled; do
                echo "--members=$members --auth=$auth --tls=$tls --engine=$engine --requests=$each --seed=$seed"
                seed=$((seed + 1))
            done
        done
    done
done | xargs -P "${DIFFER_PARALLEL:-2}" -I{} sh -c '
    # shellcheck disable=SC2086  # the flags are words
    set -- {}
    log=$DIFFER_LOGS/$(echo "$*" | tr -d " -" | tr = -).log
    echo "bin/differ --kvd-bin=$KVD_BIN $*" >"$log"
    timeout 900 nice -n 5 bin/differ --kvd-bin="$KVD_BIN" "$@" >>"$log" 2>&1
    code=$?
    tail -n 1 "$log"
    [ $code -eq 0 ] || grep -A4 -e "^DIFFERENCE" -e "^never" "$log" | cut -c1-400 | head -40
'
passed=$(grep -l "^differ: ok" "$DIFFER_LOGS"/members*.log 2>/dev/null | wc -l)
failed=$((24 - passed))
cat "$DIFFER_LOGS"/members*.log | awk '/^differ: (ok|FAILED)/ {
    for (i = 1; i <= NF; i++) { if ($i == "requests,") requests += $(i - 1); if ($i == "differences,") differences += $(i - 1) }
} END { print requests + 0 " requests, " differences + 0 " differences" }'
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
