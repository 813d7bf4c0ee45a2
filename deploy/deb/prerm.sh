#!/bin/sh
# Before the files of inglenook-@NAME@ go. An upgrade leaves the daemon running: postinst restarts it once, when all is in place.
set -e

if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl disable --now ingle-@NAME@.socket ingle-@NAME@.service || true
fi
