#!/usr/bin/env bash
# An integrity checker: hashes all programs and libraries and compares with the run before.
# arguments: FOLDER ROUNDS
# variants: /usr/bin 2 | /usr/share/perl 4 | /usr/include 1
# needs: sha256sum
for round in $(seq "$2"); do
  find "$1" -type f -size -4000k -print0 2>/dev/null | head -z -n 2500 | xargs -0 -n 50 sha256sum > "sums.$round"
  ((round > 1)) && diff -q "sums.$((round - 1))" "sums.$round"
  sleep 0.5
done
exit 0
