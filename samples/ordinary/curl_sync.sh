#!/usr/bin/env bash
# Fetches a mirror list and many small files with curl, several at a time.
# arguments: FILES PARALLEL PAUSE
# variants: 60 4 0 | 25 1 0.25
# needs: curl xargs
export PEER PAUSE=$3
seq "$1" | xargs -P "$2" -I{} sh -c 'curl -s -o file{} "http://127.0.0.1:$PEER/$((20000 + {} * 100))"; sleep $PAUSE'
cat file* | sha256sum > sums
