#!/usr/bin/env bash
# awk makes daily reports from an access log, as a scheduled job does.
# arguments: LINES PAUSE SECONDS
# variants: 100000 0.2 6 | 20000 0.9 12
# needs: awk
seq "$1" | awk '{ print "10.0." $1 % 250 "." $1 % 97, $1 % 5 ? 200 : 404, $1 * 37 % 9000 }' > access.log
while ((SECONDS < $3)); do
  awk '{ n[$1]++; b[$1] += $3 } END { for (h in n) print h, n[h], b[h] }' access.log | sort -k3 -n > top
  awk '$2 == 404' access.log | wc -l >> missing
  sleep "$2"
done
