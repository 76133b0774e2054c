#!/bin/sh
# Creates a role and a database for tuner and for MLflow. Neither role is a superuser, and each can use only its own
# database. The Postgres image runs this when it creates its volume. Run it again to set new passwords.
set -eu
: "${TUNER_DB_PASSWORD:?set it in .env, see .env.example}"
: "${MLFLOW_DB_PASSWORD:?set it in .env, see .env.example}"

# psql reads the passwords from the environment: they are not in the list of processes, and the server does not log them.
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname=postgres <<'SQL'
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';
\getenv tuner_password TUNER_DB_PASSWORD
\getenv mlflow_password MLFLOW_DB_PASSWORD

SELECT format('CREATE ROLE %I', name) FROM unnest(ARRAY['tuner', 'mlflow']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
ALTER ROLE tuner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'tuner_password';
ALTER ROLE mlflow LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'mlflow_password';

SELECT format('CREATE DATABASE %I OWNER %I', name, name) FROM unnest(ARRAY['tuner', 'mlflow']) AS name
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec
-- By default every role may connect to every database.
REVOKE ALL ON DATABASE tuner, mlflow, postgres, template1 FROM PUBLIC;
SQL
