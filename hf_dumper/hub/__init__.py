"""The model hub, or a mirror of it: repositories to folders, whole or as they are needed."""
