#!/bin/bash
# Process 1 of one host: its own /proc, /tmp, /root, /dev/shm, /run, hostname and sshd.
#   host_init.sh NAME FOLDER KEPT...
# runs inside fresh mount, uts, ipc and pid namespaces and the host's network namespace (hosts.py). FOLDER has root/,
# tmp/ and etc/ as the host shall see them; KEPT are folders that stay visible although /root or /tmp hides what is
# around them: the interpreter and the environment.
set -e
name=$1 folder=$2
shift 2
mount --make-rprivate /
mount -t proc proc /proc # `ray stop` ends every Ray process that it sees: it must see this host's alone
hostname "$name"
for kept; do
  case $kept in /root/* | /tmp/*)
    mkdir -p "$folder$kept"
    mount --bind "$kept" "$folder$kept"
    ;;
  esac
done
mount -t tmpfs -o size=16m tmpfs /run
mkdir -p /run/sshd
cp "$folder"/etc/{sshd_config,hostkey} /run/sshd/
for file in hosts hostname resolv.conf; do mount --bind "$folder/etc/$file" "/etc/$file"; done
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount --rbind "$folder/root" /root
cd /
mount --rbind "$folder/tmp" /tmp # last: the folder itself may lie below it
unset TMPDIR
env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
  /usr/sbin/sshd -D -f /run/sshd/sshd_config -E /run/sshd/log &
while :; do wait || true; sleep 1 & done # reaps the orphans
