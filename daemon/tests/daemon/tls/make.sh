#!/bin/sh
# Makes the certificates of the TLS tests anew: an authority with a server and a client, and a stranger's authority.
# They prove nothing to anyone: their keys lie here for all to see.
set -eu
cd "$(dirname "$0")"
days=36500

authority() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days $days -subj "/CN=$1" \
        -keyout "$1.key" -out "$1.pem" -addext basicConstraints=critical,CA:true -addext keyUsage=critical,keyCertSign
}

member() { # authority name usage
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" -keyout "$2.key" -out "$2.csr"
    printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=%s\nbasicConstraints=CA:false\n' "$3" >"$2.ext"
    openssl x509 -req -in "$2.csr" -CA "$1.pem" -CAkey "$1.key" -CAcreateserial -days $days -extfile "$2.ext" \
        -out "$2.pem"
    rm "$2.csr" "$2.ext"
}

authority ca
authority stranger-ca
member ca server serverAuth,clientAuth
member ca client clientAuth
member stranger-ca stranger serverAuth,clientAuth
rm -f ./*.srl ca.key stranger-ca.key
