"""Models as files: what lies where, what a dump of one would weigh, the first layers, settings."""
