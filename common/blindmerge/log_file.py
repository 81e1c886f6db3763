"""What long-running commands write about themselves."""

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

__all__ = ["log_to_file"]

_BYTES, _FILES = 10 << 20, 3


def log_to_file(file: Path) -> None:
    """What blindmerge and Flower have to say goes to a file that is rotated; one per process."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = RotatingFileHandler(file, maxBytes=_BYTES, backupCount=_FILES, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per look for messages
    flower = logging.getLogger("flwr")
    flower.handlers, flower.propagate = [], True
    flower.setLevel(logging.INFO)
