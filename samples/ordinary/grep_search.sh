#!/usr/bin/env bash
# Searches the system's headers and documents for words, as an editor's search does.
# arguments: SECONDS PAUSE
# variants: 5 0.1 | 9 0.8
# needs: grep
for word in malloc socket signal thread error memory string vector define struct mutex option; do
  ((SECONDS < $1)) || break
  grep -rIl "$word" /usr/include /usr/share/doc > "$word.files" 2>/dev/null
  grep -rIc "$word" /usr/include/linux > "$word.counts"
  sleep "$2"
done
