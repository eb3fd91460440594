-- A state holds the sessions of earlier clients packed (engine/learning_session.py). A daemon of before cannot read these,
-- and would make rows of them a second time: it refuses a database with a migration that it does not know.
comment on column session_snapshots.state is 'engine.session.UserState in MessagePack; sessions of earlier clients packed';
