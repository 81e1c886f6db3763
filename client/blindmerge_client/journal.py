"""The owner's state on disk, synced before anything is said (SPEC §9)."""

import hashlib
import os
from contextlib import AbstractContextManager
from pathlib import Path

from blindmerge.errors import ResourceMissing
from blindmerge.files import locked
from blindmerge_client.protocol import OwnerJob, Receipt

__all__ = ["Journal"]


class Journal:
    """One file with the last state of one job; mode 0600, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def held(self) -> AbstractContextManager[None]:
        """Nobody else who asks for this reads or stores the job meanwhile, in any process.

        Two who go on from the same state could tell the server two stories.
        """
        return locked(self._path.with_suffix(".lock"))

    def save(self, job: OwnerJob) -> Receipt:
        """Stores the job and syncs file and folder.

        Raises ResourceMissing if the disk does not take it; then nothing may be said.
        """
        data = job.encode()
        temporary = self._path.with_name(self._path.name + ".new")
        try:
            temporary.unlink(missing_ok=True)
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(file, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise ResourceMissing(
                f"the state of job '{job.job}' cannot be stored: {error.strerror}",
                hint="free disk space, or check who owns the state folder",
            ) from error
        return Receipt(hashlib.sha256(data).digest())

    def load(self, empty: OwnerJob) -> OwnerJob:
        """The stored job; `empty` if there is none yet.

        Raises JobAborted for a damaged file, ResourceMissing if it cannot be read.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return empty
        except OSError as error:
            raise ResourceMissing(
                f"the state of job '{empty.job}' cannot be read: {error.strerror}",
                hint="check who owns the state folder",
            ) from error
        return empty.restore(data)
