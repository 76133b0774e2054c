"""An HTTP server that slow, idle and greedy clients cannot block; the dashboard and the metrics port share it."""
