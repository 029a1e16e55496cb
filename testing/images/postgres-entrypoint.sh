#!/bin/sh
# Makes the database in /data if there is none, then becomes the server. The superuser `postgres` gets the password in
# POSTGRES_PASSWORD, through a file: command lines can be read by others. Inside the container `psql` needs none.
set -eu
: "${POSTGRES_PASSWORD:?must be set}"
database=/data/database

if [ ! -d "$database" ]; then
    umask 077
    # Made under another name: one that was cut off is not taken for a database.
    rm -rf /data/unfinished
    printf '%s\n' "$POSTGRES_PASSWORD" > /data/password
    initdb --pgdata=/data/unfinished --username=postgres --pwfile=/data/password \
        --auth-local=peer --auth-host=scram-sha-256 --encoding=UTF8 --locale-provider=builtin --builtin-locale=C.UTF-8 --locale=C --no-sync
    rm /data/password
    echo 'host all all all scram-sha-256' >> /data/unfinished/pg_hba.conf
    mv /data/unfinished "$database"
fi
unset POSTGRES_PASSWORD
# A container that was killed leaves its lock; in a new one the process it names may be anyone.
rm -f "$database/postmaster.pid"

exec postgres -D "$database" -c listen_addresses='*' -c max_connections=200 -c unix_socket_directories=/tmp
