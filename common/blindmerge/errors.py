"""The errors of blindmerge, one tree.

    BlindmergeError
    ├── ConfigInvalid       exit 2   a file or option that a person wrote is wrong
    ├── DataInvalid         exit 3   an organisation's examples are wrong
    ├── CheckpointInvalid   exit 4   a model cannot be read, or is not what the job needs
    │   └── UnknownTensor            no rule covers a tensor of the model
    ├── PeerInvalid         exit 5   another party sent something that the plan does not allow
    │   ├── SchemaMismatch           a statistic's names, shapes or types differ from the plan
    │   ├── NotFinite                NaN or infinity where a finite number must be
    │   ├── NotCanonical             bytes that are not the one encoding of a value
    │   ├── ProtocolBroken           a message that the step of the protocol does not allow
    │   ├── SignatureInvalid         a signature that its alleged author did not make
    │   └── ShareInvalid             a share of a secret is not the one that was dealt
    ├── JobAborted          exit 6   the job cannot go on
    │   ├── TooFewOwners             fewer owners are left than a sum needs
    │   ├── Overflow                 a number is too large for the ring
    │   ├── AlreadyAnswered          the masks of this input were opened once, which is all
    │   └── LedgerTampered           the record of what privacy was spent is not as it was left
    ├── PolicyRefused       exit 8   the owner's own rules forbid it
    │   ├── ApprovalNeeded           the rules permit it, and a person must still approve
    │   └── BudgetExhausted          the privacy budget of the examples is spent
    ├── ResourceMissing     exit 7   disk, network or a package is not there
    └── Interrupted         exit 130 somebody pressed Ctrl-C

A message names the culprit and never quotes an organisation's data; the hint is the
next step. The exit code tells the kind, so that scripts can tell them apart.
"""

__all__ = [
    "AlreadyAnswered",
    "ApprovalNeeded",
    "BlindmergeError",
    "BudgetExhausted",
    "CheckpointInvalid",
    "ConfigInvalid",
    "DataInvalid",
    "Interrupted",
    "JobAborted",
    "LedgerTampered",
    "NotCanonical",
    "NotFinite",
    "Overflow",
    "PeerInvalid",
    "PolicyRefused",
    "ProtocolBroken",
    "ResourceMissing",
    "SchemaMismatch",
    "ShareInvalid",
    "SignatureInvalid",
    "TooFewOwners",
    "UnknownTensor",
]


class BlindmergeError(Exception):
    """Anything that blindmerge refuses or cannot do.

    message: what is wrong, in one sentence.   hint: what to do next, may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # The hint is a keyword, which Exception's own pickling would lose on the
        # way back from a worker process.
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[BlindmergeError], message: str, hint: str) -> BlindmergeError:
    return kind(message, hint=hint)


class ConfigInvalid(BlindmergeError):
    """A configuration file or option is wrong."""

    exit_code = 2


class DataInvalid(BlindmergeError):
    """Examples are missing, unreadable or not what the task needs."""

    exit_code = 3


class CheckpointInvalid(BlindmergeError):
    """A checkpoint is unreadable or does not fit the job."""

    exit_code = 4


class UnknownTensor(CheckpointInvalid):
    """A tensor that no rule covers: never a silent average."""


class PeerInvalid(BlindmergeError):
    """What another party sent breaks the plan."""

    exit_code = 5


class SchemaMismatch(PeerInvalid):
    """Names, shapes or types of a statistic differ from its schema."""


class NotFinite(PeerInvalid):
    """NaN or infinity in a statistic or a checkpoint."""


class NotCanonical(PeerInvalid):
    """Bytes that do not encode back to themselves."""


class ProtocolBroken(PeerInvalid):
    """A message that the step of the protocol does not allow."""


class SignatureInvalid(PeerInvalid):
    """A signature that its alleged author did not make."""


class ShareInvalid(PeerInvalid):
    """A share of a secret is not the one that was dealt."""


class JobAborted(BlindmergeError):
    """The job cannot go on."""

    exit_code = 6


class TooFewOwners(JobAborted):
    """Fewer owners are left than a sum needs."""


class Overflow(JobAborted):
    """A number is too large for the ring; it is refused, never clipped."""


class AlreadyAnswered(JobAborted):
    """The masks of this input were opened once; a second time could lay it bare."""


class LedgerTampered(JobAborted):
    """The ledger of a dataset is missing, edited, cut off or rolled back."""


class PolicyRefused(BlindmergeError):
    """The owner's own rules forbid what was asked.

    told: what a coordinator may be told of the reason, which says nothing about data.
    """

    exit_code = 8

    def __init__(self, message: str, *, hint: str = "", told: str = "") -> None:
        super().__init__(message, hint=hint)
        self.told = told


class ApprovalNeeded(PolicyRefused):
    """The rules permit it, but a person of the organisation has not approved it yet."""


class BudgetExhausted(PolicyRefused):
    """A release would cost more than what is left of the examples' privacy budget."""


class ResourceMissing(BlindmergeError):
    """Disk space, a package or the network is missing."""

    exit_code = 7


class Interrupted(BlindmergeError):
    """A person stopped the work."""

    exit_code = 130
