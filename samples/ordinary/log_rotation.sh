#!/usr/bin/env bash
# Writes logs and rotates them: renames, compresses, truncates, deletes the oldest.
# arguments: ROUNDS PAUSE
# variants: 20 0.3 | 60 0.05
# needs: gzip
for round in $(seq "$1"); do
  for name in web mail cron; do
    seq -f "$name: event %.0f" 3000 >> "$name.log"
    rm -f "$name.log.4.gz"
    for i in 3 2 1; do [ -e "$name.log.$i.gz" ] && mv "$name.log.$i.gz" "$name.log.$((i + 1)).gz"; done
    cp "$name.log" "$name.log.1" && : > "$name.log" && gzip -f "$name.log.1"
  done
  sleep "$2"
done
