#!/usr/bin/env bash
# Perl counts words and rewrites a large text in place.
# arguments: LINES ROUNDS
# variants: 200000 6 | 60000 25
# needs: perl
seq -f 'line %.0f of the quick brown fox and the lazy dog' "$1" > text
for round in $(seq "$2"); do
  perl -ne '$n{$_}++ for split; END { print "$_ $n{$_}\n" for sort keys %n }' text > words
  perl -pi -e 's/fox/cat/ if $. % 3; s/cat/fox/ unless $. % 3' text
done
