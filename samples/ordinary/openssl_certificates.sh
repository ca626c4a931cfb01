#!/usr/bin/env bash
# A small certificate authority: keys, requests, signatures, verification.
# arguments: CERTIFICATES BITS
# variants: 8 2048 | 30 1024
# needs: openssl
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=demo -days 2 2>/dev/null
for i in $(seq "$1"); do
  openssl req -newkey rsa:"$2" -nodes -keyout "$i.key" -out "$i.csr" -subj "/CN=host$i" 2>/dev/null
  openssl x509 -req -in "$i.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -out "$i.pem" -days 1 2>/dev/null
  openssl verify -CAfile ca.pem "$i.pem" > /dev/null
  sleep 0.1
done
