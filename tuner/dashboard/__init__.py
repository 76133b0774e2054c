"""Optuna's dashboard for our storage, with a login, and extra pages about workers and checkpoints."""

from tuner.dashboard.first_user import add_user_of_environment
from tuner.dashboard.serve import Notifying, Serving, check_serving, serve
from tuner.dashboard.users import Role, add_user, hash_password, hash_token, new_token

__all__ = [
    "Notifying",
    "Role",
    "Serving",
    "add_user",
    "add_user_of_environment",
    "check_serving",
    "hash_password",
    "hash_token",
    "new_token",
    "serve",
]
