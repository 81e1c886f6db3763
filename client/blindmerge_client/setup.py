"""Makes an owner's folder, once; nothing in it is ever overwritten."""

import json
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from blindmerge.errors import ConfigInvalid
from blindmerge.files import explaining
from blindmerge.identity import Identity, Roster
from blindmerge.secagg.secret import Randomness
from blindmerge_client.config import Home

__all__ = ["make_home"]

_CLIENT = """\
# Where things are. Paths are relative to this file. `blindmerge client run DIR` reads it.

# The organisation's name, as it stands in the roster. It is part of your public keys.
name = "{name}"

# The model that everybody started from, and your own fine-tuned one: folders with config.json.
base = "models/base"
model = "models/own"

# Examples, as JSONL, CSV or Parquet. Statistics are made from `train`; on `validation` you compare
# the merged model with your own. Both stay here.
train = "data/train.jsonl"
validation = "data/validation.jsonl"

# With this line the coordinator is told the merged model's scores on these examples, and how
# many they are, in clear.
# test = "data/test.jsonl"

# The coordinator's server, and the authority that signed its certificate.
server = "fl.example.org:9092"
ca = "ca.crt"

# Where the gateway listens. Only you may write to its folder.
socket = "gateway.sock"

# Only you may use the socket; with this line a group may, so that `blindmerge client node` can be
# another user than `blindmerge client gateway`, one who cannot read anything here.
# socket_group = "blindmerge"
"""

_POLICY = """\
# What this organisation allows. Every line that is missing, or begins with '#', allows nothing.
# `blindmerge client policy check DIR PLAN` compares a plan with it, line by line.

# SHA-256 of the roster, once you have compared its members with the other organisations.
# roster = "..."

# How long this policy holds (UTC).
# expires = 2027-01-31

# Content hashes of base models: `blindmerge inspect MODEL` prints one.
# base_models = ["..."]

# Of average, fisher, progressive, regmean, regmean++, task-arithmetic and ties.
# methods = ["regmean"]

# Layers whose Gram matrices may be summed; "*" stands for anything.
# layers = ["*.layer.*"]

# "average", or "any" to allow statistics of words.
embeddings = "average"

# So many owners at least in every sum.
least_owners = 5

# So many others may be in league with the server; without this line a third of the roster.
# colluders = 1

# With fewer examples of yours nothing is sent; below so many rows per width a layer is averaged.
least_examples = 100
rows_factor = 4.0

# The server sees sums only.
require = ["masks"]   # add "noise" for noise in statistics, "end-to-end" for training as well

# Noise: what all jobs on the same examples may cost together, as epsilon at delta, and the
# least noise of statistics per clip. `blindmerge client ledger show DIR` says what is spent.
# max_epsilon = 4.0
delta = 1e-6
least_noise = 0.5

# Jobs that the same training data may be used for, and how often one sum may be tried.
max_jobs = 1
max_attempts = 3

# "ask" a person about every job, or "automatic".
approve = "ask"

# Names and public keys of coordinators whose plans are answered.
[coordinators]
# coordinator = "..."
"""


def make_home(folder: Path, name: str, rng: Randomness) -> Home:
    """A new folder with keys and the two files.   name: of the organisation.

    Raises ConfigInvalid if the folder holds anything, or the name cannot stand in a roster.
    """
    home = Home(folder)
    identity = Identity.generate(name, rng)
    Roster.of([identity.member])  # raises for a name that no roster takes
    node = ec.generate_private_key(ec.SECP384R1())
    public = node.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    keys = {"name": name, "identity": identity.public.hex(), "node": public}
    with explaining(home.folder):
        if home.folder.exists() and (not home.folder.is_dir() or any(home.folder.iterdir())):
            raise ConfigInvalid(
                f"'{home.folder}' is not empty; keys are never overwritten",
                hint="choose another folder",
            )
        home.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.jobs.mkdir(mode=0o700)
        _write(home.identity_file, identity.seed.reveal())
        private = (Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        _write(home.node_file, node.private_bytes(*private))
        _write(home.public_keys_file, (json.dumps(keys, indent=2) + "\n").encode())
        _write(home.policy_file, _POLICY.encode())
        # Last: a folder with this file is complete.
        _write(home.client_file, _CLIENT.format(name=name).encode())
    return home


def _write(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(file, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
