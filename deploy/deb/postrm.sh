#!/bin/sh
# After the files of inglenook-@NAME@ are gone. Purging removes what can be had again; jobs, identities and keys are for a person to remove.
set -e

case "$1" in
remove)
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload || true
    fi
    ;;
purge)
    rm -rf /var/cache/inglenook/@NAME@
    rm -f /etc/systemd/system/multi-user.target.wants/ingle-@NAME@.service /etc/systemd/system/sockets.target.wants/ingle-@NAME@.socket
    rmdir --ignore-fail-on-non-empty /var/cache/inglenook 2>/dev/null || true
    if [ -d /var/lib/inglenook/@NAME@ ]; then
        echo "inglenook-@NAME@: /var/lib/inglenook/@NAME@ is left; remove it if nobody needs it"
    fi
    ;;
esac
