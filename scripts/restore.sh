#!/bin/sh
# restore.sh FOLDER: a backup into a platform whose volumes are empty (docker compose down --volumes), then starts it.
# A folder of the host in place of the volume `remote` (AUT_DVC_FOLDER) keeps what it holds and takes what it lacks.
set -eu
cd "$(dirname "$0")/.."
folder=$(cd "${1:?usage: scripts/restore.sh FOLDER}" && pwd)
for name in mlflow.dump mlflow_auth.dump prefect.dump files.tar; do
    [ -s "$folder/$name" ] || { echo "restore: $folder/$name is missing or empty" >&2; exit 1; }
done
docker compose run --rm -T --no-deps backup restore < "$folder/files.tar"
docker compose up -d --wait postgres    # with the restored passwords
for database in mlflow mlflow_auth prefect; do
    docker compose exec -T postgres dropdb -U postgres "$database"
    docker compose exec -T postgres createdb -U postgres --owner "${database%_auth}" "$database"
    docker compose exec -T postgres pg_restore -U postgres --exit-on-error -d "$database" < "$folder/$database.dump"
done
docker compose up -d --wait
