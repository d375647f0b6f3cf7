#!/bin/sh
# Installs kvd from copied binaries: deploy/systemd/install.sh KVD KVCTL
# Makes the user, the folders and the unit; keeps settings that exist; starts nothing. Run it again to upgrade.
# DESTDIR installs below another root, without asking systemd for anything.
set -eu
if [ $# -ne 2 ] || [ ! -x "$1" ] || [ ! -x "$2" ]; then
	echo "usage: install.sh path/to/kvd path/to/kvctl" >&2
	exit 64
fi
here=$(cd "$(dirname "$0")" && pwd)
root=${DESTDIR:-}
if [ -z "$root" ] && [ "$(id -u)" -ne 0 ]; then
	echo "install.sh: run it as root" >&2
	exit 77
fi

# A running binary cannot be written to, but it can be replaced.
put() { # mode, source, target
	mkdir -p "$(dirname "$root$3")"
	install -m "$1" "$2" "$root$3.new"
	mv "$root$3.new" "$root$3"
}
put 0755 "$1" /usr/local/bin/kvd
put 0755 "$2" /usr/local/bin/kvctl
put 0644 "$here/kvd.service" /etc/systemd/system/kvd.service
put 0644 "$here/kvd.sysusers" /usr/lib/sysusers.d/kvd.conf
put 0644 "$here/kvd.tmpfiles" /usr/lib/tmpfiles.d/kvd.conf
put 0644 "$here/kvd.env.example" /usr/local/share/doc/kvd/kvd.env.example
put 0644 "$here/three-members.md" /usr/local/share/doc/kvd/three-members.md

if [ -z "$root" ]; then
	systemd-sysusers kvd.conf
	systemd-tmpfiles --create kvd.conf
	systemctl daemon-reload
fi
if [ ! -e "$root/etc/kvd/kvd.env" ]; then
	echo "next: copy $root/usr/local/share/doc/kvd/kvd.env.example to /etc/kvd/kvd.env and edit it,"
	echo "      put this member's certificates into /etc/kvd/certs, then: systemctl enable --now kvd"
elif [ -z "$root" ] && systemctl is-active -q kvd; then
	echo "next: systemctl restart kvd, one member at a time; wait for 'kvctl endpoint health' in between"
else
	echo "next: systemctl enable --now kvd"
fi
