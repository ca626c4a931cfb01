#!/usr/bin/env bash
# A backup tool: writes an encrypted copy of each document beside a manifest of checksums and drops
# the oldest generation. The originals stay.
# arguments: FILES GENERATIONS PAUSE
# variants: 40 4 0.02 | 20 5 0.08
# needs: openssl sha256sum
mkdir documents
for i in $(seq "$1"); do head -c 60000 /dev/urandom > "documents/$i.bin"; done
for generation in $(seq "$2"); do
  mkdir "backup.$generation"
  for file in documents/*; do
    openssl enc -aes-256-ctr -pbkdf2 -iter 1000 -pass pass:backup-demo -in "$file" \
      -out "backup.$generation/$(basename "$file").enc"
    sleep "$3"
  done
  sha256sum "backup.$generation"/* > "backup.$generation.sums"
  rm -rf "backup.$((generation - 2))"
done
