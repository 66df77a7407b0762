"""The networks, made by name. Listing the names imports no torch; a family is imported when one of it is made."""

from models.registry import UnknownModelError, create, names

__all__ = ["UnknownModelError", "create", "names"]
