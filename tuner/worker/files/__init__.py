"""The files of trials: their folders, and the uploads to object storage."""
