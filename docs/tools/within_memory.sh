#!/usr/bin/env bash
# Runs a command in a memory control group of its own, as root, and says how much memory it took and how often it hit the limit:
#
#     docs/tools/within_memory.sh 16GiB mixtral generate -m model.gguf --memory 16GiB ...
#
# A group counts the page cache that its processes cause. That the command does not die proves little, since the kernel takes back the pages of
# whoever maps a file; that the limit was never hit proves that there was nothing to take back.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
limit=$(numfmt --from=auto --suffix=B --to=none "${1%B}B" | tr -d B)
shift
name=within-memory-$$
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    group=/sys/fs/cgroup/$name
    mkdir "$group"
    echo "$limit" > "$group/memory.max"
    ! [ -f "$group/memory.swap.max" ] || echo 0 > "$group/memory.swap.max"
    hits() { sed -n 's/^max //p' "$group/memory.events"; }
    peak() { cat "$group/memory.peak"; }
else
    # Below the group of this shell, where that is not the root.
    own=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)
    root=/sys/fs/cgroup/memory
    [ -d "$root$own" ] && root=$root${own%/}
    group=$root/$name
    mkdir "$group"
    echo "$limit" > "$group/memory.limit_in_bytes"
    hits() { cat "$group/memory.failcnt"; }
    peak() { cat "$group/memory.max_usage_in_bytes"; }
fi
status=0
(echo $BASHPID > "$group/cgroup.procs"; exec "$@") || status=$?
echo "control group of $limit bytes: at most $(peak) taken, limit hit $(hits) times" >&2
rmdir "$group"
exit $status
