#!/bin/bash
# Debian hosts to throw away: systemd as PID 1, sshd, an address of their own. Made by systemd-nspawn, so root is needed, and
#   apt-get install --no-install-recommends systemd-container mmdebstrap iproute2 openssh-client
#
#   guests.sh base            the root file system that all guests share, built once
#   guests.sh up N            N guests, hosts node1 to nodeN; waits for their sshd
#   guests.sh sh I CMD…       a command as root on guest I
#   guests.sh run CMD…        a command here, in the operator's network, from which all guests can be reached
#   guests.sh kill I | start I | cut I | heal I
#   guests.sh down            all of it away
#
# All traffic stays in network namespaces that are made here. Guests share the kernel, the clock and the page cache of this
# machine; limits of memory and CPU in their units hold nothing back.
set -euo pipefail

PREFIX=${GUESTS_PREFIX:-ro}           # names of namespaces, links and control groups: another one for a second set
STATE=${GUESTS_STATE:?a folder for the guests\' disks, logs and key}
BASE=${GUESTS_BASE:?the folder of the shared root file system}
NET=${GUESTS_NET:-10.88.0}            # of 24 bits
SUITE=${GUESTS_SUITE:-bookworm}
HUB=$PREFIX-hub
KEY=$STATE/key
PACKAGES=systemd,systemd-sysv,dbus,openssh-server,openssh-sftp-server,python3,python3-apt,iproute2,sudo,ca-certificates,openssl
SSH=(ssh -i "$KEY" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=3 -o BatchMode=yes)

say() { echo "guests.sh: $*" >&2; }
address() { echo "$NET.$((10 + $1))"; }
# Not `ip netns exec`: that mounts /sys anew, without the control groups that nspawn needs.
within() { local space=$1; shift; nsenter --net="/run/netns/$space" "$@"; }
known() { (cd "$STATE" 2>/dev/null && ls -d [0-9]* 2>/dev/null | sort -n) || true; }

base() {
  mkdir -p "$STATE"
  [ -e "$KEY" ] || ssh-keygen -q -t ed25519 -N '' -C rollout -f "$KEY"
  [ -e "$BASE/.complete" ] && return
  # Guests install from wherever this machine may.
  local sources list=()
  for sources in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    if [ -s "$sources" ]; then list=("$sources"); break; fi
  done
  rm -rf "$BASE"; mkdir -p "$(dirname "$BASE")"
  nice mmdebstrap --quiet --variant=minbase --include="$PACKAGES" --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' "$SUITE" "$BASE" ${list[@]+"${list[@]}"}
  : > "$BASE/.complete"
}

network() {
  [ -e "/run/netns/$HUB" ] && return
  ip netns add "$HUB"
  ip -n "$HUB" link set lo up
  ip -n "$HUB" link add switch type bridge
  ip -n "$HUB" addr add "$NET.1/24" dev switch
  ip -n "$HUB" link set switch up
}

create() {
  local i=$1 disk=$STATE/$1 tree=$STATE/$1/root space=$PREFIX$1 home k
  home=$tree/root
  mkdir -p "$disk/upper" "$disk/work" "$tree"
  # Where the state itself lies on an overlay there is no mounting another one: copied then.
  if ! mountpoint -q "$tree" && [ ! -e "$tree/etc" ]; then
    mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$disk/upper,workdir=$disk/work" "$tree" 2>/dev/null ||
      cp -a --reflink=auto "$BASE/." "$tree/"
  fi
  if [ ! -e "$disk/created" ]; then
    install -d -m 700 "$home/.ssh"
    install -m 600 "$KEY.pub" "$home/.ssh/authorized_keys"
    install -d "$tree/var/log/journal"
    echo "node$i" > "$tree/etc/hostname"
    : > "$tree/etc/machine-id"
    { echo "127.0.0.1 localhost"; echo "$NET.1 operator"; for k in 1 2 3 4 5 6 7 8; do echo "$(address $k) node$k"; done; } > "$tree/etc/hosts"
    : > "$disk/created"
  fi
  [ -e "/run/netns/$space" ] && return
  ip netns add "$space"
  ip -n "$HUB" link add "v$space" type veth peer name eth0 netns "$space"
  ip -n "$HUB" link set "v$space" master switch up
  ip -n "$space" addr add "$(address "$i")/24" dev eth0
  ip -n "$space" link set lo up
  ip -n "$space" link set eth0 up
}

# Control groups of its own, where this machine's PID 1 isn't systemd: otherwise each guest's PID 1 takes those of the others for its own.
own_cgroups() {
  local group
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    group=/sys/fs/cgroup/$PREFIX$1; mkdir -p "$group"; echo "$BASHPID" > "$group/cgroup.procs"; return
  fi
  for group in systemd unified freezer cpu cpuacct cpu,cpuacct pids; do
    group=/sys/fs/cgroup/$group
    [ -e "$group/cgroup.procs" ] || continue
    mkdir -p "$group/$PREFIX$1"; echo "$BASHPID" > "$group/$PREFIX$1/cgroup.procs"
  done
}

start() {
  local i=$1 disk=$STATE/$1 tree=$STATE/$1/root options=()
  [ -d /run/systemd/system ] || options=(--keep-unit)
  rm -f "$disk/pid"
  (
    [ -d /run/systemd/system ] || own_cgroups "$i"
    # GUESTS_BINDS: further options of systemd-nspawn, e.g. --bind-ro=/path/here:/path/there
    # shellcheck disable=SC2086
    exec setsid systemd-nspawn --quiet --boot --register=no ${options[@]+"${options[@]}"} --machine="$PREFIX-node$i" --hostname="node$i" \
      --network-namespace-path="/run/netns/$PREFIX$i" --resolv-conf=off --timezone=off --link-journal=no \
      --capability=CAP_NET_ADMIN ${GUESTS_BINDS:-} --directory="$tree" --console=pipe
  ) >> "$disk/console.log" 2>&1 < /dev/null &
  echo $! > "$disk/pid"
}

await() {
  local i tries
  for i in "$@"; do
    for ((tries = 600; ; tries--)); do
      within "$HUB" "${SSH[@]}" "root@$(address "$i")" true 2>/dev/null && break
      if [ "$tries" = 0 ] || ! kill -0 "$(cat "$STATE/$i/pid")" 2>/dev/null; then
        say "node$i: no sshd; its console:"; tail "$STATE/$i/console.log" >&2; return 1
      fi
      sleep 0.1
    done
  done
}

halt() {
  local i=$1 pid child tries
  pid=$(cat "$STATE/$i/pid" 2>/dev/null) || return 0
  for child in $(cat "/proc/$pid/task/"*/children 2>/dev/null); do kill -KILL "$child" 2>/dev/null || true; done
  for ((tries = 100; tries > 0; tries--)); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.1; done
  kill -KILL "$pid" 2>/dev/null || true
}

remove() {
  local i=$1 group
  halt "$i"
  umount "$STATE/$i/root" 2>/dev/null || umount -l "$STATE/$i/root" 2>/dev/null || true
  ip netns del "$PREFIX$i" 2>/dev/null || true
  for group in /sys/fs/cgroup/"$PREFIX$i" /sys/fs/cgroup/*/"$PREFIX$i"; do
    [ -d "$group" ] && find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
  done
  rm -rf "${STATE:?}/$i"
}

order=${1:-}
shift || true
case $order in
  base) base ;;
  up)
    base; network
    for i in $(seq 1 "$1"); do create "$i"; start "$i"; done
    # shellcheck disable=SC2046
    await $(seq 1 "$1") ;;
  sh) i=$1; shift; within "$HUB" "${SSH[@]}" "root@$(address "$i")" "$@" ;;
  # In our place, so that whoever ends us ends the command.
  run) exec nsenter --net="/run/netns/$HUB" "$@" ;;
  kill) halt "$1" ;;
  start) create "$1"; start "$1"; await "$1" ;;
  cut) ip -n "$HUB" link set "v$PREFIX$1" down ;;
  heal) ip -n "$HUB" link set "v$PREFIX$1" up ;;
  down)
    for i in $(known); do remove "$i" & done; wait
    ip netns del "$HUB" 2>/dev/null || true ;;
  *) sed -n '2,/^set /p' "$0" | sed '$d'; exit 2 ;;
esac
