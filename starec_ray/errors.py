"""Errors that a user can act on. The command line prints them without a stack trace."""


class STARecError(Exception):
    """Something a user can mend: the message says what is wrong, where, and what to do."""


class DataError(STARecError):
    """Input files or tables that can't be used as they are."""


class ConfigError(STARecError):
    """A recipe or configuration that can't be run as it is."""


class DeadlineError(STARecError):
    """An actor, a store or a sweep's trial didn't answer in time, or died: names it, the work, and
    the cause."""


class StorageError(STARecError):
    """What is to be kept can't be written: names the place, and what is kept already."""


class StaleWeightsError(STARecError):
    """An env runner was asked to sample with a weight version that it doesn't hold."""


class WeightsLostError(STARecError):
    """The weights of a version can't be read any more: the learner that published them is gone."""


class TransferError(STARecError):
    """Weights didn't reach the env runners; the learners are as well as before."""


class CollapseError(STARecError):
    """Training measured what no healthy run measures: going on would waste the machine."""
