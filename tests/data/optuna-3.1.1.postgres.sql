CREATE TYPE studydirection AS ENUM ( 'NOT_SET', 'MINIMIZE', 'MAXIMIZE' );
CREATE TYPE trialintermediatevaluetype AS ENUM ( 'FINITE', 'INF_POS', 'INF_NEG', 'NAN' );
CREATE TYPE trialstate AS ENUM ( 'RUNNING', 'COMPLETE', 'PRUNED', 'FAIL', 'WAITING' );
CREATE TYPE trialvaluetype AS ENUM ( 'FINITE', 'INF_POS', 'INF_NEG' );
CREATE TABLE alembic_version (
    version_num varchar(32) NOT NULL
);
CREATE TABLE studies (
    study_id serial NOT NULL,
    study_name varchar(512) NOT NULL
);
CREATE TABLE study_directions (
    study_direction_id serial NOT NULL,
    direction studydirection NOT NULL,
    study_id integer NOT NULL,
    objective integer NOT NULL
);
CREATE TABLE study_system_attributes (
    study_system_attribute_id serial NOT NULL,
    study_id integer,
    key varchar(512),
    value_json text
);
CREATE TABLE study_user_attributes (
    study_user_attribute_id serial NOT NULL,
    study_id integer,
    key varchar(512),
    value_json text
);
CREATE TABLE trial_heartbeats (
    trial_heartbeat_id serial NOT NULL,
    trial_id integer NOT NULL,
    heartbeat timestamp NOT NULL
);
CREATE TABLE trial_intermediate_values (
    trial_intermediate_value_id serial NOT NULL,
    trial_id integer NOT NULL,
    step integer NOT NULL,
    intermediate_value double precision,
    intermediate_value_type trialintermediatevaluetype NOT NULL
);
CREATE TABLE trial_params (
    param_id serial NOT NULL,
    trial_id integer,
    param_name varchar(512),
    param_value double precision,
    distribution_json text
);
CREATE TABLE trial_system_attributes (
    trial_system_attribute_id serial NOT NULL,
    trial_id integer,
    key varchar(512),
    value_json text
);
CREATE TABLE trial_user_attributes (
    trial_user_attribute_id serial NOT NULL,
    trial_id integer,
    key varchar(512),
    value_json text
);
CREATE TABLE trial_values (
    trial_value_id serial NOT NULL,
    trial_id integer NOT NULL,
    objective integer NOT NULL,
    value double precision,
    value_type trialvaluetype NOT NULL
);
CREATE TABLE trials (
    trial_id serial NOT NULL,
    number integer,
    study_id integer,
    state trialstate NOT NULL,
    datetime_start timestamp,
    datetime_complete timestamp
);
CREATE TABLE version_info (
    version_info_id integer NOT NULL,
    schema_version integer,
    library_version varchar(256),
    CONSTRAINT version_info_version_info_id_check CHECK ((version_info_id = 1))
);
INSERT INTO alembic_version VALUES
('v3.0.0.d');
INSERT INTO studies VALUES
(1, 'old'),
(2, 'pair');
INSERT INTO study_directions VALUES
(1, 'MAXIMIZE', 1, 0),
(2, 'MINIMIZE', 2, 0),
(3, 'MAXIMIZE', 2, 1);
INSERT INTO study_user_attributes VALUES
(1, 1, 'purpose', '"fixture"');
INSERT INTO trial_intermediate_values VALUES
(1, 1, 0, 0.5, 'FINITE'),
(2, 1, 1, 0.75, 'FINITE'),
(3, 2, 0, 0.125, 'FINITE'),
(4, 2, 1, NULL, 'INF_POS'),
(5, 2, 2, NULL, 'INF_NEG'),
(6, 2, 3, NULL, 'NAN'),
(7, 2, 4, 0.25, 'FINITE');
INSERT INTO trial_params VALUES
(1, 1, 'optimizer', 0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["adam", "sgd", null]}}'),
(2, 1, 'rate', 0.001, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 1e-05, "high": 0.1, "log": true}}'),
(3, 1, 'layers', 3, '{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 8}}'),
(4, 1, 'width', 64, '{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 16, "high": 256}}'),
(5, 1, 'momentum', 0.625, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}'),
(6, 1, 'dropout', 0.25, '{"name": "FloatDistribution", "attributes": {"step": 0.25, "low": 0.0, "high": 0.5, "log": false}}'),
(7, 2, 'rate', 0.01, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 1e-05, "high": 0.1, "log": true}}'),
(8, 3, 'rate', 0.05, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 1e-05, "high": 0.1, "log": true}}'),
(9, 4, 'optimizer', 2, '{"name": "CategoricalDistribution", "attributes": {"choices": ["adam", "sgd", null]}}'),
(10, 5, 'x', 2, '{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 0, "high": 4}}');
INSERT INTO trial_system_attributes VALUES
(1, 1, 'fixed_params', '{"optimizer": "adam", "rate": 0.001, "layers": 3, "width": 64, "momentum": 0.625, "dropout": 0.25}'),
(2, 2, 'fixed_params', '{"rate": 0.01}'),
(3, 3, 'fixed_params', '{"rate": 0.05}'),
(4, 4, 'fixed_params', '{"optimizer": null}'),
(5, 5, 'fixed_params', '{"x": 2}');
INSERT INTO trial_user_attributes VALUES
(1, 1, 'note', '"first"'),
(2, 1, 'sizes', '[1, 2.5, null, {"deep": true}]'),
(3, 3, 'error', '"diverged"'),
(4, 5, 'note', '"two values"');
INSERT INTO trial_values VALUES
(1, 1, 0, 0.7512345678901234, 'FINITE'),
(2, 2, 0, 0.25, 'FINITE'),
(3, 4, 0, NULL, 'INF_NEG'),
(4, 5, 0, 1.5, 'FINITE'),
(5, 5, 1, -2.5, 'FINITE');
INSERT INTO trials VALUES
(1, 0, 1, 'COMPLETE', '2026-11-22 11:13:44.026635', '2026-11-22 11:13:44.075555'),
(2, 1, 1, 'PRUNED', '2026-11-22 11:13:44.102282', '2026-11-22 11:13:44.127683'),
(3, 2, 1, 'FAIL', '2026-11-22 11:13:44.147275', '2026-11-22 11:13:44.158949'),
(4, 3, 1, 'COMPLETE', '2026-11-22 11:13:44.176654', '2026-11-22 11:13:44.186642'),
(5, 0, 2, 'COMPLETE', '2026-11-22 11:13:44.210409', '2026-11-22 11:13:44.223583');
INSERT INTO version_info VALUES
(1, 12, '3.1.1');
SELECT setval('studies_study_id_seq', 2, true);
SELECT setval('study_directions_study_direction_id_seq', 3, true);
SELECT setval('study_system_attributes_study_system_attribute_id_seq', 1, false);
SELECT setval('study_user_attributes_study_user_attribute_id_seq', 1, true);
SELECT setval('trial_heartbeats_trial_heartbeat_id_seq', 1, false);
SELECT setval('trial_intermediate_values_trial_intermediate_value_id_seq', 7, true);
SELECT setval('trial_params_param_id_seq', 10, true);
SELECT setval('trial_system_attributes_trial_system_attribute_id_seq', 5, true);
SELECT setval('trial_user_attributes_trial_user_attribute_id_seq', 4, true);
SELECT setval('trial_values_trial_value_id_seq', 5, true);
SELECT setval('trials_trial_id_seq', 5, true);
ALTER TABLE alembic_version ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE studies ADD CONSTRAINT studies_pkey PRIMARY KEY (study_id);
ALTER TABLE study_directions ADD CONSTRAINT study_directions_pkey PRIMARY KEY (study_direction_id);
ALTER TABLE study_directions ADD CONSTRAINT study_directions_study_id_objective_key UNIQUE (study_id, objective);
ALTER TABLE study_system_attributes ADD CONSTRAINT study_system_attributes_pkey PRIMARY KEY (study_system_attribute_id);
ALTER TABLE study_system_attributes ADD CONSTRAINT study_system_attributes_study_id_key_key UNIQUE (study_id, key);
ALTER TABLE study_user_attributes ADD CONSTRAINT study_user_attributes_pkey PRIMARY KEY (study_user_attribute_id);
ALTER TABLE study_user_attributes ADD CONSTRAINT study_user_attributes_study_id_key_key UNIQUE (study_id, key);
ALTER TABLE trial_heartbeats ADD CONSTRAINT trial_heartbeats_pkey PRIMARY KEY (trial_heartbeat_id);
ALTER TABLE trial_heartbeats ADD CONSTRAINT trial_heartbeats_trial_id_key UNIQUE (trial_id);
ALTER TABLE trial_intermediate_values ADD CONSTRAINT trial_intermediate_values_pkey PRIMARY KEY (trial_intermediate_value_id);
ALTER TABLE trial_intermediate_values ADD CONSTRAINT trial_intermediate_values_trial_id_step_key UNIQUE (trial_id, step);
ALTER TABLE trial_params ADD CONSTRAINT trial_params_pkey PRIMARY KEY (param_id);
ALTER TABLE trial_params ADD CONSTRAINT trial_params_trial_id_param_name_key UNIQUE (trial_id, param_name);
ALTER TABLE trial_system_attributes ADD CONSTRAINT trial_system_attributes_pkey PRIMARY KEY (trial_system_attribute_id);
ALTER TABLE trial_system_attributes ADD CONSTRAINT trial_system_attributes_trial_id_key_key UNIQUE (trial_id, key);
ALTER TABLE trial_user_attributes ADD CONSTRAINT trial_user_attributes_pkey PRIMARY KEY (trial_user_attribute_id);
ALTER TABLE trial_user_attributes ADD CONSTRAINT trial_user_attributes_trial_id_key_key UNIQUE (trial_id, key);
ALTER TABLE trial_values ADD CONSTRAINT trial_values_pkey PRIMARY KEY (trial_value_id);
ALTER TABLE trial_values ADD CONSTRAINT trial_values_trial_id_objective_key UNIQUE (trial_id, objective);
ALTER TABLE trials ADD CONSTRAINT trials_pkey PRIMARY KEY (trial_id);
ALTER TABLE version_info ADD CONSTRAINT version_info_pkey PRIMARY KEY (version_info_id);
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
ALTER TABLE study_directions ADD CONSTRAINT study_directions_study_id_fkey FOREIGN KEY (study_id) REFERENCES studies(study_id);
ALTER TABLE study_system_attributes ADD CONSTRAINT study_system_attributes_study_id_fkey FOREIGN KEY (study_id) REFERENCES studies(study_id);
ALTER TABLE study_user_attributes ADD CONSTRAINT study_user_attributes_study_id_fkey FOREIGN KEY (study_id) REFERENCES studies(study_id);
ALTER TABLE trial_heartbeats ADD CONSTRAINT trial_heartbeats_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES trials(trial_id);
ALTER TABLE trial_intermediate_values ADD CONSTRAINT trial_intermediate_values_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES trials(trial_id);
ALTER TABLE trial_params ADD CONSTRAINT trial_params_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES trials(trial_id);
ALTER TABLE trial_system_attributes ADD CONSTRAINT trial_system_attributes_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES trials(trial_id);
ALTER TABLE trial_user_attributes ADD CONSTRAINT trial_user_attributes_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES trials(trial_id);
ALTER TABLE trial_values ADD CONSTRAINT trial_values_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES trials(trial_id);
ALTER TABLE trials ADD CONSTRAINT trials_study_id_fkey FOREIGN KEY (study_id) REFERENCES studies(study_id);
