"""Image sets on disk: listing, scanning, sampling and loading."""
