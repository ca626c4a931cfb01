#!/usr/bin/env bash
# Encrypts its own made files with openssl and removes the originals.
# attack_type: ransomware
# severity: 0.9
# arguments: FILES PAUSE
# variants: 70 0.02 | 30 0.25 | 18 0.7
# needs: openssl
mkdir documents
for i in $(seq "$1"); do head -c 60000 /dev/urandom > "documents/$i.doc"; done
for file in documents/*.doc; do
  openssl enc -aes-256-ctr -pbkdf2 -iter 1000 -pass pass:emulation -in "$file" -out "$file.locked"
  rm "$file"
  sleep "$2"
done
echo 'This is a harmless emulation.' > README_RESTORE.txt
