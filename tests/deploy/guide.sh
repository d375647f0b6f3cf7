# The command blocks of the guide. A block begins with ```sh PLACE NAME, where PLACE is admin or host.
# Sourced by hosts.sh.
guide=$root/deploy/systemd/three-members.md

# The text of one block; fails if there is none.
block() { # place, name
	local text
	text=$(awk -v fence="\`\`\`sh $1 $2" '$0 == fence { inside = 1; next } /^```/ { inside = 0 } inside' "$guide")
	[[ -n $text ]] || {
		echo "the guide has no block \"$1 $2\"" >&2
		return 1
	}
	echo "$1 $2" >>"$work/blocks-run"
	printf '%s\n' "$text"
}

# Puts another host's name and address where the guide says n1 10.0.0.1.
for_host() { # name
	sed "s/^name=n1 address=.*/name=$1 address=${address[$1]}/"
}

# Runs a block on the admin machine.
on_admin() { # block [host]
	local text
	text=$(block admin "$1" | for_host "${2:-n1}") || return
	(cd "$admin" && eval "set -e; $text")
}

# Runs a block on a host, in the folder where scp puts things.
on_host() { # host, block
	local text
	text=$(block host "$2" | for_host "$1") || return
	inside "$1" "cd /root; set -e
$text"
}

# Stands for ssh's scp of the admin machine: what reaches root@ADDRESS: is in that host's /root.
scp() {
	local files=() arg name
	for arg; do
		case $arg in
		-r) ;;
		root@*:) name=${host_of[${arg:5:-1}]} && cp -r "${files[@]}" "$work/$name/root/" ;;
		*) files+=("$arg") ;;
		esac
	done
}

# Says which blocks were never run, if any.
blocks_not_run() {
	comm -23 <(sed -n 's/^```sh //p' "$guide" | sort -u) <(sort -u "$work/blocks-run")
}
