#!/bin/sh
# Builds and runs the tests with the crate etcd-client against one server binary. Its build needs protoc, which is installed
# by apt-get when it is missing and this is root.
#
#   KVD_BIN   the server under test; default ../../target/release/kvd, then ../../target/debug/kvd
#   KVD_ARGS  further flags for the server
#
# Arguments go to the test program. The last line is "N passed, N failed, N skipped". The exit code is 0 when nothing failed.
set -u
cd "$(dirname "$0")"
started=$(date +%s)

finish() { # passed, failed, skipped
    echo "took $(($(date +%s) - started)) s"
    echo "$1 passed, $2 failed, $3 skipped"
    [ "$2" -eq 0 ]
    exit
}

skip_all() {
    echo "SKIPPED rust-client: $1"
    finish 0 0 1
}

fail_all() {
    echo "FAILED rust-client: $1"
    finish 0 1 0
}

# True when protoc is there with the well-known files that etcd's own import; Debian has them in a package apart.
protoc_works() {
    command -v "${PROTOC:-protoc}" >/dev/null 2>&1 || return 1
    printf 'syntax = "proto3"; import "google/protobuf/descriptor.proto"; import "google/protobuf/struct.proto";' >"$TMPDIR/probe.proto"
    "${PROTOC:-protoc}" -I"$TMPDIR" --descriptor_set_out=/dev/null "$TMPDIR/probe.proto" 2>/dev/null
}

if [ -z "${KVD_BIN:-}" ]; then
    for candidate in ../../target/release/kvd ../../target/debug/kvd; do
        if [ -x "$candidate" ]; then
            KVD_BIN=$candidate
            break
        fi
    done
    [ -n "${KVD_BIN:-}" ] || skip_all "no kvd binary, build it or set KVD_BIN"
elif [ ! -x "$KVD_BIN" ]; then
    fail_all "KVD_BIN=$KVD_BIN is not an executable file"
fi
KVD_BIN=$(cd "$(dirname "$KVD_BIN")" && pwd)/$(basename "$KVD_BIN")
export KVD_BIN

# Data folders of servers that a time limit cut off go with this folder.
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

command -v cargo >/dev/null 2>&1 || skip_all "cargo is not installed"
if ! protoc_works; then
    [ "$(id -u)" -eq 0 ] || skip_all "protoc is not installed (packages protobuf-compiler and libprotobuf-dev)"
    command -v apt-get >/dev/null 2>&1 || skip_all "protoc is not installed and there is no apt-get"
    { timeout 60 apt-get update -qq && timeout 120 apt-get install -y -qq --no-install-recommends protobuf-compiler libprotobuf-dev; } \
        >"$TMPDIR/apt.log" 2>&1 || tail -5 "$TMPDIR/apt.log"
    protoc_works || skip_all "protoc cannot be installed"
    echo "protoc installed after $(($(date +%s) - started)) s"
fi

# Its own folder, also when the caller builds the project elsewhere.
export CARGO_TARGET_DIR="$PWD/target"
timeout 500 nice -n 5 cargo test --locked --quiet --no-run || fail_all "the tests do not build"
echo "built after $(($(date +%s) - started)) s"

echo "server under test: $KVD_BIN"
timeout --kill-after=10 300 nice -n 5 cargo test --locked --test etcd_client -- "$@" >"$TMPDIR/test.log" 2>&1
code=$?
cat "$TMPDIR/test.log"
counts=$(awk '/^test result:/ {print $4, $6, $8}' "$TMPDIR/test.log")
# A time limit leaves no result.
[ -n "$counts" ] || fail_all "the tests ended with exit code $code and no result"
set -- $counts
finish "$1" "$2" "$3"
