"""HTTP itself: connections, bodies, progress, server-sent events."""
