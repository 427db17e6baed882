"""Conversations, whatever API they came in by: requests, tools, parsed output."""
