"""People who are signed in to the console: their sessions, and the links that begin one."""
