#!/usr/bin/env bash
# Converts many files with two processes at a time; starts several programs for each file.
# arguments: FILES
# variants: 80 | 260
# needs: xargs iconv
for i in $(seq "$1"); do seq -f 'naïve café %.0f' 800 > "in$i"; done
printf '%s\n' in* | xargs -P 2 -I{} sh -c 'iconv -f UTF-8 -t UTF-16 {} | base64 | tr a-z A-Z > {}.out'
wc -c ./*.out | tail -1
