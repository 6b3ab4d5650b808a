#!/bin/bash
# On an empty cluster: a role for each server, owner of its databases and of nothing else.
set -euo pipefail
for role in mlflow prefect; do
    # The password goes by stdin: arguments can be read by others.
    printf "create role %s login password '%s';\n" "$role" "$(cat "/secrets/postgres/${role}_password")" |
        psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --quiet
done
for pair in mlflow:mlflow mlflow_auth:mlflow prefect:prefect; do
    psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --quiet \
        -c "create database ${pair%%:*} owner ${pair#*:}" \
        -c "revoke all on database ${pair%%:*} from public"
done
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --quiet -d prefect -c 'create extension if not exists pg_trgm'
