CREATE TYPE studydirection AS ENUM ('NOT_SET', 'MINIMIZE', 'MAXIMIZE');
CREATE TYPE trialintermediatevaluetype AS ENUM ('FINITE', 'INF_POS', 'INF_NEG', 'NAN');
CREATE TYPE trialstate AS ENUM ('RUNNING', 'COMPLETE', 'PRUNED', 'FAIL', 'WAITING');
CREATE TYPE trialvaluetype AS ENUM ('FINITE', 'INF_POS', 'INF_NEG');
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
CREATE TABLE studies (
	study_id SERIAL NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	CONSTRAINT studies_pkey PRIMARY KEY (study_id)
);
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE TABLE tuner_alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT tuner_alembic_version_pkc PRIMARY KEY (version_num)
);
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	CONSTRAINT version_info_pkey PRIMARY KEY (version_info_id), 
	CONSTRAINT version_info_version_info_id_check CHECK (version_info_id = 1)
);
CREATE TABLE study_directions (
	study_direction_id SERIAL NOT NULL, 
	direction studydirection NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	CONSTRAINT study_directions_pkey PRIMARY KEY (study_direction_id), 
	CONSTRAINT study_directions_study_id_fkey FOREIGN KEY(study_id) REFERENCES studies (study_id), 
	CONSTRAINT study_directions_study_id_objective_key UNIQUE NULLS DISTINCT (study_id, objective)
);
CREATE TABLE study_system_attributes (
	study_system_attribute_id SERIAL NOT NULL, 
	study_id INTEGER, 
	key VARCHAR(512), 
	value_json TEXT, 
	CONSTRAINT study_system_attributes_pkey PRIMARY KEY (study_system_attribute_id), 
	CONSTRAINT study_system_attributes_study_id_fkey FOREIGN KEY(study_id) REFERENCES studies (study_id), 
	CONSTRAINT study_system_attributes_study_id_key_key UNIQUE NULLS DISTINCT (study_id, key)
);
CREATE TABLE study_user_attributes (
	study_user_attribute_id SERIAL NOT NULL, 
	study_id INTEGER, 
	key VARCHAR(512), 
	value_json TEXT, 
	CONSTRAINT study_user_attributes_pkey PRIMARY KEY (study_user_attribute_id), 
	CONSTRAINT study_user_attributes_study_id_fkey FOREIGN KEY(study_id) REFERENCES studies (study_id), 
	CONSTRAINT study_user_attributes_study_id_key_key UNIQUE NULLS DISTINCT (study_id, key)
);
CREATE TABLE trials (
	trial_id SERIAL NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state trialstate NOT NULL, 
	datetime_start TIMESTAMP WITHOUT TIME ZONE, 
	datetime_complete TIMESTAMP WITHOUT TIME ZONE, 
	CONSTRAINT trials_pkey PRIMARY KEY (trial_id), 
	CONSTRAINT trials_study_id_fkey FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
CREATE INDEX ix_trials_study_id ON trials (study_id);
CREATE TABLE tuner_budgets (
	study_id INTEGER NOT NULL, 
	identity VARCHAR(32) NOT NULL, 
	trials INTEGER, 
	wall_s DOUBLE PRECISION, 
	device_s DOUBLE PRECISION, 
	stopped_at_s DOUBLE PRECISION, 
	CONSTRAINT tuner_budgets_pkey PRIMARY KEY (study_id), 
	CONSTRAINT tuner_budgets_study_id_fkey FOREIGN KEY(study_id) REFERENCES studies (study_id) ON DELETE CASCADE
);
CREATE TABLE tuner_mirrors (
	study_id INTEGER NOT NULL, 
	target VARCHAR(300) NOT NULL, 
	owner VARCHAR(200), 
	expires_at_s DOUBLE PRECISION NOT NULL, 
	place VARCHAR(200), 
	CONSTRAINT tuner_mirrors_pkey PRIMARY KEY (study_id, target), 
	CONSTRAINT tuner_mirrors_study_id_fkey FOREIGN KEY(study_id) REFERENCES studies (study_id) ON DELETE CASCADE
);
CREATE TABLE tuner_workers (
	worker VARCHAR(200) NOT NULL, 
	study_id INTEGER NOT NULL, 
	host VARCHAR(255) NOT NULL, 
	pid INTEGER NOT NULL, 
	devices VARCHAR(255) NOT NULL, 
	started_at_s DOUBLE PRECISION NOT NULL, 
	seen_at_s DOUBLE PRECISION NOT NULL, 
	ended_at_s DOUBLE PRECISION, 
	about TEXT NOT NULL, 
	CONSTRAINT tuner_workers_pkey PRIMARY KEY (worker), 
	CONSTRAINT tuner_workers_study_id_fkey FOREIGN KEY(study_id) REFERENCES studies (study_id) ON DELETE CASCADE
);
CREATE INDEX tuner_workers_of_study ON tuner_workers (study_id);
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id SERIAL NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat TIMESTAMP WITHOUT TIME ZONE NOT NULL, 
	CONSTRAINT trial_heartbeats_pkey PRIMARY KEY (trial_heartbeat_id), 
	CONSTRAINT trial_heartbeats_trial_id_fkey FOREIGN KEY(trial_id) REFERENCES trials (trial_id), 
	CONSTRAINT trial_heartbeats_trial_id_key UNIQUE NULLS DISTINCT (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id SERIAL NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value DOUBLE PRECISION, 
	intermediate_value_type trialintermediatevaluetype NOT NULL, 
	CONSTRAINT trial_intermediate_values_pkey PRIMARY KEY (trial_intermediate_value_id), 
	CONSTRAINT trial_intermediate_values_trial_id_fkey FOREIGN KEY(trial_id) REFERENCES trials (trial_id), 
	CONSTRAINT trial_intermediate_values_trial_id_step_key UNIQUE NULLS DISTINCT (trial_id, step)
);
CREATE TABLE trial_params (
	param_id SERIAL NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value DOUBLE PRECISION, 
	distribution_json TEXT, 
	CONSTRAINT trial_params_pkey PRIMARY KEY (param_id), 
	CONSTRAINT trial_params_trial_id_fkey FOREIGN KEY(trial_id) REFERENCES trials (trial_id), 
	CONSTRAINT trial_params_trial_id_param_name_key UNIQUE NULLS DISTINCT (trial_id, param_name)
);
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id SERIAL NOT NULL, 
	trial_id INTEGER, 
	key VARCHAR(512), 
	value_json TEXT, 
	CONSTRAINT trial_system_attributes_pkey PRIMARY KEY (trial_system_attribute_id), 
	CONSTRAINT trial_system_attributes_trial_id_fkey FOREIGN KEY(trial_id) REFERENCES trials (trial_id), 
	CONSTRAINT trial_system_attributes_trial_id_key_key UNIQUE NULLS DISTINCT (trial_id, key)
);
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id SERIAL NOT NULL, 
	trial_id INTEGER, 
	key VARCHAR(512), 
	value_json TEXT, 
	CONSTRAINT trial_user_attributes_pkey PRIMARY KEY (trial_user_attribute_id), 
	CONSTRAINT trial_user_attributes_trial_id_fkey FOREIGN KEY(trial_id) REFERENCES trials (trial_id), 
	CONSTRAINT trial_user_attributes_trial_id_key_key UNIQUE NULLS DISTINCT (trial_id, key)
);
CREATE TABLE trial_values (
	trial_value_id SERIAL NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value DOUBLE PRECISION, 
	value_type trialvaluetype NOT NULL, 
	CONSTRAINT trial_values_pkey PRIMARY KEY (trial_value_id), 
	CONSTRAINT trial_values_trial_id_fkey FOREIGN KEY(trial_id) REFERENCES trials (trial_id), 
	CONSTRAINT trial_values_trial_id_objective_key UNIQUE NULLS DISTINCT (trial_id, objective)
);
CREATE TABLE tuner_attempts (
	trial_id INTEGER NOT NULL, 
	fence INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	worker VARCHAR(200) NOT NULL, 
	devices INTEGER NOT NULL, 
	started_at_s DOUBLE PRECISION NOT NULL, 
	ended_at_s DOUBLE PRECISION, 
	ending VARCHAR(20), 
	error TEXT, 
	CONSTRAINT tuner_attempts_pkey PRIMARY KEY (trial_id, fence), 
	CONSTRAINT tuner_attempts_study_id_fkey FOREIGN KEY(study_id) REFERENCES studies (study_id) ON DELETE CASCADE, 
	CONSTRAINT tuner_attempts_trial_id_fkey FOREIGN KEY(trial_id) REFERENCES trials (trial_id) ON DELETE CASCADE
);
CREATE INDEX tuner_attempts_by_end ON tuner_attempts (study_id, ended_at_s);
CREATE TABLE tuner_confirmations (
	trial_id INTEGER NOT NULL, 
	repeat INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	value DOUBLE PRECISION, 
	trained_at_s DOUBLE PRECISION NOT NULL, 
	CONSTRAINT tuner_confirmations_pkey PRIMARY KEY (trial_id, repeat), 
	CONSTRAINT tuner_confirmations_study_id_fkey FOREIGN KEY(study_id) REFERENCES studies (study_id) ON DELETE CASCADE, 
	CONSTRAINT tuner_confirmations_trial_id_fkey FOREIGN KEY(trial_id) REFERENCES trials (trial_id) ON DELETE CASCADE
);
CREATE INDEX tuner_confirmations_of_study ON tuner_confirmations (study_id);
CREATE TABLE tuner_leases (
	trial_id INTEGER NOT NULL, 
	worker VARCHAR(200), 
	fence INTEGER NOT NULL, 
	deaths INTEGER NOT NULL, 
	expires_at_s DOUBLE PRECISION NOT NULL, 
	CONSTRAINT tuner_leases_pkey PRIMARY KEY (trial_id), 
	CONSTRAINT tuner_leases_trial_id_fkey FOREIGN KEY(trial_id) REFERENCES trials (trial_id) ON DELETE CASCADE
);
CREATE TABLE tuner_mirrored (
	trial_id INTEGER NOT NULL, 
	target VARCHAR(300) NOT NULL, 
	run VARCHAR(200) NOT NULL, 
	epoch INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	is_ended BOOLEAN NOT NULL, 
	CONSTRAINT tuner_mirrored_pkey PRIMARY KEY (trial_id, target), 
	CONSTRAINT tuner_mirrored_trial_id_fkey FOREIGN KEY(trial_id) REFERENCES trials (trial_id) ON DELETE CASCADE
);
CREATE TABLE tuner_records (
	trial_id INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	outcome VARCHAR(20) NOT NULL, 
	ended_at_s DOUBLE PRECISION NOT NULL, 
	worker VARCHAR(200), 
	compile_s DOUBLE PRECISION, 
	compilations INTEGER, 
	train_s DOUBLE PRECISION, 
	checkpoint TEXT, 
	error_kind TEXT, 
	error TEXT, 
	CONSTRAINT tuner_records_pkey PRIMARY KEY (trial_id), 
	CONSTRAINT tuner_records_study_id_fkey FOREIGN KEY(study_id) REFERENCES studies (study_id) ON DELETE CASCADE, 
	CONSTRAINT tuner_records_trial_id_fkey FOREIGN KEY(trial_id) REFERENCES trials (trial_id) ON DELETE CASCADE
);
CREATE INDEX tuner_records_by_end ON tuner_records (study_id, ended_at_s);
CREATE TABLE tuner_reports (
	trial_id INTEGER NOT NULL, 
	epoch INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	metrics TEXT NOT NULL, 
	reported_at_s DOUBLE PRECISION, 
	CONSTRAINT tuner_reports_pkey PRIMARY KEY (trial_id, epoch), 
	CONSTRAINT tuner_reports_trial_id_fkey FOREIGN KEY(trial_id) REFERENCES trials (trial_id) ON DELETE CASCADE
);
CREATE TABLE tuner_rungs (
	trial_id INTEGER NOT NULL, 
	rung INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	bracket INTEGER NOT NULL, 
	value DOUBLE PRECISION NOT NULL, 
	is_promoted BOOLEAN NOT NULL, 
	CONSTRAINT tuner_rungs_pkey PRIMARY KEY (trial_id, rung), 
	CONSTRAINT tuner_rungs_study_id_fkey FOREIGN KEY(study_id) REFERENCES studies (study_id) ON DELETE CASCADE, 
	CONSTRAINT tuner_rungs_trial_id_fkey FOREIGN KEY(trial_id) REFERENCES trials (trial_id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX tuner_rungs_by_position ON tuner_rungs (study_id, position);
INSERT INTO alembic_version (version_num) VALUES ('v3.2.0.a');
INSERT INTO studies (study_id, study_name) VALUES (1, 'old');
SELECT setval('public.studies_study_id_seq', 4);
INSERT INTO tuner_alembic_version (version_num) VALUES ('0004');
INSERT INTO version_info (version_info_id, schema_version, library_version) VALUES (1, 12, '5.0.0');
INSERT INTO study_directions (study_direction_id, direction, study_id, objective) VALUES (1, 'MINIMIZE', 1, 0);
SELECT setval('public.study_directions_study_direction_id_seq', 1);
INSERT INTO study_system_attributes (study_system_attribute_id, study_id, key, value_json) VALUES (1, 1, 'tuner:study', '{"objective": ["loss"], "direction": ["minimize"], "epochs": 6, "seed": 0, "space": {"learning_rate": "log_uniform(0.001, 1.0)", "noise": "uniform(0.0, 1.0)", "width": "choice(2, 4)", "optimizer": "choice(''SGD'', ''Adam'')", "optimizer.momentum": "uniform(0.0, 0.9) if optimizer=SGD", "optimizer.b1": "uniform(0.5, 0.9) if optimizer=Adam"}}');
SELECT setval('public.study_system_attributes_study_system_attribute_id_seq', 4);
SELECT setval('public.study_user_attributes_study_user_attribute_id_seq', 1);
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES (1, 0, 1, 'COMPLETE', '2026-11-29 12:09:37.803540', '2026-11-29 12:09:48.229983');
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES (2, 1, 1, 'PRUNED', '2026-11-29 12:09:48.400676', '2026-11-29 12:09:50.571706');
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES (3, 2, 1, 'PRUNED', '2026-11-29 12:10:54.787508', '2026-11-29 12:11:01.004365');
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES (4, 3, 1, 'FAIL', '2026-11-29 12:11:01.259483', '2026-11-29 12:11:03.092099');
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES (5, 4, 1, 'PRUNED', '2026-11-29 12:11:03.227116', '2026-11-29 12:11:03.816833');
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES (6, 5, 1, 'PRUNED', '2026-11-29 12:11:03.992505', '2026-11-29 12:11:04.652815');
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES (7, 6, 1, 'PRUNED', '2026-11-29 12:11:04.813263', '2026-11-29 12:11:05.416064');
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES (8, 7, 1, 'COMPLETE', '2026-11-29 12:11:05.563763', '2026-11-29 12:11:10.490520');
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES (9, 8, 1, 'PRUNED', '2026-11-29 12:11:10.796494', '2026-11-29 12:11:12.665128');
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES (10, 9, 1, 'PRUNED', '2026-11-29 12:11:12.768596', '2026-11-29 12:11:16.842443');
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES (11, 10, 1, 'PRUNED', '2026-11-29 12:11:17.007723', '2026-11-29 12:11:17.558612');
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES (12, 11, 1, 'COMPLETE', '2026-11-29 12:12:02.191572', '2026-11-29 12:13:33.460185');
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES (13, 12, 1, 'RUNNING', '2026-11-29 12:13:33.780758', NULL);
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES (14, 13, 1, 'WAITING', NULL, NULL);
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES (15, 14, 1, 'WAITING', NULL, NULL);
SELECT setval('public.trials_trial_id_seq', 15);
INSERT INTO tuner_budgets (study_id, identity, trials, wall_s, device_s, stopped_at_s) VALUES (1, '5616fd0aab1943fe82e7902b264cd203', 12, NULL, NULL, NULL);
INSERT INTO tuner_workers (worker, study_id, host, pid, devices, started_at_s, seen_at_s, ended_at_s, about) VALUES ('killed-worker', 1, 'vm', 11732, 'cpu 2', 1795954322.125374, 1795954332.408593, NULL, '{"file": "/tmp/tuner-0.1/postgres/study.py", "code": "69f545057d46ee10", "git": null, "versions": {"python": "3.11.7", "jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8", "optax": "0.2.8", "orbax-checkpoint": "0.12.8", "numpy": "2.4.6", "device": "cpu", "xla_flags": ""}}');
INSERT INTO tuner_workers (worker, study_id, host, pid, devices, started_at_s, seen_at_s, ended_at_s, about) VALUES ('stopped-worker', 1, 'vm', 12270, 'cpu 2', 1795954387.815157, 1795954418.849905, 1795954421.83155, '{"file": "/tmp/tuner-0.1/postgres/study.py", "code": "69f545057d46ee10", "git": null, "versions": {"python": "3.11.7", "jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8", "optax": "0.2.8", "orbax-checkpoint": "0.12.8", "numpy": "2.4.6", "device": "cpu", "xla_flags": ""}}');
INSERT INTO tuner_workers (worker, study_id, host, pid, devices, started_at_s, seen_at_s, ended_at_s, about) VALUES ('vm:3177:0.1', 1, 'vm', 3235, 'cpu 0,1', 1795954177.715644, 1795954187.908003, 1795954190.719515, '{"file": "/tmp/tuner-0.1/postgres/study.py", "code": "69f545057d46ee10", "git": null, "versions": {"python": "3.11.7", "jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8", "optax": "0.2.8", "orbax-checkpoint": "0.12.8", "numpy": "2.4.6", "device": "cpu", "xla_flags": ""}}');
INSERT INTO tuner_workers (worker, study_id, host, pid, devices, started_at_s, seen_at_s, ended_at_s, about) VALUES ('vm:3908:0.1', 1, 'vm', 3944, 'cpu 0,1', 1795954254.71176, 1795954260.02711, 1795954277.727532, '{"file": "/tmp/tuner-0.1/postgres/study.py", "code": "69f545057d46ee10", "git": null, "versions": {"python": "3.11.7", "jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8", "optax": "0.2.8", "orbax-checkpoint": "0.12.8", "numpy": "2.4.6", "device": "cpu", "xla_flags": ""}}');
SELECT setval('public.trial_heartbeats_trial_heartbeat_id_seq', 1);
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (1, 1, 1, 7.104611873626709, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (2, 1, 2, 1.5572301149368286, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (3, 1, 3, 9.63507080078125, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (4, 1, 4, 1.984411597251892, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (5, 1, 5, 1.3141777515411377, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (6, 1, 6, 0.9632076025009155, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (7, 2, 1, 9.425654411315918, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (8, 3, 1, NULL, 'NAN');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (9, 5, 1, 10.227388381958008, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (10, 6, 1, 9.43920612335205, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (11, 7, 1, 8.60106372833252, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (12, 8, 1, 1.9373887777328491, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (13, 8, 2, 0.8762344121932983, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (14, 8, 3, 0.6808856725692749, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (15, 8, 4, 0.6098029017448425, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (16, 8, 5, 0.45234623551368713, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (17, 8, 6, 0.8286226391792297, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (18, 9, 1, 10.581568717956543, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (19, 10, 1, 4.026824951171875, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (20, 10, 2, 1.620460867881775, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (21, 10, 3, 2.2764458656311035, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (22, 11, 1, 9.250380516052246, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (23, 12, 1, 1.0310312509536743, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (25, 12, 2, 0.6183419227600098, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (26, 12, 3, 0.48925915360450745, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (27, 12, 4, 0.4486469626426697, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (28, 12, 5, 0.4481409192085266, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (29, 12, 6, 0.37947970628738403, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (30, 13, 1, 0.8684388995170593, 'FINITE');
INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES (31, 13, 2, 0.5516806244850159, 'FINITE');
SELECT setval('public.trial_intermediate_values_trial_intermediate_value_id_seq', 31);
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (1, 1, 'learning_rate', 0.39199751037954145, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (2, 1, 'noise', 0.40709343716420354, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (3, 1, 'width', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": [2, 4]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (4, 1, 'optimizer', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["SGD", "Adam"]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (5, 1, 'optimizer.momentum', 0.3177713172056334, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 0.9, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (6, 2, 'learning_rate', 0.043490773246853374, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (7, 2, 'noise', 0.35438542517570404, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (8, 2, 'width', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": [2, 4]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (9, 2, 'optimizer', 1.0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["SGD", "Adam"]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (10, 2, 'optimizer.b1', 0.6990911958012436, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.5, "high": 0.9, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (11, 3, 'learning_rate', 0.9, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (12, 3, 'noise', 0.5, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (13, 3, 'width', 1.0, '{"name": "CategoricalDistribution", "attributes": {"choices": [2, 4]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (14, 3, 'optimizer', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["SGD", "Adam"]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (15, 3, 'optimizer.momentum', 0.8051050066519797, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 0.9, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (16, 4, 'learning_rate', 0.1, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (17, 4, 'noise', 0.95, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (18, 4, 'width', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": [2, 4]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (19, 4, 'optimizer', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["SGD", "Adam"]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (20, 4, 'optimizer.momentum', 0.31682025828799454, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 0.9, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (21, 5, 'learning_rate', 0.007696911800126051, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (22, 5, 'noise', 0.0969159899638039, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (23, 5, 'width', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": [2, 4]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (24, 5, 'optimizer', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["SGD", "Adam"]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (25, 5, 'optimizer.momentum', 0.8646578598876201, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 0.9, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (26, 6, 'learning_rate', 0.006135393646233185, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (27, 6, 'noise', 0.61886309918209, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (28, 6, 'width', 1.0, '{"name": "CategoricalDistribution", "attributes": {"choices": [2, 4]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (29, 6, 'optimizer', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["SGD", "Adam"]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (30, 6, 'optimizer.momentum', 0.7673108252462824, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 0.9, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (31, 7, 'learning_rate', 0.015502816729610345, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (32, 7, 'noise', 0.6077135170707831, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (33, 7, 'width', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": [2, 4]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (34, 7, 'optimizer', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["SGD", "Adam"]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (35, 7, 'optimizer.momentum', 0.6530677809727036, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 0.9, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (36, 8, 'learning_rate', 0.13345437053307652, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (37, 8, 'noise', 0.407746738441109, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (38, 8, 'width', 1.0, '{"name": "CategoricalDistribution", "attributes": {"choices": [2, 4]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (39, 8, 'optimizer', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["SGD", "Adam"]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (40, 8, 'optimizer.momentum', 0.1154876806685523, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 0.9, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (41, 9, 'learning_rate', 0.03199513571276204, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (42, 9, 'noise', 0.37905253399154337, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (43, 9, 'width', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": [2, 4]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (44, 9, 'optimizer', 1.0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["SGD", "Adam"]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (45, 9, 'optimizer.b1', 0.6306007338666654, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.5, "high": 0.9, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (46, 10, 'learning_rate', 0.31828224515428094, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (47, 10, 'noise', 0.05463182638160302, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (48, 10, 'width', 1.0, '{"name": "CategoricalDistribution", "attributes": {"choices": [2, 4]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (49, 10, 'optimizer', 1.0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["SGD", "Adam"]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (50, 10, 'optimizer.b1', 0.7208612128035, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.5, "high": 0.9, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (51, 11, 'learning_rate', 0.004580287942912207, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (52, 11, 'noise', 0.7639426244884324, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (53, 11, 'width', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": [2, 4]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (54, 11, 'optimizer', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["SGD", "Adam"]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (55, 11, 'optimizer.momentum', 0.18298435421899376, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 0.9, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (56, 12, 'learning_rate', 0.15, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (57, 12, 'noise', 0.1, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (58, 12, 'width', 1.0, '{"name": "CategoricalDistribution", "attributes": {"choices": [2, 4]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (59, 12, 'optimizer', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["SGD", "Adam"]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (60, 12, 'optimizer.momentum', 0.1, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 0.9, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (61, 13, 'learning_rate', 0.2, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (62, 13, 'noise', 0.2, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (63, 13, 'width', 1.0, '{"name": "CategoricalDistribution", "attributes": {"choices": [2, 4]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (64, 13, 'optimizer', 0.0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["SGD", "Adam"]}}');
INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES (65, 13, 'optimizer.momentum', 0.1, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 0.9, "log": false}}');
SELECT setval('public.trial_params_param_id_seq', 65);
INSERT INTO trial_system_attributes (trial_system_attribute_id, trial_id, key, value_json) VALUES (1, 3, 'fixed_params', '{"learning_rate": 0.9, "noise": 0.5}');
INSERT INTO trial_system_attributes (trial_system_attribute_id, trial_id, key, value_json) VALUES (2, 4, 'fixed_params', '{"noise": 0.95, "learning_rate": 0.1}');
INSERT INTO trial_system_attributes (trial_system_attribute_id, trial_id, key, value_json) VALUES (3, 12, 'fixed_params', '{"learning_rate": 0.15, "noise": 0.1, "width": 4, "optimizer": "SGD", "optimizer.momentum": 0.1}');
INSERT INTO trial_system_attributes (trial_system_attribute_id, trial_id, key, value_json) VALUES (4, 13, 'fixed_params', '{"learning_rate": 0.2, "noise": 0.2, "width": 4, "optimizer": "SGD", "optimizer.momentum": 0.1}');
INSERT INTO trial_system_attributes (trial_system_attribute_id, trial_id, key, value_json) VALUES (5, 14, 'fixed_params', '{"learning_rate": 0.1, "width": 2, "optimizer": "SGD"}');
INSERT INTO trial_system_attributes (trial_system_attribute_id, trial_id, key, value_json) VALUES (6, 15, 'fixed_params', '{"learning_rate": 0.01}');
SELECT setval('public.trial_system_attributes_trial_system_attribute_id_seq', 6);
INSERT INTO trial_user_attributes (trial_user_attribute_id, trial_id, key, value_json) VALUES (1, 1, 'outcome', '"complete"');
INSERT INTO trial_user_attributes (trial_user_attribute_id, trial_id, key, value_json) VALUES (2, 2, 'outcome', '"pruned"');
INSERT INTO trial_user_attributes (trial_user_attribute_id, trial_id, key, value_json) VALUES (3, 3, 'outcome', '"diverged"');
INSERT INTO trial_user_attributes (trial_user_attribute_id, trial_id, key, value_json) VALUES (4, 4, 'outcome', '"failed"');
INSERT INTO trial_user_attributes (trial_user_attribute_id, trial_id, key, value_json) VALUES (5, 5, 'outcome', '"pruned"');
INSERT INTO trial_user_attributes (trial_user_attribute_id, trial_id, key, value_json) VALUES (6, 6, 'outcome', '"pruned"');
INSERT INTO trial_user_attributes (trial_user_attribute_id, trial_id, key, value_json) VALUES (7, 7, 'outcome', '"pruned"');
INSERT INTO trial_user_attributes (trial_user_attribute_id, trial_id, key, value_json) VALUES (8, 8, 'outcome', '"complete"');
INSERT INTO trial_user_attributes (trial_user_attribute_id, trial_id, key, value_json) VALUES (9, 9, 'outcome', '"pruned"');
INSERT INTO trial_user_attributes (trial_user_attribute_id, trial_id, key, value_json) VALUES (10, 10, 'outcome', '"pruned"');
INSERT INTO trial_user_attributes (trial_user_attribute_id, trial_id, key, value_json) VALUES (11, 11, 'outcome', '"pruned"');
INSERT INTO trial_user_attributes (trial_user_attribute_id, trial_id, key, value_json) VALUES (12, 12, 'outcome', '"complete"');
SELECT setval('public.trial_user_attributes_trial_user_attribute_id_seq', 12);
INSERT INTO trial_values (trial_value_id, trial_id, objective, value, value_type) VALUES (1, 1, 0, 0.9632076025009155, 'FINITE');
INSERT INTO trial_values (trial_value_id, trial_id, objective, value, value_type) VALUES (2, 2, 0, 9.425654411315918, 'FINITE');
INSERT INTO trial_values (trial_value_id, trial_id, objective, value, value_type) VALUES (3, 5, 0, 10.227388381958008, 'FINITE');
INSERT INTO trial_values (trial_value_id, trial_id, objective, value, value_type) VALUES (4, 6, 0, 9.43920612335205, 'FINITE');
INSERT INTO trial_values (trial_value_id, trial_id, objective, value, value_type) VALUES (5, 7, 0, 8.60106372833252, 'FINITE');
INSERT INTO trial_values (trial_value_id, trial_id, objective, value, value_type) VALUES (6, 8, 0, 0.8286226391792297, 'FINITE');
INSERT INTO trial_values (trial_value_id, trial_id, objective, value, value_type) VALUES (7, 9, 0, 10.581568717956543, 'FINITE');
INSERT INTO trial_values (trial_value_id, trial_id, objective, value, value_type) VALUES (8, 10, 0, 2.2764458656311035, 'FINITE');
INSERT INTO trial_values (trial_value_id, trial_id, objective, value, value_type) VALUES (9, 11, 0, 9.250380516052246, 'FINITE');
INSERT INTO trial_values (trial_value_id, trial_id, objective, value, value_type) VALUES (10, 12, 0, 0.37947970628738403, 'FINITE');
SELECT setval('public.trial_values_trial_value_id_seq', 10);
INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending, error) VALUES (1, 1, 1, 'vm:3177:0.1', 1, 1795954177.780324, 1795954188.230538, 'complete', NULL);
INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending, error) VALUES (2, 1, 1, 'vm:3177:0.1', 1, 1795954188.399871, 1795954190.571865, 'pruned', NULL);
INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending, error) VALUES (3, 1, 1, 'vm:3908:0.1', 1, 1795954254.764083, 1795954261.00447, 'diverged', NULL);
INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending, error) VALUES (4, 1, 1, 'vm:3908:0.1', 1, 1795954261.243776, 1795954262.931338, 'failed', 'Traceback (most recent call last):
  File "/work/main/tuner/worker/attempt.py", line 134, in _train
    for report in reports:
  File "<frozen _collections_abc>", line 330, in __next__
  File "/work/main/tuner/training/loop.py", line 162, in send
    return self._generator.send(value)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/work/main/tuner/training/loop.py", line 193, in _run
    yield from self._one_epoch()
  File "/work/main/tuner/training/loop.py", line 231, in _one_epoch
    pruned = self._call_hook("on_validation_epoch_end", found) or pruned
             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/work/main/tuner/training/loop.py", line 259, in _call_hook
    added = getattr(self.trainer, hook)(self.state, self.host_hparams, self._epoch, dict(found)) or {}
            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/tmp/tuner-0.1/postgres/study.py", line 57, in on_validation_epoch_end
    raise RuntimeError("the noise is too loud")
RuntimeError: the noise is too loud
');
INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending, error) VALUES (4, 2, 1, 'vm:3908:0.1', 1, 1795954262.952108, 1795954263.09222, 'failed', 'Traceback (most recent call last):
  File "/work/main/tuner/worker/attempt.py", line 134, in _train
    for report in reports:
  File "<frozen _collections_abc>", line 330, in __next__
  File "/work/main/tuner/training/loop.py", line 162, in send
    return self._generator.send(value)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/work/main/tuner/training/loop.py", line 193, in _run
    yield from self._one_epoch()
  File "/work/main/tuner/training/loop.py", line 231, in _one_epoch
    pruned = self._call_hook("on_validation_epoch_end", found) or pruned
             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/work/main/tuner/training/loop.py", line 259, in _call_hook
    added = getattr(self.trainer, hook)(self.state, self.host_hparams, self._epoch, dict(found)) or {}
            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/tmp/tuner-0.1/postgres/study.py", line 57, in on_validation_epoch_end
    raise RuntimeError("the noise is too loud")
RuntimeError: the noise is too loud
');
INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending, error) VALUES (5, 1, 1, 'vm:3908:0.1', 1, 1795954263.224147, 1795954263.81702, 'pruned', NULL);
INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending, error) VALUES (6, 1, 1, 'vm:3908:0.1', 1, 1795954263.991561, 1795954264.652906, 'pruned', NULL);
INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending, error) VALUES (7, 1, 1, 'vm:3908:0.1', 1, 1795954264.793737, 1795954265.416133, 'pruned', NULL);
INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending, error) VALUES (8, 1, 1, 'vm:3908:0.1', 1, 1795954265.559731, 1795954270.490647, 'complete', NULL);
INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending, error) VALUES (9, 1, 1, 'vm:3908:0.1', 1, 1795954270.795547, 1795954272.665215, 'pruned', NULL);
INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending, error) VALUES (10, 1, 1, 'vm:3908:0.1', 1, 1795954272.767654, 1795954276.842556, 'pruned', NULL);
INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending, error) VALUES (11, 1, 1, 'vm:3908:0.1', 1, 1795954277.000731, 1795954277.55867, 'pruned', NULL);
INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending, error) VALUES (12, 1, 1, 'killed-worker', 1, 1795954322.177729, 1795954362.396444, 'died', NULL);
INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending, error) VALUES (12, 2, 1, 'stopped-worker', 1, 1795954387.844227, 1795954413.460388, 'complete', NULL);
INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending, error) VALUES (13, 1, 1, 'stopped-worker', 1, 1795954413.777677, 1795954421.806865, 'preempted', NULL);
INSERT INTO tuner_leases (trial_id, worker, fence, deaths, expires_at_s) VALUES (13, NULL, 1, 0, 0.0);
INSERT INTO tuner_records (trial_id, study_id, outcome, ended_at_s, worker, compile_s, compilations, train_s, checkpoint, error_kind, error) VALUES (1, 1, 'complete', 1795954188.229694, 'vm:3177:0.1', 0.6293, 2, 9.4825, '/tmp/tuner-0.1/postgres/tuner-artifacts/old-5616fd0a/0/best', NULL, NULL);
INSERT INTO tuner_records (trial_id, study_id, outcome, ended_at_s, worker, compile_s, compilations, train_s, checkpoint, error_kind, error) VALUES (2, 1, 'pruned', 1795954190.571619, 'vm:3177:0.1', 0.509, 1, 1.6284, NULL, NULL, NULL);
INSERT INTO tuner_records (trial_id, study_id, outcome, ended_at_s, worker, compile_s, compilations, train_s, checkpoint, error_kind, error) VALUES (3, 1, 'diverged', 1795954261.004305, 'vm:3908:0.1', 0.4767, 1, 5.6513, NULL, NULL, NULL);
INSERT INTO tuner_records (trial_id, study_id, outcome, ended_at_s, worker, compile_s, compilations, train_s, checkpoint, error_kind, error) VALUES (4, 1, 'failed', 1795954263.092042, 'vm:3908:0.1', 0.0, 0, 0.0829, NULL, 'RuntimeError at study.py:57', 'Traceback (most recent call last):
  File "/work/main/tuner/worker/attempt.py", line 134, in _train
    for report in reports:
  File "<frozen _collections_abc>", line 330, in __next__
  File "/work/main/tuner/training/loop.py", line 162, in send
    return self._generator.send(value)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/work/main/tuner/training/loop.py", line 193, in _run
    yield from self._one_epoch()
  File "/work/main/tuner/training/loop.py", line 231, in _one_epoch
    pruned = self._call_hook("on_validation_epoch_end", found) or pruned
             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/work/main/tuner/training/loop.py", line 259, in _call_hook
    added = getattr(self.trainer, hook)(self.state, self.host_hparams, self._epoch, dict(found)) or {}
            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/tmp/tuner-0.1/postgres/study.py", line 57, in on_validation_epoch_end
    raise RuntimeError("the noise is too loud")
RuntimeError: the noise is too loud
');
INSERT INTO tuner_records (trial_id, study_id, outcome, ended_at_s, worker, compile_s, compilations, train_s, checkpoint, error_kind, error) VALUES (5, 1, 'pruned', 1795954263.81677, 'vm:3908:0.1', 0.0286, 0, 0.5203, NULL, NULL, NULL);
INSERT INTO tuner_records (trial_id, study_id, outcome, ended_at_s, worker, compile_s, compilations, train_s, checkpoint, error_kind, error) VALUES (6, 1, 'pruned', 1795954264.652758, 'vm:3908:0.1', 0.2027, 1, 0.4556, NULL, NULL, NULL);
INSERT INTO tuner_records (trial_id, study_id, outcome, ended_at_s, worker, compile_s, compilations, train_s, checkpoint, error_kind, error) VALUES (7, 1, 'pruned', 1795954265.416034, 'vm:3908:0.1', 0.0, 0, 0.5992, NULL, NULL, NULL);
INSERT INTO tuner_records (trial_id, study_id, outcome, ended_at_s, worker, compile_s, compilations, train_s, checkpoint, error_kind, error) VALUES (8, 1, 'complete', 1795954270.490447, 'vm:3908:0.1', 0.0, 0, 4.6826, '/tmp/tuner-0.1/postgres/tuner-artifacts/old-5616fd0a/7/best', NULL, NULL);
INSERT INTO tuner_records (trial_id, study_id, outcome, ended_at_s, worker, compile_s, compilations, train_s, checkpoint, error_kind, error) VALUES (9, 1, 'pruned', 1795954272.665092, 'vm:3908:0.1', 0.3857, 0, 1.4748, NULL, NULL, NULL);
INSERT INTO tuner_records (trial_id, study_id, outcome, ended_at_s, worker, compile_s, compilations, train_s, checkpoint, error_kind, error) VALUES (10, 1, 'pruned', 1795954276.84241, 'vm:3908:0.1', 0.4668, 0, 3.5908, NULL, NULL, NULL);
INSERT INTO tuner_records (trial_id, study_id, outcome, ended_at_s, worker, compile_s, compilations, train_s, checkpoint, error_kind, error) VALUES (11, 1, 'pruned', 1795954277.558583, 'vm:3908:0.1', 0.0, 0, 0.5421, NULL, NULL, NULL);
INSERT INTO tuner_records (trial_id, study_id, outcome, ended_at_s, worker, compile_s, compilations, train_s, checkpoint, error_kind, error) VALUES (12, 1, 'complete', 1795954413.460089, 'stopped-worker', 0.496, 2, 24.8213, '/tmp/tuner-0.1/postgres/tuner-artifacts/old-5616fd0a/11/best', NULL, NULL);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (1, 1, 3, '{"far": 0.699999988079071, "loss": 7.104611873626709, "train_far": 0.8500000238418579, "train_grad_norm": 3.042630434036255, "train_loss": 14.13866138458252}', 1795954182.640662);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (1, 2, 6, '{"far": 0.5, "loss": 1.5572301149368286, "train_far": 0.518750011920929, "train_grad_norm": 2.9581243991851807, "train_loss": 6.040706157684326}', 1795954183.531987);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (1, 3, 9, '{"far": 0.7749999761581421, "loss": 9.63507080078125, "train_far": 0.5062500238418579, "train_grad_norm": 5.309340953826904, "train_loss": 2.976630449295044}', 1795954184.572531);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (1, 4, 12, '{"far": 0.5249999761581421, "loss": 1.984411597251892, "train_far": 0.637499988079071, "train_grad_norm": 4.566705703735352, "train_loss": 6.4573259353637695}', 1795954185.666461);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (1, 5, 15, '{"far": 0.32499998807907104, "loss": 1.3141777515411377, "train_far": 0.4749999940395355, "train_grad_norm": 1.411031723022461, "train_loss": 2.70412015914917}', 1795954186.702824);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (1, 6, 18, '{"far": 0.17499999701976776, "loss": 0.9632076025009155, "train_far": 0.2750000059604645, "train_grad_norm": 1.4939035177230835, "train_loss": 1.9521729946136475}', 1795954187.626351);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (2, 1, 3, '{"far": 0.75, "loss": 9.425654411315918, "train_far": 0.8187500238418579, "train_grad_norm": 3.796189069747925, "train_loss": 13.0790433883667}', 1795954190.526521);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (3, 1, 3, '{"far": 0.7250000238418579, "loss": "nan", "train_far": 0.7562500238418579, "train_grad_norm": 0.0, "train_loss": "nan"}', 1795954260.868119);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (5, 1, 3, '{"far": 0.7749999761581421, "loss": 10.227388381958008, "train_far": 0.8500000238418579, "train_grad_norm": 7.7451252937316895, "train_loss": 17.083906173706055}', 1795954263.664086);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (6, 1, 3, '{"far": 0.7749999761581421, "loss": 9.43920612335205, "train_far": 0.793749988079071, "train_grad_norm": 3.829723358154297, "train_loss": 12.649877548217773}', 1795954264.633576);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (7, 1, 3, '{"far": 0.675000011920929, "loss": 8.60106372833252, "train_far": 0.8187500238418579, "train_grad_norm": 3.6097252368927, "train_loss": 12.48759651184082}', 1795954265.219767);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (8, 1, 3, '{"far": 0.22499999403953552, "loss": 1.9373887777328491, "train_far": 0.65625, "train_grad_norm": 5.155398368835449, "train_loss": 9.281763076782227}', 1795954265.825756);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (8, 2, 6, '{"far": 0.15000000596046448, "loss": 0.8762344121932983, "train_far": 0.28125, "train_grad_norm": 2.002519369125366, "train_loss": 2.508877754211426}', 1795954266.627718);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (8, 3, 9, '{"far": 0.10000000149011612, "loss": 0.6808856725692749, "train_far": 0.14374999701976776, "train_grad_norm": 1.1298506259918213, "train_loss": 1.5010287761688232}', 1795954267.44174);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (8, 4, 12, '{"far": 0.125, "loss": 0.6098029017448425, "train_far": 0.11249999701976776, "train_grad_norm": 1.7120319604873657, "train_loss": 1.2735217809677124}', 1795954268.302557);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (8, 5, 15, '{"far": 0.10000000149011612, "loss": 0.45234623551368713, "train_far": 0.21875, "train_grad_norm": 2.621635675430298, "train_loss": 1.2940784692764282}', 1795954269.054579);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (8, 6, 18, '{"far": 0.32499998807907104, "loss": 0.8286226391792297, "train_far": 0.11874999850988388, "train_grad_norm": 2.457994222640991, "train_loss": 0.9887458682060242}', 1795954269.90809);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (9, 1, 3, '{"far": 0.75, "loss": 10.581568717956543, "train_far": 0.831250011920929, "train_grad_norm": 3.774513006210327, "train_loss": 14.5674467086792}', 1795954272.54306);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (10, 1, 3, '{"far": 0.4000000059604645, "loss": 4.026824951171875, "train_far": 0.8062499761581421, "train_grad_norm": 6.443963527679443, "train_loss": 13.781797409057617}', 1795954274.887298);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (10, 2, 6, '{"far": 0.550000011920929, "loss": 1.620460867881775, "train_far": 0.44999998807907104, "train_grad_norm": 3.58203387260437, "train_loss": 4.722128868103027}', 1795954275.608928);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (10, 3, 9, '{"far": 0.6499999761581421, "loss": 2.2764458656311035, "train_far": 0.5249999761581421, "train_grad_norm": 1.601953148841858, "train_loss": 2.366142749786377}', 1795954276.530952);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (11, 1, 3, '{"far": 0.699999988079071, "loss": 9.250380516052246, "train_far": 0.8374999761581421, "train_grad_norm": 1.9943132400512695, "train_loss": 12.855127334594727}', 1795954277.397637);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (12, 1, 3, '{"far": 0.15000000596046448, "loss": 1.0310312509536743, "train_far": 0.7437499761581421, "train_grad_norm": 5.2002129554748535, "train_loss": 9.374319076538086}', 1795954332.048027);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (12, 2, 6, '{"far": 0.17499999701976776, "loss": 0.6183419227600098, "train_far": 0.16875000298023224, "train_grad_norm": 1.4213124513626099, "train_loss": 1.2460788488388062}', 1795954397.959459);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (12, 3, 9, '{"far": 0.10000000149011612, "loss": 0.48925915360450745, "train_far": 0.11249999701976776, "train_grad_norm": 0.9414548873901367, "train_loss": 0.890127956867218}', 1795954401.632184);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (12, 4, 12, '{"far": 0.07500000298023224, "loss": 0.4486469626426697, "train_far": 0.08124999701976776, "train_grad_norm": 1.0102993249893188, "train_loss": 0.7714899182319641}', 1795954405.348507);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (12, 5, 15, '{"far": 0.10000000149011612, "loss": 0.4481409192085266, "train_far": 0.08749999850988388, "train_grad_norm": 1.3570585250854492, "train_loss": 0.6837925910949707}', 1795954409.272482);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (12, 6, 18, '{"far": 0.05000000074505806, "loss": 0.37947970628738403, "train_far": 0.07500000298023224, "train_grad_norm": 1.3723243474960327, "train_loss": 0.622986912727356}', 1795954413.199785);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (13, 1, 3, '{"far": 0.17499999701976776, "loss": 0.8684388995170593, "train_far": 0.699999988079071, "train_grad_norm": 5.2743706703186035, "train_loss": 9.710651397705078}', 1795954417.689994);
INSERT INTO tuner_reports (trial_id, epoch, step, metrics, reported_at_s) VALUES (13, 2, 6, '{"far": 0.15000000596046448, "loss": 0.5516806244850159, "train_far": 0.13750000298023224, "train_grad_norm": 1.3014771938323975, "train_loss": 1.4226001501083374}', 1795954421.44797);
INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) VALUES (1, 0, 1, 1, 0, 7.104611873626709, true);
INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) VALUES (1, 1, 1, 2, 0, 9.63507080078125, true);
INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) VALUES (2, 0, 1, 3, 0, 9.425654411315918, false);
INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) VALUES (5, 0, 1, 4, 0, 10.227388381958008, false);
INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) VALUES (6, 0, 1, 5, 0, 9.43920612335205, false);
INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) VALUES (7, 0, 1, 6, 0, 8.60106372833252, false);
INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) VALUES (8, 0, 1, 7, 0, 1.9373887777328491, true);
INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) VALUES (8, 1, 1, 8, 0, 0.6808856725692749, true);
INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) VALUES (9, 0, 1, 9, 0, 10.581568717956543, false);
INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) VALUES (10, 0, 1, 10, 0, 4.026824951171875, true);
INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) VALUES (10, 1, 1, 11, 0, 2.2764458656311035, false);
INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) VALUES (11, 0, 1, 12, 0, 9.250380516052246, false);
INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) VALUES (12, 0, 1, 13, 0, 1.0310312509536743, true);
INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) VALUES (12, 1, 1, 14, 0, 0.48925915360450745, true);
INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) VALUES (13, 0, 1, 15, 0, 0.8684388995170593, true);
