#!/usr/bin/env bash
# Starts a PostgreSQL server in a folder of its own, loads a table, queries it, dumps it and stops.
# The server refuses to run as root, so it changes its user first, as services do.
# arguments: ROWS QUERIES
# variants: 20000 6 | 60000 12
# needs: initdb pg_ctl psql runuser
data=$PWD/data
chmod 711 . && mkdir "$data" && chown nobody "$data" && cd "$data" || exit 1
as() { runuser -u nobody -- "$@"; }
as initdb -D "$data/db" -U demo --no-sync > /dev/null
as pg_ctl -D "$data/db" -o "-c listen_addresses='' -k $data" -l "$data/log" -w start > /dev/null
sql() { as psql -q -h "$data" -U demo -d postgres -c "$1" > /dev/null; }
sql "create table t as select i, md5(i::text) m from generate_series(1, $1) i"
for i in $(seq "$2"); do sql "select count(*) from t where m like '%$i%'"; sleep 0.05; done
sql "update t set m = upper(m) where i % 2 = 0"
as pg_ctl -D "$data/db" -m fast -w stop > /dev/null
