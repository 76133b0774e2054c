"""Notifications: tells people, by a web hook, mail or a command, what happens to a study that is launched."""
