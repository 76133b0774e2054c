"""What workers write: claims, leases, reports, rungs, and the end of a trial."""
