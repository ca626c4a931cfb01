#!/usr/bin/env bash
# Takes snapshots of a growing folder with zstd and keeps the last three.
# arguments: ROUNDS PAUSE
# variants: 25 0.2 | 12 0.6
# needs: zstd tar
mkdir data
for round in $(seq "$1"); do
  seq "$round" 80000 > "data/$round.txt"
  tar -cf - data | zstd -q -o "snapshot.$round.tar.zst"
  rm -f "snapshot.$((round - 3)).tar.zst"
  sleep "$2"
done
