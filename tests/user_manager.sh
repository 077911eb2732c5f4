#!/bin/sh
# A systemd user manager with a journal, for the tests: run as root in namespaces of its own,
#     unshare --mount --pid --ipc --cgroup --fork --mount-proc tests/user_manager.sh UID HOME [chroot]
# so that nothing of the machine, or of a session on it, is touched. It ends with its standard input.
set -eu
uid=$1
home=$2
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/systemd/system /run/systemd/unit-root /run/systemd/mount-rootfs \
    /run/systemd/journal /run/log/journal "/run/user/$uid"
chown "$uid:$uid" "/run/user/$uid"
chmod 700 "/run/user/$uid"
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mkdir -p /dev/mqueue
mount -t mqueue mqueue /dev/mqueue
mount -t tmpfs tmpfs /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
group=/sys/fs/cgroup/user.slice/user-$uid.slice/user@$uid.service
mkdir -p "$group"
chown -R "$uid:$uid" "$group"
/lib/systemd/systemd-journald &
# In a chroot nobody can make a user namespace (user_namespaces(7)): the machine without a sandbox.
chroot=
if [ "${3-}" = chroot ]; then
    mkdir /run/root
    mount --rbind / /run/root
    chroot="chroot /run/root"
fi
(
    echo 0 >"$group/cgroup.procs"
    # shellcheck disable=SC2086 # a command and its argument, or nothing
    exec $chroot setpriv --reuid "$uid" --regid "$uid" --clear-groups \
        env -i "HOME=$home" "XDG_RUNTIME_DIR=/run/user/$uid" PATH=/usr/bin:/bin LANG=C.UTF-8 \
        /lib/systemd/systemd --user </dev/null
) &
manager=$!
# The end of the tests closes standard input, and with this shell, process 1, the namespaces go.
read -r _ || true
kill "$manager"
wait "$manager" || true
