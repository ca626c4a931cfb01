#!/usr/bin/env bash
# Mirrors a folder: copies with attributes, compares, changes some files, mirrors again.
# arguments: FOLDER ROUNDS
# variants: /usr/include/linux 3 | /usr/share/perl5 6
# needs: cp diff
cp -a "$1" original
for round in $(seq "$2"); do
  rm -rf mirror && cp -a original mirror
  diff -rq original mirror
  find original -type f | head -n 20 | while read -r file; do echo "$round" >> "$file"; done
  diff -rq original mirror | wc -l
  sleep 0.4
done
