#!/usr/bin/env bash
# Makes backups of its own, then finds and deletes them, generation by generation.
# attack_type: destruction
# severity: 0.7
# arguments: GENERATIONS FILES PAUSE
# variants: 8 60 0.6 | 25 15 0.2 | 4 150 1.4
# needs: gzip
mkdir data
for i in $(seq "$2"); do seq "$i" 2000 > "data/$i"; done
for g in $(seq "$1"); do mkdir "backup.$g"; for f in data/*; do cp "$f" "backup.$g/${f##*/}.bak"; done; done
for g in $(seq "$1"); do
  find "backup.$g" -name '*.bak' -print > found
  while read -r file; do : > "$file"; rm "$file"; done < found
  rmdir "backup.$g"
  sleep "$3"
done
