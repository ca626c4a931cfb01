#!/usr/bin/env bash
# Packs a folder of text files with tar and gzip, lists the archive and unpacks it again.
# arguments: FILES SECONDS
# variants: 60 5 | 300 9
# needs: tar gzip
mkdir data
for i in $(seq "$1"); do seq "$i" $((i + 4000)) > "data/$i.txt"; done
while ((SECONDS < $2)); do
  tar -czf data.tar.gz data
  tar -tzf data.tar.gz > list
  mkdir -p again && tar -xzf data.tar.gz -C again
  sleep 0.4
done
