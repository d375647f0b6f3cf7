#!/bin/sh
# Runs the tests with the PyPI client etcd3 against one server binary. Installs the pinned packages into .venv once.
#
#   KVD_BIN   the server under test; default ../../target/release/kvd, then ../../target/debug/kvd
#   KVD_ARGS  further flags for the server
#   PYTHON    the interpreter, default python3
#
# Arguments go to pytest. The last line is "N passed, N failed, N skipped". The exit code is 0 when nothing failed.
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
    echo "SKIPPED python: $1"
    finish 0 0 1
}

fail_all() {
    echo "FAILED python: $1"
    finish 0 1 0
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

python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || skip_all "$python is not installed"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || skip_all "$python is older than 3.10"

stamp="$("$python" --version) $(cksum <requirements.txt)"
if [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ]; then
    rm -rf .venv
    "$python" -m venv .venv || skip_all "$python cannot make a virtual environment (package python3-venv)"
    timeout 300 .venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt || fail_all "the packages cannot be installed"
    echo "$stamp" >.venv/stamp
    echo "packages installed after $(($(date +%s) - started)) s"
fi

echo "server under test: $KVD_BIN"
# Data folders of servers and the report go with this folder.
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
report=$TMPDIR/report.xml
# grpc's fork handlers can wait for a thread of its own for ever when a test starts a server.
export GRPC_ENABLE_FORK_SUPPORT=0
timeout --kill-after=10 300 nice -n 5 .venv/bin/python -B -m pytest --quiet --durations=5 --basetemp="$TMPDIR/tests" --junitxml="$report" "$@"
code=$?
[ -f "$report" ] || fail_all "pytest made no report, exit code $code"
counts=$(.venv/bin/python - "$report" <<'EOF'
import sys
import xml.etree.ElementTree as tree

suite = tree.parse(sys.argv[1]).getroot().find("testsuite")
total, failures, errors, skipped = (int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped"))
failed = failures + errors
print(total - failed - skipped, failed, skipped)
EOF
)
set -- $counts
# An end without a failed test, such as no test at all, is a failure too.
[ $code -eq 0 ] || [ "$2" -gt 0 ] || fail_all "pytest ended with exit code $code"
finish "$1" "$2" "$3"
