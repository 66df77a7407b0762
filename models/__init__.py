"""The networks, made by name. Listing the names imports no torch; a family is imported when one of it is made."""

if __name__ == "models":  # a clone's short name for `polychrome.models`
    from polychrome.clone import alias

    alias(__name__)
else:
    from polychrome.models.registry import UnknownModelError, create, names

    __all__ = ["UnknownModelError", "create", "names"]
