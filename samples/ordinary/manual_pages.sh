#!/usr/bin/env bash
# Formats manual pages as text and as PostScript.
# arguments: PAGES PAUSE
# variants: 20 0 | 12 0.4
# needs: groff gzip
find /usr/share/man /usr/share/perl -name '*.1.gz' -o -name '*.pod' 2>/dev/null | head -n "$1" > pages
[ -s pages ] || { seq "$1" | sed 's/.*/made/' > pages; }
n=0
while read -r page; do
  n=$((n + 1))
  { echo ".TH DEMO $n"; seq -f '.SH PART %.0f
Some words about it, in a paragraph that is filled and broken into lines.' 300; } > "page$n.man"
  groff -man -Tascii "page$n.man" > "page$n.txt"
  groff -man -Tps "page$n.man" > "page$n.ps"
  sleep "$2"
done < pages
