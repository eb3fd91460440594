-- What the API's queries look for. The time series of a class go by the primary key of cell_executions, which begins
-- with the time; a notebook's summary needs all of its rows and nothing else.
create index on cell_executions (class_id, notebook_path, event_timestamp);
-- A page of a class's sessions, newest first.
create index on learning_sessions (class_id, started_at desc, id desc);
