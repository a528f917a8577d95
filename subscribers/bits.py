"""PostgreSQL's `bit varying` as a Django field: a string of 0 and 1, first character first issue."""

from typing import Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper


class BitStringField(models.Field[str, str]):
    """A bit string such as "0110"; empty when nothing happened yet."""

    description = "bit string"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("default", "")
        kwargs["db_default"] = kwargs.get("db_default", models.Value(""))
        super().__init__(*args, **kwargs)

    def db_type(self, connection: BaseDatabaseWrapper) -> str:
        return "bit varying"

    def get_prep_value(self, value: Any) -> Any:
        return value if value is None or hasattr(value, "resolve_expression") else str(value)

    def get_placeholder(self, value: Any, compiler: Any, connection: BaseDatabaseWrapper) -> str:
        return "%s::bit varying"
