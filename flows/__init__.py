"""Prefect only: when and where a stage of `dvc.yaml` runs. Nothing in `aut/stages` knows of it."""
