"""The steps of the database schema, run by `metareward db upgrade`; installed as `metareward_migrations`."""
