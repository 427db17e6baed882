"""The `asurge` command."""
