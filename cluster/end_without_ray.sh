#!/usr/bin/env bash
# Ends this machine once no raylet has run on it for MINUTES on end: end_without_ray.sh MINUTES
# The autoscaler ends idle workers, but it lives on the head: a head that dies leaves its workers to nobody, and they
# cost money until someone looks. Their raylets exit within a minute of losing it. The machine's own shutdown is its
# end (InstanceInitiatedShutdownBehavior: terminate). `ray stop` and `ray start` within the time change nothing.
set -u
minutes=$1
exec 9>/tmp/end_without_ray.lock
flock -n 9 || exit 0 # one is enough, though `ray up` was called again
missing=0
while [ "$missing" -lt "$minutes" ]; do
  sleep 60
  if pgrep -x raylet >/dev/null; then missing=0; else missing=$((missing + 1)); fi
done
exec sudo shutdown -h now
