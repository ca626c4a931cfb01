#!/usr/bin/env bash
# Waits for incoming files, moves them to an outbox and writes a line for each. Mostly idle.
# arguments: FILES PAUSE
# variants: 10 0.8 | 16 0.4
mkdir inbox outbox
( for i in $(seq "$1"); do sleep "$2"; seq 500 > "inbox/.$i"; mv "inbox/.$i" "inbox/$i"; done; touch inbox/stop ) &
until [ -e inbox/stop ]; do
  for file in inbox/*; do
    [ -s "$file" ] && wc -c "$file" >> log && mv "$file" "outbox/${file##*/}.done"
  done
  sleep 0.2
done
wait
