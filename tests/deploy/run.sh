#!/usr/bin/env bash
# Three hosts under systemd, as the guide deploy/systemd/three-members.md makes them: its own command blocks are run, word by
# word, on Debian systems booted in containers and joined by a bridge; then hosts are killed, replaced, frozen and rebooted.
#
#   KVD_BIN, KVCTL_BIN   default target/release/{kvd,kvctl}
#   DEPLOY_CACHE         where the Debian system is kept between runs, default /var/cache/kvd-deploy
#   DEPLOY_LIMIT         seconds for everything, default 1500
#   DEPLOY_KEEP=1        keeps the run's folder: the hosts' disks and consoles
#
# Needs root; installs what is missing with apt. Everything lives in namespaces of the run, so that it ends with it, however that
# ends. The last line is "N passed, N failed, N skipped".
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
KVD_BIN=$(realpath -m "${KVD_BIN:-$target/release/kvd}")
KVCTL_BIN=$(realpath -m "${KVCTL_BIN:-$target/release/kvctl}")
cache=${DEPLOY_CACHE:-/var/cache/kvd-deploy}
limit=${DEPLOY_LIMIT:-1500}

skip() {
	echo "SKIPPED: the deployment test needs $1" >&2
	echo "0 passed, 0 failed, 1 skipped"
	exit 0
}

[[ -x $KVD_BIN && -x $KVCTL_BIN ]] || {
	echo "no binaries at $KVD_BIN and $KVCTL_BIN: run cargo build --release -p kv-server -p kvctl" >&2
	echo "0 passed, 1 failed, 0 skipped"
	exit 1
}
[[ $(id -u) -eq 0 ]] || skip "root"
missing=()
for tool in systemd-nspawn:systemd-container debootstrap:debootstrap ip:iproute2 openssl:openssl curl:curl; do
	command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
done
if [[ ${#missing[@]} -gt 0 ]]; then
	command -v apt-get >/dev/null || skip "${missing[*]}"
	{ apt-get update -q && apt-get install -yq --no-install-recommends "${missing[@]}"; } >&2 ||
		skip "${missing[*]}, which apt-get cannot install"
fi
unshare --mount --pid --net --fork true 2>/dev/null || skip "the right to make namespaces"

# The Debian system of all hosts, from the mirror that apt uses here.
base=$cache/bookworm
if [[ ! -e $base/.complete ]]; then
	mirror=$(apt-get indextargets --format '$(ORIGIN) $(SITE)' 'Created-By: Packages' |
		awk '$1 == "Debian" && $2 !~ /security/ { print $2; exit }')
	echo "-- making a Debian system in $base"
	rm -rf "$base"
	mkdir -p "$cache"
	timeout 900 debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,iproute2 bookworm "$base" \
		${mirror:+"$mirror"} >"$cache/debootstrap.log" 2>&1 || {
		tail -n 5 "$cache/debootstrap.log" >&2
		skip "a Debian mirror (debootstrap failed, see above)"
	}
	touch "$base/.complete"
fi

# A disk file system: the members' logs are synced to it.
work=$(mktemp -d /var/tmp/kvd-deploy.XXXXXX)
control=$(basename "$work")
cleanup() {
	# The run's processes have ended with their namespaces; their control groups are left.
	find /sys/fs/cgroup -depth -type d -path "*/$control*" -exec rmdir {} + 2>/dev/null || true
	[[ -n ${DEPLOY_KEEP:-} ]] && echo "kept: $work" || rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

export KVD_BIN KVCTL_BIN
code=0
timeout --kill-after=10 "$limit" \
	unshare --mount --propagation=private --pid --net --ipc --fork --kill-child --mount-proc \
	"$here/hosts.sh" "$work" "$base" "$control" || code=$?
if [[ ! -e $work/counts ]]; then
	echo "FAIL the run did not come to its end (exit $code; 124: after $limit s)"
	tail -n 3 "$work"/*.console 2>/dev/null || true
	echo "$(grep -c '^ok' "$work/steps" 2>/dev/null || true) passed, 1 failed, 0 skipped"
	exit 1
fi
cat "$work/counts"
exit "$code"
