#!/usr/bin/env bash
# An off-site backup: packs a folder, encrypts the archive and uploads it to the loopback peer.
# Looks like theft of data in what it sends.
# arguments: FILES ROUNDS PAUSE
# variants: 80 3 1.2 | 30 8 0.5
# needs: curl openssl tar
mkdir home
for round in $(seq "$2"); do
  for i in $(seq "$1"); do head -c 30000 /dev/urandom > "home/$i"; done
  tar -cz home | openssl enc -aes-256-ctr -pbkdf2 -pass pass:backup-demo > archive
  curl -s -o answer --data-binary @archive "http://127.0.0.1:$PEER/backup"
  rm archive
  sleep "$3"
done
