#!/usr/bin/env bash
# Imports CSV files into SQLite from the shell and exports reports.
# arguments: FILES PAUSE
# variants: 12 0.3 | 40 0
# needs: sqlite3
for i in $(seq "$1"); do
  seq 4000 | awk -v i="$i" '{ print $1 "," i "," $1 * i % 1000 }' > "part$i.csv"
  sqlite3 all.db "create table if not exists t (a int, b int, c int)" ".mode csv" ".import part$i.csv t"
  sqlite3 all.db "select b, count(*), avg(c) from t group by b" > report.txt
  sleep "$2"
done
sqlite3 all.db .dump | gzip > dump.sql.gz
