#!/bin/sh
# Builds the pinned etcd, etcdctl and etcdutl, and the differ, into bin/. Quick when Go's build cache is warm.
set -eu
cd "$(dirname "$0")"
mkdir -p bin
# One package at a time and at low priority: compiling etcd must not starve what else runs here.
build() { nice -n 10 go build -p "${GO_BUILD_JOBS:-1}" -trimpath -o "bin/$1" "$2"; }
build etcd go.etcd.io/etcd/server/v3
build etcdctl go.etcd.io/etcd/etcdctl/v3
build etcdutl go.etcd.io/etcd/etcdutl/v3
build differ ./differ
