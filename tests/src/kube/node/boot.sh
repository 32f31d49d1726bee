# Boots a node: process 1 of a process namespace and the owner of a mount namespace, in which /sys/fs/disk is the
# node's disk. Whatever runs on the node ends with this shell, and all mounts with that.
#
# Arguments: the folder of the node's files, the packages' folder, the control groups' hierarchies, the node's control
# group in each, flags of the kubelet.
set -eu
files=$1 packages=$2 hierarchies=$3 group=$4
shift 4
export PATH="$packages/usr/bin:$packages/usr/sbin:$PATH"

# What parts of Kubernetes leave in /run is the node's own, and in /var/lib, where a kubelet has a socket whose place no
# flag moves: of two that bind it in one moment one would end.
# What the machine has mounted there goes first: hidden it would still be listed, and taken for what is there.
awk '$5 ~ "^/run/" { print $5 }' /proc/self/mountinfo | sort --reverse | while read -r of; do
    umount --lazy "$of"
done
mount -t tmpfs run /run
# As an init does it: pods may ask to see what is mounted here later.
mount --make-shared /run
mount -t tmpfs lib /var/lib
# A container finds files at no place below /sys.
if [ -d "$files/weir" ]; then
    mkdir /run/weir
    mount --bind "$files/weir" /run/weir
fi
# What a kubelet would set for the whole machine it sets for files of the node.
for of in kernel/panic kernel/panic_on_oops kernel/keys/root_maxbytes kernel/keys/root_maxkeys \
    vm/overcommit_memory vm/panic_on_oom; do
    mkdir -p "/run/sysctl/${of%/*}"
    cat "/proc/sys/$of" > "/run/sysctl/$of"
    mount --bind "/run/sysctl/$of" "/proc/sys/$of"
done
# What is the root of cgroup v2 elsewhere: the node's group, or beside the first version, where nobody is in that one, the
# one that the lab has given the host.
mkdir /run/cgroup-of-node
if [ -z "$hierarchies" ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount --bind "/sys/fs/cgroup$group" /run/cgroup-of-node
else
    mount --bind /sys/fs/cgroup /run/cgroup-of-node
    mount -t tmpfs cgroup /sys/fs/cgroup
    for of in $hierarchies; do
        mkdir "/sys/fs/cgroup/${of#name=}"
        mount -t cgroup -o "$of" cgroup "/sys/fs/cgroup/${of#name=}"
    done
fi

containerd --config "$files/containerd.toml" >> "$files/containerd.log" 2>&1 &
for image in "$files"/images/*; do
    until ctr --namespace k8s.io images import --base-name "$(cat "$image/name")" "$image/archive.tar" \
        >> "$files/containerd.log" 2>&1
    do
        kill -0 $!
        sleep 0.1
    done
done
exec "$files/kubelet" "$@" >> "$files/kubelet.log" 2>&1
