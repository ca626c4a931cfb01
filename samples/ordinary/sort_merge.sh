#!/usr/bin/env bash
# Sorts, merges and joins large files with a small memory limit, so that sort works on disk.
# arguments: LINES ROUNDS
# variants: 200000 4 | 600000 2
# needs: sort join
for round in $(seq "$2"); do
  seq "$1" | awk '{ print ($1 * 7919) % 1000003, $1 }' > numbers
  sort -S 2M -T . numbers > sorted
  sort -S 2M -T . -k2 -n numbers > by_second
  join sorted <(sort -u sorted) | tail -1 > joined
  uniq -c sorted | sort -n | tail -5 > common
done
