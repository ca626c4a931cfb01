#!/usr/bin/env bash
# Polls the loopback peer and answers each poll by running a harmless command and posting its output.
# attack_type: command_and_control
# severity: 0.7
# arguments: POLLS PAUSE
# variants: 14 0.5 | 30 0.15 | 8 1.3
# needs: curl
commands=('uname -s' 'date' 'ls -l /usr' 'ps' 'df .' 'wc -c /etc/os-release')
for i in $(seq "$1"); do
  curl -s -o order "http://127.0.0.1:$PEER/48"
  ${commands[i % 6]} > result 2>&1
  curl -s -o answer --data-binary @result "http://127.0.0.1:$PEER/result"
  sleep "$2"
done
