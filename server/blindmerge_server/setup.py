"""Makes a coordinator's folder, once; nothing in it is ever overwritten."""

import datetime
import os
from collections.abc import Sequence
from pathlib import Path

from blindmerge.errors import ConfigInvalid
from blindmerge.files import explaining
from blindmerge.identity import Identity, Roster
from blindmerge.secagg.secret import Randomness
from blindmerge_server.certificates import make_credentials
from blindmerge_server.config import Home

__all__ = ["make_home"]

_CONTROL_BYTES = 32

_SETTINGS = """\
# Where the coordinator's server listens. `blindmerge server run DIR` reads this file.

# Your name, as owners pin it in their policies beside your public key.
name = "{name}"

# The address and the port to listen on.
listen = "0.0.0.0"
port = {port}

# Where `blindmerge server merge` finds the server: one of the hosts in its certificate.
connect = "{connect}"
"""

_JOB = """\
# A job. Copy this file, then:
#   blindmerge server plan DIR my-job.toml     # what owners can read beforehand
#   blindmerge server merge DIR my-job.toml    # runs it
# Paths are relative to this file.

# Never used before. Owners keep what they answered by this name.
name = "my-job-1"

# The checkpoint that every owner fine-tuned: a transformers folder with a classifier's head.
base = "models/base"

# regmean, regmean++, progressive, average, task-arithmetic, fisher or ties; options stand beside
# the name, e.g. {{ name = "regmean", rows_factor = 4.0 }}. Best in our measurements, but with a sum
# for every group of layers, is {{ name = "progressive", fisher_share = 0.25 }}.
method = {{ name = "regmean" }}

# With this line owners may have different labels: what is below the heads is merged, and each
# owner keeps its own head. The base then has a head of any labels.
# heads = "kept"

# At most so many of an owner's training examples enter its statistics.
examples = 1000

# Tokens after which a text is cut.
max_length = 128

# Width of the numbers under masks: 64, or 48 or 32 for smaller uploads. 32 bits are for the
# average and its relatives, and for regmean and progressive with a ridge of 0.01 or more.
bits = 64

# So many owners may be in league with the server; without it, a third of the roster.
# colluders = 1

# After so many days no owner joins any more.
days = 7

# An owner that is silent for so many hours is out of the job.
patience_hours = 12.0

# Noise with a proof; epsilon is what the job may cost one example of an owner. With it every
# example has to count, so that `examples` above is a public number that none has more of.
# [noise]
# mode = "statistics"
# epsilon = 4.0
# delta = 1e-6
"""


def make_home(
    folder: Path,
    name: str,
    hosts: Sequence[str],
    port: int,
    rng: Randomness,
    now: datetime.datetime,
) -> Home:
    """A new folder with keys and certificate.

    hosts: names and addresses that owners connect to.   now: in UTC.
    Raises ConfigInvalid if the folder holds anything, or a name is none.
    """
    home = Home(folder)
    identity = Identity.generate(name, rng)
    Roster.of([identity.member])  # raises for a name that owners could not pin
    credentials = make_credentials(name, hosts, now)
    with explaining(home.folder):
        if home.folder.exists() and (not home.folder.is_dir() or any(home.folder.iterdir())):
            raise ConfigInvalid(
                f"'{home.folder}' is not empty; keys are never overwritten",
                hint="choose another folder",
            )
        for made in (home.folder, home.authority_file.parent, home.owners_folder):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(home.identity_file, identity.seed.reveal())
        _write(home.control_file, rng.bytes(_CONTROL_BYTES))
        _write(home.authority_file, credentials.authority)
        _write(home.authority_key_file, credentials.authority_key)
        _write(home.certificate_file, credentials.certificate)
        _write(home.key_file, credentials.key)
        _write(home.job_template, _JOB.format().encode())
        # Last: a folder with this file is complete.
        text = _SETTINGS.format(name=name, port=port, connect=hosts[0])
        _write(home.settings_file, text.encode())
    return home


def _write(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(file, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
