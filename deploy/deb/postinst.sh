#!/bin/sh
# After unpacking inglenook-@NAME@: its user, who may read its settings, and the new program in place of the old one if that runs.
set -e

unit=ingle-@NAME@.service
user=inglenook-@NAME@
settings=/etc/inglenook/@NAME@.toml

# Chroots and installers say in policy-rc.d what may be started.
permitted() {
    [ -x /usr/sbin/policy-rc.d ] || return 0
    answer=0
    /usr/sbin/policy-rc.d "$unit" restart || answer=$?
    [ "$answer" = 0 ] || [ "$answer" = 104 ]
}

make_user() {
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers inglenook-@NAME@.conf
        return
    fi
    getent group inglenook >/dev/null || groupadd --system inglenook
    getent passwd "$user" >/dev/null ||
        useradd --system --user-group --groups inglenook --home-dir /var/lib/inglenook/@NAME@ --no-create-home --shell /usr/sbin/nologin "$user"
}

restart() {
    case "$(systemctl is-active "$unit")" in
    active | activating | reloading) ;;
    *) return 0 ;;
    esac
    if ! permitted; then
        echo "inglenook-@NAME@: policy-rc.d forbids a restart; the old version runs on until: systemctl restart $unit" >&2
    elif ! /usr/bin/ingle-@NAME@ --config "$settings" --check-config >&2; then
        echo "inglenook-@NAME@: this version can't use $settings; the old one runs on. Mend it, then: systemctl restart $unit" >&2
    elif ! systemctl restart "$unit"; then
        echo "inglenook-@NAME@: it didn't come up again; journalctl --unit $unit says why" >&2
    fi
}

case "$1" in
configure)
    make_user
    # The settings may hold a password: for the daemon alone. A key is for all daemons of this machine.
    if [ -f "$settings" ]; then
        chown "root:$user" "$settings"
        chmod 0640 "$settings"
    fi
    chown root:inglenook /etc/inglenook/tls
    chmod 0750 /etc/inglenook/tls
    # What came before our rule for devices did, comes again.
    if [ -e /usr/lib/udev/rules.d/60-inglenook-@NAME@.rules ] && [ -S /run/udev/control ]; then
        udevadm control --reload && udevadm trigger --subsystem-match=powercap --action=add || true
    fi
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload || true
        if [ -n "$2" ]; then
            restart
        fi
    fi
    if [ -z "$2" ]; then
        echo "inglenook-@NAME@: look at $settings, then: systemctl enable --now $unit"
    fi
    ;;
abort-upgrade | abort-remove | abort-deconfigure) ;;
*)
    echo "postinst called with unknown argument: $1" >&2
    exit 1
    ;;
esac
