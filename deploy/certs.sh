#!/bin/sh
# Makes certificates for machines that meet over TLS: one authority, and a certificate and key per machine, all signed by it.
#
#   certs.sh --into DIR NAME[=ADDRESS,ADDRESS…] …      e.g. certs.sh --into tls attic=attic.lan,10.0.0.21 cellar=10.0.0.31 me
#
# DIR/ca.pem, DIR/ca.key      the authority, made once: keep its key off the machines
# DIR/NAME/{ca,cert,key}.pem  what goes to that machine's /etc/inglenook/tls, or to whoever types `ingle`
#
# Every certificate also holds for NAME, localhost and 127.0.0.1. Run it again to renew: the authority stays, so machines may
# change one after the other. --days N sets how long certificates hold, --key-mode MODE who may read the keys (0640;
# 0644 for containers: DIR itself then keeps others out).
set -eu
umask 077

days=397
key_mode=0640
into=
while [ $# -gt 0 ]; do
    case "$1" in
    --into) into=${2:?--into needs a folder} && shift 2 ;;
    --days) days=${2:?--days needs a number} && shift 2 ;;
    --key-mode) key_mode=${2:?--key-mode needs a mode, e.g. 0640} && shift 2 ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit 0 ;;
    -*) echo "certs.sh: no such option: $1; expected --into, --days or --key-mode" >&2 && exit 2 ;;
    *) break ;;
    esac
done
if [ -z "$into" ] || [ $# -eq 0 ]; then
    echo "certs.sh: expected --into DIR and at least one NAME[=ADDRESS,…]; --help says more" >&2
    exit 2
fi
command -v openssl >/dev/null || { echo "certs.sh: openssl isn't installed (package openssl)" >&2 && exit 1; }

mkdir -p "$into"
if [ ! -f "$into/ca.key" ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=Inglenook authority" \
        -addext basicConstraints=critical,CA:true,pathlen:0 -addext keyUsage=critical,keyCertSign,cRLSign \
        -keyout "$into/ca.key" -out "$into/ca.pem" 2>/dev/null
fi
chmod 0600 "$into/ca.key"
chmod 0644 "$into/ca.pem"

for machine; do
    name=${machine%%=*}
    case "$name" in
    '' | . | .. | *[!A-Za-z0-9._-]*) echo "certs.sh: $name: expected letters, digits, dots, dashes" >&2 && exit 2 ;;
    esac
    addresses=
    [ "$name" = "$machine" ] || addresses=${machine#*=}
    names="DNS:$name,DNS:localhost,IP:127.0.0.1"
    for address in $(printf '%s' "$addresses" | tr ',' ' '); do
        case "$address" in
        *:* | [0-9]*.[0-9]*.[0-9]*.[0-9]*) names="$names,IP:$address" ;;
        *) names="$names,DNS:$address" ;;
        esac
    done
    mkdir -p "$into/$name"
    # Made beside its place: a machine never has a new key with an old certificate.
    made=$into/$name/.made
    rm -rf "$made" && mkdir "$made"
    printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=critical,CA:false\nkeyUsage=critical,digitalSignature\n' \
        "$names" >"$made/extensions"
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$name" \
        -keyout "$made/key.pem" -out "$made/request" 2>/dev/null
    openssl x509 -req -in "$made/request" -CA "$into/ca.pem" -CAkey "$into/ca.key" -days "$days" \
        -set_serial "0x$(openssl rand -hex 16)" -extfile "$made/extensions" -out "$made/cert.pem" 2>/dev/null
    cp "$into/ca.pem" "$made/ca.pem"
    chmod "$key_mode" "$made/key.pem"
    chmod 0644 "$made/cert.pem" "$made/ca.pem"
    mv -f "$made/ca.pem" "$made/key.pem" "$made/cert.pem" "$into/$name/"
    rm -rf "$made"
    # For containers, whose users are others than ours: the folder around keeps this machine's people out all the same.
    case "$key_mode" in *4) chmod 0755 "$into/$name" ;; esac
    echo "$into/$name: $names, for $days days"
done
