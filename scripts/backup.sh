#!/bin/sh
# backup.sh FOLDER: everything that cannot be computed again, from a running platform: three databases, the artifacts, the
# DVC remote, the secrets. The folder holds passwords: keep it as you keep those. COMPOSE_PROJECT_NAME names another project.
#
# While everything runs: `backup save` takes a file that changes under it for no failure, and says which on standard error.
# Databases first, files second: an artifact without its row is unused, a row without its artifact would be a loss.
set -eu
cd "$(dirname "$0")/.."
folder=${1:?usage: scripts/backup.sh FOLDER}
umask 077
mkdir -p "$folder"
for database in mlflow mlflow_auth prefect; do
    docker compose exec -T postgres pg_dump -U postgres --format custom "$database" > "$folder/.draft"
    mv "$folder/.draft" "$folder/$database.dump"
done
docker compose run --rm -T --no-deps backup save > "$folder/.draft"
mv "$folder/.draft" "$folder/files.tar"
echo "backed up to $folder: $(du -sh "$folder" | cut -f1)" >&2
