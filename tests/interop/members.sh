#!/bin/bash
# Changes the members of an etcd cluster and of a kvd cluster with the unedited etcdctl, step by step, and compares what it
# prints. Both clusters get the same ports one after the other, so that ids which come from URLs are the same.
#
#   KVD_BIN      the server under test; default ../../target/release/kvd
#   ETCD_BIN     the server to compare with; default bin/etcd
#   ETCDCTL_BIN  default bin/etcdctl
#
# The last line is "N passed, N failed, N skipped"; a step is one etcdctl command.
set -u
cd "$(dirname "$0")"
KVD_BIN=$(realpath "${KVD_BIN:-../../target/release/kvd}")
ETCD_BIN=$(realpath "${ETCD_BIN:-bin/etcd}")
ETCDCTL_BIN=$(realpath "${ETCDCTL_BIN:-bin/etcdctl}")
# etcd and etcdctl take every ETCD* variable for a flag.
export -n ETCD_BIN ETCDCTL_BIN
for binary in "$KVD_BIN" "$ETCD_BIN" "$ETCDCTL_BIN"; do
    if [ ! -x "$binary" ]; then
        echo "SKIPPED members: $binary is missing"
        echo "0 passed, 0 failed, 1 skipped"
        exit 0
    fi
done

work=$(mktemp -d)
pids=()
cleanup() {
    # timeout passes it on to the server, which it also ends by itself.
    [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT

# Five client and five peer ports that are free now, below those that the kernel gives to outgoing connections: a server that
# starts again finds its port free.
ports=()
is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
for port in $(shuf -i 10000-31999 -n 200); do
    is_taken "$port" || ports+=("$port")
    [ ${#ports[@]} -lt 10 ] || break
done
if [ ${#ports[@]} -lt 10 ]; then
    echo "FAILED members: no ten free ports in 10000-31999"
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi
client() { echo "http://127.0.0.1:${ports[$1]}"; }
peer() { echo "http://127.0.0.1:${ports[$(($1 + 5))]}"; }

start() { # member, initial cluster, its state
    timeout 150 "$server" --name "m$1" --data-dir "$dir/m$1" \
        --listen-client-urls "$(client "$1")" --advertise-client-urls "$(client "$1")" \
        --listen-peer-urls "$(peer "$1")" --initial-advertise-peer-urls "$(peer "$1")" \
        --initial-cluster "$2" --initial-cluster-state "$3" >"$dir/m$1.log" 2>&1 &
    pids[$1]=$!
}

ctl() { timeout 20 "$ETCDCTL_BIN" --command-timeout 15s "$@"; }

# Runs one command and writes what it prints, with what differs from run to run taken out.
step() { # name, arguments of etcdctl
    local name=$1 code=0
    shift
    ctl "$@" >"$dir/out" 2>&1 || code=$?
    {
        echo "exit code $code"
        # The id of an added member is made from the time; so its place in a list is not fixed.
        sed -E -e 's/(Member|cluster) +/\1 /g' -e "s/${added:-no-member-added}/ADDED/g" -e 's/took = [^ ]*/took/' \
            -e 's/^\{"level":"warn".*(rpc error|context).*$/warning of the client/' "$dir/out" | sort
    } >"$dir/steps/$(printf %02d $steps)-$name"
    steps=$((steps + 1))
}

# The first endpoint's answer decides nothing: waits until every one of `$@` gives the same leader, and prints its id.
leader() {
    for _ in $(seq 100); do
        local seen
        seen=$(for n in "$@"; do
            ctl --endpoints "$(client "$n")" endpoint status -w fields 2>/dev/null | sed -n 's/^"Leader" : //p'
        done | sort -u)
        if [ "$(echo "$seen" | wc -w)" -eq 1 ] && [ "$seen" != 0 ]; then
            printf '%x\n' "$seen"
            return
        fi
        sleep 0.1
    done
    echo none
}

id_of() { # member, through member
    ctl --endpoints "$(client "$2")" member list 2>/dev/null | sed -n "s/^\([0-9a-f]*\), [a-z]*, m$1, .*/\1/p"
}

number_of() { # id
    ctl --endpoints "$(client 0)" member list 2>/dev/null | sed -n "s/^$1, started, m\([0-9]\), .*/\1/p"
}

# etcd lets nobody in or out before the members have known each other for five seconds.
settle() { sleep 6; }

until_started() { # member, through member
    for _ in $(seq 100); do
        [ -n "$(id_of "$1" "$2")" ] && return
        sleep 0.1
    done
}

scenario() { # server binary, folder
    server=$1 dir=$2 steps=10 added=
    mkdir -p "$dir/steps"
    local three="m0=$(peer 0),m1=$(peer 1),m2=$(peer 2)"
    local all="$(client 0),$(client 1),$(client 2)"
    for n in 0 1 2; do start "$n" "$three" new; done
    leader 0 1 2 >/dev/null
    step put --endpoints "$(client 1)" put k v
    step list --endpoints "$(client 2)" member list
    step list-json --endpoints "$(client 2)" member list -w json
    sed -i -E 's/"(member_id|raft_term)":[0-9]+/"\1":0/g' "$dir"/steps/*-list-json

    local lead from to
    lead=$(leader 0 1 2)
    from=$(number_of "$lead")
    to=$(id_of $(((from + 1) % 3)) 0)
    step move-to-nobody --endpoints "$all" move-leader deadbeef
    step move --endpoints "$all" move-leader "$to"
    sed -i "s/$lead/OLD/; s/$to/NEW/" "$dir"/steps/*-move
    [ "$(leader 0 1 2)" = "$to" ] && echo moved >"$dir/steps/19-moved"

    settle
    step add-bad-url --endpoints "$all" member add m3 --peer-urls http://127.0.0.1:1/path
    step add-known-url --endpoints "$(client 0)" member add m3 --peer-urls "$(peer 1)"
    step add-learner --endpoints "$(client 0)" member add m3 --learner --peer-urls "$(peer 3)"
    added=$(sed -n 's/^Member *\([0-9a-f]*\) added.*/\1/p' "$dir/out")
    sed -i -E -e 's/(Member|cluster) +/\1 /g' -e "s/$added/ADDED/g" -e 's/^ETCD_INITIAL_CLUSTER=.*/the initial cluster/' "$dir"/steps/*-add-learner
    step list-unstarted --endpoints "$(client 1)" member list
    step add-second-learner --endpoints "$(client 0)" member add m4 --learner --peer-urls "$(peer 4)"
    step promote-absent --endpoints "$(client 0)" member promote "$added"
    start 3 "$three,m3=$(peer 3)" existing
    until_started 3 0
    step learner-reads-linearizable --endpoints "$(client 3)" get k
    step learner-reads-serializable --endpoints "$(client 3)" get k --consistency s
    step learner-writes --endpoints "$(client 3)" put k w
    step learner-lists --endpoints "$(client 3)" member list
    step promote --endpoints "$(client 1)" member promote "$added"
    step promote-voter --endpoints "$(client 1)" member promote "$added"
    step promote-unknown --endpoints "$(client 1)" member promote 1234
    step read-as-voter --endpoints "$(client 3)" get k
    step update --endpoints "$(client 3)" member update "$added" --peer-urls "$(peer 3),http://localhost:${ports[8]}"
    step update-unknown --endpoints "$(client 0)" member update 1234 --peer-urls "$(peer 4)"
    step list-updated --endpoints "$(client 1)" member list
    settle
    step remove-unknown --endpoints "$(client 0)" member remove 1234
    step remove-added --endpoints "$(client 0)" member remove "$added"
    step remove-again --endpoints "$(client 0)" member remove "$added"
    for _ in $(seq 100); do kill -0 "${pids[3]}" 2>/dev/null || break; sleep 0.1; done
    kill -0 "${pids[3]}" 2>/dev/null || echo ended >"$dir/steps/50-removed-member-ends"
    # The leader itself.
    lead=$(leader 0 1 2)
    from=$(number_of "$lead")
    step remove-leader --endpoints "$(client $(((from + 1) % 3)))" member remove "$lead"
    sed -i "s/$lead/OLD/" "$dir"/steps/*-remove-leader
    leader $(((from + 1) % 3)) $(((from + 2) % 3)) >/dev/null
    # etcd may lose requests for a while after its leader is removed.
    for _ in $(seq 20); do
        ctl --endpoints "$(client $(((from + 1) % 3)))" put again x >/dev/null 2>&1 && break
    done
    step write-after --endpoints "$(client $(((from + 1) % 3)))" put k x
    step read-after --endpoints "$(client $(((from + 2) % 3)))" get k
    step health --endpoints "$(client $(((from + 1) % 3)))" endpoint health
    sed -i -E 's/http:[^ ]*/ENDPOINT/' "$dir"/steps/*-health
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null; done
    pids=()
}

scenario "$ETCD_BIN" "$work/etcd"
scenario "$KVD_BIN" "$work/kvd"

passed=0 failed=0
# Two clusters that do not run would agree in everything.
if ! grep -qx "exit code 0" "$work"/etcd/steps/10-put; then
    echo "FAILED members: etcd took no put:"
    cat "$work"/etcd/steps/10-put "$work"/etcd/m?.log | tail -n 20
    failed=1
fi
for expected in "$work"/etcd/steps/*; do
    name=$(basename "$expected")
    if cmp -s "$expected" "$work/kvd/steps/$name"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED members $name: < etcd, > kvd"
        diff "$expected" "$work/kvd/steps/$name"
    fi
done
for extra in "$work"/kvd/steps/*; do
    name=$(basename "$extra")
    if [ ! -e "$work/etcd/steps/$name" ]; then
        failed=$((failed + 1))
        echo "FAILED members $name: kvd only"
    fi
done
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
