-- A database of its own for MLflow, beside the tuner's. The Postgres image runs this when it creates its volume; with
-- a volume from before: docker compose exec postgres createdb --username=tuner mlflow
CREATE DATABASE mlflow;
