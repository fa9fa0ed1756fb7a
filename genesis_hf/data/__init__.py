"""Sources → documents → token rows."""
