"""The networks, made by name. Listing the names imports no torch; a family is imported when one of it is made."""

from typing import TYPE_CHECKING

if __name__ == "models":  # a clone's short name for `polychrome.models`
    from polychrome.clone import alias

    alias(__name__)
else:
    from polychrome.models.registry import UnknownModelError, create, names

    if TYPE_CHECKING:
        from polychrome.models.any_channels import AnyChannels

    __all__ = ["AnyChannels", "UnknownModelError", "create", "names"]

    def __getattr__(name: str):
        if name != "AnyChannels":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from polychrome.models.any_channels import AnyChannels

        return AnyChannels
