"""Files, folders, frames and arrays of users: how they are read, and the schema of their data."""
