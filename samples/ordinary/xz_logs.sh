#!/usr/bin/env bash
# Compresses old logs with xz and checks them.
# arguments: FILES LINES
# variants: 10 60000 | 24 25000
# needs: xz
for i in $(seq "$1"); do seq -f "2026-01-01 service[$i]: request %.0f served" "$2" > "log.$i"; done
for file in log.*; do xz -6 "$file" && xz -t "$file.xz"; done
xz -l ./*.xz
