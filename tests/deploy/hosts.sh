#!/usr/bin/env bash
# The run itself, in namespaces of its own: started by run.sh with the run's folder, the Debian system and a name for control groups.
set -euo pipefail
work=$1 base=$2 control=$3
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
admin=$work/admin
# shellcheck source=SCRIPTDIR/machine.sh
. "$here/machine.sh"
# shellcheck source=SCRIPTDIR/guide.sh
. "$here/guide.sh"

passed=0 failed=0 last=0
# Runs one step and goes on, whatever came out. Never say `step ... || x`: left of || nothing in it would stop at an error.
step() { # name, command...
	local name=$1 code=0 began=$SECONDS
	shift
	set +e
	(set -e; "$@") >"$work/output" 2>&1
	code=$?
	set -e
	if [[ $code -eq 0 ]]; then
		passed=$((passed + 1))
		echo "ok   $name ($((SECONDS - began)) s)" | tee -a "$work/steps"
		sed 's/^/     | /' "$work/output"
	else
		failed=$((failed + 1))
		echo "FAIL $name ($((SECONDS - began)) s)" | tee -a "$work/steps"
		tail -n 25 "$work/output" | sed 's/^/     | /'
	fi
	last=$code
}

# A step without which going on makes no sense.
must() { # name, command...
	local host
	step "$@"
	[[ $last -ne 0 ]] || return 0
	for host in n1 n2 n3 n4; do
		[[ -e $work/$host.pid ]] || continue
		inside "$host" "journalctl -u kvd -n 8 --no-pager -o cat" 2>/dev/null | sed "s/^/     $host | /" || true
	done
	finish
}

finish() {
	echo "$passed passed, $failed failed, 0 skipped" >"$work/counts"
	[[ $failed -eq 0 ]]
	exit
}

# -- what is known of the data

# Writes one key, tries once more if that fails, and notes what was acknowledged.
put() { # key
	local value="$1 $RANDOM"
	kvctl put "$1" "$value" >/dev/null 2>>"$work/retries" || kvctl put "$1" "$value" >/dev/null || return
	printf '%s\n%s\n' "$1" "$value" >>"$work/acknowledged"
}

put_some() { # prefix
	local n
	for n in $(seq 1 20); do put "$1/$n"; done
}

# Every acknowledged write is there, read from one member alone.
all_is_there() { # endpoint
	KVCTL_ENDPOINTS=$1 kvctl get "" --prefix --consistency=s >"$work/there"
	# Each key is written once.
	diff <(paste - - <"$work/acknowledged" | sort) <(paste - - <"$work/there" | sort) || {
		echo "$1 has other data than was acknowledged"
		return 1
	}
}

members_agree() {
	local hashes
	kvctl endpoint hashkv >"$work/hashes"
	hashes=$(awk -F', ' '{ print $2, $3 }' "$work/hashes" | sort -u | wc -l)
	[[ $hashes -eq 1 && $(wc -l <"$work/hashes") -eq 3 ]] || {
		cat "$work/hashes"
		return 1
	}
}

cluster_is_whole() {
	local endpoint
	try_for 120 quiet kvctl endpoint health
	try_for 60 quiet members_agree
	for endpoint in ${KVCTL_ENDPOINTS//,/ }; do all_is_there "$endpoint"; done
	echo "$(($(wc -l <"$work/acknowledged") / 2)) keys on each of three members, hashes equal"
}

# `! command` is no failure to `set -e`; this is.
fails() { ! "$@"; }
quiet() { "$@" >/dev/null 2>&1; }

property() { inside "$1" "systemctl show --property=$2 --value kvd"; } # host, property
has_property() { [[ $(property "$1" "$2") == "$3" ]]; }
# On the host's own metrics address.
is_ready() { inside "$1" "exec 3<>/dev/tcp/127.0.0.1/2381; printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3; head -n 1 <&3" 2>/dev/null | grep -q ' 200 '; }
journal_grep() { [[ -n $(journal_says "$1" "$2") ]]; }
journal_says() { inside "$1" "journalctl -u kvd --no-pager -o cat" | grep -E "$2" | tail -n 1 | cut -c 1-300; }

leader() { # name of the host that leads
	local endpoint
	endpoint=$(kvctl endpoint status 2>/dev/null | awk -F', ' '$9 == "true" { print $1; exit }')
	echo "${host_of[${endpoint%:*}]}"
}

# -- steps

boot_hosts() {
	local host
	for host in n1 n2 n3; do make_host "$host"; done
	for host in n1 n2 n3; do power_on "$host"; done
	for host in n1 n2 n3; do wait_booted "$host"; done
	inside n1 "systemctl --version | head -n 1; systemctl is-system-running" || true
}

install_host() { # host
	on_admin copy "$1"
	on_host "$1" install
	inside "$1" "grep -E '^ETCD_(NAME|LISTEN_CLIENT_URLS|INITIAL_CLUSTER)=' /etc/kvd/kvd.env"
}

# Type=notify: a unit that became active was told READY=1 by the member. As with etcd that does not wait for a majority for long.
first_starts() {
	on_host n1 start
	try_for 60 has_property n1 ActiveState active
	has_property n1 Type notify
	fails is_ready n1
}

others_start() {
	local host
	for host in n2 n3; do on_host "$host" start; done
	for host in n1 n2 n3; do
		try_for 120 has_property "$host" ActiveState active
		try_for 60 is_ready "$host"
	done
}

looks_well() {
	on_admin look
	[[ $(kvctl member list | grep -c ', started, ') -eq 3 ]]
}

tls_is_on() {
	# Without a certificate, with one of another authority, and in plain text.
	fails curl -sk --max-time 10 https://10.0.0.1:2379/health
	fails curl -s --max-time 10 http://10.0.0.1:2379/health
	(cd "$work" && kvctl cert create --dir other --client stranger >/dev/null)
	fails curl -sk --max-time 10 --cert "$work/other/stranger.crt" --key "$work/other/stranger.key" https://10.0.0.1:2379/health
	fails curl -sk --max-time 10 https://10.0.0.1:2380/members
	curl -s --fail --max-time 10 --cacert certs/ca.crt --cert certs/admin.crt --key certs/admin.key https://10.0.0.1:2379/health
	echo
}

hardening_holds() {
	local pid status
	pid=$(property n1 MainPID)
	status=$(inside n1 "cat /proc/$pid/status; ls -ld /var/lib/kvd /etc/kvd/certs; stat -c %U /proc/$pid")
	grep -Eq '^NoNewPrivs:\s+1$' <<<"$status"
	grep -Eq '^Seccomp:\s+2$' <<<"$status"
	grep -Eq '^CapBnd:\s+0+$' <<<"$status"
	grep -Eq '^kvd$' <<<"$status"
	grep -Eq '^drwx------.* kvd +kvd .*/var/lib/kvd$' <<<"$status"
	grep -Eq '^drwxr-x---.* root +kvd .*/etc/kvd/certs$' <<<"$status"
	# As the service sees the file system, and as its user.
	inside n1 "nsenter --target $pid --mount setpriv --reuid kvd --regid kvd --clear-groups \
		sh -c 'touch /var/lib/kvd/probe && rm /var/lib/kvd/probe && ! touch /usr/local/bin/probe && ! touch /etc/kvd/probe'"
	inside n1 "systemd-analyze security --no-pager kvd.service" | tail -n 1
	inside n1 "systemd-analyze verify /etc/systemd/system/kvd.service"
}

leader_host_dies() {
	local host
	host=$(leader)
	kill_host "$host"
	try_for 30 put "after-death/0"
	put_some "after-death"
	fails kvctl endpoint health
	boot "$host"
	try_for 120 has_property "$host" ActiveState active
	cluster_is_whole
	echo "it was $host"
}

host_is_replaced() {
	kill_host n3
	make_host n4
	boot n4
	on_admin replace
	put_some "while-two"
	install_host n4
	on_host n4 join
	has_property n4 ActiveState active
	# A host that is found again does no harm and says what happened to it.
	boot n3
	try_for 120 journal_grep n3 'removed from the cluster'
	journal_says n3 'removed from the cluster'
	kill_host n3
}

wiped_disk_is_refused() {
	inside n2 "systemctl stop kvd && rm -rf /var/lib/kvd/member && systemctl start --no-block kvd"
	try_for 60 journal_grep n2 'kvd: .*(empty|bootstrapped|incarnation|folder)'
	journal_says n2 'kvd: .*(empty|bootstrapped|incarnation|folder)'
	fails is_ready n2
	put_some "while-wiped"
}

wiped_host_comes_back() {
	on_host n2 wipe
	on_admin readd
	on_host n2 join
	has_property n2 ActiveState active
	cluster_is_whole
}

# A thawed process would be told to end and would; this one is frozen and can do nothing.
frozen_member_is_restarted() {
	local host before
	host=$(leader)
	before=$(property "$host" NRestarts)
	inside "$host" "kill -STOP $(property "$host" MainPID)"
	try_for 30 put "while-frozen/0"
	put_some "while-frozen"
	try_for 120 restarted_since "$host" "$before"
	inside "$host" "journalctl --no-pager -o cat" >"$work/journal"
	grep -m 1 'kvd.service: Watchdog timeout' "$work/journal"
	try_for 120 has_property "$host" ActiveState active
	cluster_is_whole
}
restarted_since() { [[ $(property "$1" NRestarts) -gt $2 ]]; }

rolling_restart() {
	local host writer
	: >"$work/retries"
	(
		n=0
		until [[ -e $work/restarted ]]; do
			n=$((n + 1))
			put "rolling/$n" || echo "rolling/$n failed twice" >>"$work/failed-twice"
		done
	) &
	writer=$!
	for host in n1 n2 n4; do
		on_admin copy-upgrade "$host"
		on_host "$host" upgrade
		on_admin healthy
		try_for 60 more_rolled "$(rolled)" 10
	done
	touch "$work/restarted"
	wait "$writer"
	echo "$(rolled) writes meanwhile, $(wc -l <"$work/retries") of them tried twice"
	if [[ -e $work/failed-twice ]]; then
		cat "$work/failed-twice" "$work/output"
		return 1
	fi
	cluster_is_whole
}
rolled() { grep -c '^rolling/[0-9]*$' "$work/acknowledged" || true; }
more_rolled() { [[ $(rolled) -ge $(($1 + $2)) ]]; } # before, how many more

certificates_are_renewed() {
	local before pid
	before=$(serial) pid=$(property n1 MainPID)
	on_admin renew
	on_host n1 renewed
	try_for 60 serial_is_not "$before"
	[[ $(property n1 MainPID) == "$pid" ]]
	kvctl endpoint health
}
serial() { openssl s_client -connect 10.0.0.1:2379 </dev/null 2>/dev/null | openssl x509 -noout -serial; }
serial_is_not() { [[ $(serial) != "$1" && -n $(serial) ]]; }

reboot_all() {
	local host
	declare -A boots
	for host in n1 n2 n4; do boots[$host]=$(boot_id "$host"); done
	for host in n1 n2 n4; do inside "$host" "systemctl reboot --no-block"; done
	for host in n1 n2 n4; do
		try_for 120 booted_anew "$host" "${boots[$host]}"
		try_for 120 has_property "$host" ActiveState active
	done
	cluster_is_whole
}
boot_id() { inside "$1" "cat /proc/sys/kernel/random/boot_id"; }
booted_anew() { [[ $(boot_id "$1" 2>/dev/null || echo "$2") != "$2" ]] && booted "$1"; }

guide_is_done() {
	local left
	left=$(blocks_not_run)
	[[ -z $left ]] || {
		echo "these blocks of the guide were never run:"
		echo "$left"
		return 1
	}
	sort -u "$work/blocks-run" | wc -l | sed 's/$/ blocks of the guide, each run/'
}

nobody_crashed() {
	local host
	for host in n1 n2 n4; do
		inside "$host" "journalctl --no-pager -o cat" >"$work/journal-$host"
		fails grep -E 'panicked at|status=[0-9]+/(SEGV|SYS|ILL|BUS)' "$work/journal-$host"
	done
}

make_network
mkdir -p "$admin" /run/lock
# What the guide says the admin machine has.
cp "$KVD_BIN" "$admin/kvd"
cp "$KVCTL_BIN" "$admin/kvctl"
cp -r "$root/deploy" "$admin/deploy"
PATH=$admin:$PATH
cd "$admin"

must "three Debian hosts boot under systemd" boot_hosts
must "guide: certificates" on_admin certificates
for host in n1 n2 n3; do must "guide: install $host" install_host "$host"; done
must "guide: start; the first member runs and has no majority" first_starts
must "guide: start; the others make it one" others_start
eval "$(block admin environment)"
must "guide: status and health" looks_well
step "every connection needs a certificate" tls_is_on
step "the unit's hardening holds" hardening_holds
must "writes" put_some first
must "the members hold the same" cluster_is_whole
must "the leader's host dies, writes go on, the host comes back" leader_host_dies
must "guide: a lost host is replaced" host_is_replaced
export KVCTL_ENDPOINTS=10.0.0.1:2379,10.0.0.2:2379,10.0.0.4:2379
must "the new member has all data" cluster_is_whole
must "a member with an emptied disk is refused" wiped_disk_is_refused
must "guide: it is removed and added again" wiped_host_comes_back
must "the watchdog restarts a frozen leader" frozen_member_is_restarted
must "guide: rolling upgrade under writes" rolling_restart
step "guide: certificates are renewed without a restart" certificates_are_renewed
must "all hosts reboot at once and everything is there" reboot_all
step "the whole guide was run" guide_is_done
step "nothing crashed" nobody_crashed
finish
