#!/usr/bin/env bash
# Certificates of a mesh, from an authority of its own, under target/real/run/certificates: root.pem and, for each argument
# NAME=IDENTITY, NAME.pem and NAME.key. Usage: certificates.sh NAME=spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT...
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p target/real/run/certificates
cd target/real/run/certificates
key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
openssl req -x509 "${key[@]}" -days 2 -subj /O=test -keyout root.key -out root.pem
for each in "$@"; do
  name=${each%%=*} identity=${each#*=}
  openssl req "${key[@]}" -subj "/O=$name" -keyout "$name.key" -out "$name.csr"
  openssl x509 -req -in "$name.csr" -CA root.pem -CAkey root.key -CAcreateserial -days 2 -out "$name.pem" \
    -extfile <(printf 'subjectAltName=critical,URI:%s\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n' "$identity")
done
