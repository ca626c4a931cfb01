#!/usr/bin/env bash
# Asks the package database what is installed, where files come from and whether they are intact.
# arguments: SECONDS PAUSE
# variants: 5 0.1 | 9 0.7
# needs: dpkg apt-cache
while ((SECONDS < $1)); do
  dpkg -l > installed
  dpkg -L coreutils bash > files
  dpkg -S /bin/ls /usr/bin/awk > owners 2>&1
  apt-cache policy bash tar > policy
  apt-cache depends gcc > depends
  sleep "$2"
done
