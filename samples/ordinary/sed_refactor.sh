#!/usr/bin/env bash
# Renames an identifier over a source tree: every file is rewritten in place and then renamed.
# arguments: FILES ROUNDS
# variants: 120 2 | 40 8
# needs: sed
mkdir src
for i in $(seq "$1"); do seq -f "int old_name_%.0f(void);" 400 > "src/old_$i.c"; done
for round in $(seq "$2"); do
  for file in src/*.c; do
    sed -i 's/old_name/new_name/; s/void/int/' "$file"
    mv "$file" "src/r${round}_${file##*_}"
  done
  sleep 0.5
done
