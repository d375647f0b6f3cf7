# Hosts: a folder with a Debian system, a network namespace with one cable to the bridge, and systemd as its process 1.
# Sourced by hosts.sh.

declare -A address=([n1]=10.0.0.1 [n2]=10.0.0.2 [n3]=10.0.0.3 [n4]=10.0.0.4)
declare -A host_of=([10.0.0.1]=n1 [10.0.0.2]=n2 [10.0.0.3]=n3 [10.0.0.4]=n4)
# The process id of what keeps a host on is in $work/HOST.pid.

# The bridge is in this namespace, where the admin machine is too.
make_network() {
	mkdir -p /run/netns
	mount -t tmpfs none /run/netns
	ip link set lo up
	ip link add hub type bridge
	ip addr add 10.0.0.254/24 dev hub
	ip link set hub up
}

make_host() { # host
	cp -a --reflink=auto "$base" "$work/$1"
	rm -f "$work/$1/.complete"
	# Without one systemd takes this for the first boot ever, and asks questions on the console.
	tr -d - </proc/sys/kernel/random/uuid >"$work/$1/etc/machine-id"
	echo "$1" >"$work/$1/etc/hostname"
	mkdir -p "$work/$1/var/log/journal" # kept over reboots
	ip netns add "$1"
	ip link add "port-$1" type veth peer name eth0 netns "$1"
	ip link set "port-$1" master hub up
	ip -n "$1" addr add "${address[$1]}/24" dev eth0
	ip -n "$1" link set eth0 up
	ip -n "$1" link set lo up
}

# Boots the host and waits until systemd has started all it starts.
boot() { # host
	power_on "$1"
	wait_booted "$1"
}

power_on() { # host
	keep_on "$1" >>"$work/$1.console" 2>&1 </dev/null &
	echo $! >"$work/$1.pid"
}

# Runs the host until it is off. A container that reboots ends with 133 and is to be started again.
keep_on() { # host
	local code=133
	while [[ $code -eq 133 ]]; do
		code=0
		(run_container "$1") || code=$?
	done
}

run_container() { # host
	# Each systemd needs control groups of its own, in every hierarchy there is.
	local hierarchy
	for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*/; do
		[[ -e $hierarchy/cgroup.procs ]] || continue
		mkdir -p "$hierarchy/$control/$1" || continue
		# cpuset groups of version 1 begin without a processor, and take nobody.
		echo "$BASHPID" >"$hierarchy/$control/$1/cgroup.procs" || true
	done 2>/dev/null
	exec systemd-nspawn --quiet --directory="$work/$1" --machine="$1" --network-namespace-path="/run/netns/$1" \
		--boot --register=no --keep-unit --console=pipe
}

wait_booted() { # host
	try_for 120 booted "$1"
	inside "$1" "systemctl is-system-running --wait" >/dev/null || true
}

booted() { inside "$1" "systemctl is-system-running" 2>/dev/null | grep -Eqx 'starting|running|degraded'; }

# The process id of the host's systemd, as seen from here.
first_process() { # host
	pgrep --parent "$(pgrep --parent "$(<"$work/$1.pid")" --exact systemd-nspawn)" --exact systemd
}

# Runs a shell command on the host.
inside() { # host, command
	local pid
	pid=$(first_process "$1") || return
	nsenter --target "$pid" --mount --uts --ipc --net --pid --cgroup -- \
		env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root bash -c "$2" </dev/null
}

# Power off, without a word to anybody on the host.
kill_host() { # host
	local pid
	pid=$(first_process "$1")
	kill -KILL "$pid"
	try_for 20 is_gone "$(<"$work/$1.pid")"
}

is_gone() { ! grep -q '^State:[[:space:]]*[^Z]' "/proc/$1/status" 2>/dev/null; }

# Repeats a command until it succeeds; fails when so many seconds are over.
try_for() { # seconds, command...
	local until=$((SECONDS + $1))
	shift
	until "$@"; do
		((SECONDS < until)) || {
			echo "not in time: $*" >&2
			return 1
		}
		sleep 0.2
	done
}
