"""What people do to studies and machines by hand."""
