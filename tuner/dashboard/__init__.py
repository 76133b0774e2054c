"""Optuna's dashboard over our storage behind a login, with pages of ours on workers and checkpoints."""

from tuner.dashboard.serve import Serving, check_serving, serve
from tuner.dashboard.users import Role, add_user, hash_password, hash_token, new_token

__all__ = ["Role", "Serving", "add_user", "check_serving", "hash_password", "hash_token", "new_token", "serve"]
