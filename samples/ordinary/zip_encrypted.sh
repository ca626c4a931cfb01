#!/usr/bin/env bash
# An archiver with encryption: packs reports into password-protected zip files, one after the other,
# and removes what it has packed. Looks like ransomware in what it does to files.
# arguments: FILES PAUSE
# variants: 60 0.05 | 30 0.3
# needs: zip
mkdir reports
for i in $(seq "$1"); do seq "$i" $((i + 9000)) > "reports/$i.csv"; done
for file in reports/*.csv; do
  zip -q -m -P archive-demo "${file%.csv}.zip" "$file"
  sleep "$2"
done
ls -l reports
